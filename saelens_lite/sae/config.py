"""The facts of an SAE: its configuration, and which parameters each kind has in which units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import torch

from saelens_lite.config import Above, AtLeast, check_fields
from saelens_lite.errors import nearest

NORMALIZATIONS = ("none", "center", "layer_norm", "constant_norm_rescale")

WEIGHT, BIAS, THRESHOLD, LOG_GAIN = "weight", "bias", "threshold", "log gain"


class Parameter(NamedTuple):
    """dims: its dimensions, in names of SAEConfig's fields; role: WEIGHT, BIAS, THRESHOLD or LOG_GAIN."""

    dims: tuple[str, ...]
    role: str

    @property
    def in_units_of_acts(self) -> bool:
        """Whether it doubles where activations double; weights and gains have no unit."""
        return self.role in (BIAS, THRESHOLD)

    @property
    def of_latents(self) -> bool:
        return self.dims == ("d_sae",)

    @property
    def latent_dim(self) -> int | None:
        """Which dimension counts latents."""
        return self.dims.index("d_sae") if "d_sae" in self.dims else None


def _with(**roles: str) -> dict[str, Parameter]:
    return {
        "W_enc": Parameter(("d_model", "d_sae"), WEIGHT),
        "W_dec": Parameter(("d_sae", "d_out"), WEIGHT),
        "b_dec": Parameter(("d_out",), BIAS),
        **{name: Parameter(("d_sae",), role) for name, role in roles.items()},
    }


PARAMETERS = {
    "relu": _with(b_enc=BIAS),
    "topk": _with(b_enc=BIAS),
    "jumprelu": _with(b_enc=BIAS, threshold=THRESHOLD),
    "gated": _with(b_gate=BIAS, b_mag=BIAS, r_mag=LOG_GAIN),
}
"""The parameters of each kind: creation, folding, files and training read them here."""
KINDS = tuple(PARAMETERS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """A place of a model whose rows are one block of a crosscoder's."""

    d_model: Annotated[int, AtLeast(1)]
    """Width of the block."""
    scale: Annotated[float, Above(0)] = 1.0
    """Brings the mean squared distance of the side's rows from their mean to d_model. Weights are in the
    rows' own units; times this, decoder norms of several sides compare."""
    hook_point: str = ""
    hf_module: str = ""
    model_name: str = ""
    """As SAEConfig has them, of this side."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where a transcoder writes: what it predicts from the rows it reads."""

    d_model: Annotated[int, AtLeast(1)]
    """Width of what it writes."""
    skip: bool = False
    """Whether a matrix W_skip maps the input straight to the target, beside the latents."""
    hook_point: str = ""
    hf_module: str = ""
    """As SAEConfig has them, of the target."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class SAEConfig:
    """What an SAE is, apart from its weights."""

    d_model: Annotated[int, AtLeast(1)]
    d_sae: Annotated[int, AtLeast(1)]
    kind: str = "topk"
    """Nonlinearity: relu, topk, jumprelu or gated."""
    k: int | None = None
    """Latents kept per token; topk only."""
    apply_b_dec_to_input: bool = True
    """Whether b_dec is subtracted before encoding."""
    normalize_activations: str = "none"
    """What is done to every input row and undone on its reconstruction: none, center (its mean over d_model
    is taken away), layer_norm or constant_norm_rescale (to norm sqrt(d_model)). A scale fixed in training is
    folded into the weights and needs nothing here."""
    dtype: str = "float32"
    """Type of the weights; inputs are cast to it."""
    hook_point: str = ""
    """Where the activations came from, e.g. blocks.3.hook_resid_post."""
    hf_module: str = ""
    """The same place as a module path of the Hugging Face model, e.g. model.layers.3."""
    model_name: str = ""
    """The model's hub id or folder name."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Other facts kept with the SAE; SAELens' metadata object."""
    sides: tuple[Side, ...] = ()
    """Blocks of d_model, in order, of a crosscoder; none of an SAE."""
    target: Target | None = None
    """What a transcoder writes; None for an SAE, which writes where it reads."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.kind not in KINDS:
            raise ValueError(
                f"SAEConfig.kind expected one of {KINDS}, got {self.kind!r}{nearest(self.kind, KINDS)}"
            )
        if (self.kind == "topk") != (self.k is not None):
            raise ValueError(
                f"SAEConfig.k belongs to kind='topk' and only to it, got kind={self.kind!r}, k={self.k}"
            )
        if self.k is not None and not 1 <= self.k <= self.d_sae:
            raise ValueError(f"SAEConfig.k expected 1 <= k <= d_sae={self.d_sae}, got {self.k}")
        if self.normalize_activations not in NORMALIZATIONS:
            raise ValueError(
                f"SAEConfig.normalize_activations expected one of {NORMALIZATIONS}, got "
                f"{self.normalize_activations!r}"
            )
        if self.sides and sum(side.d_model for side in self.sides) != self.d_model:
            widths = " + ".join(str(side.d_model) for side in self.sides)
            raise ValueError(f"SAEConfig.sides expected widths of d_model={self.d_model}, got {widths}")
        if self.target is not None:
            self._check_target()
        dtype = getattr(torch, self.dtype, None)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ValueError(
                f"SAEConfig.dtype expected a float dtype of torch such as 'float32', got {self.dtype!r}"
            )

    def _check_target(self) -> None:
        """raises: ValueError for what a transcoder is not"""
        for name, allowed in (
            ("kind", ("relu", "topk", "jumprelu")),
            ("apply_b_dec_to_input", (False,)),  # b_dec is of the target
            ("normalize_activations", ("none",)),
            ("sides", ((),)),
        ):
            if (got := getattr(self, name)) not in allowed:
                told = ", ".join(map(repr, allowed))
                raise ValueError(f"SAEConfig.{name} of a transcoder expected {told}, got {got!r}")

    @property
    def d_out(self) -> int:
        """Width of what it writes; d_model, unless it is a transcoder."""
        return self.d_model if self.target is None else self.target.d_model

    @property
    def trained_at(self) -> str:
        """The hook point or module of the activations it was trained on, "" if it does not say."""
        return self.hook_point or self.hf_module

    @property
    def writes_at(self) -> str:
        """The hook point or module that its output stands for: a transcoder's target, else where it reads."""
        if self.target is None:
            return self.trained_at
        return self.target.hook_point or self.target.hf_module

    @property
    def trained_on(self) -> str:
        """Model and place of the activations, in words: "gpt2 at blocks.8.hook_resid_post"."""
        model = self.model_name or "an unnamed model"
        return f"{model} at {self.trained_at}" if self.trained_at else model

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        of_kind = PARAMETERS[self.kind]
        if self.target is None or not self.target.skip:
            return of_kind
        return {**of_kind, "W_skip": Parameter(("d_out", "d_model"), WEIGHT)}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(getattr(self, dim) for dim in of.dims) for name, of in self.parameters.items()}
