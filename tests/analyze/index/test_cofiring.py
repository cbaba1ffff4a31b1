"""Co-firing, contrasts and the sample they rest on equal brute force on the dense matrix."""

import math

import pytest
import torch

from saelens_lite.analyze.index import cofiring as cofirings
from saelens_lite.analyze.index.cofiring import cofiring
from saelens_lite.analyze.index.token_sample import TokenSample
from saelens_lite.hashing import firing_hash
from saelens_lite.sae.latents import SparseLatents

N_ROWS, D_SAE, SHARE = 600, 30, 0.4


@pytest.fixture
def dense():
    """Latents of very different rates; 3 is silent, 7 always fires, 8 fires where 9 does and nowhere else."""
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(N_ROWS, D_SAE, generator=generator)
    values = values * (torch.rand(N_ROWS, D_SAE, generator=generator) < torch.linspace(0.02, 0.5, D_SAE))
    values[:, 3] = 0
    values[:, 7] = 1
    values[:, 8] = values[:, 9]
    return values


def sample_of(dense, cuts):
    blocks = zip(dense.tensor_split(cuts), [0, *cuts], strict=True)
    return TokenSample.cat(
        [TokenSample.of_block(SparseLatents.from_dense(b), row, SHARE) for b, row in blocks]
    )


def test_the_sample_is_that_of_the_rows_however_they_were_cut(dense):
    rows = torch.arange(N_ROWS)
    chosen = rows[firing_hash(0, -1, rows).double() / 2**63 < SHARE]
    assert 180 < len(chosen) < 300, "0.4 of 600, give or take 5 σ"
    for cuts in ([], [1, 77, 300], list(range(1, N_ROWS))):
        sample = sample_of(dense, cuts)
        assert torch.equal(sample.rows, chosen)
        again = torch.zeros(len(chosen), D_SAE)
        again[sample.row_ids(), sample.latents.long()] = sample.values
        assert torch.equal(again, dense[chosen])
    late_first = TokenSample.cat([
        TokenSample.of_block(SparseLatents.from_dense(dense[300:]), 300, SHARE),
        TokenSample.of_block(SparseLatents.from_dense(dense[:300]), 0, SHARE),
    ])  # fmt: skip
    assert all(torch.equal(late_first.tensors()[name], tensor) for name, tensor in sample.tensors().items())
    fewest = sample.smallest(50)
    hashes = firing_hash(0, -1, chosen)
    assert torch.equal(fewest.rows, chosen[hashes <= hashes.sort().values[49]])
    assert torch.equal(fewest.counts(D_SAE), (dense[fewest.rows] > 0).sum(0))
    topk = SparseLatents.from_topk(*dense.topk(D_SAE, dim=1), D_SAE)
    assert torch.equal(TokenSample.of_block(topk, 0, SHARE).counts(D_SAE), sample.counts(D_SAE)), (
        "stored zeros do not count"
    )


@pytest.mark.parametrize("block_meetings", [1, 5000, 2**22])
def test_neighbours_equal_brute_force(dense, kernels_path, block_meetings, monkeypatch):
    monkeypatch.setattr(cofirings, "_BLOCK_MEETINGS", block_meetings)
    m, sample = 6, sample_of(dense, [100])
    found = cofiring(sample, D_SAE, m)
    fires = (dense[sample.rows] > 0).double()
    n, together, counts = len(fires), fires.T @ fires, fires.sum(0)
    for i in range(D_SAE):
        pairs = [(j, float(together[i, j])) for j in range(D_SAE) if j != i and together[i, j] > 0]
        jaccard = sorted((-c / float(counts[i] + counts[j] - c), j) for j, c in pairs)[:m]
        pmi = sorted((-c / float(counts[j]), j) for j, c in pairs if c >= cofirings.MIN_TOGETHER)[:m]
        pmi = [(-math.log(-lift * n / float(counts[i])), j) for lift, j in pmi]
        for ids, scores, expected in (
            (found.jaccard_ids, found.jaccard, jaccard),
            (found.pmi_ids, found.pmi, pmi),
        ):
            empty = m - len(expected)
            assert ids[i].tolist() == [*(j for _, j in expected), *[-1] * empty]
            torch.testing.assert_close(
                scores[i], torch.tensor([*(-score for score, _ in expected), *[0.0] * empty])
            )
    assert found.jaccard_ids[8, 0] == 9 and found.jaccard[8, 0] == 1
    assert found.jaccard_ids[3].tolist() == [-1] * m


def test_fewer_latents_than_places_and_no_rows_at_all(kernels_path):
    sample = TokenSample.of_block(SparseLatents.from_dense(torch.ones(20, 2)), 0, 1.0)
    assert cofiring(sample, 2, 4).jaccard_ids.tolist() == [[1, -1, -1, -1], [0, -1, -1, -1]]
    assert cofiring(sample, 2, 0).jaccard.shape == (2, 0)
    assert cofiring(TokenSample.empty(), 2, 3).pmi_ids.tolist() == [[-1] * 3] * 2
    assert TokenSample.empty().contrast(2, 3).tolist() == [[-1] * 3] * 2


def test_a_latent_does_not_fire_on_its_contrast(dense):
    sample = sample_of(dense, [])
    rows = sample.contrast(D_SAE, 4)
    for latent in range(D_SAE):
        shown = rows[latent][rows[latent] >= 0]
        assert len(shown.unique()) == len(shown)
        assert set(shown.tolist()) <= set(sample.rows.tolist())
        assert not dense[shown, latent].any()
    assert (rows[[0, 3, 20]] >= 0).all() and (rows[7] == -1).all()
    assert torch.equal(rows, sample_of(dense, [10, 500]).contrast(D_SAE, 4))
    assert not torch.equal(rows[0], rows[1])
    nothing_fires = TokenSample.of_block(SparseLatents.from_dense(torch.zeros(50, 2)), 0, 1.0)
    assert (nothing_fires.contrast(2, 3) >= 0).all()
