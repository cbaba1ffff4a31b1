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
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor

import saelens_lite
from saelens_lite import distributed
from saelens_lite.codecs import STORE_DTYPES
from saelens_lite.config import from_mapping, to_mapping
from saelens_lite.device import best_device
from saelens_lite.files import LocalFolder
from saelens_lite.sae import SAEConfig, SparseAutoencoder
from saelens_lite.shards import data_name
from saelens_lite.store import ActivationStore
from saelens_lite.tracker import SilentTracker, Tracker

from .buffer import RowBuffer
from .config import TrainConfig
from .init import fold_decoder_norms_, fold_scale, initial_sae, input_scale
from .kinds import kind_class
from .presets import with_preset
from .state import Checkpoint, circumstances, differing_fields, load_checkpoint, remove_checkpoints, save_checkpoint
from .step import StepStats
from .trainer import Trainer

log = logging.getLogger(__name__)

_INIT_ROWS = 32_768

_FREE_FIELDS = {
    "store", "output", "overwrite", "preset", "device", "progress", "wandb_project", "log_every_steps", "eval_every_steps",
    "checkpoint_every_steps", "keep_checkpoints",
}  # fmt: skip
"""What may change when a run goes on: where it reads (the store's content counts), writes and computes, what it tells."""

_BUFFER_DTYPES = STORE_DTYPES | {"int8": torch.bfloat16}
"""How the buffer keeps rows, by the store's dtype."""


def train_sae(store: ActivationStore | str | Path, config: TrainConfig | None = None, **fields: Any) -> SparseAutoencoder:
    """Train a sparse autoencoder on the rows of an activation store and save it.

        sae = train_sae("store/", kind="topk", k=32, expansion=16, output="runs/topk")

    Stopped or killed, the same call goes on at the last checkpoint and ends with the same SAE, bit for bit on a CPU with as
    many threads. So does one that differs only in where it reads, writes its progress and computes; see state.py.
    Called in all processes of a torchrun, each computes the gradients of its share of every batch; the first writes.

    store: an open store or its folder
    config: a TrainConfig; `fields` replace single fields of it (or of the defaults), see TrainConfig for each. Without it
        `preset` may name a recipe of presets.py; `fields` replace single fields of that
    returns: the SAE, in the units of the store's activations, on the training device, in every process; also saved to
        config.output
    raises: ValueError for a wrong field, too few rows, a batch that the processes cannot share equally, or an output that
        holds a finished run, another or one that is running; CheckpointError if all its checkpoints are damaged or one
        cannot be written; FloatingPointError for a row that is not finite, with its shard, or a loss that is not, with the
        step: what was saved is kept then;
        KeyboardInterrupt / SystemExit after Ctrl-C / SIGTERM, once a checkpoint and the SAE as it stands were saved
    """
    config = _configured(config, fields, store)
    store = store if isinstance(store, ActivationStore) else ActivationStore(store)
    with distributed.joined(_device(config)):
        return _train(store, config)


def _train(store: ActivationStore, config: TrainConfig) -> SparseAutoencoder:
    output = Path(config.output)
    checkpoint = _checkpoint(output, store, config)
    run = _Run(store, config, checkpoint)
    run.begin_together()
    position = checkpoint.progress if checkpoint else None
    output.mkdir(parents=True, exist_ok=True)
    with (
        _alone(output),
        Tracker(output, to_mapping(config), config.wandb_project, position) if _writes() else SilentTracker() as tracker,
        _stop_signals() as stopped,
    ):
        if checkpoint is None and _writes():
            remove_checkpoints(output)
        run.start_clock()
        try:
            for step in _steps(run.trainer.steps_done, run.n_steps, config):
                stats = run.step(step)
                done, last, stopping = step + 1, step + 1 == run.n_steps, stopped.anywhere() is not None
                if done % config.log_every_steps == 0 or last:
                    tracker.log(done, run.training_metrics(stats, done))
                if done % run.eval_every_steps == 0 and not last:
                    tracker.log(done, run.held_out_metrics())
                if not last and (stopping or done % run.checkpoint_every_steps == 0):
                    run.checkpoint(output, tracker.position())
                if stopping:
                    break
        except FloatingPointError:
            raise
        except Exception:
            done = run.trainer.steps_done
            if done and _writes():
                run.save(output)
                log.error("failed after step %d of %d; the SAE as it stands is in %s", done, run.n_steps, output)
                if run.saved_step:
                    log.error("the same command goes on at step %d", run.saved_step)
            raise
        if done == run.n_steps:
            sae = run.save(output)
            tracker.log(done, run.scores)
            if _writes():
                remove_checkpoints(output)
        else:
            log.warning("stopped at step %d of %d; the same command goes on from there", done, run.n_steps)
            log.warning("the SAE as it stands is in %s", output)
    if (number := stopped.anywhere()) is not None:
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
    return sae


