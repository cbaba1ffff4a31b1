"""Edges between two SAEs: slopes that can be measured, and the order that exact ablation gives."""

import pytest
import torch

from saelens_lite.analyze.attribution.edges import edge_ablation, edge_attribution
from saelens_lite.analyze.edits.latents import ablate, scale
from saelens_lite.analyze.stats.ranks import spearman
from saelens_lite.lm.hooks import run_to

from .test_logits import IDS, MASK, model_of, sae_at

FROM, TO = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
TARGETS = [(0, 5, 3), (1, 3, 20), (0, 5, 11), (0, 2, 3), (1, 2, 47)]


def pre_acts(model, sae, targets=TARGETS):
    acts = run_to(model, [TO], input_ids=IDS)[TO]
    return torch.stack([sae.pre_acts(sae.normalize(acts[e, p])[0])[latent] for e, p, latent in targets])


@pytest.mark.parametrize(("kind", "normalize"), [("relu", "none"), ("jumprelu", "layer_norm")])
def test_effects_are_the_slopes_of_small_ablations(kind, normalize):
    """pre-activation − that with latent i scaled by 1 − h, over h, for each target."""
    model, h = model_of("gpt2").double(), 2**-16
    upstream = sae_at(FROM, kind, normalize_activations=normalize, dtype="float64")
    downstream = sae_at(TO, kind, normalize_activations=normalize, dtype="float64")
    found = edge_attribution(model, upstream, downstream, TARGETS, input_ids=IDS)
    with torch.no_grad():
        clean = pre_acts(model, downstream)
        torch.testing.assert_close(found.pre_acts, clean.float())
        for latent in found.effects.abs().sum(0).topk(4).indices.tolist():
            with scale(model, upstream, latent, 1 - h):
                slope = (clean - pre_acts(model, downstream)) / h
            torch.testing.assert_close(found.effects[:, latent], slope.float(), atol=1e-4, rtol=1e-3)


def test_targets_together_are_targets_alone():
    model, upstream, downstream = model_of("gpt2"), sae_at(FROM), sae_at(TO)
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    together = edge_attribution(model, upstream, downstream, TARGETS, **inputs)
    for row, target in enumerate(TARGETS):
        alone = edge_attribution(model, upstream, downstream, [target], **inputs)
        for name in ("pre_acts", "effects", "error", "b_dec"):
            torch.testing.assert_close(
                getattr(together, name)[row], getattr(alone, name)[0], atol=1e-5, rtol=1e-4
            )
    edges, effects = together.strongest(3)
    torch.testing.assert_close(together.effects[edges[:, 0], edges[:, 1]], effects)
    assert float(effects[0].abs()) == float(together.effects.abs().max()) and "→" in repr(together)


def test_parts_add_up_where_the_way_is_linear():
    """From what block 1 receives to what it adds the stream to: without its attention and MLP, the
    identity."""
    model = model_of("gpt2")
    with torch.no_grad():
        for part in (model.transformer.h[1].attn.c_proj, model.transformer.h[1].mlp.c_proj):
            part.weight.zero_(), part.bias.zero_()
    upstream, downstream = sae_at("blocks.1.hook_resid_pre"), sae_at(TO)
    found = edge_attribution(model, upstream, downstream, TARGETS, input_ids=IDS)
    whole = found.effects.sum(1) + found.error + found.b_dec
    latents = torch.tensor([latent for *_, latent in TARGETS])
    rest = downstream.b_enc[latents] - downstream.b_dec @ downstream.W_enc[:, latents]
    torch.testing.assert_close(whole + rest.detach(), found.pre_acts, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="expected n of 0 or more, got -1"):
        found.strongest(-1)
    edges, effects = found.strongest(20)
    exact = edge_ablation(model, upstream, downstream, TARGETS, edges, input_ids=IDS)
    torch.testing.assert_close(exact, effects, atol=1e-4, rtol=1e-4)


def test_exact_effects_are_those_of_ablate():
    model, upstream, downstream = model_of("llama"), sae_at(FROM), sae_at(TO)
    edges, _ = edge_attribution(model, upstream, downstream, TARGETS, input_ids=IDS).strongest(3)
    exact = edge_ablation(model, upstream, downstream, TARGETS, edges, input_ids=IDS)
    with torch.no_grad():
        clean = pre_acts(model, downstream)
        for (target, latent), effect in zip(edges.tolist(), exact.tolist(), strict=True):
            with ablate(model, upstream, latent):
                assert effect == pytest.approx(float((clean - pre_acts(model, downstream))[target]), abs=1e-5)


def test_attribution_ranks_edges_as_ablation_does():
    model, upstream, downstream = model_of("llama"), sae_at(FROM, k=8), sae_at(TO, k=8)
    with torch.no_grad():  # latents are small parts of the stream, as those of a trained SAE are
        upstream.W_dec.mul_(0.1)
    found = edge_attribution(model, upstream, downstream, TARGETS, input_ids=IDS)
    edges = (found.effects != 0).nonzero()
    exact = edge_ablation(model, upstream, downstream, TARGETS, edges, input_ids=IDS)
    effects = found.effects[edges[:, 0], edges[:, 1]]
    assert len(edges) > 60 and spearman(effects, exact) > 0.95
    strong = effects.abs() > effects.abs().median()
    assert ((effects > 0) == (exact > 0))[strong].float().mean() > 0.95


def test_what_does_not_fit_is_refused():
    model, upstream, downstream = model_of("llama"), sae_at(FROM), sae_at(TO)
    for source, sink in ((downstream, upstream), (upstream, upstream)):
        with pytest.raises(ValueError, match="upstream hook point before the downstream one"):
            edge_attribution(model, source, sink, TARGETS, input_ids=IDS)
    for wrong, message in (
        ([(0, 1)], "3"), ([(0, 6, 1)], "positions below 6"), ([(2, 0, 1)], "examples below 2"),
                           ([(0, 0, 48)], "from 0 to 47")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            edge_attribution(model, upstream, downstream, wrong, input_ids=IDS)
    with pytest.raises(ValueError, match="edges expected"):
        edge_ablation(model, upstream, downstream, TARGETS, torch.tensor([[5, 0]]), input_ids=IDS)
    assert not model.model.layers[0]._forward_hooks
