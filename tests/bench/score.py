"""The one scorer of the quality benchmark: plain torch, importable in our venv and in the peers'.

It sees an SAE only as a function from activations to (recons, latent_acts); the caller reloads the saved
folder with its own library and wraps it, so both sides meet the same formula.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

SCORE_BATCH_ROWS = 2048
DEAD_SAMPLE_ROWS = 400_000
"""Training rows looked at, beside all validation rows, before a latent is called dead."""

Reconstruct = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Score:
    fvu: float
    """Σ‖x − x̂‖² / Σ‖x − x̄‖² over the validation rows, x̄ their mean; float64 sums."""

    l0: float
    """Mean non-zero latents per validation row."""

    dead: float
    """Share of latents silent on every validation row and on the sample of training rows."""

    mse: float
    """Mean over validation rows of ‖x − x̂‖²."""

    l1: float
    """Mean over validation rows of Σ_i latent_acts_i · ‖W_dec_i‖ (0 where no decoder norms are given)."""

    n_validation_rows: int
    n_dead_sample_rows: int

    def to_dict(self) -> dict[str, float | int]:
        return asdict(self)


def load_rows(path: Path) -> Tensor:
    """The tensor `acts` of a safetensors file, in the dtype in which it was stored: [n_rows d_model]."""
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("acts")


def dead_sample(n_train_rows: int, n_sample_rows: int = DEAD_SAMPLE_ROWS) -> Tensor:
    """Sorted row numbers of the fixed sample of training rows: int64[min(n_sample_rows, n_train_rows)].

    One seed for every contestant, drawn over the whole store, so that every source of text is in it.
    """
    generator = torch.Generator().manual_seed(20240607)
    return torch.randperm(n_train_rows, generator=generator)[:n_sample_rows].sort().values


@torch.no_grad()
def score(
    reconstruct: Reconstruct, validation: Tensor, train: Tensor, decoder_norms: Tensor | None = None
) -> Score:
    """Score a reloaded SAE on validation rows, and its dead share on those and a sample of training rows.

    reconstruct: float32[batch d_model] -> (recons float32[batch d_model], latent_acts float32[batch d_sae])
    validation, train: {bf16|f16|f32}[n_rows d_model]
    decoder_norms: float[d_sae], for `l1`
    """
    n_rows = validation.shape[0]
    mean = sum(chunk.double().sum(0) for chunk in validation.split(SCORE_BATCH_ROWS)) / n_rows
    squared_error = torch.zeros((), dtype=torch.float64)
    total_variance = torch.zeros((), dtype=torch.float64)
    l1 = torch.zeros((), dtype=torch.float64)
    n_firing = 0
    fired: Tensor | None = None
    for chunk in validation.split(SCORE_BATCH_ROWS):
        acts = chunk.float()
        recons, latent_acts = reconstruct(acts)
        squared_error += (acts.double() - recons.double()).square().sum()
        total_variance += (acts.double() - mean).square().sum()
        firing = latent_acts != 0
        n_firing += int(firing.sum())
        fired = firing.any(0) if fired is None else fired | firing.any(0)
        if decoder_norms is not None:
            l1 += (latent_acts * decoder_norms).sum(dtype=torch.float64)
    sample = dead_sample(train.shape[0])
    for rows in sample.split(SCORE_BATCH_ROWS):
        _, latent_acts = reconstruct(train[rows].float())
        fired |= (latent_acts != 0).any(0)
    return Score(
        fvu=(squared_error / total_variance).item(),
        l0=n_firing / n_rows,
        dead=1 - fired.float().mean().item(),
        mse=squared_error.item() / n_rows,
        l1=l1.item() / n_rows,
        n_validation_rows=n_rows,
        n_dead_sample_rows=len(sample),
    )
