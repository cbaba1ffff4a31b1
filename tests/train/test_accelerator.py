"""On an accelerator the step gives what the CPU gives, and a run trains there."""

from typing import get_args

import pytest
import torch
from torch.testing import assert_close

from saelens_lite.device import best_device
from saelens_lite.sae.config import SAEConfig
from saelens_lite.train.config import KindName, TrainConfig
from saelens_lite.train.kinds.choice import kind_class
from saelens_lite.train.optimise.initial import initial_sae
from saelens_lite.train.optimise.trainer import Trainer

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("kind", get_args(KindName))
def test_updates_equal_those_on_the_cpu(kind, planted):
    weights = []
    for device in ("cpu", best_device()):
        config = TrainConfig(
            kind=kind, k=4, l1_coeff=0.1, lr=1e-3, batch_size_rows=1024, dead_after_tokens=1024
        )
        sae_kind = kind_class(kind).sae_kind
        sae_config = SAEConfig(d_model=16, d_sae=256, kind=sae_kind, k=4 if sae_kind == "topk" else None)
        sae = initial_sae(sae_config, planted.acts, 0)
        trainer = Trainer(sae.to(device), config, n_steps=8)
        for batch in planted.acts.split(1024):
            trainer.update(batch.to(device))
        weights.append([parameter.detach().cpu() for parameter in trainer.sae.parameters()])
    for here, there in zip(*weights, strict=True):
        assert_close(there, here, rtol=1e-3, atol=1e-4)


def test_encode_on_the_accelerator_equals_the_cpu(planted):
    sae = initial_sae(SAEConfig(d_model=16, d_sae=256, kind="topk", k=4), planted.acts, 0)
    with torch.no_grad():
        here = sae.encode(planted.acts).to_dense()
        there = sae.to(best_device()).encode(planted.acts.to(best_device())).to_dense().cpu()
    assert_close(there, here, rtol=1e-4, atol=1e-5)
