"""An SAE of a model whose writing weights were centred reads the plain model's activations, exactly."""

import pytest
import torch

from saelens_lite.lm.hooks import run_to
from saelens_lite.sae.centred import normalisation

CENTRED = {"center_writing_weights": True}


def told(**metadata):
    metadata = {"model_name": "gpt2-small", "hook_name": "blocks.3.hook_resid_pre"} | metadata
    options = metadata.pop("options", CENTRED)
    return normalisation(
        metadata | {"model_from_pretrained_kwargs": options}, metadata.pop("does", "none"), "cfg"
    )


def test_the_stream_of_a_centred_model_is_the_plain_one_less_its_mean(gpt2):
    """gpt2 with a mean of its own in everything that is written, and again with that mean taken out."""
    points = [
        f"blocks.{i}.hook_{name}"
        for i in (0, 1)
        for name in ("resid_pre", "attn_out", "mlp_out", "resid_post")
    ]
    inside = ["blocks.1.attn.hook_z", "blocks.1.mlp.hook_in"]
    ids = torch.arange(8)[None]
    blocks = gpt2.transformer.h
    written = [gpt2.transformer.wte.weight, gpt2.transformer.wpe.weight]
    written += [
        getattr(part.c_proj, name) for b in blocks for part in (b.attn, b.mlp) for name in ("weight", "bias")
    ]
    with torch.no_grad():
        for parameter in written:
            parameter += 0.05 * torch.randn((*parameter.shape[:-1], 1)) + 0.03
        plain, logits = run_to(gpt2, points + inside, input_ids=ids), gpt2(ids).logits
        gpt2.lm_head.weight = torch.nn.Parameter(gpt2.lm_head.weight.clone())  # tied to the embedding
        for parameter in written:
            parameter -= parameter.mean(-1, keepdim=True)
        centred = run_to(gpt2, points + inside, input_ids=ids)
        torch.testing.assert_close(gpt2(ids).logits, logits, atol=1e-4, rtol=1e-4)
    for point in points:
        assert told(hook_name=point) == "center"
        assert plain[point].mean(-1).abs().max() > 0.02
        expected = plain[point] - plain[point].mean(-1, keepdim=True)
        torch.testing.assert_close(centred[point], expected, atol=1e-5, rtol=1e-4)
    for point in inside:
        assert told(hook_name=point) == "none"
        torch.testing.assert_close(centred[point], plain[point], atol=1e-5, rtol=1e-4)


def test_without_the_option_and_with_other_options_the_stream_is_plain():
    assert told(options=None) == told(options={}) == "none"
    assert told(options={"fold_ln": True, "center_unembed": True, "fold_value_biases": True}) == "none"
    assert told(does="layer_norm") == "layer_norm"
    for model in ("mistral-7b", "google/gemma-2-2b", "Qwen/Qwen3-8B", "meta-llama/Llama-3.1-8B"):
        assert told(model_name=model) == "none", "TransformerLens leaves RMSNorm as it is"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"model_name": "own-model"}, "trained on own-model with center_writing_weights.*not known here"),
        ({"model_name": ""}, "a model without name"),
        ({"hook_name": "blocks.1.ln1.hook_normalized"}, "at ln1.hook_normalized"),
        ({"does": "constant_norm_rescale"}, "normalize_activations 'constant_norm_rescale'"),
        (
            {"hook_name": "blocks.1.attn.hook_z", "options": {"fold_value_biases": True}},
            "with fold_value_biases",
        ),
    ],
)
def test_what_the_plain_model_does_not_tell_is_refused(metadata, message):
    with pytest.raises(ValueError, match=message):
        told(**metadata)
