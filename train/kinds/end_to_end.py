"""Fine-tuning through the language model: an SAE learns what the model's output needs.

Karvonen 2025, "Revisiting End-To-End Sparse Autoencoder Training: A Short Finetune Is All You Need",
arXiv:2503.17272: a short run at the end closes much of the gap in cross-entropy. A step runs contexts twice,
as they are and on the reconstruction, and minimises

    ½ · (mse + divergence · mse / divergence held constant) + the kind's penalty

where divergence is KL(p_clean ‖ p_reconstruction), or the cross-entropy of the next tokens. So both parts
weigh the same, and learning rates and penalties keep their meaning, whatever the units of either.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saelens_lite.lm.decoder import Decoder, evaluation_mode
from saelens_lite.lm.forward_state import EditInfo, placed_inputs
from saelens_lite.lm.hooks import edit
from saelens_lite.lm.losses import cross_entropy, kl_divergence
from saelens_lite.sae.latents import SparseLatents

from ..comm import ALONE
from ..config import TrainConfig
from ..rows.store_contexts import Contexts
from .kind import Kind, StepStats
from .l1 import L1_FIELDS


class EndToEnd(Kind):
    """A kind whose gradients come through the model. Thresholds, which get none, stay as they are.

    scale: of the inputs, by which the SAE's scale differs from the model's
    """

    def __init__(self, kind: Kind, model: nn.Module, hook_point: str, scale: float) -> None:
        self.kind, self.model, self.hook_point, self.scale = kind, model, hook_point, scale
        self.sae, self.config, self.comm = kind.sae, kind.config, ALONE
        self.train_decoder = kind.train_decoder
        self.sparsity_name, self.ramp_fraction = str(self.config.end_to_end), kind.ramp_fraction
        self.calibrates, self.keeps_k = kind.calibrates, kind.keeps_k
        self._threshold = self.sae.threshold.detach().clone() if self.sae.kind == "jumprelu" else None

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        config.expect(
            config.init_from is not None, "init_from", "the folder of a trained SAE with end_to_end"
        )
        for name in ("input_noise", "contractive_coeff"):
            config.expect(not getattr(config, name), name, "0 with end_to_end")
        for name in ("store_weights", "max_norm_ratio"):
            config.expect(getattr(config, name) is None, name, "None with end_to_end")

    @classmethod
    def fields_of(cls, kind: type[Kind]) -> frozenset[str]:
        """Fields of a kind that count here: of penalties L1 alone."""
        l1 = L1_FIELDS if kind.fields >= L1_FIELDS else frozenset()
        return kind.fields & {"k", "unit_decoder", "initial_threshold"} | l1

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.kind.parameters().items() if "threshold" not in name}

    def begin(self, step: int, n_steps: int) -> None:
        super().begin(step, n_steps)
        if self._threshold is not None:  # `calibrate` set the one that is saved
            self.sae.threshold.copy_(self._threshold)

    def scaled(self, batch: Contexts, scale: float) -> Contexts:  # type: ignore[override]
        """The contexts as they are: their rows come from the model, and are scaled there."""
        return batch

    def gradients(self, batch: Contexts, dead: Tensor | None, ramp: float) -> tuple[StepStats, Tensor]:
        """Of the loss above, by autograd; batch: of StoreContexts."""
        sae, parameters = self.sae, self.parameters()
        with torch.enable_grad(), evaluation_mode(self.model):
            mse, divergence, latents = self._losses(batch)
            balance = (mse / divergence.clamp_min(torch.finfo(mse.dtype).tiny)).detach()
            loss = (mse + balance * divergence) / 2
            if sae.kind == "relu":
                weights = self.kind.decoder_norms().expand(sae.d_sae)[latents.indices]
                loss = loss + self.config.l1_coeff * ramp * (latents.values * weights).sum() / len(batch)
            grads = torch.autograd.grad(loss, [sae.W_enc, *parameters.values()])
        sae.W_enc.grad = grads[0].T.contiguous().T
        for (name, parameter), grad in zip(parameters.items(), grads[1:], strict=True):
            parameter.grad = self.along_constraint(grad) if name == "W_dec" else grad
        fires = latents.values.detach() > 0
        fired = torch.zeros(sae.d_sae, dtype=torch.bool, device=sae.device)
        fired[latents.indices[fires]] = True
        return StepStats(mse.detach(), divergence.detach(), fires.sum() / len(batch)), fired

    def _losses(self, batch: Contexts) -> tuple[Tensor, Tensor, SparseLatents]:
        """Mean squared error in the SAE's scale, divergence in nats a token, and the latents."""
        decoder = Decoder(self.model)
        device = decoder.device
        ids, kept, targets = batch.input_ids.to(device), batch.kept.to(device), batch.targets.to(device)
        inputs = placed_inputs(decoder, {"input_ids": ids, "attention_mask": batch.attended})
        with torch.no_grad():
            clean = self.model(**inputs).logits
        seen: list[tuple[Tensor, SparseLatents]] = []

        def on_reconstruction(acts: Tensor, _: EditInfo) -> Tensor:
            rows = acts.detach()[kept].to(self.sae.device, self.sae.dtype) * self.scale
            out = self.sae(rows)
            seen.append(((out.recons - rows).square().sum(1).mean(), out.latents))
            return acts.detach().index_put((kept,), (out.recons / self.scale).to(acts.device, acts.dtype))

        with edit(decoder, self.hook_point, on_reconstruction):
            logits = self.model(**inputs).logits
        [(mse, latents)] = seen
        divergence = torch.stack(
            [
                self._divergence(*example, ids[i, 1:].to(logits.device))[targets[i].to(logits.device)].sum()
                for i, example in enumerate(zip(clean[:, :-1], logits[:, :-1], strict=True))
            ]
        ).sum() / targets.sum().to(logits.device)
        return mse, divergence.to(mse.device), latents

    def _divergence(self, clean: Tensor, logits: Tensor, next_ids: Tensor) -> Tensor:
        """float32[seq] of one example; clean, logits: float[seq vocab]."""
        if self.config.end_to_end == "kl":
            return kl_divergence(clean, logits)
        return cross_entropy(logits, next_ids)

    def calibrate(self, acts: Tensor) -> None:
        self.kind.calibrate(acts)

    def state(self) -> dict[str, Tensor]:
        return {} if self._threshold is None else {"threshold": self._threshold}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._threshold = state.get("threshold")
