"""The logit lens is the direction through the unembedding, worked out by hand beside it."""

import pytest
import torch
from torch import nn

from saelens_lite.analyze.attribution.lens import logit_lens
from saelens_lite.errors import HookError

from ..conftest import make_sae


def test_equals_the_matrix_product(gpt2, sae):
    lens = logit_lens(sae, gpt2, [3, 0, 47], n=5)
    logits = (sae.W_dec[[3, 0, 47]] @ gpt2.get_output_embeddings().weight.T).detach()
    logits = logits - logits.mean(-1, keepdim=True)
    torch.testing.assert_close(lens.top_logits, logits.topk(5).values)
    torch.testing.assert_close(lens.bottom_logits, logits.topk(5, largest=False).values)
    assert torch.equal(lens.top_ids, logits.topk(5).indices)


def test_all_latents_in_chunks(gpt2, sae, monkeypatch):
    whole = logit_lens(sae, gpt2)
    monkeypatch.setattr("saelens_lite.analyze.attribution.lens._CHUNK_LATENTS", 7)
    assert torch.equal(logit_lens(sae, gpt2).top_ids, whole.top_ids)
    assert len(whole.latents) == 48


def test_a_bias_of_the_head_plays_no_part(gpt2, sae):
    before = logit_lens(sae, gpt2, [1])
    gpt2.lm_head.bias = nn.Parameter(torch.arange(259.0))
    torch.testing.assert_close(logit_lens(sae, gpt2, [1]).top_logits, before.top_logits, atol=1e-4, rtol=0)


def test_the_final_norm_can_be_folded_in(gpt2, sae):
    with torch.no_grad():
        gpt2.transformer.ln_f.weight.copy_(torch.linspace(0.5, 2, 32))
        gpt2.transformer.ln_f.bias.fill_(3.0)
    direction = sae.W_dec[2] - sae.W_dec[2].mean()
    logits = (direction * gpt2.transformer.ln_f.weight) @ gpt2.lm_head.weight.T
    expected = (logits - logits.mean()).detach().topk(4).values
    found = logit_lens(sae, gpt2, [2], n=4, final_norm=True).top_logits[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_norm_that_multiplies_by_one_plus_its_weight(sae):
    """Gemma's norm: the weight is read off its effect."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    gemma = Gemma2ForCausalLM(config).eval()
    with torch.no_grad():
        gemma.model.norm.weight.copy_(torch.linspace(-0.5, 1, 32))
    logits = (sae.W_dec[2] * (1 + gemma.model.norm.weight)) @ gemma.lm_head.weight.T
    expected = (logits - logits.mean()).detach().topk(4).values
    found = logit_lens(sae, gemma, [2], n=4, final_norm=True).top_logits[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_tokens_have_text_with_a_tokenizer(gpt2, sae, byte_tokenizer):
    lens = logit_lens(sae, gpt2, [3], n=2, tokenizer=byte_tokenizer)
    assert lens.top(3)[0] == ("⟨0x92⟩", float(lens.top_logits[0, 0]))  # a byte that is no character
    assert logit_lens(sae, gpt2, [3], n=2).bottom(3)[0][0] == f"<{int(lens.bottom_ids[0, 0])}>"
    assert repr(lens).startswith("LogitLens of 1 latents")
    with pytest.raises(ValueError, match="latent 4 is not in this lens"):
        lens.top(4)


def test_what_does_not_fit_is_refused(gpt2, sae):
    with pytest.raises(ValueError, match="indices from 0 to 47"):
        logit_lens(sae, gpt2, [48])
    with pytest.raises(ValueError, match="model's width 32, got d_model=16"):
        logit_lens(make_sae(d_model=16), gpt2)
    with pytest.raises(ValueError, match="output embedding, got GPT2Model"):
        logit_lens(sae, gpt2.transformer)
    gpt2.transformer.ln_f = nn.Identity()
    with pytest.raises(HookError, match="expected a final norm beside transformer.h"):
        logit_lens(sae, gpt2, [0], final_norm=True)
