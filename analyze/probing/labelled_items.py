"""Labelled items seen through an SAE: their latents, and which of them test."""

from __future__ import annotations

import torch
from torch import Tensor

from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.latents import SparseLatents

from ..latents.store_pass import to_cpu
from ..stats.document_split import Documents, Split, selecting_side


def columns(latents: SparseLatents, chosen: Tensor) -> Tensor:
    """The activations of some latents, none twice: float64[n len(chosen)]."""
    places = torch.full((latents.d_sae,), -1)
    places[chosen] = torch.arange(len(chosen))
    at = places[latents.indices]
    found = torch.zeros(latents.batch, len(chosen), dtype=torch.float64)
    found[latents.row_ids()[at >= 0], at[at >= 0]] = latents.values[at >= 0].double()
    return found


def encoded(sae: SparseAutoencoder, acts: Tensor) -> SparseLatents:
    """Latents of rows float[n d_model], without gradients, on the CPU."""
    with torch.no_grad():
        return to_cpu(sae.encode(acts.to(sae.device)))


def testing_side(acts: Tensor, labels: Tensor, documents: Documents | None, split: Split | None) -> Tensor:
    """Which rows test: bool[n]; documents None makes every row one. raises: ValueError as `selecting_side`,
    and for a test side without both labels"""
    documents = torch.arange(len(acts)) if documents is None else documents
    selecting_side(acts, labels, documents, split or Split())
    tests = (split or Split()).tests(documents)
    ones = torch.as_tensor(labels).cpu().bool()[tests]
    if not ones.any() or ones.all():
        raise ValueError(
            f"expected items of both labels on the test side, got {int(ones.sum())} of {len(ones)} with 1"
        )
    return tests
