"""Gradient times activation: the first-order share of each latent and position in a function of logits.

    contribution of latent i at token t = z_i(t) · scale(t) · W_dec[i] · ∂metric/∂acts(t)

The stream itself is made the leaf of one forward and one backward, so the run is the model's own, bit for
bit; the SAE's error and its row scale are constants. At each token latents, b_dec and error add up to acts ·
∂metric/∂acts. The contributions of a latent summed over tokens are the first-order estimate of metric −
metric with the latent ablated. A transcoder's z is of what it reads, and acts are what stands at its target.

source: attribution patching, Nanda 2023; of SAE latents with the error kept, Marks et al. 2024,
    arXiv:2403.19647
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saelens_lite.arguments import at_most, takes_folders
from saelens_lite.errors import HookError
from saelens_lite.lm.decoder import Decoder, Model, evaluation_mode
from saelens_lite.lm.forward_state import EditInfo, placed_inputs
from saelens_lite.lm.hooks import edit
from saelens_lite.lm.positions import Positions, Where
from saelens_lite.lm.replacement import read_by
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.latents import SparseLatents

from ..latents.compatibility import fits, written_at
from .stream_parts import StreamParts


class LatentShare(NamedTuple):
    contribution: float
    latent: int
    example: int
    position: int


@dataclass(frozen=True, slots=True, eq=False)
class GradientAttribution:
    """First-order contributions to a metric, on the SAE's device; 0 at tokens that `where` leaves out.

    metric: its value in this run
    latents: SparseLatents of float32 over [batch seq], contributions in place of activations
    b_dec, error: float32[batch seq]; b_dec of a skip-transcoder with what its skip adds
    stream_gradient: float[batch seq d_out], ∂metric/∂acts
    """

    metric: float
    latents: SparseLatents
    b_dec: Tensor
    error: Tensor
    stream_gradient: Tensor

    def by_latent(self) -> Tensor:
        """float32[d_sae], summed over examples and positions."""
        total = self.latents.values.new_zeros(self.latents.d_sae)
        return total.index_add_(0, self.latents.indices, self.latents.values)

    def by_position(self) -> Tensor:
        """float32[batch seq], summed over latents."""
        total = self.latents.values.new_zeros(self.latents.batch)
        return total.index_add_(0, self.latents.row_ids(), self.latents.values).view(self.latents.batch_shape)

    @names_misfits
    def top(self, n: int = 10) -> list[LatentShare]:
        """The n largest, strongest first."""
        values, seq = self.latents.values, self.latents.batch_shape[-1]
        found = values.abs().topk(at_most(n, len(values))).indices
        rows = self.latents.row_ids()[found].tolist()
        shares = zip(values[found].tolist(), self.latents.indices[found].tolist(), rows, strict=True)
        return [LatentShare(value, latent, row // seq, row % seq) for value, latent, row in shares]

    def __repr__(self) -> str:
        lines = [f"GradientAttribution of a metric of {self.metric:.4f}; strongest:"]
        lines += [
            f"  {s.contribution:+.4f}  latent {s.latent}, example {s.example}, position {s.position}"
            for s in self.top(5)
        ]
        return "\n".join(lines)


@takes_folders
@names_misfits
def gradient_attribution(
    model: nn.Module,
    sae: SparseAutoencoder,
    metric: Callable[[Tensor], Tensor],
    *,
    where: Where = "all",
    hook_point: str | None = None,
    skip_ids: Sequence[int] | None = None,
    **model_inputs: Any,
) -> GradientAttribution:
    """What every latent contributes to a number made of the logits, at every position, to first order.

    metric: a scalar of logits float[batch seq vocab], such as lambda logits: logits[:, -1, 42].sum()
    where, skip_ids: the tokens of interest, as in `ablate`; "all" leaves out BOS, EOS and padding
    raises: ValueError for a metric that is no finite scalar of the logits, or an SAE that does not fit the
        model; HookError as `hooks.edit`
    """
    decoder = Decoder(model)
    point = fits(sae, decoder, hook_point)
    positions = Positions(where=where, skip_ids=decoder.special_ids if skip_ids is None else tuple(skip_ids))
    with evaluation_mode(decoder), torch.enable_grad(), stream_leaves(decoder, sae, point) as leaves:
        value = metric(model(**placed_inputs(decoder, model_inputs)).logits)
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"metric expected to return a scalar tensor made of the logits, got {shape}")
        if not value.requires_grad:
            raise ValueError(
                "metric expected to be differentiable in the logits, got a constant, or a value made of ids"
            )
        if not value.isfinite():
            raise ValueError(
                f"metric expected a finite number, got {value.item()}: are the model's logits finite?"
            )
        if len(leaves) != 1:
            raise HookError(f"expected one forward that runs {point} once, it ran {len(leaves)} times")
        (leaf,) = leaves
        (gradient,) = torch.autograd.grad(value.sum(), leaf.acts)
    chosen = positions(leaf.info)[..., None].to(gradient.device)
    gradient = torch.where(chosen, gradient, 0)
    parts = StreamParts(sae, leaf.acts, leaf.read).along(gradient)
    return GradientAttribution(value.item(), *parts, gradient)


class Leaf(NamedTuple):
    """What stands where an SAE writes, float[batch seq d_out], as a leaf of the graph.

    read: float[batch seq d_model], what the SAE reads, without a graph
    """

    acts: Tensor
    info: EditInfo
    read: Tensor


@contextmanager
def stream_leaves(model: Model, sae: SparseAutoencoder, point: str) -> Iterator[list[Leaf]]:
    """Inside, the forward continues from a leaf with the same values, kept in the list.

    point: which the SAE reads; the leaf stands there, of a transcoder at its target
    """
    leaves: list[Leaf] = []
    written = written_at(sae, model, point)
    with ExitStack() as stack:
        source = stack.enter_context(read_by(Decoder.of(model), sae, written))

        def begin(acts: Tensor, info: EditInfo) -> Tensor:
            leaf, read = acts.detach().requires_grad_(), source(acts, info).detach()
            leaves.append(Leaf(leaf, info, read))
            return leaf.clone()  # some blocks add into the stream in place, which a leaf does not allow

        stack.enter_context(edit(model, written, begin))
        yield leaves