def _checkpoint(output: Path, store: ActivationStore, config: TrainConfig) -> Checkpoint | None:
    """Where an unfinished run in `output` is gone on with; None to begin. raises: ValueError if it must not be touched"""
    if config.overwrite:
        return None
    found = load_checkpoint(output)
    if found is None:
        if (output / "cfg.json").exists():
            raise ValueError(f"{output} holds an SAE already: choose another output, or overwrite=True to replace it")
        return None
    if differing := differing_fields(_identity(store, config), found.run, to_mapping(TrainConfig())):
        raise ValueError(
            f"{output} holds another run, stopped at step {found.step}: {'; '.join(differing)}. Set these as expected to go "
            "on with it, choose another output, or overwrite=True to replace it"
        )
    log.info("going on at step %d with the run in %s", found.step, output)
    now = circumstances(_device(config))
    if found.made_by != now:
        changed = [f"{name} {found.made_by.get(name)} → {now[name]}" for name in now if found.made_by.get(name) != now[name]]
        log.info("the last bits may differ from those of an uninterrupted run: %s", ", ".join(changed))
    return found


def _identity(store: ActivationStore, config: TrainConfig) -> dict[str, Any]:
    """What determines a run: a checkpoint of it fits no other."""
    fields = {name: value for name, value in to_mapping(config).items() if name not in _FREE_FIELDS}
    return {**fields, "hook_point": store.hook_point(config.hook_point), "store": f"content {store.fingerprint}"}


def _device(config: TrainConfig) -> torch.device:
    return torch.device(distributed.own_device(config.device or best_device()))


