"""Latents edited in the live model: continuations beside each other, token by token, and what one token's
probability does.

The rows of a batch share prompt, edit and noise, and differ in the directions along which the edit is
written: zero (the text as it is), the latents' own, those of a matched random draw. Row by row they are what
    a batch of one gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from operator import index
from typing import Any, Literal

import torch
from torch import Tensor, nn

from saelens_lite.lm.decoder import Decoder, evaluation_mode
from saelens_lite.lm.token_text import LONGEST_RUN_TOKENS, text_ids, token_strings
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..edits.controls import Controls, matched_latents
from ..edits.latents import ablate, clamp, scale, steer
from ..edits.stream_edit import checked_latents_of
from ..stats.bootstrap import rank_p

MODES = ("ablate", "clamp", "add", "scale")
N_CONTROLS = 99


@dataclass(frozen=True, kw_only=True, slots=True)
class SteeringPlan:
    """What is edited, how strongly, and where.

    mode: "ablate" sets the latents to 0; "clamp" holds them at dose times their largest activation; "add"
        adds that, whether they fire or not; "scale" multiplies them by dose where they fire
    where: "all", "prompt" or "generated"
    max_act, rates: float[d_sae], largest activation and share of tokens on which each latent fires
    """

    latents: tuple[int, ...]
    mode: Literal["ablate", "clamp", "add", "scale"] = "add"
    dose: float = 1.0
    where: Literal["all", "prompt", "generated"] = "all"
    max_act: Tensor
    rates: Tensor

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode expected one of {', '.join(MODES)}, got {self.mode!r}")

    def controls(self, sae: SparseAutoencoder, n: int, seed: int = 0) -> Controls | None:
        """n random latents of about equal rate and decoder norm for each; None where too few others fire."""
        try:
            return matched_latents(sae, list(self.latents), self.rates, n_draws=n, seed=seed)
        except ValueError:
            return None

    def edit(
        self, model: nn.Module, sae: SparseAutoencoder, point: str, prompt_tokens: int, directions: Tensor
    ) -> AbstractContextManager[None]:
        """The edit of a batch. directions: float[batch n_latents d_model], of each row"""
        place: dict[str, Any] = {
            "where": self.where, "hook_point": point, "prompt_tokens": prompt_tokens, "directions": directions
        }  # fmt: skip
        if self.mode == "ablate":
            return ablate(model, sae, self.latents, **place)
        if self.mode == "scale":
            return scale(model, sae, self.latents, self.dose, **place)
        change = clamp if self.mode == "clamp" else steer
        return change(model, sae, self.latents, self.dose, unit="max_act", max_act=self.max_act, **place)


@names_misfits
def continuations(
    model: nn.Module,
    tokenizer: Any,
    sae: SparseAutoencoder,
    plan: SteeringPlan,
    prompt: str,
    *,
    hook_point: str,
    max_new_tokens: int = 60,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """The prompt continued clean, steered, and with a matched random draw in the latents' place, as the
    tokens come.

    First {"rows": names, "control": the latents drawn}, then for each token {"pieces": text of each row}:
    None once a row has ended, "" while the token's bytes make no character yet. The rows share the seed:
    where they give equal logits, they draw equal tokens.

    temperature: 0 takes the likeliest token
    raises: ValueError for an empty prompt, one too long for the model, or a plan that does not fit
    """
    chosen = checked_latents_of(sae, list(plan.latents))
    ids = _prompt_ids(model, tokenizer, prompt, max_new_tokens)
    own = sae.W_dec.detach()[chosen.to(sae.device)]
    drawn = plan.controls(sae, N_CONTROLS, seed)
    rows = {"clean": torch.zeros_like(own), "steered": own}
    if drawn is not None:
        rows["control"] = drawn.directions[0].to(own)
    yield {
        "rows": list(rows),
        "control": [] if drawn is None or drawn.latents is None else drawn.latents[0].tolist(),
        "ratio": None if drawn is None else drawn.rate_ratio,
    }
    directions = torch.stack(list(rows.values()))
    generator = torch.Generator().manual_seed(index(seed))
    decoder = Decoder(model)
    ends, n = set(_end_ids(model, tokenizer)), len(rows)
    texts = [_Pieces(tokenizer, ids) for _ in range(n)]
    past, ended = None, [False] * n
    step = torch.tensor([ids] * n, device=decoder.device)
    with evaluation_mode(model), torch.no_grad():
        for _ in range(max_new_tokens):
            with plan.edit(model, sae, hook_point, len(ids), directions):
                found = model(input_ids=step, past_key_values=past, use_cache=True)
            past, logits = found.past_key_values, found.logits[:, -1].float().cpu()
            if temperature > 0:
                # Gumbel noise, the same for all rows
                noise = (
                    torch.rand(logits.shape[-1], generator=generator).clamp_min(1e-20).log().neg().log().neg()
                )
                logits = logits / temperature + noise
            tokens = logits.argmax(-1).tolist()
            pieces: list[str | None] = []
            for row, token in enumerate(tokens):
                ended[row] |= token in ends
                pieces.append(None if ended[row] else texts[row].add(token))
            yield {"pieces": pieces}
            if all(ended):
                return
            step = torch.tensor(tokens, device=decoder.device)[:, None]


@names_misfits
def probability_change(
    model: nn.Module,
    tokenizer: Any,
    sae: SparseAutoencoder,
    plan: SteeringPlan,
    prompt: str,
    token: int,
    *,
    hook_point: str,
) -> dict[str, Any]:
    """What the edit does to the probability of one next token, beside the same edit along 99 matched latents,
    in one forward pass of 101 rows.

    returns: clean and steered, the probabilities; controls, those of the draws; rank of the size of the
        steered change among all (1 is largest), of how many; p = rank / of
    raises: ValueError as `continuations`, or where too few other latents fire
    """
    chosen = checked_latents_of(sae, list(plan.latents))
    ids = _prompt_ids(model, tokenizer, prompt, 1)
    own = sae.W_dec.detach()[chosen.to(sae.device)]
    drawn = matched_latents(sae, list(plan.latents), plan.rates, n_draws=N_CONTROLS)
    directions = torch.cat([torch.zeros_like(own)[None], own[None], drawn.directions.to(own)])
    inputs = torch.tensor([ids] * len(directions), device=Decoder(model).device)
    with evaluation_mode(model), torch.no_grad(), plan.edit(model, sae, hook_point, len(ids), directions):
        logits = model(input_ids=inputs, use_cache=False).logits[:, -1].float()
    chances = logits.softmax(-1)[:, token].cpu().double()
    change = (chances[1:] - chances[0]).abs()
    p = float(rank_p(change[0], change[1:]))
    return {
        "clean": float(chances[0]),
        "steered": float(chances[1]),
        "controls": chances[2:].tolist(),
        "rank": round(p * (N_CONTROLS + 1)),
        "of": N_CONTROLS + 1,
    }


class _Pieces:
    """The text of tokens that come one by one."""

    def __init__(self, tokenizer: Any, ids: list[int]) -> None:
        self._tokenizer, self._ids = tokenizer, ids[-LONGEST_RUN_TOKENS:]
        self._start = len(self._ids)  # what follows is not yet given

    def add(self, token: int) -> str:
        """What this token adds to the text; "" where its bytes are not yet a character."""
        self._ids = [*self._ids, token]
        text = "".join(token_strings(self._tokenizer, self._ids)[self._start :])
        if text.endswith("�") and len(self._ids) - self._start < LONGEST_RUN_TOKENS:
            return ""
        self._ids = self._ids[-LONGEST_RUN_TOKENS:]
        self._start = len(self._ids)
        return text


def _prompt_ids(model: nn.Module, tokenizer: Any, prompt: str, more: int) -> list[int]:
    if not prompt or not tokenizer(prompt, add_special_tokens=False).input_ids:
        raise ValueError("expected a prompt, got an empty one: there is nothing to continue")
    ids = text_ids(tokenizer, prompt)
    limit = getattr(Decoder(model).text_config, "max_position_embeddings", None)
    if limit is not None and len(ids) + more > limit:
        raise ValueError(
            f"expected prompt and continuation within the model's {limit} positions, got {len(ids)} and "
            f"{more} tokens: take fewer"
        )
    return ids


def _end_ids(model: nn.Module, tokenizer: Any) -> list[int]:
    """Tokens that end a text."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = named if isinstance(named, list) else [named]
    return [i for i in (*ids, tokenizer.eos_token_id) if i is not None]
