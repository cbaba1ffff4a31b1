"""The facts of a relative of the SAE: what it is made of and what its loss weighs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal, NoReturn, get_type_hints

from saelens_lite.config import Above, AtLeast, AtMost, Below, check_fields
from saelens_lite.misfits import names_misfits

RelativeKind = Literal[
    "pca",
    "dense",
    "multilayer",
    "denoising",
    "contractive",
    "variational",
    "convolutional",
    "deep_belief",
]


class Of:
    """The kinds that a field is of: others refuse it."""

    def __init__(self, *kinds: str) -> None:
        self.kinds = kinds


ONE_LAYER = Of("dense", "denoising", "contractive")
LAYERED = Of("multilayer", "denoising", "contractive", "variational", "deep_belief")
LEARNT = Of("dense", "multilayer", "denoising", "contractive", "variational", "convolutional", "deep_belief")


@dataclass(frozen=True, kw_only=True)
class Relative:
    """What a relative of the sparse autoencoder is. A field that its kind does not use is refused."""

    kind: RelativeKind = "dense"
    """pca (exact, the linear reference), dense (one hidden layer, the code), multilayer, denoising (Vincent
    et al. 2008), contractive (Rifai et al. 2011), variational (Kingma & Welling 2014), convolutional, or
    deep_belief (pretrained as restricted Boltzmann machines, Hinton & Salakhutdinov 2006)."""
    code_size: Annotated[int, AtLeast(1)] = 16
    """Width of the code, or of the middle layer with `code_layer`; of pca at most the width of a row."""
    hidden: Annotated[tuple[int, ...] | None, AtLeast(1), LAYERED] = None
    """Widths of the layers between row and code; the decoder mirrors them. None: none for denoising and
    contractive, (2 d, d) of a row's width d for multilayer, (2 d,) for variational, (1.25 d, 0.65 d, 0.35 d)
    for deep_belief."""
    code_layer: Annotated[int | None, AtLeast(1), Of("multilayer")] = None
    """Which hidden layer of encoder and decoder is the code, counted from 1; None: the middle one."""
    activation: Annotated[Literal["relu", "sigmoid", "linear"], LEARNT] = "relu"
    """Of hidden layers, and of the code where it is the only one; a code after hidden layers is linear.
    deep_belief takes sigmoid alone."""
    output_activation: Annotated[Literal["linear", "sigmoid"], LEARNT] = "linear"
    """Of the reconstruction; sigmoid for rows in [0, 1]."""
    tied: Annotated[bool, ONE_LAYER] = False
    """The decoder's weights are the encoder's, transposed."""
    error: Annotated[Literal["squared", "cross_entropy"], LEARNT] = "squared"
    """What the loss measures of a reconstruction, summed over coordinates; cross_entropy with the output
    sigmoid."""
    weight_decay: Annotated[float, AtLeast(0), LEARNT] = 0.0
    """Weight of the sum of squared weights, biases left out."""
    sparsity_coeff: Annotated[float, AtLeast(0), Of("dense")] = 0.0
    """Weight of Σ_j KL(ρ‖ρ̂_j), ρ̂_j the mean of sigmoid code j over the batch."""
    sparsity_target: Annotated[float, Above(0), Below(1), Of("dense")] = 0.05
    """ρ, with `sparsity_coeff`."""
    noise: Annotated[Literal["gaussian", "masking"], Of("denoising")] = "gaussian"
    """What spoils the encoder's input: added numbers, or coordinates set to 0."""
    noise_level: Annotated[float, AtLeast(0), Of("denoising")] = 0.3
    """Standard deviation of the noise in the scale of training, or the share of coordinates masked."""
    contractive_coeff: Annotated[float, AtLeast(0), Of("contractive")] = 0.1
    """Weight of ‖∂code/∂row‖², in the scale of training."""
    beta: Annotated[float, AtLeast(0), Of("variational")] = 1.0
    """Weight of the divergence of the code from its prior (Higgins et al. 2017); more frees units of it."""
    free_bits: Annotated[float, AtLeast(0), Of("variational")] = 0.0
    """Bits a unit of the code may carry at no cost (Kingma et al. 2016)."""
    channels: Annotated[tuple[int, ...], AtLeast(1), Of("convolutional")] = (16, 32)
    """Channels of each convolution; each halves the picture."""
    kernel_size: Annotated[int, AtLeast(1), Of("convolutional")] = 3
    """Of the convolutions; odd."""
    pretrain_fraction: Annotated[float, AtLeast(0), AtMost(1), Of("deep_belief")] = 0.5
    """Share of the steps that pretrain, divided equally among the machines; the rest fine-tunes."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name, kinds in fields_of_kinds().items():
            if self.kind not in kinds and getattr(self, name) != DEFAULTS[name]:
                takes = ", ".join(kinds)
                refuse(self, name, f"{DEFAULTS[name]} for the kind {self.kind} ({takes} take it)")
        if self.error == "cross_entropy" and self.output_activation != "sigmoid":
            refuse(self, "error", "squared unless output_activation is sigmoid")
        if self.sparsity_coeff and self.activation != "sigmoid":
            refuse(self, "sparsity_coeff", "0 without sigmoid codes, whose means are rates")
        if self.kind == "deep_belief" and self.activation != "sigmoid":
            refuse(self, "activation", "sigmoid for deep_belief, whose units are Bernoulli")
        if self.kind == "denoising" and self.noise == "masking" and self.noise_level >= 1:
            refuse(self, "noise_level", "below 1 for masking, a share of coordinates")
        if self.kernel_size % 2 == 0:
            refuse(self, "kernel_size", "an odd number")
        if self.code_layer is not None and self.code_layer > 2 * len(self.hidden or (1, 1)) + 1:
            refuse(self, "code_layer", f"at most {2 * len(self.hidden or (1, 1)) + 1}, the hidden layers")

    @names_misfits
    def widths(self, d_model: int) -> list[int]:
        """Of the encoder's layers, from the row to the middle."""
        shares = {"multilayer": (2, 1), "variational": (2,), "deep_belief": (1.25, 0.65, 0.35)}
        hidden = self.hidden
        if hidden is None:
            hidden = tuple(max(1, round(share * d_model)) for share in shares.get(self.kind, ()))
        return [d_model, *hidden, self.code_size]


def refuse(relative: Relative, name: str, expected: str) -> NoReturn:
    """raises: ValueError"""
    raise ValueError(f"{type(relative).__name__}.{name} expected {expected}, got {getattr(relative, name)!r}")


DEFAULTS = {field.name: field.default for field in fields(Relative)}


def fields_of_kinds() -> dict[str, tuple[str, ...]]:
    """The kinds of each field that not all have."""
    hints = get_type_hints(Relative, include_extras=True)
    marks = {
        name: [m for m in getattr(h, "__metadata__", ()) if isinstance(m, Of)] for name, h in hints.items()
    }
    return {name: found[0].kinds for name, found in marks.items() if found}
