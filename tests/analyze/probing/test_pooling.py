"""Pooled features of texts: each pool by hand, what is left out, and that batches, padding and order do not
matter."""

import logging

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MaxAbsScaler

from saelens_lite.analyze.probing.pooling import _pooled_latents, pooled_latents
from saelens_lite.lm.hooks import hook_points, run_to
from saelens_lite.sae.latents import SparseLatents

from ..conftest import HOOK_POINT, make_sae

TEXTS = ["ab", "the sun", "a", "moon and star", "x y z", "é😀", "sun sun sun"]
BOS = 1


def alone(model, tokenizer, text):
    """Activations of the text's tokens, float[n d_model], without the BOS: one text, no padding."""
    ids = torch.tensor([[BOS, *tokenizer(text, add_special_tokens=False).input_ids]])
    with torch.no_grad():
        return run_to(model, [HOOK_POINT], input_ids=ids)[HOOK_POINT][0, 1:]


@pytest.mark.parametrize("kind", ["topk", "relu"])
@pytest.mark.parametrize("pool", ["mean", "max", "last"])
def test_each_pool_is_what_single_texts_give(gpt2, byte_tokenizer, pool, kind):
    sae = make_sae(kind)
    found = pooled_latents(gpt2, byte_tokenizer, TEXTS, sae, pool=pool, acts_pool=pool, batch_size_texts=3)
    pooled = {
        "mean": lambda rows: rows.mean(0),
        "max": lambda rows: rows.amax(0),
        "last": lambda rows: rows[-1],
    }[pool]
    assert isinstance(found.latents, csr_matrix) and found.latents.dtype == found.acts.dtype == np.float32
    assert found.latents.shape == (len(TEXTS), sae.d_sae) and found.latents.has_sorted_indices
    assert (found.latents.data != 0).all()
    for i, text in enumerate(TEXTS):
        acts = alone(gpt2, byte_tokenizer, text)
        with torch.no_grad():
            latents = sae.encode_dense(acts)
        torch.testing.assert_close(torch.from_numpy(found.acts[i]), pooled(acts))
        torch.testing.assert_close(torch.from_numpy(found.latents[i].toarray()[0]), pooled(latents))
        assert found.n_tokens[i] == len(acts)


def test_batches_of_one_do_not_depend_on_other_texts_to_the_bit(gpt2, byte_tokenizer, sae):
    whole = pooled_latents(gpt2, byte_tokenizer, TEXTS, sae, batch_size_texts=1)
    for part in (TEXTS[2:5], TEXTS[4:1:-1]):
        found = pooled_latents(gpt2, byte_tokenizer, part, sae, batch_size_texts=1)
        places = [TEXTS.index(text) for text in part]
        assert np.array_equal(found.acts, whole.acts[places])
        assert (found.latents != whole.latents[places]).nnz == 0


