"""What a meta-SAE says of an SAE: how far its decoder directions are sums of a few that they share.

A meta-SAE is a small SAE whose rows are the unit decoder rows of another one. Its explained variance is

    1 − Σ‖w − ŵ‖² / Σ‖w − mean‖²      over rows that it was not trained on

and less of it means directions that decompose less. What it explains of rows that it was trained on is mostly
memory: four of a quarter as many directions as there are rows explain half of random rows in 192 dimensions.
So a decoder is decomposable only as far as it exceeds as many random directions, trained on in the same way.

source: meta-SAEs of Bussmann et al. 2024 and Leask et al. 2025, arXiv:2502.04878, a metric of SAEBench, all
    without held-out rows; training is `saelens_lite.recipes.of_decoders.meta_sae`
"""

from __future__ import annotations

import dataclasses
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.metrics import ReconstructionSums
from saelens_lite.text_table import Lines, Tabular, plain

from .seed_noise import seed_noise


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MetaScores:
    """Of one set of directions, a number a seed: explained variance and l0."""

    held_out: tuple[float, ...]
    trained_on: tuple[float, ...]
    held_out_l0: tuple[float, ...]

    @property
    def explained_variance(self) -> float:
        """Of rows held out, mean over seeds."""
        return fmean(self.held_out)

    @property
    def sd(self) -> float | None:
        """Of one seed's explained variance of rows held out; None for one seed."""
        return seed_noise(self.held_out).sd if len(self.held_out) > 1 else None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Decomposition(Tabular):
    """What `meta_sae` found; `print(found)`.

    k, d_meta: latents a row and in all of the meta-SAE; n_rows: decoder rows trained on
    random: scores of as many random unit vectors, None where that was not asked for
    saes: a meta-SAE for each seed; of unit row i, `saes[0].encode` gives what it is made of
    """

    k: int
    d_meta: int
    n_rows: int
    n_held_out: int
    decoder: MetaScores
    random: MetaScores | None
    saes: tuple[SparseAutoencoder, ...]

    @property
    def explained_variance(self) -> float:
        """Lower is less decomposable."""
        return self.decoder.explained_variance

    @property
    def excess(self) -> float | None:
        """How far that exceeds random directions' number; None without them."""
        return None if self.random is None else self.explained_variance - self.random.explained_variance

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        facts = {name: getattr(self, name) for name in ("k", "d_meta", "n_rows", "n_held_out", "excess")}
        scores = {name: None if of is None else dataclasses.asdict(of) for name, of in self._scores().items()}
        return plain(facts | {"explained_variance": self.explained_variance} | scores)

    def _scores(self) -> dict[str, MetaScores | None]:
        return {"decoder": self.decoder, "random": self.random}

    def _records(self) -> list[dict[str, Any]]:
        scores = self._scores().items()
        return [{"name": name} | plain(dataclasses.asdict(of)) for name, of in scores if of is not None]

    def _tables(self) -> list[tuple[str, Lines]]:
        lines = [["explained variance", "held out", "sd of a seed", "trained on", "l0"]]
        for name, of in self._scores().items():
            if of is not None:
                cells = [f"{of.explained_variance:.4f}", "n/a" if of.sd is None else f"{of.sd:.4f}"]
                cells += [f"{fmean(of.trained_on):.4f}", f"{fmean(of.held_out_l0):.1f}"]
                lines.append([f"{name} rows", *cells])
        return [("", lines)]

    def _notes(self) -> list[str]:
        return [
            f"{self.d_meta:,} directions, {self.k} a row, learnt from {self.n_rows:,} rows; "
            f"{self.n_held_out:,} held out; {len(self.decoder.held_out)} seeds"
        ]

    __str__ = Tabular.table


def explained(sae: SparseAutoencoder, rows: Tensor) -> tuple[float, float]:
    """(explained variance, l0) of an SAE on rows float[n d_model], in memory."""
    with torch.no_grad():
        recons, latents = sae(rows.to(sae.device))
    sums = ReconstructionSums(rows.shape[1])
    sums.update(rows, recons.cpu())
    return 1 - sums.fvu, latents.l0().mean().item()
