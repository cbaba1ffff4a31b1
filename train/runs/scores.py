"""Scores of a run on held-out rows: fvu, l0, and what the reconstruction costs the language model."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from saelens_lite import distributed
from saelens_lite.sae.metrics import FiringSums, ReconstructionSums

from ..optimise.trainer import Trainer
from ..rows.protocol import Rows
from .finite import Finite
from .process import writes
from .sae import saved_sae


class HeldOutScores:
    """Scores the SAE of a trainer, at most once a step.

    model: the language model that the rows are of, for ΔCE; None leaves it out
    metrics: the latest scores, by their names in metrics.jsonl; None where no rows are held out
    density: float64[d_sae], how often each latent fires; None without rows and in all processes but the first
    """

    def __init__(self, trainer: Trainer, rows: Rows, finite: Finite, model: nn.Module | None) -> None:
        self.trainer, self.rows, self.model = trainer, rows, model
        self.metrics: dict[str, float | None] = {}
        self.density: Tensor | None = None
        self._finite, self._step, self._ce_clean = finite, -1, math.nan

    def update(self) -> dict[str, float | None]:
        """The scores of the SAE as it stands."""
        if self._step != self.trainer.steps_done:
            self.metrics, self._step = self._reconstruction() | self._downstream(), self.trainer.steps_done
        return self.metrics

    def outdated(self) -> None:
        """Have the next `update` score again: the SAE has changed since, within its step."""
        self._step = -1

    @torch.no_grad()
    def _reconstruction(self) -> dict[str, float | None]:
        """fvu and l0. raises: FloatingPointError if the error is not finite"""
        held_out, (sae, comm) = self.rows.held_out(), (self.trainer.sae, self.trainer.comm)
        if not len(held_out):
            return {"held_out_fvu": None, "held_out_l0": None}
        scale, config = self.rows.scale, self.trainer.config
        sums, firing = ReconstructionSums(sae.d_model), FiringSums(sae.d_sae, sae.device)
        for rows in held_out.split(config.batch_size_rows):
            k = config.k if sae.kind == "topk" else None
            recons, latents = comm.forward(sae, (rows * scale).to(sae.device), k)
            sums.update(rows, recons.cpu() / scale)
            firing.update(latents)
        self._finite.check(sums.squared_error, "the error on held-out rows is not finite")
        density = comm.whole(firing.density, 0)
        self.density = None if density is None else density.cpu()
        fvu = sums.fvu if sums.squared_deviation else None
        return {"held_out_fvu": fvu, "held_out_l0": distributed.total(firing.l0, "latents")}

    def _downstream(self) -> dict[str, float | None]:
        """ΔCE in nats per token, by the first process; the others bring their latents."""
        here = self.model is not None and writes()
        if not distributed.largest(int(here), "latents"):
            return {}
        sae = saved_sae(self.trainer, self.rows)
        if not here:
            return {}
        replacements = {"sae": {"sae": sae}, **({"clean": None} if math.isnan(self._ce_clean) else {})}
        ce = self.rows.cross_entropies(self.model, replacements, self.trainer.config.eval_ce_tokens)
        self._ce_clean = ce.get("clean", self._ce_clean)
        return {"held_out_delta_ce": ce["sae"] - self._ce_clean}
