"""The cheap baselines: each number against its definition in float64, on two models of a known difference."""

import pytest
import torch

from saelens_lite.analyze.index.max_activating import max_activating_tokens
from saelens_lite.analyze.model_diffing.mean_difference import difference_lens
from saelens_lite.analyze.model_diffing.predictions import token_divergence
from saelens_lite.analyze.model_diffing.row_differences import compare_rows
from saelens_lite.store.derived import difference_store
from saelens_lite.store.reader import ActivationStore
from saelens_lite.train.single import train_sae

from ..conftest import HOOK_POINT, TEXTS


def test_two_rows_by_hand(tmp_path):
    """δ is (2, 0), (−2, 0), (0, 1), (0, −1): no mean, shares 8/10 and 2/10."""
    base = torch.tensor([[3.0, 4], [3, 4], [0, 5], [0, 5]])
    tuned = base + torch.tensor([[2.0, 0], [-2, 0], [0, 1], [0, -1]])
    stores = [
        ActivationStore.from_arrays(tmp_path / name, rows) for name, rows in (("a", base), ("b", tuned))
    ]
    found = compare_rows(*stores, n_components=2, n_examples=1)
    assert found.base_norm == pytest.approx(5)
    assert found.tuned_norm == pytest.approx(((41 + 17 + 36 + 16) / 4) ** 0.5)
    assert found.difference_norm == pytest.approx((10 / 4) ** 0.5)
    assert found.cosine == pytest.approx((31 / (5 * 41**0.5) + 19 / (5 * 17**0.5) + 1 + 1) / 4)
    assert found.shift_quantiles == pytest.approx((0.2, 0.2, 0.4, 0.4, 0.4))
    assert found.mean_share == pytest.approx(0)
    torch.testing.assert_close(found.shares, torch.tensor([0.8, 0.2], dtype=torch.float64))
    torch.testing.assert_close(found.components.abs(), torch.eye(2, dtype=torch.float64))
    assert int(found.strongest[0]) in (0, 1) and int(found.along[0, 0]) in (0, 1)
    assert int(found.along[1, 0]) in (2, 3)
    assert "component 1  80.0%" in str(found)


