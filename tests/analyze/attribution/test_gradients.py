"""Gradient times activation: the run is the model's own, and each contribution is a derivative that can be
measured."""

import pytest
import torch

from saelens_lite.analyze.attribution.gradients import gradient_attribution
from saelens_lite.analyze.edits.latents import scale
from saelens_lite.lm.hooks import edit

from ..conftest import make_sae
from .test_logits import IDS, MASK, model_of, sae_at

POINT = "blocks.1.hook_resid_post"


def metric(logits):
    return (logits[:, 3:, 5].log_softmax(0) * logits[:, 3:, 7]).sum()


def test_the_run_is_the_models_own_bit_for_bit():
    model, seen = model_of("llama"), []
    found = gradient_attribution(
        model, sae_at(POINT), lambda logits: seen.append(logits) or metric(logits), input_ids=IDS
    )
    logits = model(input_ids=IDS).logits
    assert torch.equal(seen[0], logits)
    assert found.metric == float(metric(logits).detach())
    assert all(parameter.grad is None for parameter in model.parameters()) and not model._forward_hooks


@pytest.mark.parametrize(("kind", "normalize"), [("topk", "none"), ("gated", "none"), ("relu", "layer_norm")])
def test_equals_the_gradient_of_an_explicit_splice(kind, normalize):
    """z as leaves, the rest of the stream held: acts = z · scale @ W_dec + held."""
    model, sae = model_of("gpt2"), sae_at(POINT, kind, normalize_activations=normalize)
    leaves = {}

    def spliced(acts, _info):
        acts = acts.detach()
        row_scale = sae.normalize(acts)[1]
        unit = 1.0 if row_scale is None else row_scale.detach()
        leaves["z"] = sae.encode_dense(acts).detach().requires_grad_()
        leaves["acts"] = acts.requires_grad_()
        held = (acts - (leaves["z"] * unit) @ sae.W_dec).detach()
        return (leaves["z"] * unit) @ sae.W_dec.detach() + held

    with edit(model, POINT, spliced):
        (gradient,) = torch.autograd.grad(
            metric(model(input_ids=IDS, attention_mask=MASK).logits), leaves["z"]
        )
    found = gradient_attribution(
        model, sae, metric, where=lambda info: info.attention_mask, input_ids=IDS, attention_mask=MASK
    )
    expected = gradient * leaves["z"].detach()
    real = MASK.bool()
    torch.testing.assert_close(found.latents.to_dense()[real], expected[real], atol=2e-4, rtol=2e-3)
    assert not found.latents.to_dense()[~real].any()
    torch.testing.assert_close(found.by_latent(), found.latents.to_dense().sum((0, 1)))
    torch.testing.assert_close(found.by_position(), found.latents.to_dense().sum(-1))
    whole = found.by_position() + found.b_dec + found.error
    torch.testing.assert_close(
        whole, (leaves["acts"].detach() * found.stream_gradient).sum(-1), atol=1e-3, rtol=1e-3
    )


def test_is_the_slope_of_a_small_ablation():
    """metric − metric with a latent scaled by 1 − h, over h: the same tokens, BOS left out on both sides."""
    model, sae, h = model_of("gpt2").double(), sae_at(POINT, "relu", dtype="float64"), 2**-16
    found = gradient_attribution(model, sae, metric, input_ids=IDS)
    for latent in found.by_latent().abs().topk(3).indices.tolist():
        with torch.no_grad(), scale(model, sae, latent, 1 - h):
            slope = (found.metric - float(metric(model(input_ids=IDS).logits))) / h
        assert float(found.by_latent()[latent]) == pytest.approx(slope, rel=1e-3)
    assert not found.latents.to_dense()[:, 0].any(), "BOS is left out, as in an ablation"
    best = found.top(1)[0]
    with pytest.raises(ValueError, match="expected n of 0 or more, got -2"):
        found.top(-2)
    assert best.contribution == float(found.latents.to_dense()[best.example, best.position, best.latent])
    assert "latent" in repr(found)


def test_what_does_not_fit_is_refused():
    model, sae = model_of("llama"), sae_at(POINT)
    with pytest.raises(ValueError, match=r"scalar tensor made of the logits, got \[2, 6\]"):
        gradient_attribution(model, sae, lambda logits: logits[..., 0], input_ids=IDS)
    with pytest.raises(ValueError, match="differentiable"):
        gradient_attribution(model, sae, lambda logits: logits.argmax(-1).sum(), input_ids=IDS)
    with pytest.raises(ValueError, match="does not say where it was trained"):
        gradient_attribution(model, make_sae(hook_point=""), metric, input_ids=IDS)
    assert not model._forward_hooks and not model.model.layers[1]._forward_hooks
