"""Scores of a run on held-out rows: fvu, l0, and what the reconstruction costs the language model."""

from __future__ import annotations

import logging
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

log = logging.getLogger(__name__)

_NAMES = ("held_out_fvu", "held_out_l0", "held_out_fvu_within_10x", "held_out_share_within_10x")


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
        self._told = False

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
        """fvu, l0, and fvu and share of the rows that are not massive.

        raises: FloatingPointError if the error is not finite
        """
        held_out, kind, comm = self.rows.held_out(), self.trainer.kind, self.trainer.comm
        sae = kind.folded()
        if not len(held_out):
            return dict.fromkeys(_NAMES)
        scale, config = self.trainer.scale, self.trainer.config
        norms = torch.linalg.vector_norm(kind.read(held_out)[1], dim=1, dtype=torch.float64)
        median_norm = float(norms.median())
        sums, firing = ReconstructionSums(sae.config.d_out, median_norm), FiringSums(sae.d_sae, sae.device)
        for rows in held_out.split(config.batch_size_rows):
            k = config.k if sae.kind == "topk" else None
            inputs, targets = kind.read(rows)
            recons, latents = comm.forward(sae, (inputs * scale).to(sae.device), k)
            sums.update(targets, recons.cpu() / scale)
            firing.update(latents)
        self._finite.check(sums.squared_error, "the error on held-out rows is not finite")
        density = comm.whole(firing.density, 0)
        self.density = None if density is None else density.cpu()
        told = sums.massive_rows_in_words if config.max_norm_ratio is None else None
        if told is not None and not self._told and writes():
            log.warning("%s at step %d: %s", config.output, self.trainer.steps_done, told)
        self._told = self._told or told is not None
        found = (
            sums.fvu,
            distributed.total(firing.l0, "latents"),
            sums.fvu_within_10x,
            sums.share_within_10x,
        )
        return {name: None if math.isnan(n) else n for name, n in zip(_NAMES, found, strict=True)}

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
