"""Silent latents by window, and densities as exact counts."""

import pytest
import torch

from saelens_lite.analyze.latents.density import dead_latents, latent_density

from ..conftest import make_sae


@pytest.fixture
def half_silent():
    """A ReLU SAE whose first 12 latents never fire."""
    sae = make_sae("relu")
    with torch.no_grad():
        sae.b_enc[:12] = -1e6
    return sae


def dense_latents(sae, store):
    with torch.no_grad():
        return sae.encode_dense(store.gather(torch.arange(store.n_rows)))


def test_dead_by_window_equals_brute_force(store, half_silent):
    report = dead_latents(half_silent, store, windows_tokens=(1000, 1, 40, 10_000))
    fires = dense_latents(half_silent, store) != 0
    assert report.n_tokens == 1500
    assert list(report.masks) == [1, 40, 1000, 10_000]
    for window in (1, 40, 1000):
        assert torch.equal(report.masks[window], ~fires[-window:].any(0))
        assert report.shares[window] == (~fires[-window:].any(0)).double().mean()
    assert report.masks[10_000] is None and report.shares[10_000] is None
    assert torch.equal(report.never_fired, ~fires.any(0)) and report.never_fired[:12].all()
    assert report.rate_bound == 3 / 1500


def test_the_report_reads_well(store, half_silent):
    text = repr(dead_latents(half_silent, store, windows_tokens=(1000, 100_000)))
    assert "over 1,500 tokens" in text
    assert "dead@1k" in text
    assert "dead@100k   n/a: longer than the data" in text
    assert "each fires on < 2.0e-03 of tokens (95 %)" in text


def test_density_is_counted_exactly(store, half_silent):
    found = latent_density(half_silent, store)
    counts = (dense_latents(half_silent, store) != 0).sum(0)
    assert found.counts.dtype == torch.int64 and torch.equal(found.counts, counts)
    assert torch.equal(found.density, counts.double() / 1500)
    assert f"{int((counts > 0).sum())} of 48 latents fired" in repr(found)
