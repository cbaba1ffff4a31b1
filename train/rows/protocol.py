"""What a run asks of its rows, wherever they come from."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from saelens_lite.config import marked
from saelens_lite.sae.config import Target
from saelens_lite.store.codecs import STORE_DTYPES

from ..config import TrainConfig
from ..run_config import OF_ROWS, RunConfig

BUFFER_DTYPES = STORE_DTYPES | {"int8": torch.bfloat16}
"""How the buffer keeps rows, by the store's dtype."""


ROW_FIELDS = ("row_seed", *sorted(marked(TrainConfig, OF_ROWS)))
"""What the rows of a run depend on: configurations that agree in these can share them."""


class Pair(NamedTuple):
    """What a transcoder's rows [scales[0] · (x − centre), scales[1] · y] are made of: input x and target y.

    centre: float32[d_model], in the units of x
    mean_to_spread: γ of x and of y, see store/common_mean.py
    """

    target: Target
    scales: tuple[float, float]
    centre: Tensor
    mean_to_spread: tuple[float, float]


class Rows(Protocol):
    """What a run needs of its data: rows of one hook point, in the units of the model.

    Several runs may share them, so tensors from here are not to be altered.
    model_name, hf_module: where the rows come from; "" where that is not known
    shape: of rows that are images or series, in C order, see ActivationStore.from_arrays; else None
    context_length: tokens a context, BOS included; None for rows that did not come from text
    scale: what brings the mean squared distance of rows from their mean to d_model, 1 without scale_input;
        not applied here, and not that of a run which resumes from a checkpoint of an older release
    mean_to_spread: γ of the rows, see store/common_mean.py; None where an older release began the run
    left_out_share: of the training rows, by max_norm_ratio; None where it is off
    steps_per_epoch: batches in one pass over the training rows
    pair: of a transcoder, whose rows hold two places side by side, [n d_model+d_out] where [n d_model] stands
        here, in units of their own; else None
    """

    hook_point: str
    d_model: int
    hf_module: str
    model_name: str
    shape: tuple[int, ...] | None
    context_length: int | None
    scale: float
    mean_to_spread: float | None
    left_out_share: float | None
    steps_per_epoch: int
    pair: Pair | None

    @property
    def identity(self) -> dict[str, Any]:
        """What tells these rows from others, wherever they lie; a checkpoint of other rows is refused."""

    @property
    def record(self) -> dict[str, Any]:
        """What an SAE's metadata say of its rows."""

    def begin(self, position: dict[str, Any] | None) -> None:
        """Make ready for a run that begins, or resumes at a `position`; called once, before all else."""

    def position(self, step: int) -> dict[str, Any]:
        """What `begin` needs to resume at a step, as JSON."""

    def batch(self, step: int) -> Tensor:
        """float32[rows d_model] of a step counted from 0; processes along "data" get a share each."""

    def sample(self, n_rows: int) -> Tensor:
        """float32[m d_model] on the CPU: at most n_rows of those trained on, evenly spread over them."""

    def held_out(self) -> Tensor:
        """float32[m d_model] on the CPU: at most eval_rows of held-out documents; m may be 0."""

    def seen(self, step: int) -> Tensor:
        """float32[m d_model]: rows trained on, at a step above 0; the same in all processes."""

    def cross_entropies(
        self, model: nn.Module, replacements: Mapping[str, Mapping[str, Any] | None], max_tokens: int
    ) -> dict[str, float]:
        """Nats a token of held-out documents under each replacement; see contexts.cross_entropies."""

    def check_held_out(self) -> None:
        """raises: FloatingPointError naming the first held-out row that is not finite"""

    def check_steps(self, first: int, end: int, what: str) -> None:
        """Look at the rows of steps first … end − 1.

        raises: FloatingPointError with `what`, and where the first that is not finite stands
        """

    def close(self) -> None:
        """Free memory and end threads."""


def n_steps(config: RunConfig, steps_per_epoch: int) -> int:
    # As a decimal number: 0.29 · 100 is 28.999999999999996 in binary ones.
    return config.n_steps or max(1, int(Fraction(str(config.n_epochs)) * steps_per_epoch))


def ahead(config: RunConfig, device: torch.device | str) -> bool:
    """Whether the next buffer is made while one is trained on."""
    return torch.device(device).type != "cpu" if config.prefetch is None else config.prefetch


def spread(rows: Tensor, n: int) -> Tensor:
    """At most n of the rows, evenly spread over them."""
    return rows if len(rows) <= n else rows[torch.arange(n) * (len(rows) - 1) // max(1, n - 1)]
