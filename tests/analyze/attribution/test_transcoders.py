"""Attribution through transcoders: latents read at the MLP's input, directions in what it adds."""

import pytest
import torch

from saelens_lite.analyze.attribution.edges import edge_ablation, edge_attribution
from saelens_lite.analyze.attribution.gradients import gradient_attribution
from saelens_lite.analyze.attribution.logits import direct_logit_attribution
from saelens_lite.analyze.edits.latents import ablate
from saelens_lite.analyze.evaluation.family import compare_autoencoders
from saelens_lite.analyze.probing.absorption import label_absorption
from saelens_lite.lm.hooks import capture, run_to
from saelens_lite.sae.config import SAEConfig, Target
from saelens_lite.sae.transcoder import Transcoder

READS, WRITES = "blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out"
LATER_READS, LATER_WRITES = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
IDS = torch.tensor([[1, 80, 90, 70, 60, 75], [1, 99, 98, 97, 2, 96]])


def make_transcoder(kind="topk", skip=True, reads=READS, writes=WRITES, d_out=32):
    config = SAEConfig(
        d_model=32, d_sae=48, kind=kind, k=4 if kind == "topk" else None, hook_point=reads,
        model_name="GPT2LMHeadModel", apply_b_dec_to_input=False,
        target=Target(d_model=d_out, skip=skip, hook_point=writes),
    )  # fmt: skip
    made, generator = Transcoder(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made


def test_gradient_attribution_is_of_what_is_added_at_the_target(gpt2):
    """Contributions of latents, b_dec with the skip, and error add up to y · ∂metric/∂y; each latent's is z_i
    W_dec[i] · ∂metric/∂y."""
    made = make_transcoder()

    def metric(logits):
        return logits[:, -1, 42].sum()

    found = gradient_attribution(gpt2, made, metric, input_ids=IDS, skip_ids=())
    with torch.enable_grad(), capture(gpt2, [READS, WRITES]) as seen:
        value = metric(gpt2(IDS).logits)
        (gradient,) = torch.autograd.grad(value, seen[WRITES])
    torch.testing.assert_close(found.stream_gradient, gradient)
    z = made.encode_dense(seen[READS].detach())
    by_hand = (z * (gradient @ made.W_dec.T)).sum((0, 1))
    torch.testing.assert_close(found.by_latent(), by_hand, rtol=1e-4, atol=1e-6)
    whole = found.by_position() + found.b_dec + found.error
    torch.testing.assert_close(whole, (seen[WRITES] * gradient).sum(-1).detach(), rtol=1e-4, atol=1e-5)


def test_edges_between_transcoders_of_two_layers(gpt2):
    """To first order in a small latent, the edge is what ablating the latent takes from the target."""
    upstream, downstream = make_transcoder(), make_transcoder("relu", reads=LATER_READS, writes=LATER_WRITES)
    targets = torch.tensor([[0, 5, 3], [1, 5, 7]])
    with torch.no_grad():
        upstream.W_dec *= 1e-3  # the effect of a latent is small, so that first order is all of it
    found = edge_attribution(gpt2, upstream, downstream, targets, input_ids=IDS, skip_ids=())
    edges = torch.stack([torch.tensor([0, 1]), found.effects.abs().argmax(1)], dim=1)
    exact = edge_ablation(gpt2, upstream, downstream, targets, edges, input_ids=IDS, skip_ids=())
    first_order = found.effects[edges[:, 0], edges[:, 1]]
    assert (first_order.abs() > 1e-6).all()
    torch.testing.assert_close(first_order, exact, rtol=0.05, atol=2e-6)
    with torch.no_grad(), ablate(gpt2, upstream, int(edges[0, 1]), skip_ids=()):
        x = run_to(gpt2, [LATER_READS], input_ids=IDS)[LATER_READS]
    pre_act = (x[0, 5] @ downstream.W_enc[:, 3] + downstream.b_enc[3]).item()
    assert found.pre_acts[0].item() - pre_act == pytest.approx(exact[0].item(), abs=1e-6)


@torch.no_grad()
def test_direct_logit_attribution_adds_up(gpt2):
    made = make_transcoder()
    found = direct_logit_attribution(gpt2, made, 42, 7, input_ids=IDS[:1])
    logits = gpt2(IDS[:1]).logits[0, -1]
    assert found.total.item() == pytest.approx(float(logits[42] - logits[7]), abs=1e-4)


def test_what_does_not_fit_is_refused_in_a_line(gpt2, store):
    with pytest.raises(ValueError, match="the transcoder does not say where it writes"):
        gradient_attribution(gpt2, make_transcoder(writes=""), lambda logits: logits.sum(), input_ids=IDS)
    with pytest.raises(ValueError, match="a place of width 8 to write to, .* of width 32"):
        direct_logit_attribution(gpt2, make_transcoder(d_out=8), 42, input_ids=IDS)
    with pytest.raises(ValueError, match="codes of rows that they reconstruct, got it, a transcoder"):
        compare_autoencoders({"it": make_transcoder()}, store)
    with pytest.raises(ValueError, match="label_absorption expected an SAE"):
        label_absorption(make_transcoder(), torch.zeros(4, 32), {"a": torch.ones(4).bool()})
