"""Resampling: dead latents start again, along inputs that are reconstructed badly.

Bricken et al. 2023, "Towards Monosemanticity", appendix "Neuron Resampling": rows are drawn with probability
∝ loss²; a dead latent's decoder row becomes the direction of one, its encoder column the same direction at
0.2 of the mean norm that encoder columns of alive latents have, its bias 0; and the optimiser forgets what it
knew of them. Where we depart: rows are those of the step's batch instead of 819,200 apart, and none is drawn
twice, so no two latents start alike. Where more latents are dead than the batch has rows, those silent for
longest come first and the rest at a later time.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ..kinds.kind import Kind
from ..random_streams import RESAMPLING, generator
from .dead import DeadTracker

log = logging.getLogger(__name__)

_ENCODER_SCALE = 0.2
"""Norm of a resampled encoder column, as a share of the mean of alive ones."""


@torch.no_grad()
def resample_(
    kind: Kind, tracker: DeadTracker, moments: list[tuple[Tensor, Tensor]], acts: Tensor, step: int
) -> None:
    """Start dead latents again, in place; several processes each bring their part of the batch.

    moments: of Adam, for each parameter whose first dimension counts latents; acts: float[B d_model]
    step: the draw is a function of (config.seed, step) and of the losses
    """
    sae, comm = kind.sae, kind.comm
    silent = comm.all_latents(tracker.tokens_since_fired)
    dead = (silent >= tracker.dead_after_tokens).nonzero().view(-1)  # of all shards, as is `latents`
    if not dead.numel():
        return
    inputs, error = acts - sae.b_dec, acts - comm.forward(sae, acts, sae.config.k).recons
    losses = torch.linalg.vecdot(error, error) * (inputs != 0).any(1)  # b_dec itself has no direction
    places = draw_rows(comm.all_rows(losses), len(dead), kind.config.seed, step).to(acts.device)
    longest = silent[dead].argsort(descending=True, stable=True)
    latents = dead[longest[: len(places)]]
    directions = torch.nn.functional.normalize(comm.rows_at(inputs, places), dim=1)

    norms = torch.linalg.vector_norm(sae.W_enc, dim=0)
    all_dead = len(dead) == kind.d_sae
    of_mean = (tracker.tokens_since_fired < tracker.dead_after_tokens) | all_dead
    mean_norm = comm.sum(norms[of_mean].sum()) / comm.sum(of_mean.sum())
    own, ours = comm.own_latents(latents, sae)
    sae.W_enc[:, own] = (_ENCODER_SCALE * mean_norm * directions[ours]).T
    sae.W_dec[own] = directions[ours]
    kind.restart(own)
    for first, second in moments:
        first[own] = 0
        second[own] = 0
    tracker.tokens_since_fired[own] = 0
    if comm.speaks:
        log.info("step %d: %d of %d dead latents resampled", step, len(latents), len(dead))


def draw_rows(losses: Tensor, n: int, seed: int, step: int) -> Tensor:
    """Places of n rows, or of all that have a loss, drawn one after the other with probability ∝ loss².

    losses: float[B], 0 or more; returns: int64[m], on the CPU
    Each row waits for a time that is exponential at the rate loss², and the first n are taken.
    """
    rates = losses.double().cpu().square()
    times = torch.empty_like(rates).exponential_(generator=generator(seed, RESAMPLING, step)) / rates
    return times.topk(min(n, int((rates > 0).sum())), largest=False).indices
