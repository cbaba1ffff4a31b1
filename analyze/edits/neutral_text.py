"""Side effects of an edit: on the prediction of neutral text, and on what the model generates."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from saelens_lite.lm.decoder import Decoder, evaluation_mode
from saelens_lite.lm.forward_state import placed_inputs
from saelens_lite.lm.hooks import capture
from saelens_lite.lm.losses import cross_entropy, kl_divergence
from saelens_lite.misfits import names_misfits

from ..stats.bootstrap import Interval, cluster_bootstrap

_NGRAM = 4


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NeutralText:
    """What side effects are measured on; the model must have the same tokenizer.

    input_ids: int64[n_texts seq], text that the edit is not about: at least two texts, ΔCE and KL have
        intervals over them
    attention_mask: {bool|int}[n_texts seq], padding on either side; None for none
    prompts: int64[n_prompts width], left-padded, continued greedily to see repetition; None leaves that out
    prompts_mask: the same of prompts
    max_new_tokens: of each continuation
    batch_size_seqs: texts a forward
    """

    input_ids: Tensor
    attention_mask: Tensor | None = None
    prompts: Tensor | None = None
    prompts_mask: Tensor | None = None
    max_new_tokens: int = 40
    batch_size_seqs: int = 8

    def __post_init__(self) -> None:
        for name in ("input_ids", "attention_mask", "prompts", "prompts_mask"):
            value = getattr(self, name)
            if not isinstance(value, Tensor) and (value is not None or name == "input_ids"):
                raise TypeError(f"{name} expected a tensor, got {type(value).__name__}")
        if self.input_ids.ndim != 2 or len(self.input_ids) < 2 or self.input_ids.shape[1] < 2:
            raise ValueError(
                f"input_ids expected int[n_texts ≥ 2, seq ≥ 2], got {list(self.input_ids.shape)}"
            )


class Repetition(NamedTuple):
    """Of continuations, the mean over them."""

    repeated: float
    """share of 4-grams that occurred before in the same continuation; 0 where there are none"""
    distinct: float
    """distinct 2-grams over all 2-grams, of all continuations together; 1 where there are none"""


class SideEffects(NamedTuple):
    """What an edit does to neutral text."""

    delta_ce: Interval
    """nats a token that the model predicts worse, with an interval over texts"""
    kl: Interval
    """KL(p_clean ‖ p) of the next token, nats, with an interval over texts"""
    push: float
    """length of the change over that of the stream at the hook point, mean over tokens that it changes; 0 for
    none"""
    repetition: Repetition | None
    """of what is generated, where prompts were given"""


@names_misfits
def side_effects(
    model: nn.Module,
    edit: Callable[[], AbstractContextManager],
    text: NeutralText,
    *,
    hook_point: str,
    **bootstrap,
) -> SideEffects:
    """The model under an edit beside the model as it is.

    edit: makes the context; entered once for the texts and once for the prompts
    hook_point: where push is measured
    bootstrap: n_resamples, confidence, seed of the intervals
    """
    decoder = Decoder(model)
    mask = torch.ones_like(text.input_ids) if text.attention_mask is None else text.attention_mask
    deltas, kls, texts, pushes = [], [], [], []
    with evaluation_mode(decoder), torch.no_grad():
        for start in range(0, len(text.input_ids), text.batch_size_seqs):
            rows = slice(start, start + text.batch_size_seqs)
            inputs = {"input_ids": text.input_ids[rows], "attention_mask": mask[rows]}
            inputs = placed_inputs(decoder, inputs)
            ids, attended = inputs["input_ids"], inputs["attention_mask"]
            with capture(decoder, [hook_point]) as found:
                clean = model(**inputs).logits
            before = found[hook_point]
            with edit(), capture(decoder, [hook_point]) as found:
                logits = model(**inputs).logits
            real = (attended[:, 1:] & attended[:, :-1]).bool()
            after, as_it_is = (cross_entropy(of[:, :-1], ids[:, 1:]) for of in (logits, clean))
            deltas.append((after - as_it_is)[real].cpu())
            kls.append(kl_divergence(clean[:, :-1], logits[:, :-1])[real].cpu())
            texts.append(
                (torch.arange(len(ids), device=real.device)[:, None].expand_as(real)[real] + start).cpu()
            )
            change = (found[hook_point].float() - before.float()).norm(dim=-1)
            pushes.append((change / before.float().norm(dim=-1))[change > 0].cpu())
        new = None
        if text.prompts is not None:
            new = _continued(decoder, edit, text)
    of_text = torch.cat(texts)
    pushed = torch.cat(pushes)
    return SideEffects(
        cluster_bootstrap(torch.cat(deltas), of_text, **bootstrap),
        cluster_bootstrap(torch.cat(kls), of_text, **bootstrap),
        pushed.mean().item() if len(pushed) else 0.0,
        None if new is None else repetition(new),
    )


def repetition(continuations: list[list[int]]) -> Repetition:
    """How much continuations repeat themselves, and how varied they are together.

    source: seq-rep-4 of Welleck et al. 2019, arXiv:1908.04319; distinct-2 of Li et al. 2016, arXiv:1510.03055
    """
    shares = [_repeated(_ngrams(tokens, _NGRAM)) for tokens in continuations]
    pairs = [pair for tokens in continuations for pair in _ngrams(tokens, 2)]
    return Repetition(sum(shares) / max(len(shares), 1), 1 - _repeated(pairs))


def _ngrams(tokens: list[int], n: int) -> list[tuple[int, ...]]:
    return list(zip(*(tokens[i:] for i in range(n))))


def _repeated(grams: list[tuple[int, ...]]) -> float:
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _continued(
    decoder: Decoder, edit: Callable[[], AbstractContextManager], text: NeutralText
) -> list[list[int]]:
    """The tokens that the model adds to each prompt, greedily, up to its end-of-text."""
    device = decoder.device
    prompts = text.prompts.to(device)
    mask = torch.ones_like(prompts) if text.prompts_mask is None else text.prompts_mask.to(device)
    with edit():
        out = decoder.given.generate(
            prompts, attention_mask=mask, max_new_tokens=text.max_new_tokens, do_sample=False
        )
    ends, found = set(decoder.special_ids), []
    for row in out[:, prompts.shape[1] :].tolist():
        end = next((i for i, token in enumerate(row) if token in ends), len(row))
        found.append(row[:end])
    return found
