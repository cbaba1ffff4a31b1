"""A text of one's own through a model and an SAE: which latents fire on each of its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saelens_lite.arguments import takes_folders
from saelens_lite.lm.decoder import Decoder, evaluation_mode
from saelens_lite.lm.hooks import run_to
from saelens_lite.lm.token_text import spelled, text_ids, token_strings
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.latents import SparseLatents
from saelens_lite.text_table import Tabular

from .compatibility import fits
from .store_pass import to_cpu
from .text_windows import visible


@dataclass(frozen=True, slots=True)
class TokenFirings:
    """A token of a text, and the latents that fire on it, strongest first: (latent, activation)."""

    token: str
    latents: tuple[tuple[int, float], ...]

    def __repr__(self) -> str:
        return f"{visible(self.token)!r:>16}  " + "  ".join(
            f"{latent}: {value:.3g}" for latent, value in self.latents
        )


@dataclass(frozen=True, slots=True, eq=False)
class EncodedText(Tabular):
    """The latents of a text, token by token.

    tokens: the text of each token, the BOS first where the tokenizer has one; ids: int64[n_tokens]
    latents: of the n_tokens rows, on the CPU
    n_bos: 1 where the first token is a BOS, on which latents fire oddly
    """

    tokens: tuple[str, ...]
    ids: Tensor
    latents: SparseLatents
    n_bos: int

    def __len__(self) -> int:
        return len(self.tokens)

    @names_misfits
    def __getitem__(self, latent: int) -> Tensor:
        """The activation of one latent on each token: float32[n_tokens], 0 where it does not fire.

        raises: ValueError for a latent out of range
        """
        if not hasattr(latent, "__index__") or not 0 <= latent < self.latents.d_sae:
            raise ValueError(f"expected a latent from 0 to {self.latents.d_sae - 1}, got {latent}")
        of = (self.latents.indices == latent) & (self.latents.values > 0)
        acts = torch.zeros(len(self))
        acts[self.latents.row_ids()[of]] = self.latents.values[of].float()
        return acts

    def __iter__(self) -> Iterator[TokenFirings]:
        """Every token with all latents that fire on it."""
        return iter(self.top(self.latents.d_sae))

    @names_misfits
    def top(self, n: int = 5) -> list[TokenFirings]:
        """The n latents that fire most strongly on each token; of equally strong ones the lower first."""
        found = []
        for place, token in enumerate(self.tokens):
            span = slice(int(self.latents.offsets[place]), int(self.latents.offsets[place + 1]))
            pairs = zip(self.latents.indices[span].tolist(), self.latents.values[span].tolist())
            strongest = sorted((pair for pair in pairs if pair[1] > 0), key=lambda pair: (-pair[1], pair[0]))
            found.append(TokenFirings(token, tuple(strongest[:n])))
        return found

    @names_misfits
    def strongest(self, n: int = 10) -> list[tuple[int, float]]:
        """(latent, largest activation) of the n latents that fire most strongly on any token but the BOS."""
        largest = torch.zeros(self.latents.d_sae, dtype=self.latents.values.dtype)
        text = self.latents.row_ids() >= self.n_bos
        largest.scatter_reduce_(0, self.latents.indices[text], self.latents.values[text], reduce="amax")
        best = largest.argsort(descending=True, stable=True)[:n]
        return [(i, float(largest[i])) for i in best.tolist() if largest[i] > 0]

    def _records(self) -> list[dict[str, Any]]:
        """All firings: position, token, latent, activation."""
        return [
            {"position": place, "token": firings.token, "latent": latent, "activation": value}
            for place, firings in enumerate(self)
            for latent, value in firings.latents
        ]

    def __repr__(self) -> str:
        return "\n".join(map(repr, self.top()))


@takes_folders
@names_misfits
def encode_text(
    model: nn.Module,
    tokenizer: Any,
    sae: SparseAutoencoder,
    text: str,
    *,
    hook_point: str | None = None,
) -> EncodedText:
    """The latents of a text, read as a harvest reads it: after one BOS, where the tokenizer has one.

        encoded = encode_text(model, tokenizer, sae, "Once upon a time")
        encoded.top(5)      # of each token, the latents that fire most strongly on it
        encoded[1234]       # float32[n_tokens], the activations of one latent

    hook_point: None takes the one that the SAE was trained on
    raises: ValueError for a text without tokens or longer than the model's positions, an SAE of another model
        or one that does not say where it belongs, or activations that are not finite
    """
    point = fits(sae, model, hook_point)
    if not text:
        raise ValueError("expected a text, got an empty one: there is nothing to fire on")
    if not tokenizer(text, add_special_tokens=False).input_ids:
        raise ValueError(f"expected a text with tokens, got {text!r}")
    ids = torch.tensor([text_ids(tokenizer, text)])
    limit = getattr(Decoder(model).text_config, "max_position_embeddings", None)
    if limit is not None and ids.shape[1] > limit:
        raise ValueError(
            f"expected a text within the model's {limit} positions, got one of {ids.shape[1]} tokens: "
            "take parts"
        )
    with evaluation_mode(model), torch.no_grad():
        acts = run_to(model, [point], input_ids=ids)[point][0]
        if not acts.isfinite().all():
            raise ValueError(f"encode_text expected finite activations, got nan or infinity at {point}")
        latents = to_cpu(sae.encode(acts.to(sae.device)))
    pieces = token_strings(tokenizer, ids[0].tolist())
    tokens = tuple(spelled(tokenizer, i, piece) for i, piece in zip(ids[0].tolist(), pieces, strict=True))
    return EncodedText(tokens, ids[0], latents, int(ids[0, 0] == tokenizer.bos_token_id))
