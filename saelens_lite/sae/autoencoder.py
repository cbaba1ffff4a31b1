"""The sparse autoencoder: parameters, encode, decode, for every kind of nonlinearity."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from saelens_lite.formats.peer_names import of_sae
from saelens_lite.kernels import dispatch as kernels
from saelens_lite.misfits import names_misfits
from saelens_lite.sae import nonlinearity, pruning
from saelens_lite.sae.config import SAEConfig
from saelens_lite.sae.folder import SAEFolder
from saelens_lite.sae.latents import SparseLatents

_PRE_ACT_BUDGET_BYTES = 64 * 2**20


class SAEOutput(NamedTuple):
    """recons: float[... d_model]."""

    recons: Tensor
    latents: SparseLatents


class _NamesOfPeers(type):
    """Says what a method of another library's SAE is called here, where it is asked of the class."""

    def __getattr__(cls, name: str) -> NoReturn:
        raise AttributeError(_no_attribute(cls.__name__, name))


def _no_attribute(of: str, name: str) -> str:
    said = of_sae(name)
    return f"{of!r} object has no attribute {name!r}" + (f": {said}" if said else "")


class SparseAutoencoder(SAEFolder, nn.Module, metaclass=_NamesOfPeers):
    """An overcomplete dictionary of directions in activation space.

        pre_acts    = (acts - b_dec) @ W_enc + b_enc          b_dec subtracted if apply_b_dec_to_input
        latent_acts = ReLU | TopK | JumpReLU | Gated (pre_acts)
        recons      = latent_acts @ W_dec + b_dec

    W_enc: float[d_model d_sae], stored latent-major (strides 1, d_model), contiguous only on disk
    W_dec: float[d_sae d_model]; row i is latent i's direction
    b_dec: float[d_model]
    b_enc: float[d_sae]; a gated SAE has b_gate, b_mag and r_mag, float[d_sae], in its place
    threshold: float[d_sae], jumprelu only

    All parameters (`config.PARAMETERS` lists them by kind) are zero at first; train/optimise/initial.py says
    what training starts from.
    """

    W_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter

    @names_misfits
    def __init__(self, config: SAEConfig) -> None:
        super().__init__()
        self.config = config
        for name, shape in config.shapes.items():
            latent_major = name == "W_enc"
            zeros = torch.zeros(shape[::-1] if latent_major else shape, dtype=config.torch_dtype)
            self.register_parameter(name, nn.Parameter(zeros.T if latent_major else zeros))

    @property
    def d_model(self) -> int:
        return self.config.d_model

    @property
    def d_sae(self) -> int:
        return self.config.d_sae

    @property
    def kind(self) -> str:
        return self.config.kind

    @property
    def device(self) -> torch.device:
        return self.W_dec.device

    @property
    def dtype(self) -> torch.dtype:
        return self.W_dec.dtype

    @property
    def prune_above(self) -> float | None:
        """The threshold of `pruned`; None where nothing is pruned."""
        return (self.config.metadata.get("saelens_lite") or {}).get("prune_above")

    @names_misfits
    def pruned(self, tau: float | None) -> SparseAutoencoder:
        """A view of this SAE, over the same weights, that drops latents which the others make up for.

            sae.pruned(choose_tau(sae, store, l0=24).tau)

        A latent that fires keeps its value where its leave-one-out score (pruning.py), in units of the SAE's
        own scale, is above tau, and is 0 elsewhere. Evaluation, index, edits, probes and report take the view
        as any SAE. `save` keeps tau under metadata.saelens_lite.prune_above; SAELens ignores it there and
        opens the whole SAE.

        tau: finite; None gives a view that prunes nothing
        """
        if tau is not None and not math.isfinite(tau):
            raise ValueError(f"pruned expected a finite tau, got {tau}; None prunes nothing")
        ours = dict(self.config.metadata.get("saelens_lite") or {})
        ours.pop("prune_above", None)
        ours |= {} if tau is None else {"prune_above": float(tau)}
        view = copy.copy(self)
        view.config = dataclasses.replace(
            self.config, metadata={**self.config.metadata, "saelens_lite": ours}
        )
        return view

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise AttributeError(_no_attribute(type(self).__name__, name)) from None

    def extra_repr(self) -> str:
        k = f", k={self.config.k}" if self.config.k else ""
        at = self.config.hook_point
        return f"d_model={self.d_model}, d_sae={self.d_sae}, kind={self.kind!r}{k}, at={at!r}"

    def check_acts(self, acts: Tensor) -> None:
        """raises: ValueError unless the last dimension of `acts` is d_model; TypeError for no tensor"""
        if not isinstance(acts, Tensor):
            raise TypeError(
                f"encode expected a tensor acts[..., d_model={self.d_model}], got {type(acts).__name__}: "
                "torch.as_tensor makes one of numbers"
            )
        if acts.ndim == 0 or acts.shape[-1] != self.d_model:
            raise ValueError(
                f"encode expected acts[..., d_model={self.d_model}], got {list(acts.shape)}: "
                f"these look like another model's activations; it was trained on {self.config.trained_on}"
            )

    def normalize(self, acts: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Activations in the SAE's own scale and dtype, and how its output is brought back to that of acts:
        times scale, plus shift.

        acts: float[... d_model]; scale, shift: float[... 1], or None where nothing was done
        source: layer_norm as in Gao et al. 2024: divided by the unbiased std + 1e-5, multiplied back by std
            alone, so a constant row comes back as itself; constant_norm_rescale as in SAELens,
            where a row of zeros becomes nan; here it stays zero, and so does its reconstruction
        """
        self.check_acts(acts)
        acts = acts.to(self.dtype)
        if self.config.normalize_activations == "layer_norm":
            shift = acts.mean(-1, keepdim=True)
            scale = acts.std(-1, keepdim=True)
            return (acts - shift) / (scale + 1e-5), scale, shift
        if self.config.normalize_activations == "center":
            shift = acts.mean(-1, keepdim=True)
            return acts - shift, None, shift
        if self.config.normalize_activations == "constant_norm_rescale":
            scale = acts.norm(dim=-1, keepdim=True) / self.d_model**0.5
            return acts / scale.masked_fill(scale == 0, 1), scale, None
        return acts, None, None

    @names_misfits
    def pre_acts(self, normalized: Tensor, latents: Tensor | None = None) -> Tensor:
        """Encoder output before the nonlinearity, for rows from `normalize`; that of the gate if gated.

        normalized: float[... d_model]; latents: int64[m] restricts the columns
        returns: float[... d_sae] or float[... m]
        """
        self.check_acts(normalized)
        bias = self.b_gate if self.kind == "gated" else self.b_enc
        return self._project(normalized, latents) + (bias if latents is None else bias[latents])

    def _project(self, normalized: Tensor, latents: Tensor | None) -> Tensor:
        if self.config.apply_b_dec_to_input:
            normalized = normalized - self.b_dec
        return normalized @ (self.W_enc if latents is None else self.W_enc[:, latents])

    def latent_acts(self, normalized: Tensor, latents: Tensor | None = None) -> Tensor:
        """Dense latent activations of rows from `normalize`, or only their columns `latents`.

        TopK needs every pre-activation of a row to select, on a CPU only where one of the latents is above 0.
        returns: float[... d_sae] or float[... m]
        """
        self.check_acts(normalized)
        if latents is None and (self.kind == "topk" or self.prune_above is not None):
            return self.encode_normalized(normalized).to_dense()
        if self.prune_above is not None:
            return self.encode_normalized(normalized).columns(latents)
        if self.kind == "topk":
            return self._topk_acts(normalized, latents)
        return self._dense_acts(normalized, latents)

    def _topk_acts(self, normalized: Tensor, latents: Tensor) -> Tensor:
        """`latent_acts` of some latents of TopK, unpruned."""
        if normalized.device.type != "cpu":  # where the host would wait for the rows
            return self.encode_normalized(normalized).columns(latents)
        flat = normalized.reshape(-1, self.d_model)
        rows = (self.pre_acts(flat, latents) > 0).any(-1).nonzero().flatten()
        found = flat.new_zeros(len(flat), len(latents))
        if len(rows):
            found = found.index_put((rows,), self.encode_normalized(flat[rows]).columns(latents))
        return found.view(*normalized.shape[:-1], len(latents))

    def _dense_acts(self, normalized: Tensor, latents: Tensor | None) -> Tensor:
        """`latent_acts` of a kind whose latents do not depend on each other, unpruned."""

        def of(parameter: Tensor) -> Tensor:
            return parameter if latents is None else parameter[latents]

        if self.kind == "gated":
            projected = self._project(normalized, latents)
            magnitude = projected * of(self.r_mag).exp() + of(self.b_mag)
            return nonlinearity.gated(projected + of(self.b_gate), magnitude)
        pre_acts = self.pre_acts(normalized, latents)
        if self.kind == "jumprelu":
            return nonlinearity.jumprelu(pre_acts, of(self.threshold))
        return nonlinearity.relu(pre_acts)

    def _encode_rows(self, normalized: Tensor) -> SparseLatents:
        if self.kind == "topk":
            assert self.config.k is not None
            return nonlinearity.topk(self._project(normalized, None), self.b_enc, self.config.k)
        return SparseLatents.from_dense(self._dense_acts(normalized, None))

    def encode(self, acts: Tensor) -> SparseLatents:
        """Latents of activations float[... d_model]; pre-activations exist for some rows at a time.

        raises: ValueError unless the last dimension is d_model, or where an activation is NaN or infinite
        """
        latents = self.encode_normalized(self.normalize(acts)[0])
        if not bool(latents.values.isfinite().all()):
            raise ValueError(
                "encode expected finite activations, got NaN or infinity in "
                f"{int((~acts.isfinite()).any(-1).sum())} of {acts[..., 0].numel()} rows"
            )
        return latents

    def encode_normalized(self, normalized: Tensor) -> SparseLatents:
        """Latents of rows from `normalize`, whatever their values."""
        self.check_acts(normalized)
        flat = normalized.reshape(-1, self.d_model)
        chunks = flat.split(max(1, _PRE_ACT_BUDGET_BYTES // (self.d_sae * flat.element_size())))
        latents = SparseLatents.cat(
            [self._encode_rows(chunk) for chunk in chunks], tuple(normalized.shape[:-1])
        )
        if self.prune_above is None:
            return latents
        return pruning.pruned(flat, latents, self.W_dec, self.b_dec, self.prune_above)

    def encode_dense(self, acts: Tensor) -> Tensor:
        """The same latents as float[... d_sae]."""
        return self.latent_acts(self.normalize(acts)[0])

    @names_misfits
    def decode(self, latents: SparseLatents | Tensor) -> Tensor:
        """Σ_i latent_acts_i · W_dec[i] + b_dec, in the SAE's own scale (see `normalize`).

        latents: SparseLatents, or float[... d_sae]; returns: float[... d_model]
        """
        if isinstance(latents, Tensor):
            if latents.ndim == 0 or latents.shape[-1] != self.d_sae:
                got = list(latents.shape)
                raise ValueError(f"decode expected latents[..., d_sae={self.d_sae}], got {got}")
            return latents.to(self.dtype) @ self.W_dec + self.b_dec
        recons = kernels.decode(latents.values, latents.indices, latents.offsets, self.W_dec) + self.b_dec
        return recons.view(*latents.batch_shape, self.config.d_out)

    def forward(self, acts: Tensor) -> SAEOutput:
        """The reconstruction, in the scale of `acts`, and the latents; acts: float[... d_model]."""
        normalized, scale, shift = self.normalize(acts)
        latents = self.encode_normalized(normalized)
        recons = denormalized(self.decode(latents), scale, shift)
        if recons.dtype is torch.float16 and not recons.isfinite().all() and acts.isfinite().all():
            raise FloatingPointError(
                "the reconstruction overflows float16, whose largest number is 65,504: load the SAE in "
                "float32 or bfloat16, SparseAutoencoder.load(…, dtype='float32')"
            )
        return SAEOutput(recons, latents)


def denormalized(recons: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """A reconstruction in the scale of the acts that `normalize` gave this scale and shift."""
    recons = recons if scale is None else recons * scale
    return recons if shift is None else recons + shift