@pytest.mark.parametrize("batch_size_texts", [2, 7, 100])
def test_the_batch_size_matters_only_by_rounding(gpt2, byte_tokenizer, sae, batch_size_texts):
    one = pooled_latents(gpt2, byte_tokenizer, TEXTS, sae, batch_size_texts=1)
    many = pooled_latents(gpt2, byte_tokenizer, TEXTS, sae, batch_size_texts=batch_size_texts)
    np.testing.assert_allclose(many.acts, one.acts, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(many.latents.toarray(), one.latents.toarray(), rtol=1e-5, atol=1e-6)


def test_the_tokenizers_own_padding_and_truncation_do_not_matter(gpt2, byte_tokenizer, sae):
    left = pooled_latents(gpt2, byte_tokenizer, TEXTS, sae)
    try:
        byte_tokenizer.padding_side = "right"
        byte_tokenizer(
            TEXTS, truncation=True, max_length=2, padding="max_length"
        )  # leaves its mark on the backend
        right = pooled_latents(gpt2, byte_tokenizer, TEXTS, sae)
    finally:
        byte_tokenizer.padding_side = "left"
    assert np.array_equal(left.acts, right.acts) and (left.latents != right.latents).nnz == 0


def test_special_tokens_are_never_pooled(gpt2, byte_tokenizer, sae):
    """A special token in a text counts for none, but the tokens behind it have seen it."""
    found = pooled_latents(gpt2, byte_tokenizer, ["ab<|eos|>c"], sae)
    assert found.n_tokens.tolist() == [3]
    ids = torch.tensor([[BOS, *byte_tokenizer("ab<|eos|>c", add_special_tokens=False).input_ids]])
    assert ids.tolist()[0][3] == 2
    with torch.no_grad():
        rows = run_to(gpt2, [HOOK_POINT], input_ids=ids)[HOOK_POINT][0, [1, 2, 4]]
    torch.testing.assert_close(torch.from_numpy(found.acts[0]), rows.mean(0))
    last = pooled_latents(gpt2, byte_tokenizer, ["abc<|eos|>"], sae, pool="last")
    torch.testing.assert_close(torch.from_numpy(last.acts[0]), alone(gpt2, byte_tokenizer, "abc")[-1])


def test_one_pass_serves_several_saes(gpt2, byte_tokenizer, sae, monkeypatch):
    relu, calls = make_sae("relu", d_sae=20), []
    hook_points(gpt2)  # the pass of three tokens that shows its blocks
    original = type(gpt2).forward
    monkeypatch.setattr(type(gpt2), "forward", lambda *a, **k: (calls.append(1), original(*a, **k))[1])
    found = pooled_latents(gpt2, byte_tokenizer, TEXTS, {"a": sae, "b": relu}, batch_size_texts=4)
    assert len(calls) == 2
    for name, one in (("a", sae), ("b", relu)):
        assert (
            found[name] != pooled_latents(gpt2, byte_tokenizer, TEXTS, one, batch_size_texts=4).latents
        ).nnz == 0
    with pytest.raises(ValueError, match="one SAE, got a, b: name one"):
        _ = found.latents
    with pytest.raises(KeyError, match="no features of an SAE 'c', there are a, b"):
        _ = found["c"]
    acts_alone = pooled_latents(gpt2, byte_tokenizer, TEXTS, hook_point=HOOK_POINT, batch_size_texts=4)
    assert np.array_equal(acts_alone.acts, found.acts) and acts_alone.by_name == {}


def test_activations_take_the_mean_where_latents_take_the_maximum(gpt2, byte_tokenizer, sae):
    found = pooled_latents(gpt2, byte_tokenizer, TEXTS, sae, pool="max")
    assert (found.pool, found.acts_pool) == ("max", "mean")
    assert np.array_equal(found.acts, pooled_latents(gpt2, byte_tokenizer, TEXTS, sae).acts)


def test_long_texts_are_cut_with_a_warning_or_by_word(gpt2, byte_tokenizer, sae, caplog):
    long = "a" * 100
    with caplog.at_level(logging.WARNING):
        found = pooled_latents(gpt2, byte_tokenizer, ["ab", long], sae)
    assert "1 of 2 texts are longer than the model's 64 positions" in caplog.text
    assert found.n_truncated == 1 and found.n_tokens.tolist() == [2, 63]
    caplog.clear()
    cut = pooled_latents(gpt2, byte_tokenizer, ["ab", long], sae, max_tokens=10)
    assert cut.n_tokens.tolist() == [2, 9] and cut.n_truncated == 1 and not caplog.text
    np.testing.assert_allclose(
        cut.acts[1], pooled_latents(gpt2, byte_tokenizer, ["a" * 9], sae).acts[0], rtol=1e-5, atol=1e-6
    )
    for wrong in (1, 65):
        with pytest.raises(
            ValueError, match=f"max_tokens expected 2 to 64, the positions of the model, got {wrong}"
        ):
            pooled_latents(gpt2, byte_tokenizer, ["ab"], sae, max_tokens=wrong)


@pytest.mark.parametrize("pool, pooled", [("mean", [1, 4]), ("max", [2, 8])])
def test_a_dictionary_of_a_billion_latents_stays_sparse(pool, pooled):
    """Text 0 is tokens 0 and 2, text 1 tokens 1 and 3; a zero that TopK stored counts as silence."""
    latents = SparseLatents.from_topk(
        torch.tensor([[2.0], [8.0], [0.0], [0.0]]), torch.tensor([[5], [10**9 - 1], [7], [5]]), 10**9
    )
    found = _pooled_latents(latents, torch.tensor([0, 1, 0, 1]), pool, 2)
    assert found.shape == (2, 10**9) and found.nnz == 2
    assert found.indices.tolist() == [5, 10**9 - 1] and found.data.tolist() == pooled


def test_equal_texts_are_known_as_such(gpt2, byte_tokenizer, sae):
    found = pooled_latents(gpt2, byte_tokenizer, ["The  sun\n", "the sun", "the son"], sae)
    a, b, c = found.documents.tolist()
    assert a == b != c


def test_half_a_surrogate_pair_is_read(gpt2, byte_tokenizer, sae):
    assert len(pooled_latents(gpt2, byte_tokenizer, ["ab\ud800", "ok"], sae)) == 2


@pytest.mark.parametrize(
    "texts, message",
    [
        ([], "expected texts, got none"),
        ("abc", "got one string: pass a list"),
        (["a", ""], "got an empty one at place 1"),
        (["a", " \n"], "got an empty one at place 1"),
        (["a", None], "expected strings, got NoneType at place 1"),
        (["b", "<|eos|>"], "expected texts with tokens, got '<|eos|>' at place 1"),
    ],
)
def test_what_is_no_text_is_refused(gpt2, byte_tokenizer, sae, texts, message):
    with pytest.raises(ValueError) as error:
        pooled_latents(gpt2, byte_tokenizer, texts, sae)
    assert message in str(error.value)


def test_an_sae_from_elsewhere_is_refused_with_both_named(gpt2, byte_tokenizer, sae):
    def refused(saes, **options):
        with pytest.raises(ValueError) as error:
            pooled_latents(gpt2, byte_tokenizer, TEXTS, saes, **options)
        return str(error.value)

    other = make_sae(model_name="google/gemma-2-2b")
    gpt2.config._name_or_path = "hub/models--google--gemma-2-2b/snapshots/1a2b"
    assert (
        len(pooled_latents(gpt2, byte_tokenizer, TEXTS, other)) == 7
    )  # one model, by the name of its folder in a cache
    gpt2.config._name_or_path = "someone/gpt2-tiny"
    message = refused(other)
    assert (
        "'sae' does not fit blocks.0" in message
        and "expected one of someone/gpt2-tiny, got one of d_model=32, trained on google/gemma-2-2b"
        in message
    )
    later = make_sae(hook_point="blocks.1.hook_resid_post")
    message = refused({"one": sae, "two": later})
    assert "'two' was trained on blocks.1.hook_resid_post, but 'one' on blocks.0.hook_resid_post" in message
    assert "expected one of d_model=32, got one of d_model=16" in refused(make_sae(d_model=16))
    assert "'sae' does not say where it was trained" in refused(make_sae(hook_point=""))
    assert "expected hook_point=" in refused(None)
    assert "pool expected one of" in refused(sae, pool="median")
    assert "batch_size_texts expected at least 1" in refused(sae, batch_size_texts=0)
    assert (
        len(pooled_latents(gpt2, byte_tokenizer, TEXTS, other, hook_point=HOOK_POINT)) == 7
    )  # the caller's word


def test_an_sae_may_name_its_module(gpt2, byte_tokenizer, sae):
    by_path = make_sae(hook_point="", hf_module="transformer.h.0")
    found = pooled_latents(gpt2, byte_tokenizer, TEXTS, by_path)
    assert found.hook_point == "transformer.h.0"
    assert np.array_equal(found.acts, pooled_latents(gpt2, byte_tokenizer, TEXTS, sae).acts)


def test_activations_that_are_not_finite_name_the_text(gpt2, byte_tokenizer, sae):
    with torch.no_grad():
        gpt2.transformer.wte.weight[byte_tokenizer("z", add_special_tokens=False).input_ids[0]] = torch.nan
    with pytest.raises(ValueError, match="text 4 has activations with nan or infinity"):
        pooled_latents(gpt2, byte_tokenizer, TEXTS, sae)


def test_features_go_to_any_estimator_and_into_a_pipeline(gpt2, byte_tokenizer, sae):
    """Texts in, labels out: the transfer use, with scikit-learn's own pieces."""
    texts = [f"{word} {i}" for i in range(20) for word in ("sun", "moon")]
    labels = [i % 2 for i in range(40)]
    reader = FunctionTransformer(
        lambda texts: pooled_latents(gpt2, byte_tokenizer, texts, sae, pool="max").latents
    )
    pipeline = make_pipeline(reader, MaxAbsScaler(), LogisticRegression(C=100)).fit(texts[:30], labels[:30])
    assert pipeline.score(texts[30:], labels[30:]) >= 0.9


def test_the_model_is_left_as_it_was(gpt2, byte_tokenizer, sae):
    gpt2.train()
    pooled_latents(gpt2, byte_tokenizer, TEXTS, sae)
    assert gpt2.training and all(not module._forward_hooks for module in gpt2.modules())
