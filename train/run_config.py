"""What every training run is asked for, whatever it trains: rows, seeds, steps, files and clocks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from saelens_lite.config import Above, AtLeast, Below, check_fields

FREE = "may change when a run resumes: where it reads (the store's content counts), writes and computes"
OF_SEED = "may differ between the seeds of one configuration, as what is free may"
OF_ROWS = "decides which rows a run reads: runs that agree in these share them"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """A run on the rows of one hook point of a store; what it trains has a configuration that extends this.

    `kind` is a field of each: the name of what is trained, for progress and logs.
    """

    store: Annotated[str | tuple[str, ...], FREE] = ""
    """Folder of the activation store, or several whose rows are mixed in every batch."""
    store_weights: Annotated[tuple[float, ...] | None, Above(0), OF_ROWS] = None
    """Share of each store in every batch; None takes their sizes. A store with much weight for its size
    repeats its rows sooner."""
    output: Annotated[str, FREE] = "runs/sae"
    """Folder that receives what is trained (an SAE in SAELens v6 format), metrics.jsonl and
    train_config.json."""
    overwrite: Annotated[bool, FREE] = False
    """Start anew in `output` and replace what an earlier run left there. Without it, an unfinished run of the
    same settings resumes, a finished one is returned, and another one is refused."""
    hook_point: Annotated[str | None, OF_ROWS] = None
    """Hook point of the store; may be left out if it holds one."""
    matmul_precision: Literal["highest", "high", "medium"] | None = None
    """How the products of a step are computed from its float32 weights, as torch.set_float32_matmul_precision
    says: medium is bf16, high TF32, where the device has them; weights, sums and moments stay float32, so
    that medium is what others call mixed precision. None: high on CUDA, else as torch is set."""
    batch_size_rows: Annotated[int, AtLeast(1), OF_ROWS] = 4096
    """Rows (tokens) a step."""
    n_steps: Annotated[int | None, AtLeast(1)] = None
    """Optimiser steps; None: what passes over the training rows take, see `n_epochs`."""
    n_epochs: Annotated[float, Above(0)] = 1.0
    """Passes over the training rows; not used when n_steps is given."""
    scale_input: Annotated[bool, OF_ROWS] = True
    """Train on activations scaled so that their mean squared distance from their mean is d_model; the scale
    is folded into the weights on save."""
    seed: Annotated[int, OF_SEED] = 0
    """Of initialisation, and of row order without order_seed. The same seed on the same store gives the same
    weights."""
    order_seed: Annotated[int | None, OF_SEED] = None
    """Of row order alone; None: seed. A grid has one order for all its members, so that seeds share one
    pass."""
    buffer_rows: Annotated[int, AtLeast(1), OF_ROWS] = 1_048_576
    """Rows mixed in memory at a time (2 · d_model bytes each in bf16, twice that with `prefetch`); more mix
    better across the store."""
    prefetch: Annotated[bool | None, FREE, OF_ROWS] = None
    """Read and mix the next buffer while this one is trained on: a second buffer in memory, pinned where CUDA
    computes, so that steps need not wait. None: where an accelerator computes; on a CPU reading takes cores
    from the step. The rows of each step are the same."""
    held_out_fraction: Annotated[float, AtLeast(0), Below(1), OF_ROWS] = 0.05
    """Share of documents never trained on, chosen by hash; evaluation uses them."""
    max_norm_ratio: Annotated[float | None, Above(0), OF_ROWS] = None
    """Train without rows whose norm exceeds this multiple of the store's median row norm: 10 leaves out
    attention sinks and the like, whose squared error would outweigh everything else. None trains on all rows;
    evaluation always reads all."""
    eval_every_steps: Annotated[int | None, AtLeast(1), FREE] = None
    """Steps between evaluations on held-out rows; None: ten times a run."""
    eval_rows: Annotated[int, AtLeast(1), OF_SEED, OF_ROWS] = 16_384
    """Held-out rows an evaluation reads, at most."""
    log_every_steps: Annotated[int, AtLeast(1), FREE] = 10
    """Steps between lines of metrics.jsonl; fetching the numbers is the only wait for the device."""
    checkpoint_every_steps: Annotated[int | None, AtLeast(1), FREE] = None
    """Steps between checkpoints, each with what is trained as it stands; None: ten times a run. SIGTERM and
    Ctrl-C make one too. After a kill, run the same command again: it resumes exactly."""
    keep_checkpoints: Annotated[int, AtLeast(1), FREE] = 2
    """Newest checkpoints to keep, each three times the size of what is trained; a finished run keeps none."""
    device: Annotated[str | None, FREE] = None
    """cuda, mps or cpu; None takes the best one here."""
    wandb_project: Annotated[str | None, FREE] = None
    """Weights & Biases project to log to as well; None: no wandb."""
    progress: Annotated[bool, FREE] = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        check_fields(self)
        self.expect(self.store_weights != (), "store_weights", "a weight for each store or None")
        self.expect(bool(self.store) or isinstance(self.store, str), "store", "at least one folder")
        self.expect(Path(self.output).name != "", "output", "a folder to write to")

    def expect(self, ok: bool, name: str, expected: str) -> None:
        """raises: ValueError where a field is not as it must be; what a kind expects stands in its file"""
        if not ok:
            raise ValueError(f"{type(self).__name__}.{name} expected {expected}, got {getattr(self, name)!r}")

    @property
    def row_seed(self) -> int:
        """The seed of row order."""
        return self.seed if self.order_seed is None else self.order_seed
