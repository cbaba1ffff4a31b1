"""Controls of an edit: the same change at the same tokens, along other directions.

An edit writes (z_new − z)_i · W_dec[i] at each token. A control keeps (z_new − z)_i, and with it tokens and
dose, but replaces W_dec[i] by a vector of the same length: the direction of another latent that fires as
often, a random one, or one from labels (DiffMean, a probe). The latent's rank among at least 100 draws shows
what it does itself. To test the SAE, compare with one whose decoder is frozen and random (`train --baseline`;
rivals in doses.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import index

import torch
from torch import Tensor

from saelens_lite.arguments import takes_folders
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..stats.document_split import Documents, Split, selecting_side
from ..stats.logistic import fit_logistic
from .stream_edit import Latents, checked_latents_of

_MOST_TRIES = 1000


@dataclass(frozen=True, slots=True, eq=False)
class Controls:
    """Draws of one kind of control, for `directions=` of an edit.

    name: what they are
    directions: float[n_draws n_latents d_model], as long as the rows of W_dec that they stand for
    latents: int64[n_draws n_latents] whose directions they are, if latents'
    rate_ratio: the largest factor between the firing rate of a latent and of one drawn for it, if latents'
    """

    name: str
    directions: Tensor
    latents: Tensor | None = None
    rate_ratio: float | None = None

    def __len__(self) -> int:
        return len(self.directions)


@takes_folders
@names_misfits
def matched_latents(
    sae: SparseAutoencoder,
    latents: Latents,
    rates: Tensor,
    *,
    n_draws: int = 100,
    seed: int = 0,
    allowed: Tensor | None = None,
) -> Controls:
    """Random latents that fire about as often and have decoder rows about as long.

    They come from the n_draws nearest by the distance of (log rate, log decoder norm), without the latents
    themselves and those that never fire. For one latent each of these is a draw. For several, a draw has one
    for each and none twice: where one latent has taken another's neighbour, that one takes its next nearest.
    No two draws are the same set.

    rates: float[d_sae], the share of tokens on which each latent fires (`latent_stats(…).rate`,
        `latent_density(…).density`)
    allowed: bool[d_sae], latents that may be drawn, by default all that fire
    raises: ValueError when there are too few to draw from
    """
    chosen = checked_latents_of(sae, latents)
    rates = rates.detach().cpu().double()
    if rates.shape != (sae.d_sae,):
        raise ValueError(f"rates expected float[d_sae={sae.d_sae}], got {list(rates.shape)}")
    if allowed is not None and allowed.shape != rates.shape:
        raise ValueError(f"allowed expected bool[d_sae={sae.d_sae}], got {list(allowed.shape)}")
    norms = sae.W_dec.detach().norm(dim=-1).cpu().double()
    eligible = (rates > 0) & (norms > 0) & (True if allowed is None else allowed.cpu())
    eligible[chosen] = False
    if not (rates[chosen] > 0).all():
        raise ValueError(
            "matched_latents expected latents that fire, got one that never did: nothing fires as often"
        )
    if int(eligible.sum()) < (needed := max(n_draws, len(chosen) + (len(chosen) > 1))):
        raise ValueError(
            f"matched_latents expected at least {needed} other latents that fire, got {int(eligible.sum())}; "
            "give rates from more tokens, or pass a smaller n_draws: no p is below 1 / (n_draws + 1)"
        )
    where = torch.stack([rates.clamp_min(1e-300).log(), norms.clamp_min(1e-300).log()], 1)
    distance = torch.cdist(where[chosen], where, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distance.masked_fill(~eligible, torch.inf).argsort(dim=1, stable=True)[:, : int(eligible.sum())]

    generator = torch.Generator().manual_seed(index(seed))
    if len(chosen) == 1:
        drawn = nearest[0, torch.randperm(n_draws, generator=generator)][:, None]
    else:
        drawn = _distinct_draws(nearest[:, : n_draws + len(chosen)], n_draws, generator)
    ratio = (where[drawn, 0] - where[chosen, 0]).abs().max().exp().item()
    return Controls(
        "matched latents", _as_long(sae, chosen, sae.W_dec.detach()[drawn.to(sae.device)]), drawn, ratio
    )


@takes_folders
@names_misfits
def random_directions(
    sae: SparseAutoencoder, latents: Latents, *, n_draws: int = 100, seed: int = 0
) -> Controls:
    """Directions drawn evenly from the sphere, one for each latent."""
    chosen = checked_latents_of(sae, latents)
    generator = torch.Generator().manual_seed(index(seed))
    drawn = torch.randn(n_draws, len(chosen), sae.d_model, generator=generator)
    return Controls("random directions", _as_long(sae, chosen, drawn.to(sae.W_dec)))


@takes_folders
@names_misfits
def direction_control(
    sae: SparseAutoencoder, latents: Latents, direction: Tensor, name: str = "direction"
) -> Controls:
    """One direction, of DiffMean or a probe, in the place of all the latents: float[d_model]."""
    chosen = checked_latents_of(sae, latents)
    if direction.shape != (sae.d_model,):
        raise ValueError(f"direction expected float[d_model={sae.d_model}], got {list(direction.shape)}")
    return Controls(name, _as_long(sae, chosen, direction.detach().to(sae.W_dec).expand(1, len(chosen), -1)))


@takes_folders
@names_misfits
def diff_mean(
    acts: Tensor, labels: Tensor, documents: Documents | None = None, split: Split | None = None
) -> Tensor:
    """The mean of rows with label 1 less that of rows with label 0: float[d_model].

    acts: float[n_items d_model]; labels: bool[n_items]
    documents: one an item; only the selecting side of the split is then used, as for latents. None uses all
        rows
    raises: ValueError as `select_latents`
    source: Marks and Tegmark 2023, arXiv:2310.06824; DiffMean in AxBench, arXiv:2501.17148
    """
    rows, ones = selecting_side(acts, labels, documents, split or Split())
    ones = ones.to(rows.device)
    return rows[ones].float().mean(0) - rows[~ones].float().mean(0)


@takes_folders
@names_misfits
def probe_direction(
    acts: Tensor,
    labels: Tensor,
    documents: Documents | None = None,
    split: Split | None = None,
    *,
    inverse_l2: float = 1.0,
) -> Tensor:
    """A direction to compare an edit with: the weights of a logistic regression, in units of the activations.

    inverse_l2: C of scikit-learn: larger values shrink the weights less. The rest is as for `diff_mean`
    returns: float[d_model]; the rows are standardised for the fit
    raises: ImportError without scikit-learn; ValueError as `select_latents`
    """
    rows, ones = selecting_side(acts, labels, documents, split or Split())
    weights, _ = fit_logistic(rows, ones, inverse_l2)
    return weights.float().to(acts.device)


def _as_long(sae: SparseAutoencoder, chosen: Tensor, directions: Tensor) -> Tensor:
    """float[n_draws n d_model], of the lengths of the latents' rows of W_dec."""
    lengths = sae.W_dec.detach()[chosen.to(sae.device)].norm(dim=-1, keepdim=True)
    norms = directions.norm(dim=-1, keepdim=True)
    if not (norms > 0).all():
        raise ValueError("a control expected directions with a length, got one of zeros")
    return directions / norms * lengths


def _distinct_draws(nearest: Tensor, n_draws: int, generator: torch.Generator) -> Tensor:
    """int64[n_draws n]: for each latent one of its n_draws nearest that the draw lacks; no set twice.

    nearest: int64[n size], other latents for each, nearest first
    """
    n, found = len(nearest), {}
    for _ in range(_MOST_TRIES * n_draws):
        draw, taken = torch.empty(n, dtype=torch.int64), torch.zeros(int(nearest.max()) + 1, dtype=torch.bool)
        for i in torch.randperm(n, generator=generator).tolist():
            pool = nearest[i, ~taken[nearest[i]]][:n_draws]
            draw[i] = pool[torch.randint(len(pool), (), generator=generator)]
            taken[draw[i]] = True
        found.setdefault(tuple(draw.sort().values.tolist()), draw)
        if len(found) == n_draws:
            return torch.stack(list(found.values()))
    raise ValueError(
        f"matched_latents expected {n_draws} different sets of {n} latents, found {len(found)}: pass fewer "
        "n_draws"
    )
