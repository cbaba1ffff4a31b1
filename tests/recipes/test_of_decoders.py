"""Meta-SAEs: shared directions are found, random ones are not, and what is memory shows on rows held out."""

import json

import pytest
import torch
from torch.nn.functional import normalize

import saelens_lite as sl
from saelens_lite.hashing import is_held_out
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig

OPTIONS = {"n_steps": 400, "batch_size_rows": 128, "device": "cpu", "lr": 3e-3}


def sae_of(W_dec: torch.Tensor) -> SparseAutoencoder:
    sae = SparseAutoencoder(SAEConfig(d_model=W_dec.shape[1], d_sae=len(W_dec), kind="relu"))
    with torch.no_grad():
        sae.W_dec.copy_(W_dec)
    return sae


@pytest.fixture(scope="module")
def shared() -> SparseAutoencoder:
    """400 decoder rows of various lengths, each the sum of four of 16 orthogonal directions with weights from
    0.7 to 1.3."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(32, 16, generator=generator))[0].T
    chosen = torch.rand(400, 16, generator=generator).topk(4).indices
    weights = torch.zeros(400, 16).scatter_(1, chosen, 0.7 + 0.6 * torch.rand(400, 4, generator=generator))
    return sae_of((weights @ basis) * (1 + torch.rand(400, 1, generator=generator)))


@pytest.mark.long
def test_sums_of_shared_directions_are_explained_and_random_ones_are_not(shared):
    found = sl.recipes.meta_sae(shared, d_meta=32, seeds=(0, 1), **OPTIONS)
    assert found.explained_variance > 0.9, f"\n{found}"
    assert found.random.explained_variance < 0.4 and found.excess > 0.5, f"\n{found}"
    assert found.decoder.sd is not None and len(found.saes) == 2 and found.saes[0].d_sae == 32
    held = is_held_out(torch.arange(400), 0.1)
    assert (found.n_rows, found.n_held_out) == (int((~held).sum()), int(held.sum()))
    rows = normalize(shared.W_dec.detach(), dim=1)[held]
    errors = (found.saes[0](rows).recons.detach() - rows).square().sum()
    by_hand = 1 - float(errors / (rows - rows.mean(0)).square().sum())
    assert found.decoder.held_out[0] == pytest.approx(by_hand, abs=1e-5)
    facts = found.saes[0].config.metadata["saelens_lite"]
    # of 40 rows; the firing that gave the threshold may be on either side of it in the units of training
    assert facts["held_out_fvu"] == pytest.approx(1 - by_hand, abs=0.01), "the rows that training held out"
    lines = str(found).splitlines()
    assert (
        lines[1].startswith("decoder rows") and lines[2].startswith("random rows") and "2 seeds" in lines[3]
    )
    held_values = json.loads(json.dumps(found.to_dict()))
    assert held_values["excess"] == found.excess and held_values["decoder"]["held_out"] == list(
        found.decoder.held_out
    )


@pytest.mark.long
def test_random_rows_are_their_own_control_and_memory_shows():
    noise = normalize(torch.randn(400, 32, generator=torch.Generator().manual_seed(7)), dim=1)
    found = sl.recipes.meta_sae(sae_of(noise), seeds=(0,), **OPTIONS)
    assert abs(found.excess) < 0.1 and found.decoder.sd is None and found.d_meta == 100
    assert found.decoder.trained_on[0] > found.explained_variance + 0.1, f"\n{found}"
    alone = sl.recipes.meta_sae(sae_of(noise), seeds=(0,), control=False, **OPTIONS)
    assert alone.random is None and alone.excess is None and alone.decoder == found.decoder
    assert len(str(alone).splitlines()) == 3


@pytest.mark.long
def test_chosen_latents_and_fields_of_training(shared):
    options = OPTIONS | {"kind": "topk", "batch_size_rows": 64}
    twice = [*range(100), *range(100)]  # a copy would be held out, and its row trained on
    found = sl.recipes.meta_sae(shared, latents=twice, k=2, seeds=(0,), control=False, **options)
    assert found.n_rows + found.n_held_out == 100 and found.d_meta == 25
    assert found.saes[0].kind == "topk" and found.decoder.held_out_l0[0] <= 2


def test_what_cannot_be_decomposed_is_refused(shared):
    for options, message in (
        ({"latents": range(20)}, "40 rows and a seed or more, got 20 and 3"),
        ({"seeds": ()}, "got 400 and 0"),
        ({"held_out_fraction": 0.0}, "leaves rows on both sides, got 0.0"),
        ({"latents": [400] * 50}, "indices from 0 to 399, got"),
        ({"no_such_field": 1}, "no_such_field"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            sl.recipes.meta_sae(shared, **options)
    with torch.no_grad():
        broken = sae_of(shared.W_dec)
        broken.W_dec[3] = 0
    with pytest.raises(ValueError, match="got one of zeros"):
        sl.recipes.meta_sae(broken)
