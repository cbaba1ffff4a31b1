"""The logit lens of a latent: the tokens that its direction raises and lowers through the unembedding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saelens_lite.arguments import takes_folders
from saelens_lite.lm.decoder import Decoder, Model
from saelens_lite.lm.hooks import enters_stream
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..latents.compatibility import checked_latents
from ..latents.text_windows import token_text
from .final_norm import final_norm as norm_of
from .final_norm import norm_parts

_CHUNK_LATENTS = 256


@dataclass(frozen=True, slots=True, eq=False)
class LogitLens:
    """Top and bottom tokens of latents' directions.

    latents: int64[m]
    top_ids, bottom_ids: int64[m n], strongest first at either end
    top_logits, bottom_logits: float32[m n], minus the mean over the vocabulary; per unit of latent activation
    tokenizer: for the text of the tokens, or None
    """

    latents: Tensor
    top_ids: Tensor
    top_logits: Tensor
    bottom_ids: Tensor
    bottom_logits: Tensor
    tokenizer: Any = None

    @names_misfits
    def top(self, latent: int) -> list[tuple[str, float]]:
        """(token, logit) that the direction raises most; the id in angle brackets without a tokenizer."""
        row = self._row(latent)
        return self._pairs(self.top_ids[row], self.top_logits[row])

    @names_misfits
    def bottom(self, latent: int) -> list[tuple[str, float]]:
        """The tokens that a latent lowers most, lowest first."""
        row = self._row(latent)
        return self._pairs(self.bottom_ids[row], self.bottom_logits[row])

    def __repr__(self) -> str:
        lines = [f"LogitLens of {len(self.latents):,} latents"]
        for latent in self.latents[:5].tolist():
            ends = (" ".join(repr(token) for token, _ in end(latent)[:5]) for end in (self.top, self.bottom))
            lines.append(f"  {latent:>6}  + {next(ends)}   − {next(ends)}")
        return "\n".join(lines + ["  …"] * (len(self.latents) > 5))

    def _row(self, latent: int) -> int:
        found = (self.latents == latent).nonzero()
        if not len(found):
            raise ValueError(
                f"latent {latent} is not in this lens of {len(self.latents)} latents; ask logit_lens for it"
            )
        return int(found[0])

    def _pairs(self, ids: Tensor, logits: Tensor) -> list[tuple[str, float]]:
        return [(token_text(self.tokenizer, i), logit) for i, logit in zip(ids.tolist(), logits.tolist())]


@takes_folders
@names_misfits
def logit_lens(
    sae: SparseAutoencoder,
    model: nn.Module,
    latents: Sequence[int] | Tensor | None = None,
    n: int = 10,
    tokenizer: Any = None,
    final_norm: bool = False,
) -> LogitLens:
    """The n tokens that each latent's direction raises and lowers most.

    logits = W_dec[i] @ unembedding − mean over the vocabulary, as SAEDashboard and Neuronpedia show. This is
    the direct path: without later blocks, and without the final norm's scale, which all tokens share.

    latents: None for all
    final_norm: also multiply the direction by the final norm's weight, and centre it where that norm does
    raises: ValueError for a latent out of range, weights that are not finite, a width that is not the
        model's, or a model without an output embedding; HookError when final_norm is wanted and none is found
    source: nostalgebraist 2020, "interpreting GPT: the logit lens"
    """
    chosen = checked_latents(sae, latents)
    return _ends(chosen, lens_logits(sae, model, chosen, final_norm), n, tokenizer, model)


@names_misfits
def direction_lens(
    directions: Tensor, model: nn.Module, n: int = 10, tokenizer: Any = None, final_norm: bool = False
) -> LogitLens:
    """`logit_lens` of any directions of the stream, float[m d_model]: its "latents" are their numbers.

    raises: as `logit_lens`
    """
    chosen = torch.arange(len(directions))
    return _ends(chosen, _logits_of(directions, chosen, model, final_norm), n, tokenizer, model)


def _ends(
    chosen: Tensor, found: Iterator[tuple[Tensor, Tensor]], n: int, tokenizer: Any, model: nn.Module
) -> LogitLens:
    # filled in place: small tensors between the chunks would keep their memory from being used again
    values, ids = torch.empty(2, len(chosen), 0), torch.empty(2, len(chosen), 0, dtype=torch.int64)
    for places, logits in found:
        if not values.shape[2]:
            n_shown = min(n, logits.shape[-1])
            values, ids = (of.new_empty(2, len(chosen), n_shown) for of in (values, ids))
        for end, largest in enumerate((True, False)):
            ends = logits.topk(n_shown, largest=largest)
            values[end, places], ids[end, places] = ends.values.cpu(), ends.indices.cpu()
    if not values.isfinite().all():
        raise ValueError(
            "expected finite logits, got nan or infinity: the directions or "
            f"{type(model).__name__} has such weights"
        )
    return LogitLens(chosen, ids[0], values[0], ids[1], values[1], tokenizer)


def lens_logits(
    sae: SparseAutoencoder, model: nn.Module, chosen: Tensor, final_norm: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """The whole lens of latents int64[m], some at a time: their places int64[c] among the chosen, and logits
    float32[c vocabulary] on the model's device. raises: as `logit_lens`"""
    decoder = Decoder(model)
    point = sae.config.writes_at
    if point and not enters_stream(decoder, point):
        raise ValueError(
            f"logit_lens expected an SAE of the stream or of what a block adds to it, got one of {point}, "
            "which the unembedding does not read: these latents have no logit lens"
        )
    return _logits_of(sae.W_dec, chosen, decoder, final_norm)


@torch.no_grad()
def _logits_of(
    rows: Tensor, chosen: Tensor, model: Model, final_norm: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    decoder, d_model = Decoder.of(model), rows.shape[-1]
    head = decoder.head
    width = getattr(head, "in_features", d_model)
    if width != d_model:
        raise ValueError(
            f"logit_lens expected directions of the model's width {width}, got d_model={d_model}"
        )

    parameter = next(head.parameters())
    # offloaded weights come when the head is called
    device = decoder.device if parameter.is_meta else parameter.device
    dtype = parameter.dtype if parameter.dtype.is_floating_point else torch.float32
    norm = norm_parts(norm_of(decoder, d_model), rows[:1].to(device, dtype)) if final_norm else None
    bias = head(torch.zeros(1, d_model, device=device, dtype=dtype)).float()
    for places in torch.arange(len(chosen)).split(_CHUNK_LATENTS):
        some = rows[chosen[places].to(rows.device)].to(device, dtype)
        if norm is not None:
            some = (norm.weight * norm.center(some.double().cpu())).to(some)
        logits = head(some).float().sub_(bias)
        logits -= logits.mean(-1, keepdim=True)
        yield places, logits
