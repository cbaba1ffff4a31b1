"""The SAE of one side: exact where the other side is a linear function of it, and an SAE like any other."""

import pytest
import torch

import saelens_lite as sl
from saelens_lite.analyze.model_diffing.one_side import side_agreement, side_sae
from saelens_lite.sae.config import SAEConfig, Side
from saelens_lite.sae.crosscoder import Crosscoder
from saelens_lite.store.derived import paired_store
from saelens_lite.store.reader import ActivationStore

from ..conftest import HOOK_POINT


def random_crosscoder(d_a, d_b, d_sae=16, kind="jumprelu", **of_sides):
    generator = torch.Generator().manual_seed(0)
    sides = tuple(Side(d_model=d, **of_sides) for d in (d_a, d_b))
    crosscoder = Crosscoder(
        SAEConfig(d_model=d_a + d_b, d_sae=d_sae, kind=kind, k=4 if kind == "topk" else None, sides=sides)
    )
    with torch.no_grad():
        for name, parameter in crosscoder.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.3 if "W" in name else 0.1))
    return crosscoder


@pytest.mark.parametrize("kind", ["jumprelu", "topk"])
@pytest.mark.parametrize("side", [0, 1])
def test_codes_are_those_of_the_crosscoder_where_one_side_says_all(tmp_path, kind, side):
    """x_b = x_a A + c with A of full rank, so each side predicts the other."""
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(300, 4, generator=generator)
    b = a @ torch.randn(4, 4, generator=generator) + torch.randn(4, generator=generator)
    stores = [ActivationStore.from_arrays(tmp_path / name, rows) for name, rows in (("a", a), ("b", b))]
    crosscoder, pair = random_crosscoder(4, 4, kind=kind), paired_store(stores)
    sae, own = side_sae(crosscoder, pair, side), (a, b)[side]
    with torch.no_grad():
        joint = crosscoder(torch.cat([a, b], dim=1))
        alone = sae(own)
    torch.testing.assert_close(alone.latents.to_dense(), joint.latents.to_dense(), atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(alone.recons, joint.recons[:, crosscoder.block(side)], atol=5e-3, rtol=5e-3)
    agreement = side_agreement(crosscoder, sae, pair, side)
    assert (agreement.recall[joint.latents.to_dense().sum(0) > 1] > 0.99).all()
    assert (agreement.correlation[joint.latents.to_dense().sum(0) > 1] > 0.999).all()


def test_agreement_by_hand(tmp_path):
    """One latent reads side a alone, on rows 0, 1 and 3 of 4; side b tells nothing of a, so that its SAE sees
    the mean of a, .75, on every row: all 3 firings are there, and 3 of 4 are right."""
    a = torch.tensor([[1.0], [1.0], [0.0], [1.0]])
    b = torch.tensor([[1.0], [-1.0], [0.0], [0.0]])
    stores = [ActivationStore.from_arrays(tmp_path / name, rows) for name, rows in (("a", a), ("b", b))]
    config = SAEConfig(d_model=2, d_sae=1, kind="relu", sides=(Side(d_model=1), Side(d_model=1)))
    crosscoder, pair = Crosscoder(config), paired_store(stores)
    with torch.no_grad():
        crosscoder.W_enc.copy_(torch.tensor([[1.0], [0.0]]))
        crosscoder.W_dec.copy_(torch.tensor([[1.0, 1.0]]))
    sae = side_sae(crosscoder, pair, 1)
    torch.testing.assert_close(sae.encode_dense(b), torch.full((4, 1), 0.75), atol=1e-5, rtol=0)
    found = side_agreement(crosscoder, sae, pair, 1)
    assert found.recall.tolist() == [1] and found.precision.tolist() == [0.75]


def test_latents_of_a_crosscoder_are_edited_in_either_model(pair):
    """steer adds strength · the side's row of W_dec; ablating all that fires leaves none of them."""
    crosscoder = random_crosscoder(32, 32, hook_point=HOOK_POINT, model_name="GPT2LMHeadModel")
    ids = pair.base_store.tokens(0).input_ids[:2].long()
    store = paired_store([pair.base_store, pair.tuned_store])
    for side, model in ((0, pair.base), (1, pair.tuned)):
        sae = side_sae(crosscoder, store, side)
        with torch.no_grad(), sl.capture(model, [HOOK_POINT]) as clean:
            model(input_ids=ids)
        with torch.no_grad(), sl.steer(model, sae, 3, 2.0, skip_ids=()):
            with sl.capture(model, [HOOK_POINT]) as steered:
                model(input_ids=ids)
        moved = steered[HOOK_POINT] - clean[HOOK_POINT]
        torch.testing.assert_close(
            moved, (2 * crosscoder.decoder(side)[3].detach()).expand_as(moved), atol=1e-4, rtol=0
        )
        z = sae.encode_dense(clean[HOOK_POINT])[..., 3, None].detach()
        with torch.no_grad(), sl.ablate(model, sae, [3], skip_ids=()):
            with sl.capture(model, [HOOK_POINT]) as ablated:
                model(input_ids=ids)
        torch.testing.assert_close(
            ablated[HOOK_POINT],
            clean[HOOK_POINT] - z * crosscoder.decoder(side)[3].detach(),
            atol=1e-4,
            rtol=0,
        )
