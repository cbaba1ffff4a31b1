"""Gemma Scope's transcoders of Gemma 2 read before the norm's gain; at mlp.hook_in they compute the same."""

import numpy as np
import pytest
import torch

from saelens_lite.lm.hooks import capture
from saelens_lite.sae.any_kind import load_any
from saelens_lite.sae.transcoder import Transcoder

D, N, LAYER = 16, 24, 1


@pytest.fixture(scope="module")
def gemma():
    """Random, with gains of 1 + weight between about −1 and 3."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=50, hidden_size=D, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, sliding_window=8, query_pre_attn_scalar=8,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.pre_feedforward_layernorm.weight.normal_()
    return model


@pytest.fixture
def published(tmp_path):
    """The folder, and its tensors in float64."""
    generator = np.random.default_rng(0)
    shapes = {"W_enc": (D, N), "b_enc": (N,), "W_dec": (N, D), "b_dec": (D,)}
    arrays = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["threshold"] = generator.uniform(0.2, 1, size=N).astype(np.float32)
    folder = tmp_path / f"gemma-scope-2b-pt-transcoders/layer_{LAYER}/width_16k/average_l0_76"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **arrays)
    return folder, {name: torch.from_numpy(array).double() for name, array in arrays.items()}


def test_after_the_gain_it_computes_what_is_published_before_it(gemma, published):
    folder, of = published
    transcoder = Transcoder.load(folder, model=gemma)
    assert transcoder.config.hook_point == f"blocks.{LAYER}.mlp.hook_in"
    assert transcoder.target.hook_point == f"blocks.{LAYER}.hook_mlp_out"
    assert transcoder.config.model_name == "google/gemma-2-2b"
    streams = []
    norm = gemma.model.layers[LAYER].pre_feedforward_layernorm
    handle = norm.register_forward_hook(lambda _module, args, _output: streams.append(args[0].double()))
    with torch.no_grad(), capture(gemma, [transcoder.config.hook_point]) as acts:
        gemma(torch.arange(40).view(2, 20))
    handle.remove()
    before = streams[0] / (streams[0].square().mean(-1, keepdim=True) + norm.eps).sqrt()
    pre = before @ of["W_enc"] + of["b_enc"]
    latents = pre * (pre > of["threshold"])
    with torch.no_grad():
        recons, found = transcoder(acts[transcoder.config.hook_point])
    torch.testing.assert_close(found.to_dense().double(), latents, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(recons.double(), latents @ of["W_dec"] + of["b_dec"], atol=1e-4, rtol=1e-5)


def test_what_was_moved_is_saved_for_its_place(gemma, published, tmp_path):
    transcoder = Transcoder.load(published[0], model=gemma)
    again = Transcoder.load(transcoder.save(tmp_path / "mine"))
    assert again.config.hook_point == f"blocks.{LAYER}.mlp.hook_in"
    assert torch.equal(again.W_enc, transcoder.W_enc)


def test_without_a_model_or_with_another_it_is_refused(gemma, shared_gpt2, published):
    folder = published[0]
    for load in (Transcoder.load, load_any):
        with pytest.raises(ValueError, match=r"before the gain .*model=model\) of google/gemma-2"):
            load(folder)
    with pytest.raises(ValueError, match="with a pre_feedforward_layernorm of 16, got none"):
        Transcoder.load(folder, model=shared_gpt2)
    weight = gemma.model.layers[LAYER].pre_feedforward_layernorm.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[3] = -1.0
        with pytest.raises(ValueError, match=r"expected gains other than 0 .*, got 0 at \[3\]"):
            Transcoder.load(folder, model=gemma)
        weight.copy_(kept)
