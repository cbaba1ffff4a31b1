"""Latents of two indexes are matched one to one; what was replaced has no partner."""

import dataclasses

import numpy as np
import pytest
import torch

from saelens_lite.analyze import match_indexes, matching
from saelens_lite.analyze.index.build import IndexConfig, index_features
from saelens_lite.analyze.matching import IndexMatch
from tests.analyze.conftest import make_sae

REPLACED = torch.tensor([3, 17, 20, 41])


def shuffled(sae, replaced=REPLACED):
    """The SAE with its latents in another order and some replaced, and the old place of each latent."""
    order = torch.randperm(sae.d_sae, generator=torch.Generator().manual_seed(5))
    other, fresh = make_sae(sae.kind), torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name in ("W_enc", "b_enc", "W_dec"):
            axis = 1 if name == "W_enc" else 0
            other.get_parameter(name).copy_(sae.get_parameter(name).index_select(axis, order))
        other.W_dec[replaced] = 0.3 * torch.randn(len(replaced), sae.d_model, generator=fresh)
        other.W_enc[:, replaced] = 0.3 * torch.randn(sae.d_model, len(replaced), generator=fresh)
    return other, order


@pytest.fixture
def pair(sae, store, tmp_path):
    other, order = shuffled(sae)
    a = index_features(sae, store, tmp_path / "a")
    b = index_features(other, store, tmp_path / "b")
    return a, b, sae, other, order


def test_a_shuffled_sae_is_matched_and_its_replaced_latents_are_listed(pair):
    a, b, sae, other, order = pair
    found = match_indexes(a, b, sae, other)
    kept = torch.ones(48, dtype=torch.bool)
    kept[REPLACED] = False
    old_place = torch.full((48,), -1)
    old_place[order[kept]] = torch.arange(48)[kept]
    assert torch.equal(found.unmatched_b, REPLACED)
    assert torch.equal(found.unmatched_a, order[REPLACED].sort().values)
    assert torch.equal(found.latents_b, old_place[found.latents_a]) and len(found) == 44
    torch.testing.assert_close(found.cosine, torch.ones(44))
    assert found.n_rows == 1500, "a sample of 100,000 rows holds all of them"
    frame = found.to_frame()
    assert list(frame.columns) == ["latent_a", "latent_b", "cosine", "correlation"] and len(frame) == 52
    assert frame.latent_b[44:48].isna().all() and frame.latent_a[48:].isna().all()
    assert frame.latent_b[48:].tolist() == REPLACED.tolist()
    assert found.same.all() and (found.latents_a != found.latents_b).all()
    assert found.in_words() == (
        "44 of 48 latents are the same in both (decoder cosine 0.999 or more), all of them under another "
        "number: shuffled; 4 and 4 have no partner in the other: replaced."
    )
    assert repr(found).startswith("IndexMatch(44 pairs, median cosine 1.000 and correlation ")
    assert repr(found).endswith("; 4 of 48 and 4 of 48 unmatched)")


def test_what_two_indexes_have_in_common_in_words():
    """Pairs 0–0 and 1–2 by cosine 1, 2–1 by cosine 0.8; without cosines the correlations count."""
    nan, none = torch.tensor([torch.nan] * 3), torch.tensor([], dtype=torch.long)
    pairs = {"latents_a": torch.tensor([0, 1, 2]), "latents_b": torch.tensor([0, 2, 1]), "n_rows": 9}
    found = IndexMatch(
        **pairs, cosine=torch.tensor([1, 0.9995, 0.8]), correlation=torch.tensor([0.5, 1, 1]),
        unmatched_a=torch.tensor([3]), unmatched_b=none,
    )  # fmt: skip
    assert found.same.tolist() == [True, True, False]
    assert found.in_words() == (
        "2 of 4 latents are the same in both (decoder cosine 0.999 or more), 1 of them under another number: "
        "shuffled; 1 and 0 have no partner in the other."
    )
    found = dataclasses.replace(found, cosine=nan, unmatched_a=none)
    assert found.same.tolist() == [False, True, True]
    assert found.in_words() == (
        "2 of 3 latents are the same in both (correlation 0.999 or more), all of them under another number: "
        "shuffled."
    )


