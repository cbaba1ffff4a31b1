"""train_sae: an activation store in, a saved SAE out. Reads from top to bottom."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

import saelens_lite
from saelens_lite.codecs import STORE_DTYPES
from saelens_lite.config import from_mapping, to_mapping
from saelens_lite.device import best_device
from saelens_lite.sae import SAEConfig, SparseAutoencoder
from saelens_lite.store import ActivationStore
from saelens_lite.tracker import Tracker

from .buffer import RowBuffer
from .config import TrainConfig
from .init import fold_decoder_norms_, fold_scale, initial_sae, input_scale
from .kinds import kind_class
from .step import StepStats
from .trainer import Trainer

log = logging.getLogger(__name__)

_INIT_ROWS = 32_768

_BUFFER_DTYPES = STORE_DTYPES | {"int8": torch.bfloat16}
"""How the buffer keeps rows, by the store's dtype."""


def train_sae(
    store: ActivationStore | str | Path, config: TrainConfig | None = None, **fields: Any
) -> SparseAutoencoder:
    """Train a sparse autoencoder on the rows of an activation store and save it.

        sae = train_sae("store/", kind="topk", k=32, expansion=16, output="runs/topk")

    store: an open store or its folder
    config: a TrainConfig; `fields` replace single fields of it (or of the defaults), see TrainConfig for each
    returns: the SAE, in the units of the store's activations, on the training device; also saved to config.output
    raises: ValueError for a wrong field or too few rows; FloatingPointError when the loss is no longer finite, with
        the step; KeyboardInterrupt / SystemExit after Ctrl-C / SIGTERM, once the SAE as it stands was saved
    """
    config = _configured(config, fields, store)
    store = store if isinstance(store, ActivationStore) else ActivationStore(store)
    output = Path(config.output)
    if (output / "cfg.json").exists() and not config.overwrite:
        raise ValueError(f"{output} holds an SAE already: choose another output, or overwrite=True to replace it")
    run = _Run(store, config)
    output.mkdir(parents=True, exist_ok=True)
    with Tracker(output, to_mapping(config), config.wandb_project) as tracker, _stop_signals() as stopped:
        started = time.perf_counter()
        try:
            for step in _steps(run.n_steps, config):
                stats = run.step(step)
                done, last = step + 1, step + 1 == run.n_steps
                if done % config.log_every_steps == 0 or last:
                    tracker.log(done, run.training_metrics(stats, done, time.perf_counter() - started))
                if done % run.eval_every_steps == 0 and not last:
                    tracker.log(done, run.held_out_metrics())
                if config.save_every_steps and done % config.save_every_steps == 0 and not last:
                    run.save(output)
                if stopped.signal is not None:
                    break
        except FloatingPointError:
            raise
        except Exception:
            if run.trainer.steps_done:
                run.save(output)
                log.error("failed after step %d of %d; the SAE as it stands is in %s", done, run.n_steps, output)
            raise
        sae = run.save(output)
        tracker.log(done, run.scores)
    if stopped.signal is not None:
        log.warning("stopped at step %d of %d; the SAE as it stands is in %s", done, run.n_steps, output)
        raise KeyboardInterrupt if stopped.signal == signal.SIGINT else SystemExit(128 + stopped.signal)
    return sae


