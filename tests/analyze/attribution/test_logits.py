"""Direct logit attribution: shares that add up on models of several shapes, and one share worked out by
hand."""

import pytest
import torch
import transformers
from torch import nn

from saelens_lite.analyze.attribution.logits import direct_logit_attribution
from saelens_lite.errors import HookError
from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..conftest import COMMON, HEADS, make_sae, shape

SHAPE = shape(32)
MODELS = {
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        COMMON | {"n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 32},
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", SHAPE | HEADS),
    "neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", SHAPE),  # attention and MLP side by side
    "gemma2": (
        "Gemma2ForCausalLM",
        "Gemma2Config",
        SHAPE | HEADS | {"final_logit_softcapping": 5.0},
    ),  # post-norms, 1 + weight
    "cohere": ("CohereForCausalLM", "CohereConfig", SHAPE | {"logit_scale": 0.25}),  # centring without a bias
}
IDS = torch.tensor([[1, 5, 9, 33, 7, 12], [1, 8, 4, 20, 0, 0]])
MASK = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]])
TARGET, AGAINST = torch.tensor([3, 30]), torch.tensor([8, 0])


def model_of(name: str) -> nn.Module:
    model_class, config_class, arguments = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**arguments)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=0.5 * (parameter.ndim == 1), std=0.3)
    return model


def sae_at(point: str, kind: str = "topk", **fields) -> SparseAutoencoder:
    return make_sae(kind, hook_point=point, **fields)


@pytest.mark.parametrize("name", MODELS)
def test_shares_add_up_to_the_logit_difference(name):
    model = model_of(name)
    found = direct_logit_attribution(
        model, sae_at("blocks.0.hook_resid_post"), TARGET, AGAINST, input_ids=IDS, attention_mask=MASK
    )
    torch.testing.assert_close(found.total, found.logit_diff, atol=1e-4, rtol=0)
    assert set(found.parts) == {"error", "b_dec", "bias"} | {
        f"blocks.{block}.hook_{part}" for block in (1, 2) for part in ("attn_out", "mlp_out")
    }
    with torch.no_grad():
        logits = model(input_ids=IDS, attention_mask=MASK).logits.double()[
            [0, 1], [5, 3]
        ]  # the last real tokens
    if name == "gemma2":
        logits = 5 * torch.atanh(logits / 5)  # before the cap
    if name == "cohere":
        logits = logits / 0.25
    torch.testing.assert_close(
        found.logit_diff, logits[[0, 1], TARGET] - logits[[0, 1], AGAINST], atol=1e-4, rtol=1e-4
    )
    assert float(found.latents.values.abs().max()) > 0.01 and not model._forward_hooks


@pytest.mark.parametrize(
    "point", ["blocks.2.hook_resid_pre", "blocks.1.hook_attn_out", "blocks.2.hook_mlp_out", "model.layers.1"]
)
def test_any_place_in_the_stream(point):
    model = model_of("llama")
    found = direct_logit_attribution(model, sae_at(point, "relu"), 3, input_ids=IDS, position=-2)
    torch.testing.assert_close(found.total, found.logit_diff, atol=1e-4, rtol=0)
    with torch.no_grad():
        logits = model(input_ids=IDS).logits[:, -2]
    torch.testing.assert_close(
        found.logit_diff, (logits[:, 3] - logits.mean(-1)).double(), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("normalize", ["layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("kind", ["topk", "jumprelu", "gated"])
def test_saes_that_normalise_and_every_kind(kind, normalize):
    sae = sae_at("blocks.1.hook_resid_post", kind, normalize_activations=normalize)
    found = direct_logit_attribution(model_of("gpt2"), sae, 3, 8, input_ids=IDS)
    torch.testing.assert_close(found.total, found.logit_diff, atol=1e-4, rtol=0)


def test_the_share_of_a_latent_is_what_leaves_with_it():
    """At the last point nothing follows but norm and head: with the scale kept, a logit moves by exactly the
    share."""
    model, sae = model_of("llama"), sae_at("blocks.2.hook_resid_post")
    found = direct_logit_attribution(model, sae, 3, 8, input_ids=IDS[:1])
    seen = {}
    handle = model.model.norm.register_forward_pre_hook(lambda _m, args: seen.update(x=args[0].detach()))
    with torch.no_grad():
        model(input_ids=IDS[:1])
        handle.remove()
        x = seen["x"][0, -1]
        scale = (x.square().mean() + model.model.norm.variance_epsilon).sqrt()
        for latent, share in found.top(4):
            z = sae.encode_dense(x)[latent]
            removed = z * sae.W_dec[latent] / scale * model.model.norm.weight
            assert share == pytest.approx(
                float((model.lm_head.weight[3] - model.lm_head.weight[8]) @ removed), abs=1e-4
            )
    assert "blocks" not in "".join(found.parts) and "latent" in repr(found)


def test_a_block_that_is_not_a_sum_of_two_parts_has_one_share(monkeypatch):
    monkeypatch.setattr("saelens_lite.lm.decoder.Decoder.parts", lambda _decoder, _block: None)
    found = direct_logit_attribution(
        model_of("llama"), sae_at("blocks.0.hook_resid_post"), 3, 8, input_ids=IDS
    )
    assert set(found.parts) == {"error", "b_dec", "bias", "blocks.1", "blocks.2"}
    torch.testing.assert_close(found.total, found.logit_diff, atol=1e-4, rtol=0)


@pytest.mark.parametrize("apart", [1e-5, 0.0])
def test_tokens_of_nearly_one_embedding(apart):
    """The difference of their logits is smaller than the rounding of either, which is no reason to refuse
    it."""
    model = model_of("llama")
    with torch.no_grad():
        rows = model.get_output_embeddings().weight
        rows[8] = rows[3] + apart * torch.randn(32)
    found = direct_logit_attribution(model, sae_at("blocks.0.hook_resid_post"), 3, 8, input_ids=IDS)
    torch.testing.assert_close(found.total, found.logit_diff, atol=1e-4, rtol=0)
    assert float(found.logit_diff.abs().max()) < 1e-3


def test_what_has_no_direct_path_is_refused():
    model, sae = model_of("llama"), sae_at("blocks.1.hook_resid_post")
    with pytest.raises(ValueError, match="d_model=32, got one of d_model=16"):
        direct_logit_attribution(model, make_sae(d_model=16), 3, input_ids=IDS)
    with pytest.raises(ValueError, match="expected a token id from 0 to 39"):
        direct_logit_attribution(model, sae, 40, input_ids=IDS)
    with pytest.raises(ValueError, match="expected a token id, got the text 'self'"):
        direct_logit_attribution(model, sae, "self", input_ids=IDS)
    with pytest.raises(ValueError, match="expected position from 0 to 5"):
        direct_logit_attribution(model, sae, 4, position=6, input_ids=IDS)
    with pytest.raises(ValueError, match="pass hook_point="):
        direct_logit_attribution(model, sae_at("model.layers.1.mlp.down_proj"), 4, input_ids=IDS)
    with pytest.raises(ValueError, match="output embedding, got LlamaModel"):
        direct_logit_attribution(model.model, sae, 4, input_ids=IDS)
    model.model.norm.register_forward_hook(lambda _m, _a, out: out.tanh())
    with pytest.raises(HookError, match="no direct parts"):
        direct_logit_attribution(model, sae, 4, input_ids=IDS)
