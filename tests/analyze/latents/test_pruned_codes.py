"""The threshold that leaves a wanted l0, by hand."""

import pytest
import torch

import saelens_lite as sl
from saelens_lite.analyze.index.folder import identity
from saelens_lite.sae.config import SAEConfig


@pytest.fixture
def made(tmp_path):
    """An SAE of unit axes on rows (a, b) with a, b > 0: its codes are the rows, its scores their values."""
    sae = sl.SparseAutoencoder(SAEConfig(d_model=2, d_sae=2, kind="relu"))
    with torch.no_grad():
        sae.W_dec.copy_(torch.eye(2))
        sae.W_enc.copy_(torch.eye(2))
    acts = torch.rand(400, 2, generator=torch.Generator().manual_seed(0)) + 0.1
    store = sl.ActivationStore.from_arrays(
        tmp_path / "store", acts, dtype="float32", documents=torch.arange(400)
    )
    return sae, store


def test_half_of_the_codes_are_the_larger_half(made):
    """x̂ = x, so a score is the code itself, and tau the value below which half of them lie."""
    sae, store = made
    rows = store.gather(store.held_out_rows().nonzero().view(-1))
    chosen = sl.latents.choose_tau(sae, store, l0=1.0)
    assert (chosen.l0_before, chosen.n_rows) == (2.0, len(rows))
    values = rows.flatten().sort(descending=True).values
    assert chosen.tau == pytest.approx(float(values[len(rows)]), rel=1e-6)
    assert sae.pruned(chosen.tau).encode(rows).l0().mean() == chosen.l0 == 1.0
    assert sl.latents.choose_tau(sae.pruned(chosen.tau), store, l0=1.0) == chosen  # of the whole SAE again


@pytest.mark.parametrize("l0", [0, -1, 2.5])
def test_an_l0_that_the_sae_has_not_is_refused(made, l0):
    with pytest.raises(ValueError, match=f"l0 expected above 0 and at most 2, which this SAE has, got {l0}"):
        sl.latents.choose_tau(*made, l0=l0)


def test_evaluation_and_index_take_the_view(made, tmp_path):
    sae, store = made
    view = sae.pruned(sl.latents.choose_tau(sae, store, l0=1.0).tau)
    whole, pruned = (sl.evaluate_sae(s, store).row("trained") for s in (sae, view))  # of the same rows
    assert (whole.l0, pruned.l0) == (2.0, 1.0) and whole.fvu < 1e-9 < pruned.fvu
    assert (
        identity(view)["prune_above"] == view.prune_above
        and identity(view)["sha256"] != identity(sae)["sha256"]
    )
    index = sl.index_features(view, store, tmp_path / "index")
    acts = torch.cat([store.acts(shard) for shard in range(store.n_shards)])
    firings = (view.encode(acts).values > 0).sum()
    assert int(index.column("counts").sum()) == int(firings) < 2 * len(acts)
    with pytest.raises(ValueError, match="is the index of the relu SAE .*, not of the relu SAE"):
        sl.index_features(sae, store, tmp_path / "index")
