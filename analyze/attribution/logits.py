"""Direct logit attribution: what pushes the logit of one token over another at one position.

    logit[target] − logit[against] = Σ_i latent_i + error + b_dec + what other blocks add + bias

The last stream is a sum: the activations that the SAE reads, and what the blocks after them (and beside them)
add. With the final norm's scale frozen at the token's own, the way from there to a difference of two logits
is one vector, so the sum carries over; "bias" is what norm and output embedding add whatever the stream.
Direct means this path alone: what a latent does through later blocks is in their shares.

Logits are those of the output embedding, before a softcap (Gemma 2) or a factor (Cohere, Granite). They are
compared by difference, since one number added to all logits changes no probability.
source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; nostalgebraist 2020, "logit
    lens"
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saelens_lite.arguments import at_most, takes_folders
from saelens_lite.errors import HookError, with_option
from saelens_lite.lm.decoder import Decoder, evaluation_mode
from saelens_lite.lm.forward_state import placed_inputs
from saelens_lite.lm.hooks import INSIDE, capture, resolve
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.latents import SparseLatents

from ..latents.compatibility import fits, written_at
from ..latents.store_pass import to_cpu
from .final_norm import final_norm, norm_parts
from .stream_parts import StreamParts

Tokens = int | Tensor
"""One token id, or int64[batch]."""


@dataclass(frozen=True, slots=True, eq=False)
class LogitAttribution:
    """Shares in a difference of logits, on the CPU; latents and parts add up to it.

    logit_diff: float64[batch], as the model computed it
    latents: SparseLatents of float32 over [batch], shares in place of activations
    parts: float64[batch] by name: "error", "b_dec", "bias", and the hook points of what other blocks add
    """

    logit_diff: Tensor
    latents: SparseLatents
    parts: dict[str, Tensor]

    @property
    def total(self) -> Tensor:
        """float64[batch], the sum of all shares: logit_diff up to rounding."""
        return self.latents.to_dense().double().sum(-1) + torch.stack(list(self.parts.values())).sum(0)

    @names_misfits
    def top(self, n: int = 10, example: int = 0) -> list[tuple[int, float]]:
        """The n largest, strongest first."""
        start, stop = self.latents.offsets[example : example + 2].tolist()
        values, latents = self.latents.values[start:stop], self.latents.indices[start:stop]
        found = values.abs().topk(at_most(n, len(values))).indices
        return list(zip(latents[found].tolist(), values[found].tolist(), strict=True))

    def __repr__(self) -> str:
        shares = {"latents": self.latents.to_dense().double().sum(-1), **self.parts}
        first = f"{float(self.logit_diff[0]):+.4f}"
        lines = [f"LogitAttribution of {len(self.logit_diff):,} examples; the first: {first}"]
        lines += [f"  {float(share[0]):+.4f}  {name}" for name, share in shares.items()]
        return "\n".join(lines + [f"    {share:+.4f}  latent {latent}" for latent, share in self.top(5)])


@takes_folders
@names_misfits
def direct_logit_attribution(
    model: nn.Module,
    sae: SparseAutoencoder,
    target: Tokens,
    against: Tokens | None = None,
    *,
    position: int | Tensor | None = None,
    hook_point: str | None = None,
    **model_inputs: Any,
) -> LogitAttribution:
    """What each latent's direction adds to logit[target] − logit[against] at one position of every example.

    target, against: token ids, one for all or int64[batch]; against=None: the mean logit of the vocabulary
    position: column, one for all or int64[batch]; None: the last real token
    hook_point: a canonical point of the stream or of what a block adds to it; of a transcoder, whose target
        is one, where it reads
    raises: ValueError for an SAE that does not fit the model; HookError where the logits are no linear
        read-out of a normed stream, or the parts do not add up to them
    """
    decoder = Decoder(model)
    reads = fits(sae, decoder, hook_point)
    place = _Place(decoder, written_at(sae, decoder, reads))
    head, inputs = decoder.head, placed_inputs(decoder, model_inputs)
    read: dict[str, Tensor] = {}

    def on_head(_module: nn.Module, args: tuple, output: Tensor) -> None:
        read.update(normed=args[0].detach(), logits=output.detach())

    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(decoder))
        stack.enter_context(torch.no_grad())
        stream = stack.enter_context(capture(decoder, list(dict.fromkeys([*place.captured, reads]))))
        stack.callback(head.register_forward_hook(on_head).remove)
        model(**inputs)
    batch, seq = stream[place.captured[0]].shape[:2]
    last_tokens = _last_tokens(inputs.get("attention_mask"), batch, seq)
    columns = last_tokens if position is None else _each(position, batch, seq, "position", -seq)

    def at(acts: Tensor) -> Tensor:
        """float64[batch d] of the chosen columns, on the CPU."""
        return acts[torch.arange(batch), columns.to(acts.device)].double().cpu()

    normed = read["normed"][torch.arange(batch), columns.to(read["normed"].device)]
    logits = at(read["logits"])
    n_tokens = logits.shape[-1]
    given = (target, against)
    ids = [None if token is None else _each(token, batch, n_tokens, "a token id") for token in given]
    ends = [_picked(logits, tokens) for tokens in ids]
    logit_diff = ends[0] - ends[1]
    vectors, head_bias = _read_out(head, normed, ids)
    last = at(stream[place.last])
    norm = norm_parts(final_norm(decoder, sae.config.d_out), normed)
    direct = norm.center(norm.weight * vectors) / norm.scale(last, normed.cpu())

    acts, read_acts = (
        stream[name][torch.arange(batch), columns.to(stream[name].device)] for name in (place.name, reads)
    )
    own = StreamParts(sae, acts, read_acts).along(direct)
    parts = {"error": own.error, "b_dec": own.b_dec}
    parts |= {
        name: (sum(sign * at(stream[point]) for sign, point in terms) * direct).sum(-1)
        for name, terms in place.others
    }
    parts |= {"bias": vectors @ norm.bias + head_bias}
    found = LogitAttribution(
        logit_diff=logit_diff,
        latents=to_cpu(own.latents),
        parts={name: share.double().cpu() for name, share in parts.items()},
    )
    size = found.latents.to_dense().abs().sum(-1) + torch.stack(list(found.parts.values())).abs().sum(0)
    size += ends[0].abs() + ends[1].abs()  # which were rounded, however small the difference is
    gap = float(((found.total - logit_diff).abs() / size).max())
    if not gap <= 256 * max(torch.finfo(dtype).eps for dtype in (read["logits"].dtype, sae.dtype)):
        raise HookError(
            f"expected the parts of the stream to add up to the logits of {decoder.class_name}, but they "
            f"miss by {gap:.1e} of their size: its last block is not followed by the final norm and the "
            "output embedding alone"
        )
    return found


class _Place:
    """What has to be captured for an SAE's point, and what beside it makes up the last stream.

    others: (name, [(sign, hook point), …]) of every part of the last stream that the SAE does not see
    """

    def __init__(self, decoder: Decoder, name: str) -> None:
        point, n_blocks = resolve(decoder, name), len(decoder.layers)
        is_block = point.module_path == f"{decoder.path}.{point.block}" and point.kind == "module"
        kind = "resid_post" if is_block else point.kind
        if kind in ("module", *INSIDE):
            raise with_option(
                ValueError(
                    "direct attribution expected an SAE of the stream or of what a block adds to it, got "
                    f"one of {name}: pass hook_point= where its activations are those of a point such as "
                    f"blocks.{point.block or 0}.hook_mlp_out"
                ),
                "hook_point",
            )
        assert point.block is not None, "canonical points belong to blocks"
        self.name, self.last = name, f"blocks.{n_blocks - 1}.hook_resid_post"
        self.others: list[tuple[str, list[tuple[int, str]]]] = []
        if kind in ("attn_out", "mlp_out"):
            other = "mlp_out" if kind == "attn_out" else "attn_out"
            self.others = _alone(point.block, "resid_pre", other)
        for block in range(point.block if kind == "resid_pre" else point.block + 1, n_blocks):
            if decoder.parts(block) is None:  # what the block adds, not divided: scaled branches
                ends = [(1, f"blocks.{block}.hook_resid_post"), (-1, f"blocks.{block}.hook_resid_pre")]
                self.others.append((f"blocks.{block}", ends))
            else:
                self.others += _alone(block, "attn_out", "mlp_out")
        points = [p for _, terms in self.others for _, p in terms]
        self.captured = list(dict.fromkeys([name, self.last, *points]))


def _alone(block: int, *kinds: str) -> list[tuple[str, list[tuple[int, str]]]]:
    """Hook points of a block, each a part by itself."""
    return [(name, [(1, name)]) for name in (f"blocks.{block}.hook_{kind}" for kind in kinds)]


def _read_out(head: nn.Module, normed: Tensor, ids: list[Tensor | None]) -> tuple[Tensor, Tensor]:
    """∂(logit[target] − logit[against]) / ∂normed float64[batch d], and the difference at 0 [batch]."""
    vectors, offsets = [], []
    for tokens in ids:
        with torch.enable_grad():
            point = torch.zeros_like(normed).requires_grad_()
            value = _picked(head(point), tokens)
            (vector,) = torch.autograd.grad(value.sum(), point)
        vectors.append(vector.double().cpu())
        offsets.append(value.detach().double().cpu())
    return vectors[0] - vectors[1], offsets[0] - offsets[1]


def _picked(logits: Tensor, tokens: Tensor | None) -> Tensor:
    """float[batch] from float[batch vocab]: the token's logit, or their mean."""
    if tokens is None:
        return logits.mean(-1)
    return logits.gather(1, tokens.to(logits.device)[:, None])[:, 0]


def _each(value: int | Tensor, batch: int, end: int, name: str, first: int = 0) -> Tensor:
    """int64[batch] from one number or one for each example. first: the least; −1 is the last, as in Python"""
    if isinstance(value, str):
        raise ValueError(f"expected {name}, got the text {value!r}: the tokenizer gives its ids")
    given = torch.as_tensor(value).cpu().reshape(-1)
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise ValueError(f"expected {name} as a whole number, got {given.tolist()[:8]}")
    given = given.long()
    if len(given) not in (1, batch):
        raise ValueError(f"expected {name}, or one for each of {batch} examples, got {len(given)}")
    if int(given.min()) < first or int(given.max()) >= end:
        raise ValueError(f"expected {name} from 0 to {end - 1}, got {given.tolist()[:8]}")
    return (given % end).expand(batch)


def _last_tokens(mask: Any, batch: int, seq: int) -> Tensor:
    """int64[batch], the last column that is no padding."""
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        return torch.full((batch,), seq - 1)
    return (mask.cpu().bool() * torch.arange(seq)).argmax(1)