def test_folders_serve_as_well(pair, tmp_path):
    a, b, sae, other, _ = pair
    sae.save(tmp_path / "sae"), other.save(tmp_path / "other")
    by_folder = match_indexes(a.path, b.path, tmp_path / "sae", tmp_path / "other")
    assert torch.equal(by_folder.latents_b, match_indexes(a, b, sae, other).latents_b)


def test_without_saes_activations_decide(store, tmp_path):
    """A latent of a ReLU SAE fires alike whatever stands beside it: those that were kept correlate fully."""
    sae = make_sae("relu")
    other, order = shuffled(sae)
    index_features(sae, store, tmp_path / "a")
    counts = index_features(other, store, tmp_path / "b").column("counts")
    found = match_indexes(tmp_path / "a", tmp_path / "b", min_correlation=0.999)
    assert found.cosine.isnan().all() and len(found) > 30
    assert set(found.unmatched_b.tolist()) == {*REPLACED.tolist(), *(counts < 5).nonzero().flatten().tolist()}
    assert torch.equal(order[found.latents_b], found.latents_a)
    torch.testing.assert_close(found.correlation, torch.ones(len(found)))


def test_correlations_are_those_of_the_dense_activations(pair, store, monkeypatch, kernels_path):
    a, b, sae, other, _ = pair
    acts = torch.cat([store.acts(shard, a.hook_point) for shard in range(store.n_shards)])
    dense = [torch.zeros(len(acts), 48, dtype=torch.float64) for _ in range(2)]
    for values, of in zip(dense, (sae, other), strict=True):
        latents = of.encode(acts)
        values[latents.row_ids(), latents.indices] = latents.values.detach().double()
    met = (dense[0] > 0).double().T @ (dense[1] > 0).double()
    with np.errstate(invalid="ignore"):
        truth = torch.from_numpy(np.corrcoef(dense[0].T, dense[1].T)[:48, 48:])
    truth[met < 5] = torch.nan
    for cells, pairs in ((2**22, 2**18), (48 * 5, 2**18), (2**22, 100)):
        monkeypatch.setattr(matching, "_BLOCK_CELLS", cells)
        monkeypatch.setattr(matching, "_BLOCK_PAIRS", pairs)
        blocks = [*matching._blocks(None, a.token_sample, b.token_sample, 48, 48)]
        found = torch.cat([correlation for _, _, correlation in blocks])
        torch.testing.assert_close(found, truth.float(), atol=1e-5, rtol=0, equal_nan=True)
        assert len(blocks) == (1 if cells == 2**22 else 10)


def test_the_best_pair_comes_first():
    """0–0 at 0.9 goes first, so 1 gets the 0.5 of latent 2 and 2 nothing, though 0.9 + 0.8 < 0.8 + 0.85."""
    one, other = torch.tensor([0, 0, 1, 1, 2, 3]), torch.tensor([0, 1, 0, 2, 2, 4])
    score = torch.tensor([0.9, 0.8, 0.85, 0.5, 0.5, 0.1])
    assert matching._best_first(one, other, score, 4, 5).tolist() == [0, 3, 5]
    assert matching._best_first(one[:0], other[:0], score[:0], 4, 5).tolist() == []


def test_what_does_not_belong_together_is_refused(pair, store, gpt2, byte_tokenizer, tmp_path):
    a, b, sae, other, _ = pair
    with pytest.raises(ValueError, match="expected both SAEs or none"):
        match_indexes(a, b, sae)
    with pytest.raises(ValueError, match="is the index of the topk SAE"):
        match_indexes(a, b, other, sae)
    none = index_features(sae, store, tmp_path / "none", config=IndexConfig(sample_tokens=0))
    with pytest.raises(ValueError, match="no sampled rows in common: give their SAEs"):
        match_indexes(a, none)
    assert len(match_indexes(a, none, sae, sae)) == 48, "the cosines alone match"
    elsewhere = index_features(sae, _other_store(gpt2, byte_tokenizer, tmp_path), tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="two indexes over one store"):
        match_indexes(a, elsewhere)


def _other_store(gpt2, byte_tokenizer, tmp_path):
    from saelens_lite.harvest import harvest_activations

    options = {"max_tokens": 100, "tokenizer": byte_tokenizer, "context_length": 32, "progress": False}
    point = ["blocks.0.hook_resid_post"]
    return harvest_activations(gpt2, ["other text " * 30], point, tmp_path / "elsewhere_store", **options)
