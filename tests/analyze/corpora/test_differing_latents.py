"""Planted differences are found, permuted labels give none, and a difference of length is called that."""

import numpy as np
import pytest
import torch
from scipy import sparse

from saelens_lite.analyze.corpora.differing_latents import compare_corpora
from saelens_lite.analyze.probing.pooling import PooledLatents

N, D = 400, 60
"""Documents a side, latents."""


def world(seed, *, planted=False, by_length=False):
    """Latents of random rates; latent 0 fires on .5 of A and .2 of B if planted. by_length: documents of A
    are longer, and every fifth latent fires more the longer a document is."""
    rng = np.random.default_rng(seed)
    in_a = np.arange(2 * N) < N
    tokens = rng.integers(20, 60, 2 * N) + (15 * in_a if by_length else 0)
    rates = np.tile(rng.uniform(0.02, 0.5, D), (2 * N, 1))
    if by_length:
        rates[:, ::5] = (tokens[:, None] / 80).clip(0, 1)
    if planted:
        rates[:, 0] = np.where(in_a, 0.5, 0.2)
    acts = (rng.random((2 * N, D)) < rates) * rng.uniform(0.5, 2, (2 * N, D))
    features = PooledLatents(
        acts=np.zeros((2 * N, 1), dtype=np.float32),
        by_name={"sae": sparse.csr_matrix(acts.astype(np.float32))},
        documents=torch.arange(2 * N),
        n_tokens=tokens,
        n_truncated=0,
        max_tokens=None,
        pool="max",
        acts_pool="mean",
        hook_point="",
        model_name="",
    )
    rivals = {
        "tokens": torch.from_numpy(tokens).double(),
        "log probability": torch.from_numpy(rng.normal(size=2 * N)),
    }
    return features, torch.from_numpy(in_a), rivals


def share_found(n, **how):
    return [compare_corpora(*world(seed, **how), seed=seed) for seed in range(n)]


@pytest.mark.long
@pytest.mark.parametrize("n", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_planted_latent_is_found_and_never_called_surface(n):
    """Found among all documents; the verdict rests on a part of them, and may be undecided there."""
    beyond = 0
    for found in share_found(n, planted=True):
        row = found.rows[0]
        assert row.latent == 0
        assert row.verdict in ("beyond the rivals", "undecided: too few entities")
        beyond += row.verdict == "beyond the rivals"
        assert row.difference[0] == pytest.approx(row.rate_a - row.rate_b)
        assert 0.15 < row.difference[1] < 0.3 < row.difference[2] < 0.45 or row.difference[1] > 0.1
        assert row.matched[0] == pytest.approx(row.difference[0], abs=0.06)
        assert row.matched[1] > 0
    assert beyond >= 0.6 * n


@pytest.mark.long
@pytest.mark.parametrize("n", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_difference_of_length_is_called_that(n):
    """Twelve latents follow length alone: found, and of those judged none stands beyond it, but by chance."""
    clean = 0
    for found in share_found(n, by_length=True):
        explained = [row for row in found.rows if row.latent % 5 == 0]
        assert len(explained) >= 6
        assert sum("tokens" in row.verdict or "rivals together" in row.verdict for row in explained) >= 5
        clean += not found.beyond_the_surface
    assert clean >= 0.8 * n


@pytest.mark.slow
def test_permuted_labels_give_discoveries_in_at_most_28_of_200():
    features, in_a, _ = world(0)
    any_found = 0
    for seed in range(200):
        order = torch.randperm(2 * N, generator=torch.Generator().manual_seed(seed))
        any_found += bool(compare_corpora(features, in_a[order], {}).rows)
    assert any_found <= 28


def test_a_text_that_a_corpus_holds_twice_counts_once():
    """A: texts 0, 0, 1; B: 0, 2. The latent fires in text 0 alone: 1 of 2 and 1 of 2."""
    features = PooledLatents(
        acts=np.zeros((5, 1), dtype=np.float32),
        by_name={"sae": sparse.csr_matrix(np.array([[1.0], [1.0], [0.0], [1.0], [0.0]], dtype=np.float32))},
        documents=torch.tensor([0, 0, 1, 0, 2]),
        n_tokens=np.ones(5),
        n_truncated=0,
        max_tokens=None,
        pool="max",
        acts_pool="mean",
        hook_point="",
        model_name="",
    )
    found = compare_corpora(features, torch.tensor([1, 1, 1, 0, 0]).bool(), {}, q=0.99)
    assert (found.n_a, found.n_b, found.rows) == (2, 2, ())


def test_what_does_not_fit_is_refused():
    features, in_a, rivals = world(0)
    for args, message in (
        (
            (features, in_a[:-1], rivals),
            "in_a expected which of 800 texts are of A, some and not all, got 400 of 799",
        ),
        ((features, in_a & False, rivals), "got 0 of 800"),
    ):
        with pytest.raises(ValueError, match=message):
            compare_corpora(*args)
    with pytest.raises(ValueError, match="q expected above 0 and below 1, got 1"):
        compare_corpora(features, in_a, rivals, q=1)
