"""Which latents of one SAE drive those of another, later in the model: edge attribution, and exact ablation.

    effect of latent i on the target = Σ_s z_i(s) · scale(s) · W_dec[i] · ∂pre_act_target/∂acts(s)

over the tokens s of the target's text. A target is the pre-activation of a downstream latent at one token
(gated: the gate's), which is smooth where TopK and JumpReLU jump. The effect estimates, to first order,
pre-activation − pre-activation with latent i ablated at all tokens but BOS, EOS and padding: positive where i
excites. It includes the layers in between, with their attention.

source: edge attribution patching, Syed, Rager and Conmy 2023, arXiv:2310.10348; between latents, with the
SAE's error kept, Marks et al. 2024, arXiv:2403.19647
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saelens_lite.arguments import at_most, takes_folders
from saelens_lite.lm.decoder import Decoder, evaluation_mode
from saelens_lite.lm.hooks import run_to
from saelens_lite.lm.positions import Positions
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..edits.latents import ablate
from ..latents.compatibility import fits, written_at
from .gradients import stream_leaves
from .stream_parts import StreamParts

Targets = Tensor | Sequence[tuple[int, int, int]]
"""int64[n 3] rows of (example, position, downstream latent)."""


@dataclass(frozen=True, slots=True, eq=False)
class EdgeAttribution:
    """First-order effects of upstream latents on targets int64[n 3].

    pre_acts: float32[n], without an edit
    effects: float32[n d_sae] of the upstream latents, 0 for those that are silent in the target's text
    error, b_dec: float32[n], effects of what the upstream SAE leaves unexplained, and of its constant
    """

    targets: Tensor
    pre_acts: Tensor
    effects: Tensor
    error: Tensor
    b_dec: Tensor

    @names_misfits
    def strongest(self, n: int) -> tuple[Tensor, Tensor]:
        """The n largest effects, either sign: int64[n 2] (row of targets, upstream latent), float32[n]."""
        flat = self.effects.reshape(-1)
        found = flat.abs().topk(at_most(n, len(flat))).indices
        d_sae = self.effects.shape[1]
        return torch.stack([found // d_sae, found % d_sae], dim=1), flat[found]

    def __repr__(self) -> str:
        lines = [f"EdgeAttribution of {len(self.targets):,} targets; strongest edges:"]
        for (target, upstream), effect in zip(*(part.tolist() for part in self.strongest(5))):
            example, position, latent = self.targets[target].tolist()
            lines.append(f"  {effect:+.4f}  {upstream} → {latent} at example {example}, position {position}")
        return "\n".join(lines)


@takes_folders
@names_misfits
def edge_attribution(
    model: nn.Module,
    upstream: SparseAutoencoder,
    downstream: SparseAutoencoder,
    targets: Targets,
    *,
    upstream_point: str | None = None,
    downstream_point: str | None = None,
    skip_ids: Sequence[int] | None = None,
    **model_inputs: Any,
) -> EdgeAttribution:
    """The first-order effect of every upstream latent on each target.

    It takes one forward, and as many backwards as the text with most targets has.

    skip_ids: tokens whose upstream latents are left out; by default the model's BOS, EOS and padding
    raises: ValueError for targets outside the text or the SAE, or hook points in the wrong order; HookError
        as `hooks.edit`
    """
    decoder = Decoder(model)
    source, sink = fits(upstream, decoder, upstream_point), fits(downstream, decoder, downstream_point)
    targets = _checked_targets(targets, downstream)
    with evaluation_mode(decoder), torch.enable_grad(), stream_leaves(decoder, upstream, source) as leaves:
        acts = run_to(decoder, [sink], **model_inputs)[sink]
        if len(leaves) != 1 or not acts.requires_grad or source == sink:
            raise ValueError(
                f"edges expected an upstream hook point before the downstream one, got {source} and {sink}"
            )
        (leaf,) = leaves
        pre_acts = _read(downstream, acts, targets)
        parts = StreamParts(upstream, leaf.acts, leaf.read)
        skipped = decoder.special_ids if skip_ids is None else tuple(skip_ids)
        chosen = Positions(skip_ids=skipped)(leaf.info)[..., None]
        n, batch = len(targets), len(acts)
        effects = torch.zeros(n, upstream.d_sae, device=upstream.device)
        error, b_dec = torch.zeros(n, device=upstream.device), torch.zeros(n, device=upstream.device)
        for members in _rounds(targets[:, 0]):
            total = pre_acts[members.to(pre_acts.device)].sum()
            (gradient,) = torch.autograd.grad(total, leaf.acts, retain_graph=True, materialize_grads=True)
            found = parts.along(torch.where(chosen.to(gradient.device), gradient, 0))
            of_example = torch.full((batch,), -1)
            of_example[targets[members, 0]] = members
            owner = of_example.to(upstream.device)[found.latents.row_ids() // acts.shape[1]]
            hers = owner >= 0
            where = (owner[hers], found.latents.indices[hers])
            effects.index_put_(where, found.latents.values[hers], accumulate=True)
            examples, members = targets[members, 0].to(upstream.device), members.to(upstream.device)
            error[members], b_dec[members] = found.error.sum(1)[examples], found.b_dec.sum(1)[examples]
    return EdgeAttribution(targets, pre_acts.detach().float().cpu(), effects.cpu(), error.cpu(), b_dec.cpu())


@takes_folders
@names_misfits
def edge_ablation(
    model: nn.Module,
    upstream: SparseAutoencoder,
    downstream: SparseAutoencoder,
    targets: Targets,
    edges: Tensor,
    *,
    upstream_point: str | None = None,
    downstream_point: str | None = None,
    skip_ids: Sequence[int] | None = None,
    **model_inputs: Any,
) -> Tensor:
    """The exact effects of edges: pre-activation of the target − the same with the upstream latent ablated.

    One forward, to the downstream hook point, for every upstream latent among the edges.

    edges: int64[m 2], (row of targets, upstream latent), as `EdgeAttribution.strongest` gives them
    returns: float32[m]
    raises: as `edge_attribution`
    """
    decoder = Decoder(model)
    source, sink = fits(upstream, decoder, upstream_point), fits(downstream, decoder, downstream_point)
    targets = _checked_targets(targets, downstream)
    are_pairs = edges.ndim == 2 and edges.shape[1] == 2
    if not are_pairs or not ((edges[:, 0] >= 0) & (edges[:, 0] < len(targets))).all():
        raise ValueError(
            f"edges expected [m 2] rows of (target 0 to {len(targets) - 1}, latent), got {list(edges.shape)}"
        )
    effects, written = torch.zeros(len(edges)), written_at(upstream, decoder, source)
    with evaluation_mode(decoder), torch.no_grad():
        clean = _read(downstream, run_to(decoder, [sink], **model_inputs)[sink], targets)
        for latent in edges[:, 1].unique().tolist():
            of_latent = (edges[:, 1] == latent).nonzero()[:, 0]
            read = edges[of_latent, 0]
            with ablate(decoder, upstream, latent, hook_point=written, skip_ids=skip_ids):
                ablated = _read(downstream, run_to(decoder, [sink], **model_inputs)[sink], targets[read])
            effects[of_latent] = (clean[read.to(clean.device)] - ablated).float().cpu()
    return effects


def _read(sae: SparseAutoencoder, acts: Tensor, targets: Tensor) -> Tensor:
    """float[n], pre-activations of the targets. raises: ValueError for one outside the text."""
    batch, seq = acts.shape[:2]
    example, position, latent = targets.unbind(1)
    if int(example.max()) >= batch or int(position.max()) >= seq:
        raise ValueError(
            f"targets expected examples below {batch} and positions below {seq}, got up to "
            f"{targets.amax(0).tolist()}"
        )
    normalized = sae.normalize(acts[example.to(acts.device), position.to(acts.device)].to(sae.device))[0]
    if not (finite := normalized.isfinite().all(1)).all():
        place = targets[int((~finite).nonzero()[0]), :2].tolist()
        raise ValueError(
            f"targets expected finite activations, got nan or infinity at (example, position) {tuple(place)}"
        )
    columns, of_target = latent.unique(return_inverse=True)
    return sae.pre_acts(normalized, columns.to(sae.device))[torch.arange(len(targets)), of_target]


def _checked_targets(targets: Targets, sae: SparseAutoencoder) -> Tensor:
    """int64[n 3]"""
    given = torch.as_tensor(targets).cpu()
    if given.is_floating_point() and given.numel():
        raise ValueError(f"targets expected whole numbers (example, position, latent), got {given.dtype}")
    rows = given.long()
    if rows.ndim != 2 or rows.shape[1] != 3 or not len(rows):
        raise ValueError(
            f"targets expected [n ≥ 1, 3] rows of (example, position, latent), got {list(rows.shape)}"
        )
    if int(rows.min()) < 0 or int(rows[:, 2].max()) >= sae.d_sae:
        raise ValueError(
            f"targets expected latents from 0 to {sae.d_sae - 1} and nothing negative, got "
            f"{rows.tolist()[:8]}"
        )
    return rows


def _rounds(examples: Tensor) -> list[Tensor]:
    """Places of int64[n] examples, in groups that hold each example at most once."""
    order = examples.argsort(stable=True)
    first = torch.searchsorted(examples[order].contiguous(), examples[order].contiguous())
    nth = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)) - first)
    return [(nth == n).nonzero()[:, 0] for n in range(int(nth.max()) + 1)]