def test_components_equal_those_of_the_rows_at_once(pair, harvested):
    with torch.no_grad():
        pair.tuned.transformer.h[0].mlp.c_proj.weight[:8] += 0.5
    pair.tuned_store = harvested(pair.tuned, "tuned more")
    base, tuned = (
        torch.cat([store.acts(shard) for shard in range(store.n_shards)]).double()
        for store in (pair.base_store, pair.tuned_store)
    )
    found, delta = compare_rows(pair.base_store, pair.tuned_store, n_components=3), tuned - base
    torch.testing.assert_close(found.mean, delta.mean(0))
    covariance = torch.cov(delta.T, correction=0)
    values, c = torch.linalg.eigvalsh(covariance).flip(0)[:3], found.components
    torch.testing.assert_close(found.shares, values / covariance.trace(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(c @ covariance, values[:, None] * c, rtol=0, atol=1e-6 * float(values[0]))
    torch.testing.assert_close(c @ c.T, torch.eye(3).double())
    assert found.strongest[0] == delta.norm(dim=1).argmax()
    along = (delta - delta.mean(0)) @ found.components.T
    assert found.along[:, 0].tolist() == along.abs().argmax(0).tolist()


def test_a_constant_shift_is_all_mean(pair):
    """What is added on every token alike: the mean of δ holds its whole square."""
    found = compare_rows(pair.base_store, pair.tuned_store)
    torch.testing.assert_close(found.mean.float(), pair.shift, atol=1e-5, rtol=0)
    assert found.mean_share == pytest.approx(1, abs=1e-6)


def test_divergence_equals_the_definition(pair):
    found = token_divergence(pair.base, pair.tuned, pair.base_store, tuned_store=pair.tuned_store)
    tokens = pair.base_store.tokens(0)
    with torch.no_grad():
        logs = [
            model(input_ids=tokens.input_ids.long(), attention_mask=tokens.attended.long())
            .logits.double()
            .log_softmax(-1)
            for model in (pair.base, pair.tuned)
        ]
    base, tuned = logs
    rows = tokens.kept.bool().flatten().cumsum(0).view(tokens.kept.shape) - 1
    for place in range(5):
        row, kl, reverse, ce = (of[place] for of in (found.rows, found.kl, found.kl_reverse, found.ce_tuned))
        seq, position = (rows == row).logical_and(tokens.kept.bool()).nonzero()[0].tolist()
        a, b = base[seq, position], tuned[seq, position]
        assert kl == pytest.approx(float((b.exp() * (b - a)).sum()), rel=1e-3, abs=1e-6)
        assert reverse == pytest.approx(float((a.exp() * (a - b)).sum()), rel=1e-3, abs=1e-6)
        assert ce == pytest.approx(float(-b[tokens.input_ids[seq, position + 1]]), rel=1e-4)
    assert found.mean("kl").estimate > 0.01
    assert found.kl[found.rows == found.strongest(1)] == found.kl.max()
    assert "KL(tuned ‖ base)" in str(found)


def test_a_model_against_itself_has_no_divergence(pair):
    found = token_divergence(pair.base, pair.base, pair.base_store)
    for name, hint in (("rows", ""), ("mean", ""), ("ce_tune", r" \(did you mean 'ce_tuned'\?\)")):
        with pytest.raises(ValueError, match=rf"mean expected one of kl, kl_reverse, .*, got '{name}'{hint}"):
            found.mean(name)
    with pytest.raises(ValueError, match="expected n of 0 or more, got -1"):
        found.strongest(-1)
    assert found.kl.abs().max() == 0
    torch.testing.assert_close(found.ce_base, found.ce_tuned)


def test_another_model_than_the_stores_is_refused(pair):
    with pytest.raises(ValueError, match="does not give the activations of"):
        token_divergence(pair.tuned, pair.base, pair.base_store)


def test_the_lens_reads_the_mean_difference_through_the_unembedding(pair):
    found = difference_lens(
        pair.base_store, pair.tuned_store, pair.tuned, n_positions=2, n=3, final_norm=False
    )
    shift = pair.shift
    torch.testing.assert_close(found.means.float(), shift.expand(3, -1), atol=1e-5, rtol=0)
    logits = pair.tuned.lm_head.weight @ shift
    assert found.lens.top_ids[0].tolist() == logits.topk(3).indices.tolist()
    torch.testing.assert_close(
        found.lens.top_logits[2], (logits - logits.mean()).topk(3).values, atol=1e-4, rtol=0
    )
    contexts = sum(int(pair.base_store.tokens(s).kept.any(1).sum()) for s in range(pair.base_store.n_shards))
    assert found.n_tokens.tolist() == [contexts, contexts, pair.base_store.n_rows]
    rows = torch.cat([pair.base_store.acts(s) for s in range(pair.base_store.n_shards)])
    assert found.base_norms[2] == pytest.approx(float(rows.norm(dim=1).mean()), rel=1e-5)


def test_stores_of_two_texts_are_refused_with_the_shard(pair, harvested):
    texts = [text.replace("Story 17", "Story 71") for text in TEXTS]
    other = harvested(pair.tuned, "other", texts=texts)
    with pytest.raises(ValueError, match="differ in input_ids of shard 1: harvest both from one text"):
        compare_rows(pair.base_store, other, HOOK_POINT)


def test_an_sae_of_the_differences_trains_and_shows_its_tokens(pair, tmp_path):
    """The difference is one direction on every token: one latent explains it."""
    store = difference_store(pair.base_store, pair.tuned_store)
    rows = torch.cat([store.acts(shard) for shard in range(store.n_shards)])
    torch.testing.assert_close(rows, pair.shift.expand_as(rows), atol=1e-5, rtol=0)
    some = {"k": 2, "d_sae": 16, "n_steps": 3, "batch_size_rows": 64, "device": "cpu", "scale_input": False}
    sae = train_sae(store, output=tmp_path / "sae", progress=False, **some)
    assert sae.config.hook_point == HOOK_POINT and "−" in sae.config.model_name
    table = max_activating_tokens(sae, store, n=2)
    assert table.n_tokens == store.n_rows
    sae_again = train_sae(store, output=tmp_path / "sae", progress=False, **some)
    torch.testing.assert_close(sae_again.W_dec, sae.W_dec, rtol=0, atol=0)
    with pytest.raises(ValueError, match="does not fit"):
        max_activating_tokens(sae, pair.base_store)
