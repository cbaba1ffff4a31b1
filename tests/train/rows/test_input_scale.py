"""Rows that share a large mean train as those without it do: the report behind ../shared/failing/offset_rows.

arXiv:2605.31518: dimensions whose mean is large against their spread kill latents where the scale, or the
start, is about zero.
"""

import json

import pytest
import torch
from pytest import approx

import saelens_lite as sl
from saelens_lite.train.rows.input_scale import input_scale

D, N = 32, 6000
OFFSETS = (0, 5, 15, 30)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """By |mean| / spread, the same sums of 100 directions with a mean in two dimensions."""
    gen, folder = torch.Generator().manual_seed(0), tmp_path_factory.mktemp("stores")
    atoms = torch.nn.functional.normalize(torch.randn(100, D, generator=gen), dim=1)
    acts = (torch.rand(N, 100, generator=gen) * (torch.rand(N, 100, generator=gen) < 0.05)) @ atoms
    acts -= acts.mean(0)
    mean = torch.zeros(D)
    mean[3], mean[17] = 0.8, -0.6  # of norm 1
    spread, documents = acts.square().sum(1).mean().sqrt(), torch.arange(N) // 20
    return {
        offset: sl.ActivationStore.from_arrays(
            folder / str(offset), acts + offset * spread * mean, dtype="float32", documents=documents
        )
        for offset in OFFSETS
    }


@pytest.mark.long
@pytest.mark.parametrize("kind", ["relu", "gated", "jumprelu"])
def test_a_mean_of_any_size_costs_no_latent_and_no_variance(stores, tmp_path, kind):
    found = {}
    for offset, store in stores.items():
        output = tmp_path / str(offset)
        options = {"d_sae": 96, "batch_size_rows": 256, "n_steps": 150, "lr": 0.03, "target_l0": 6.0}
        options |= {"dead_after_tokens": 2048, "l1_warm_up_steps": 30, "eval_every_steps": 150}
        options |= {"checkpoint_every_steps": 150}
        sl.train_sae(store, kind=kind, output=output, device="cpu", progress=False, **options)
        last = {}
        for line in (output / "metrics.jsonl").read_text().splitlines():
            last |= json.loads(line)
        found[offset] = last
    without = found[0]
    assert without["held_out_fvu"] < 0.3 and without["held_out_l0"] == approx(6, rel=0.25)
    for offset in OFFSETS[1:]:
        assert found[offset]["held_out_fvu"] == approx(without["held_out_fvu"], rel=0.1), offset
        assert found[offset]["dead@2048"] == approx(without["dead@2048"], abs=0.05), offset


def test_the_scale_by_hand():
    # two rows, (5, 0) and (3, 0): mean (4, 0), squared distances 1 and 1, mean squared norm (25 + 9) / 2
    assert input_scale(17.0, torch.tensor([4.0, 0.0], dtype=torch.float64)) == approx(2**0.5)
    with pytest.raises(ValueError, match="activations that differ"):
        input_scale(16.0, torch.tensor([4.0, 0.0], dtype=torch.float64))