def _writes() -> bool:
    """Whether this process writes and speaks: of several, which all do the same, the first."""
    return distributed.rank() == 0


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Keep another training out, for as long as this one trains into `output`."""
    with LocalFolder(output).locked("metrics.jsonl") if _writes() else nullcontext(True) as ours:
        if distributed.largest(int(not ours)):
            raise ValueError(f"{output} is being trained into by another process: wait for it, or choose another output")
        yield


class _Run:
    """A training run on a store: rows in, numbers and folders out."""

    def __init__(self, store: ActivationStore, config: TrainConfig, checkpoint: Checkpoint | None = None) -> None:
        self.store, self.config = store, config
        n_processes = distributed.world_size()
        if config.batch_size_rows % n_processes:
            raise ValueError(
                f"batch_size_rows expected a multiple of {n_processes}, the processes that share each batch, got "
                f"{config.batch_size_rows}: choose {-(-config.batch_size_rows // n_processes) * n_processes}"
            )
        self.hook_point = store.hook_point(config.hook_point)
        self.device = _device(config)
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
            part=(distributed.rank() if n_processes > 1 else 0, n_processes),
        )
        self.n_steps = config.n_steps or max(1, int(config.n_epochs * self.buffer.steps_per_epoch))
        self.eval_every_steps = config.eval_every_steps or max(1, self.n_steps // 10)
        self.checkpoint_every_steps = config.checkpoint_every_steps or max(1, self.n_steps // 10)
        self.scale = 1.0
        if checkpoint is not None:
            self.scale = checkpoint.progress["scale"]
        elif config.scale_input:
            self.scale = input_scale(self._mean_sq_norm(train_rows), store.d_model(self.hook_point))

        self._rows_are_finite(self.held_out_rows)
        if checkpoint is None:
            init_rows = _spread(train_rows, _INIT_ROWS)
            self._rows_are_finite(init_rows)
            sample = store.gather(init_rows, self.hook_point).mul_(self.scale)
            sae = initial_sae(self._sae_config(), sample, config.seed, kind_class(config.kind).encoder_scale)
        else:
            sae = SparseAutoencoder(self._sae_config())
        self.trainer = Trainer(sae.to(self.device), config, self.n_steps)
        if checkpoint is not None:
            self.trainer.load_state(checkpoint.state)
        self.saved_step = self.finite_step = self.trainer.steps_done
        self.scores: dict[str, float | None] = {}
        self._scored_step = -1
        self._seconds_before = checkpoint.progress["seconds"] if checkpoint else 0.0
        self._started = time.perf_counter()

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

    def begin_together(self) -> None:
        """Several processes begin with the bits of the first, once all of them have looked at what is there.

        raises: ValueError if they found different checkpoints
        """
        done = self.trainer.steps_done
        if distributed.largest(done) != -distributed.largest(-done):
            raise ValueError(
                f"the processes expected one checkpoint in {self.config.output}, this one found step {done} and another one "
                "a different step: give all machines the same folder"
            )
        for value in self.trainer.state().values():
            if isinstance(value, Tensor):
                distributed.from_first_(value)

    def start_clock(self) -> None:
        """Training begins, or goes on, at this instant."""
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time trained so far, that before an interruption included."""
        return self._seconds_before + time.perf_counter() - self._started

    def step(self, step: int) -> StepStats:
        """One optimiser step, counted from 0."""
        return self.trainer.update(self.buffer.batch(step).to(self.device) * self.scale)

    def training_metrics(self, stats: StepStats, done: int) -> dict[str, float | int | None]:
        """What a training line of metrics.jsonl holds; raises FloatingPointError when the loss is not finite."""
        loss, trainer = float(stats.reconstruction), self.trainer
        if not math.isfinite(loss):
            self._raise_not_finite(f"the reconstruction loss is {loss}")
        self.finite_step = done
        tokens, window = done * self.config.batch_size_rows, trainer.dead_tracker.dead_after_tokens
        dead = len(trainer.dead_tracker.dead()) / trainer.sae.d_sae if tokens >= window else None
        return {
            "tokens": tokens,
            "reconstruction": loss,
            trainer.kind.sparsity_name: float(stats.sparsity),
            "l0": float(stats.l0),
            f"dead@{window}": dead,
            "lr": trainer.adam.param_groups[0]["lr"],
            "tokens_per_s": tokens / self.seconds,
            **self._left_out(),
        }

    def held_out_metrics(self) -> dict[str, float | None]:
        """fvu and l0 on rows of held-out documents; None when there are none. Of one step they are computed once."""
        if self._scored_step != self.trainer.steps_done:
            self.scores, self._scored_step = self._score(), self.trainer.steps_done
        return self.scores

    def _score(self) -> dict[str, float | None]:
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
        if not math.isfinite(errors):
            self._raise_not_finite("the error on held-out rows is not finite")
        return {"held_out_fvu": errors / variance if variance else None, "held_out_l0": latents / len(acts)}

    def _rows_are_finite(self, rows: Tensor, what: str = "a row is not finite") -> None:
        """raises: FloatingPointError with shard and row of the first whose squared norm, as trained on, is not; int64[n]"""
        acts = self.store.gather(rows, self.hook_point).mul_(self.scale)
        broken = rows[~torch.linalg.vecdot(acts, acts).isfinite()]
        if not len(broken):
            return
        first, ends = int(broken.min()), torch.tensor(self.store.shard_rows).cumsum(0)
        shard = int(torch.searchsorted(ends, first, right=True))
        row = first - int(ends[shard]) + self.store.shard_rows[shard]
        path = self.store.folder.describe(data_name(shard, self.hook_point))
        raise FloatingPointError(
            f"{what}: row {row} of shard {shard} ({path}, both from 0) holds NaN, infinite or too large values. "
            f"`saelens-lite verify {self.store.path}` finds altered files, and with --repair makes them anew; the same "
            "command then goes on at the last checkpoint"
        )

    def _raise_not_finite(self, what: str) -> NoReturn:
        """Look for the cause in the rows since numbers were last known to be finite. raises: FloatingPointError"""
        done, lr = self.trainer.steps_done, self.trainer.lr
        for step in range(self.finite_step, done):
            self._rows_are_finite(self.buffer.rows(step), f"{what} at step {done}")
        raise FloatingPointError(
            f"{what} at step {done}, though all rows since step {self.finite_step} are: the training diverged. Lower lr "
            f"(now {lr:g}) and choose another output, or overwrite=True"
        )

    def _weights_are_finite(self) -> None:
        """raises: FloatingPointError otherwise"""
        if not all(bool(parameter.isfinite().all()) for parameter in self.trainer.sae.parameters()):
            self._raise_not_finite("a weight is not finite")
        self.finite_step = self.trainer.steps_done

    def checkpoint(self, output: Path, position: dict[str, Any]) -> None:
        """Write the state of training and the SAE as it stands, where all is finite; what was saved before stays until then.

        position: of the tracker
        """
        self._weights_are_finite()
        if _writes():
            save_checkpoint(
                output,
                self.trainer.state(),
                run=_identity(self.store, self.config),
                progress={"scale": self.scale, "seconds": self.seconds, **position},
                made_by=circumstances(self.device),
                keep=self.config.keep_checkpoints,
            )
        self.saved_step = self.trainer.steps_done
        self.save(output)

    def save(self, output: Path) -> SparseAutoencoder:
        """The SAE in the units of the store, written to `output` by the first process; never one that is not finite."""
        self._weights_are_finite()
        done, kind = self.trainer.steps_done, self.trainer.kind
        if kind.calibrates and len(self.held_out_rows):
            self._scored_step = -1
            kind.calibrate(self.store.gather(self.held_out_rows, self.hook_point).mul_(self.scale).to(self.device))
        sae = fold_scale(self.trainer.sae, self.scale)
        if not self.config.unit_decoder:
            fold_decoder_norms_(sae)
        self.held_out_metrics()
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
        if _writes():
            sae.save(output)
            (output / "train_config.json").write_text(json.dumps(to_mapping(self.config), indent=1), encoding="utf-8")
        return sae


class _Stopped:
    signal: int | None = None

    def anywhere(self) -> int | None:
        """The signal that this or another process got; all that ask together are told the same."""
        return distributed.largest(self.signal or 0) or None


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
    if config is not None and fields.get("preset", config.preset) != config.preset:
        raise ValueError(
            f"train_sae expected a preset or a TrainConfig, got {fields['preset']!r} and one whose fields would all win "
            "over the preset's: give single fields beside the preset"
        )
    base = to_mapping(config) if config else {}
    path = store.path if isinstance(store, ActivationStore) else store
    return from_mapping(TrainConfig, with_preset({**base, **fields, "store": str(path)}), "train_sae")


def _steps(first: int, n_steps: int, config: TrainConfig) -> Iterator[int]:
    from tqdm import tqdm

    bar = {"desc": f"train {config.kind}", "unit": "step", "disable": not (config.progress and _writes())}
    return iter(tqdm(range(first, n_steps), initial=first, total=n_steps, **bar))


def _spread(rows: Tensor, n: int) -> Tensor:
    """At most n of the rows, evenly spread over them."""
    return rows if len(rows) <= n else rows[torch.arange(n) * (len(rows) - 1) // max(1, n - 1)]
