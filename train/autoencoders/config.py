"""What the training of a relative of the SAE is asked for: what it is, and the run."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

from saelens_lite.autoencoders.fields import Relative
from saelens_lite.config import Above, AtLeast, AtMost

from ..run_config import FREE, OF_ROWS, RunConfig


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(RunConfig, Relative):
    """One relative of the sparse autoencoder, trained on one hook point of an activation store.

    Rows are centred and scaled alike in all coordinates (`scale_input`); for deep_belief each coordinate has
    deviation 1; with the output sigmoid rows are taken as they are, and must lie in [0, 1].
    """

    output: Annotated[str, FREE] = "runs/autoencoder"
    """Folder that receives autoencoder.safetensors, metrics.jsonl and train_config.json."""
    batch_size_rows: Annotated[int, AtLeast(1), OF_ROWS] = 256
    """Rows a step."""
    buffer_rows: Annotated[int, AtLeast(1), OF_ROWS] = 65_536
    """Rows mixed in memory at a time (up to 4 · d_model bytes each); more mix better across the store."""
    lr: Annotated[float | None, Above(0)] = None
    """Peak learning rate of Adam, also in pretraining; None: 1e-3, for deep_belief 1e-2. pca has none."""
    warm_up_steps: Annotated[int, AtLeast(0)] = 0
    """Steps of linear warm-up of the learning rate."""
    decay_fraction: Annotated[float, AtLeast(0), AtMost(1)] = 1 / 3
    """The last share of the run over which the learning rate falls linearly to 0."""

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)  # super() fails beside a dataclass with slots
        Relative.__post_init__(self)

    @property
    def relative(self) -> Relative:
        """What is trained, without the run."""
        return Relative(**{field.name: getattr(self, field.name) for field in fields(Relative)})
