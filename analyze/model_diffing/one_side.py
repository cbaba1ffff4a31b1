"""The SAE of one side of a crosscoder: its latents in one model alone, without the other running beside it.

A latent's activation depends on the rows of all sides. In one model's forward pass the others' are not known,
so they are predicted from its own rows, by least squares over the rows of a store:

    x_other ≈ x A + c
    pre_acts = (x − b_dec) (W_enc + A W_enc,other) + b_enc + (b_dec A + c − b_dec,other) W_enc,other

What comes out is an SAE as any other, with the side's decoder: edits, splices, index and pages take it. Rows
of a model and of its fine-tuned copy predict each other well, but what only one of them has the prediction
leaves out, which is what an exclusive latent reads; `side_agreement` says how well the codes agree, latent by
latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig
from saelens_lite.sae.crosscoder import Crosscoder
from saelens_lite.store.derived import DerivedStore

from ..latents.compatibility import checked_latents
from ..latents.store_pass import blocks
from .scaling import check_pair

_RIDGE = 1e-6
"""Of the mean variance of a coordinate, added to each: directions without variance predict nothing."""


@names_misfits
@torch.no_grad()
def side_sae(crosscoder: Crosscoder, store: DerivedStore, side: int = 1) -> SparseAutoencoder:
    """The SAE of one side of a crosscoder, at that side's place in that side's model.

        tuned_sae = side_sae(crosscoder, paired_store([base, tuned]))
        with sl.ablate(tuned_model, tuned_sae, latents=[1234]): tuned_model.generate(…)

    store: rows side by side, from which the others are predicted; as `paired_store` gives
    raises: ValueError for a side that there is not, or a store of another width
    """
    check_pair(crosscoder, store)
    own, d = crosscoder.block(side), crosscoder.d_model
    others = torch.ones(d, dtype=torch.bool)
    others[own] = False
    near, n, total, products = None, 0, torch.zeros(d).double(), torch.zeros(d, d).double()
    for _, acts in blocks(crosscoder, store, store.hook_points[0]):
        rows = acts.double().cpu()
        near = rows.mean(0) if near is None else near
        rows = rows - near
        n, total = n + len(rows), total + rows.sum(0)
        products.addmm_(rows.T, rows)
    assert near is not None
    mean, covariance = near + total / n, products / n - torch.outer(total / n, total / n)
    of_own = covariance[own, own]
    ridge = _RIDGE * of_own.diagonal().mean().clamp_min(1e-300)
    A = torch.linalg.solve(of_own + ridge * torch.eye(len(of_own)).double(), covariance[own][:, others])
    c = mean[others] - mean[own] @ A

    W_enc, b_enc, b_dec = (getattr(crosscoder, name).double().cpu() for name in ("W_enc", "b_enc", "b_dec"))
    shift = c if not crosscoder.config.apply_b_dec_to_input else b_dec[own] @ A + c - b_dec[others]
    place, config = crosscoder.sides[side], crosscoder.config
    sae = SparseAutoencoder(
        SAEConfig(
            d_model=place.d_model,
            d_sae=config.d_sae,
            kind=config.kind,
            k=config.k,
            apply_b_dec_to_input=config.apply_b_dec_to_input,
            dtype=config.dtype,
            hook_point=place.hook_point,
            hf_module=place.hf_module,
            model_name=place.model_name,
            metadata={"saelens_lite": {"side": side, "sides": len(crosscoder.sides)}},
        )
    ).to(crosscoder.device)
    sae.W_enc.copy_(W_enc[own] + A @ W_enc[others])
    sae.b_enc.copy_(b_enc + shift @ W_enc[others])
    sae.W_dec.copy_(crosscoder.decoder(side))
    sae.b_dec.copy_(b_dec[own])
    if config.kind == "jumprelu":
        sae.threshold.copy_(crosscoder.threshold)
    return sae


class SideAgreement(NamedTuple):
    """How the codes of one side alone agree with those of the crosscoder, of each latent asked for."""

    latents: Tensor
    """int64[m]"""
    recall: Tensor
    """float64[m]: of the tokens on which the crosscoder's latent fires, the share on which the side's does"""
    precision: Tensor
    """float64[m]: of the tokens on which the side's latent fires, the share on which the crosscoder's does"""
    correlation: Tensor
    """float64[m]: Pearson's, of the two activations over all tokens"""


@names_misfits
@torch.no_grad()
def side_agreement(
    crosscoder: Crosscoder,
    sae: SparseAutoencoder,
    store: DerivedStore,
    side: int = 1,
    latents: Sequence[int] | Tensor | None = None,
) -> SideAgreement:
    """How well the SAE of a side stands for the crosscoder. nan where a latent fires in neither.

    sae: from `side_sae` with the same side; store: of rows side by side
    """
    check_pair(crosscoder, store)
    chosen, own = checked_latents(crosscoder, latents).to(crosscoder.device), crosscoder.block(side)
    sums = torch.zeros(8, len(chosen)).double()
    for _, acts in blocks(crosscoder, store, store.hook_points[0]):
        z = crosscoder.encode(acts).to_dense()[:, chosen].double()
        own_z = sae.encode(acts[:, own]).to_dense()[:, chosen].double()
        on, own_on = (z > 0).double(), (own_z > 0).double()
        parts = (on * own_on, on, own_on, z, own_z, z * own_z, z * z, own_z * own_z)
        sums += torch.stack([part.sum(0) for part in parts]).cpu()
    both, fired, own_fired, x, y, xy, xx, yy = sums
    n = store.n_rows
    covariance = xy - x * y / n
    return SideAgreement(
        chosen.cpu(),
        both / fired,
        both / own_fired,
        covariance / ((xx - x * x / n) * (yy - y * y / n)).sqrt(),
    )
