"""Fine-tuning through the language model: an SAE learns what the model's output needs, not only its activations.

Karvonen 2025, "Revisiting End-To-End Sparse Autoencoder Training: A Short Finetune Is All You Need", arXiv:2503.17272: a
short run at the end closes much of the gap in cross-entropy. A step runs contexts twice, as they are and on the
reconstruction, and minimises

    ½ · (mse + divergence · mse / divergence held constant) + the kind's penalty

where divergence is KL(p_clean ‖ p_reconstruction), or the cross-entropy of the next tokens. So both parts weigh the same,
and learning rates and penalties keep their meaning, whatever the units of either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saelens_lite import distributed
from saelens_lite.contexts import ContextBatch, check_model
from saelens_lite.decoder import evaluation_mode
from saelens_lite.hooks import EditInfo, edit, model_device
from saelens_lite.passes import prepared_inputs
from saelens_lite.sae import SparseAutoencoder
from saelens_lite.sparse import SparseLatents
from saelens_lite.splice import kl_to_clean
from saelens_lite.store import ActivationStore
from saelens_lite.tokens import is_held_out

from .config import TrainConfig
from .draws import generator
from .kinds import Kind, kind_class
from .rows import StoreRows
from .run import Run
from .step import StepStats
from .trainer import Trainer


@dataclass(frozen=True, slots=True)
class Contexts:
    """A batch of contexts.

    input_ids: int64[batch context]; attended, kept: bool[batch context], real tokens and those with rows to learn from
    targets: bool[batch context-1], True where the prediction of the token after the position counts
    """

    input_ids: Tensor
    attended: Tensor
    kept: Tensor
    targets: Tensor

    def __len__(self) -> int:
        """Rows that the SAE sees."""
        return int(self.kept.sum())


class StoreContexts(StoreRows):
    """The contexts of one or several stores instead of their rows.

    Held-out documents are read along where they share a context: their activations stay as they are, and nothing is learned
    from their tokens. Holds the tokens of the stores whole, about 10 bytes each. Order is a function of (seed, step).
    raises: ValueError for several processes, fewer contexts than one batch, stores of contexts that differ in length;
        ShardError for a store without tokens
    """

    def __init__(self, stores: ActivationStore | Sequence[ActivationStore], config: TrainConfig) -> None:
        stores = [stores] if isinstance(stores, ActivationStore) else list(stores)
        super().__init__(stores, config)
        if distributed.world_size() > 1:
            raise ValueError("end_to_end expected one process, got several: start it without torchrun")
        lengths = {store.context_length for store in stores}
        if len(lengths) > 1:
            raise ValueError(f"end_to_end expected stores of contexts of one length, got {sorted(lengths)} tokens")
        shards = [store.tokens(shard) for store in stores for shard in range(store.n_shards)]
        self._store = stores[0]
        self._ids = torch.cat([tokens.input_ids for tokens in shards])
        self._attended = torch.cat([tokens.attended.bool() for tokens in shards])
        self._kept = torch.cat([tokens.kept.bool() for tokens in shards])
        held_out = torch.cat([is_held_out(t.doc_id.long() + t.first_doc, config.held_out_fraction) for t in shards])
        self._trained = self._kept & ~held_out
        self._learned_from = self._trained[:, 1:].any(1).nonzero().view(-1)
        [context_length] = lengths
        self._n_seqs = max(1, config.batch_size_rows // context_length)
        self._seed = config.row_seed
        self._epoch, self._order = -1, self._learned_from  # of the epoch that was asked for last
        self.steps_per_epoch = len(self._learned_from) // self._n_seqs
        if not self.steps_per_epoch:
            raise ValueError(
                f"end_to_end expected at least {self._n_seqs} contexts, batch_size_rows / {context_length}, got "
                f"{len(self._learned_from)} outside the held-out documents: harvest more or lower batch_size_rows"
            )

    def batch(self, step: int) -> Contexts:  # type: ignore[override]
        """The contexts of a step counted from 0."""
        self._at_hand.clear()
        epoch, within = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            order = torch.randperm(len(self._learned_from), generator=generator(self._seed, epoch))
            self._epoch, self._order = epoch, self._learned_from[order]
        chosen = self._order[within * self._n_seqs : (within + 1) * self._n_seqs]
        kept = self._trained[chosen]
        return Contexts(self._ids[chosen].long(), self._attended[chosen], kept, kept[:, 1:])

    def check_model(self, model: nn.Module) -> None:
        """raises: ValueError for a model that does not give the rows of this store"""
        first = torch.arange(min(4, len(self._store.tokens(0).input_ids)))
        kept = self._kept[first]
        batch = ContextBatch(self._ids[first].long(), self._attended[first], kept, kept[:, 1:], 0, first)
        with evaluation_mode(model), torch.no_grad():
            check_model(model, self._store, self.hook_point, batch)

    def check_steps(self, first: int, end: int, what: str) -> None:
        """Rows come from the model here: the store has none to blame."""


class EndToEnd(Kind):
    """A kind whose gradients come through the model. Thresholds, which get none, stay as they are.

    scale: of the inputs, by which the SAE's scale differs from the model's
    """

    def __init__(self, kind: Kind, model: nn.Module, hook_point: str, scale: float) -> None:
        self.kind, self.model, self.hook_point, self.scale = kind, model, hook_point, scale
        self.sae, self.config, self.train_decoder = kind.sae, kind.config, kind.train_decoder
        self.sparsity_name = str(self.config.end_to_end)
        self.ramp_fraction, self.calibrates = kind.ramp_fraction, kind.calibrates
        self._threshold = self.sae.threshold.detach().clone() if self.sae.kind == "jumprelu" else None

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.kind.parameters().items() if "threshold" not in name}

    def begin(self, step: int, n_steps: int) -> None:
        super().begin(step, n_steps)
        if self._threshold is not None:  # `calibrate` set the one that is saved
            self.sae.threshold.copy_(self._threshold)

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
        fired = torch.zeros(sae.d_sae, dtype=torch.bool, device=sae.device).index_fill_(0, latents.indices[fires], True)
        return StepStats(mse.detach(), divergence.detach(), fires.sum() / len(batch)), fired

    def _losses(self, batch: Contexts) -> tuple[Tensor, Tensor, SparseLatents]:
        """Mean squared error in the SAE's scale, divergence in nats a token, and the latents."""
        device = model_device(self.model)
        ids, kept, targets = batch.input_ids.to(device), batch.kept.to(device), batch.targets.to(device)
        inputs = prepared_inputs(self.model, {"input_ids": ids, "attention_mask": batch.attended.to(device)})
        with torch.no_grad():
            clean = self.model(**inputs).logits
        seen: list[tuple[Tensor, SparseLatents]] = []

        def on_reconstruction(acts: Tensor, _: EditInfo) -> Tensor:
            rows = acts.detach()[kept].to(self.sae.device, self.sae.dtype) * self.scale
            out = self.sae(rows)
            seen.append(((out.recons - rows).square().sum(1).mean(), out.latents))
            return acts.detach().index_put((kept,), (out.recons / self.scale).to(acts.device, acts.dtype))

        with edit(self.model, self.hook_point, on_reconstruction):
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
            return kl_to_clean(clean, logits)
        return nn.functional.cross_entropy(logits.float(), next_ids, reduction="none")

    def calibrate(self, acts: Tensor) -> None:
        self.kind.calibrate(acts)

    def state(self) -> dict[str, Tensor]:
        return {} if self._threshold is None else {"threshold": self._threshold}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._threshold = state.get("threshold")


class EndToEndRun(Run):
    """A run whose batches are contexts, and whose gradients come through the model."""

    rows: StoreContexts

    def __init__(self, rows: StoreContexts, config: TrainConfig, model: nn.Module) -> None:
        rows.check_model(model)
        super().__init__(rows, config, model)

    def _trainer(self, sae: SparseAutoencoder) -> Trainer:
        assert self._model is not None
        kind = kind_class(self.config.kind)(sae, self.config)
        return Trainer(sae, self.config, self.n_steps, EndToEnd(kind, self._model, self.rows.hook_point, self.rows.scale))

    def step(self, batch: Contexts) -> StepStats:
        """One optimiser step."""
        return self.trainer.update(batch)
