"""Where an SAE reads: a lens only of what enters the stream, and only of the model that was harvested."""

import copy

import pytest
import torch

import saelens_lite as sl
from saelens_lite.analyze.index.build import index_features
from saelens_lite.lm.hooks import enters_stream

from ..conftest import make_sae
from ..edits.test_latents import POINT, model_of, sae_of


def test_what_enters_the_stream():
    llama, gpt2, block = model_of("llama"), model_of("gpt2"), "model.layers.1"
    enters = (
        block,
        f"{block}.mlp",
        f"{block}.mlp.down_proj",
        f"{block}.self_attn.o_proj",
        "model.embed_tokens",
        POINT,
    )
    beside = ("q_proj", "k_proj")
    for name in enters:
        assert enters_stream(llama, name), name
    inner = [f"{block}.self_attn.{name}" for name in beside]
    for name in (
        *inner,
        f"{block}.input_layernorm",
        f"{block}.post_attention_layernorm",
        f"{block}.mlp.act_fn",
    ):
        assert not enters_stream(llama, name), name
    assert enters_stream(gpt2, "transformer.h.1.mlp.c_proj")
    assert not enters_stream(gpt2, "transformer.h.1.ln_2")
    with pytest.raises(ValueError, match="layers.1.input_layernorm, which the unembedding does not read"):
        sl.logit_lens(sae_of_place(f"{block}.input_layernorm"), llama)


def sae_of_place(point):
    sae = sae_of()
    sae.config = type(sae.config)(d_model=16, d_sae=24, kind="relu", hook_point=point)
    return sae


@pytest.fixture
def inner(gpt2, byte_tokenizer, tmp_path):
    texts = ["the sun is up and the sea is blue"] * 20
    point = "transformer.h.0.mlp.c_fc"
    store = sl.harvest_activations(
        gpt2,
        texts,
        point,
        tmp_path / "inner",
        max_tokens=300,
        tokenizer=byte_tokenizer,
        context_length=16,
        progress=False,
    )
    return store, make_sae(d_model=store.d_model(point), hook_point=point)


def test_an_sae_of_an_inner_width_is_indexed_without_a_lens(inner, gpt2, tmp_path):
    store, sae = inner
    assert store.d_model(store.hook_points[0]) == 128
    index = index_features(sae, store, tmp_path / "index", gpt2)
    assert not index.has("lens")
    assert sl.feature_page(sae, store, tmp_path / "page.html", gpt2, 5)


def test_another_model_is_refused_where_an_index_is_there_and_in_a_page(store, sae, gpt2, tmp_path):
    other = copy.deepcopy(gpt2)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    index = index_features(sae, store, tmp_path / "there", gpt2)
    for call in (
        lambda: index_features(sae, store, tmp_path / "there", other),
        lambda: sl.feature_page(sae, store, tmp_path / "page.html", other, 5),
        lambda: sl.feature_page(sae, store, tmp_path / "page.html", other, 5, index=index),
    ):
        with pytest.raises(ValueError, match="pass the model that was harvested"):
            call()
