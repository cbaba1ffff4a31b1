"""How far to prune the codes of an SAE: the threshold on leave-one-out scores that leaves a wanted l0."""

from __future__ import annotations

import dataclasses

import torch

from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.pruning import leave_one_out
from saelens_lite.store.document_sample import sampled_rows
from saelens_lite.store.reader import ActivationStore

from .compatibility import fits, recorded_fraction

_ROWS_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class ChosenTau:
    """tau, and what it did on the rows that it was chosen on.

    l0: latents a token after pruning; l0_before: without it; n_rows: of how many held-out rows
    """

    tau: float
    l0: float
    l0_before: float
    n_rows: int


@names_misfits
@torch.no_grad()
def choose_tau(
    sae: SparseAutoencoder,
    store: ActivationStore,
    *,
    l0: float,
    max_rows: int = 20_000,
    held_out_fraction: float | None = None,
    hook_point: str | None = None,
) -> ChosenTau:
    """The threshold at which `sae.pruned(tau)` has an l0 of `l0` on held-out documents.

        tau = choose_tau(sae, store, l0=24).tau
        sae.pruned(tau).save("pruned/")

    Pruning refines over a short range: from k = 32 to 24 it loses less than a smaller k; to half of k it
    loses more than training at half of k.
    l0: latents a token to keep, above 0 and at most what the SAE has
    max_rows: rows of held-out documents, drawn by hash, that it is chosen on
    held_out_fraction: the share of documents that training held out; None: as the SAE records, else 0.05
    raises: ValueError when SAE and store do not belong together, no row is held out, or l0 is out of range
    """
    point, sae = fits(sae, store, hook_point), sae.pruned(None)
    if held_out_fraction is None:
        held_out_fraction = recorded_fraction([sae])
    rows = torch.cat([*sampled_rows(store, held_out_fraction, max_rows)]).nonzero().view(-1)
    if not len(rows):
        raise ValueError(
            "choose_tau expected held-out documents, the store holds none out: harvest more text"
        )
    scores = []
    for part in rows.split(_ROWS_AT_ONCE):
        normalized = sae.normalize(store.gather(part, point).float().to(sae.device))[0]
        latents = sae.encode_normalized(normalized)
        fires = latents.values > 0
        scores.append(leave_one_out(normalized, latents, sae.W_dec, sae.b_dec)[fires].cpu())
    found = torch.cat(scores).sort(descending=True).values
    before, n_kept = len(found) / len(rows), round(l0 * len(rows))
    if not 0 < l0 <= before:
        raise ValueError(f"l0 expected above 0 and at most {before:.4g}, which this SAE has, got {l0}")
    tau = float(found[n_kept:][:1].item()) if n_kept < len(found) else -torch.inf
    return ChosenTau(tau, n_kept / len(rows), before, len(rows))