class _Run:
    """A training run on a store: rows in, numbers and folders out."""

    def __init__(self, store: ActivationStore, config: TrainConfig) -> None:
        self.store, self.config = store, config
        self.hook_point = store.hook_point(config.hook_point)
        self.device = torch.device(config.device or best_device())
        held_out = store.held_out_rows(config.held_out_fraction)
        train_rows, self.left_out_share = self._train_rows(held_out)
        self.held_out_rows = _spread(held_out.nonzero().view(-1), config.eval_rows)
        self.buffer = RowBuffer(
            store,
            train_rows,
            batch_size_rows=config.batch_size_rows,
            buffer_rows=config.buffer_rows,
            seed=config.seed,
            hook_point=self.hook_point,
            dtype=_BUFFER_DTYPES[store.plan["dtype"]],
        )
        self.n_steps = config.n_steps or max(1, int(config.n_epochs * self.buffer.steps_per_epoch))
        self.eval_every_steps = config.eval_every_steps or max(1, self.n_steps // 10)
        self.scale = 1.0
        if config.scale_input:
            self.scale = input_scale(self._mean_sq_norm(train_rows), store.d_model(self.hook_point))

        sample = store.gather(_spread(train_rows, _INIT_ROWS), self.hook_point).mul_(self.scale)
        sae = initial_sae(self._sae_config(), sample, config.seed, kind_class(config.kind).encoder_scale).to(self.device)
        self.trainer = Trainer(sae, config, self.n_steps)
        self.scores: dict[str, float | None] = {}

    def _train_rows(self, held_out: Tensor) -> tuple[Tensor, float | None]:
        """int64[n] rows to train on, and the share that max_norm_ratio leaves out; None where it is off."""
        ratio, rows = self.config.max_norm_ratio, (~held_out).nonzero().view(-1)
        if ratio is None:
            return rows, None
        median = self.store.median_norm(self.hook_point)
        kept = rows[self._norms()[rows] <= ratio * median]
        share = 1 - len(kept) / max(1, len(rows))
        log.info("%.4f%% of the training rows are left out: norm above %g × the median %.4g", 100 * share, ratio, median)
        return kept, share

    def _mean_sq_norm(self, train_rows: Tensor) -> float:
        """Of the rows trained on where some are left out, else of the store, which has it ready."""
        if self.left_out_share is None:
            return self.store.mean_sq_norm(self.hook_point)
        return float(self._norms()[train_rows].double().square().mean())

    def _norms(self) -> Tensor:
        """float32[n_rows] of the store"""
        return torch.cat([self.store.norms(shard, self.hook_point) for shard in range(self.store.n_shards)])

    def _left_out(self) -> dict[str, float]:
        """The share of training rows left out, for logs and metadata, where that was asked for."""
        return {} if self.left_out_share is None else {"left_out_share": self.left_out_share}

    def _sae_config(self) -> SAEConfig:
        config, store, sae_kind = self.config, self.store, kind_class(self.config.kind).sae_kind
        d_model = store.d_model(self.hook_point)
        return SAEConfig(
            d_model=d_model,
            d_sae=config.d_sae or config.expansion * d_model,
            kind=sae_kind,
            k=config.k if sae_kind == "topk" else None,
            hook_point=self.hook_point,
            hf_module=store.plan["hook_points"][self.hook_point].get("module_path", ""),
            model_name=store.model_name,
            metadata={"saelens_lite": {"version": saelens_lite.__version__, "store": store.fingerprint}},
        )

    def step(self, step: int) -> StepStats:
        """One optimiser step, counted from 0."""
        return self.trainer.update(self.buffer.batch(step).to(self.device) * self.scale)

    def training_metrics(self, stats: StepStats, done: int, seconds: float) -> dict[str, float | int | None]:
        """What a training line of metrics.jsonl holds; raises FloatingPointError when the loss is not finite."""
        loss, trainer = float(stats.reconstruction), self.trainer
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the reconstruction loss is {loss} at step {done}: check the store for NaN or infinite rows, or lower lr "
                f"(now {trainer.lr:g})"
            )
        tokens, window = done * self.config.batch_size_rows, trainer.dead_tracker.dead_after_tokens
        dead = len(trainer.dead_tracker.dead()) / trainer.sae.d_sae if tokens >= window else None
        return {
            "tokens": tokens,
            "reconstruction": loss,
            trainer.kind.sparsity_name: float(stats.sparsity),
            "l0": float(stats.l0),
            f"dead@{window}": dead,
            "lr": trainer.adam.param_groups[0]["lr"],
            "tokens_per_s": tokens / seconds,
            **self._left_out(),
        }

    def held_out_metrics(self) -> dict[str, float | None]:
        """fvu and l0 on rows of held-out documents; None when there are none."""
        if not len(self.held_out_rows):
            return {"held_out_fvu": None, "held_out_l0": None}
        acts = self.store.gather(self.held_out_rows, self.hook_point)
        errors = variance = latents = 0.0
        mean = acts.mean(0, dtype=torch.float64)
        with torch.no_grad():
            for rows in acts.split(self.config.batch_size_rows):
                out = self.trainer.sae((rows * self.scale).to(self.device))
                errors += float((out.recons.cpu() / self.scale - rows).double().square().sum())
                variance += float((rows - mean).square().sum())
                latents += float(out.latents.l0().sum())
        return {"held_out_fvu": errors / variance if variance else None, "held_out_l0": latents / len(acts)}

    def save(self, output: Path) -> SparseAutoencoder:
        """The SAE in the units of the store, written to `output`; never one that is not finite."""
        done, kind = self.trainer.steps_done, self.trainer.kind
        if kind.calibrates and len(self.held_out_rows):
            kind.calibrate(self.store.gather(self.held_out_rows, self.hook_point).mul_(self.scale).to(self.device))
        sae = fold_scale(self.trainer.sae, self.scale)
        if not self.config.unit_decoder:
            fold_decoder_norms_(sae)
        if not all(bool(parameter.isfinite().all()) for parameter in sae.parameters()):
            raise FloatingPointError(f"weights are not finite after step {done}; what {output} held before is untouched")
        self.scores = self.held_out_metrics()
        facts = {
            **sae.config.metadata["saelens_lite"],
            "train": to_mapping(self.config),
            "lr": self.trainer.lr,
            "steps": done,
            "tokens": done * self.config.batch_size_rows,
            **self._left_out(),
            **self.scores,
        }
        metadata = {**sae.config.metadata, "saelens_lite": facts}
        if self.store.has_tokens:
            metadata["context_size"] = self.store.context_length
        sae.config = dataclasses.replace(sae.config, metadata=metadata)
        sae.save(output)
        (output / "train_config.json").write_text(json.dumps(to_mapping(self.config), indent=1), encoding="utf-8")
        return sae


class _Stopped:
    signal: int | None = None


@contextmanager
def _stop_signals() -> Iterator[_Stopped]:
    """Note SIGTERM and Ctrl-C instead of dying, so that the step ends and the SAE is saved; a second one kills."""
    stopped = _Stopped()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def note(number: int, _: FrameType | None) -> None:
        if stopped.signal is not None:
            raise KeyboardInterrupt
        stopped.signal = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _configured(config: TrainConfig | None, fields: dict[str, Any], store: Any) -> TrainConfig:
    base = to_mapping(config) if config else {}
    path = store.path if isinstance(store, ActivationStore) else store
    return from_mapping(TrainConfig, {**base, **fields, "store": str(path)}, "train_sae")


def _steps(n_steps: int, config: TrainConfig) -> Iterator[int]:
    from tqdm import tqdm

    return iter(tqdm(range(n_steps), desc=f"train {config.kind}", unit="step", disable=not config.progress))


def _spread(rows: Tensor, n: int) -> Tensor:
    """At most n of the rows, evenly spread over them."""
    return rows if len(rows) <= n else rows[torch.arange(n) * (len(rows) - 1) // max(1, n - 1)]
