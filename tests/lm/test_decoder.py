"""A decoder looks each of its parts up once, and changes nothing in the model."""

import pytest
import torch
from torch import nn

from saelens_lite.lm.decoder import Decoder
from saelens_lite.lm.hooks import edit, hook_points, resolve, run_to

IDS = torch.tensor([[1, 80, 90, 70]])
POINT = "blocks.1.hook_mlp_out"


def test_the_parts_of_a_model(gpt2):
    decoder = Decoder(gpt2)
    assert (decoder.path, len(decoder.layers), decoder.width) == ("transformer.h", 2, 32)
    assert decoder.layers is gpt2.transformer.h and decoder.head is gpt2.lm_head
    assert decoder.outside_in == [gpt2, gpt2.transformer]
    assert decoder.device == torch.device("cpu") and decoder.class_name == "GPT2LMHeadModel"
    assert decoder.parts(1).attn == "attn" and decoder.accepts("use_cache") and not decoder.accepts("logits")
    assert Decoder.of(decoder) is decoder and Decoder.of(gpt2).bare is gpt2


def test_a_decoder_that_is_handed_on_looks_for_its_blocks_once(gpt2, monkeypatch):
    scans = []
    found = Decoder._blocks.func
    counted = lambda decoder: scans.append(decoder) or found(decoder)  # noqa: E731
    monkeypatch.setattr(Decoder._blocks, "func", counted)
    decoder = Decoder(gpt2)
    hook_points(decoder)
    with edit(decoder, POINT, lambda acts, info: acts * 2):
        run_to(decoder, [POINT, "blocks.0.hook_attn_out"], input_ids=IDS)
    resolve(decoder, "transformer.h.1.mlp")
    assert [of for of in scans if of is decoder] == [decoder]


def test_a_decoder_does_in_the_place_of_its_model(gpt2):
    (of_model,) = run_to(gpt2, [POINT], input_ids=IDS).values()
    (of_decoder,) = run_to(Decoder(gpt2), [POINT], input_ids=IDS).values()
    assert torch.equal(of_model, of_decoder)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in gpt2.modules())


def test_a_model_without_an_output_embedding_has_no_head(gpt2):
    with pytest.raises(
        ValueError, match="expected a model with an output embedding, got GPT2Model.*ForCausalLM"
    ):
        _ = Decoder(gpt2.transformer).head
    with pytest.raises(ValueError, match="got Linear"):
        _ = Decoder(nn.Linear(2, 2)).head
