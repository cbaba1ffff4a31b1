"""Which positions an edit touches: a word, a mask or a function becomes one boolean a position.

Padding is never edited. Words leave out the special tokens too (BOS is where attention rests, and an SAE was
not trained on it); a mask or a function means exactly what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from saelens_lite.errors import nearest
from saelens_lite.lm.forward_state import EditInfo
from saelens_lite.misfits import names_misfits

Where = Literal["all", "prompt", "generated"] | Tensor | Callable[[EditInfo], Tensor]
WORDS = ("all", "prompt", "generated")


@dataclass(frozen=True, kw_only=True, slots=True)
class Positions:
    """The positions to edit. Call it with the EditInfo of a pass.

    where: "all"; "prompt" or "generated", the parts of a text before and after the point where generation
        began; bool[batch width] over the columns of the (padded) input, False beyond them; or a function of
        EditInfo that returns bool[batch seq]
    skip_ids: token ids that the words leave out; None asks nothing of the ids
    prompt_tokens: real tokens (padding not counted) of each example's prompt, one number or int[batch], for
        passes outside `generate`, where no call says where the prompt ends. Without it all of a plain forward
        is prompt
    """

    where: Where = "all"
    skip_ids: tuple[int, ...] = ()
    prompt_tokens: int | Sequence[int] | Tensor | None = None

    def __post_init__(self) -> None:
        expected = f"where expected one of {WORDS}, a bool mask or a function of EditInfo, got"
        if isinstance(self.where, str) and self.where not in WORDS:
            raise ValueError(f"{expected} {self.where!r}{nearest(self.where, WORDS)}")
        if not (isinstance(self.where, str | Tensor) or callable(self.where)):
            raise ValueError(f"{expected} a {type(self.where).__name__}")
        if isinstance(self.where, Tensor) and (self.where.dtype != torch.bool or self.where.ndim != 2):
            raise ValueError(
                f"where expected a bool mask [batch width], got {self.where.dtype} {list(self.where.shape)}"
            )

    def __call__(self, info: EditInfo) -> Tensor:
        """bool[batch seq], True where this pass is edited."""
        if isinstance(self.where, str):
            return info.attention_mask & self._part(info) & self._not_special(info)
        if isinstance(self.where, Tensor):
            return info.attention_mask & self._columns_of_mask(info, self.where)
        chosen = self.where(info)
        if not isinstance(chosen, Tensor):
            raise TypeError(f"where expected its function to return a tensor, got {type(chosen).__name__}")
        if chosen.dtype != torch.bool or chosen.shape != info.attention_mask.shape:
            raise ValueError(
                f"where expected its function to return bool{list(info.attention_mask.shape)}, "
                f"got {chosen.dtype} {list(chosen.shape)}"
            )
        return info.attention_mask & chosen.to(info.attention_mask.device)

    def _part(self, info: EditInfo) -> Tensor:
        if self.where == "all":
            return torch.ones_like(info.attention_mask)
        if info.prompt_columns is not None:
            in_prompt = (info.columns < info.prompt_columns).expand_as(info.attention_mask)
        elif self.prompt_tokens is not None:
            lengths = torch.as_tensor(self.prompt_tokens, device=info.columns.device).reshape(-1, 1)
            in_prompt = info.token_index < self._for_rows(lengths, info)
        elif self.where == "generated":
            raise ValueError(
                'where="generated" expected a generate call or prompt_tokens, got a plain forward: '
                "nothing says where its prompt ends. Pass prompt_tokens=, or a mask"
            )
        else:
            in_prompt = torch.ones_like(info.attention_mask)
        return in_prompt if self.where == "prompt" else ~in_prompt

    def _not_special(self, info: EditInfo) -> Tensor:
        if not self.skip_ids:
            return torch.ones_like(info.attention_mask)
        if info.input_ids is None:
            raise ValueError(
                f"where={self.where!r} expected token ids, to leave out special tokens {self.skip_ids}, got "
                "a pass from inputs_embeds. Pass skip_ids=() to edit every real token, or a mask"
            )
        return ~torch.isin(info.input_ids, torch.tensor(self.skip_ids, device=info.input_ids.device))

    def _columns_of_mask(self, info: EditInfo, mask: Tensor) -> Tensor:
        mask = self._for_rows(mask.to(info.columns.device), info)
        inside = info.columns < mask.shape[1]
        return mask[:, info.columns.clamp_max(mask.shape[1] - 1)] & inside

    def _for_rows(self, per_example: Tensor, info: EditInfo) -> Tensor:
        """[batch …] from [1 …] or [examples …]; beams of one example stand side by side."""
        batch, given = info.attention_mask.shape[0], per_example.shape[0]
        if given in (1, batch):
            return per_example.expand(batch, *per_example.shape[1:])
        if given == info.n_examples and batch % given == 0:
            return per_example.repeat_interleave(batch // given, dim=0)
        raise ValueError(f"a mask or prompt_tokens expected {batch} rows (or 1), got {given}")


@names_misfits
def span_mask(
    encoded: Mapping[str, Any],
    spans: Sequence[tuple[int, int] | Sequence[tuple[int, int]]],
    which: Literal["all", "last"] = "all",
) -> Tensor:
    """Which tokens of each text a part of it holds, such as an entity's name, as a mask for `where`.

    encoded: what `tokenizer(texts, padding=True, return_tensors="pt", return_offsets_mapping=True)` gave;
        take "offset_mapping" out of it before the model gets it
    spans: for each text, (start, end) in characters, or several of those
    which: "all" tokens that hold a character of a span, or only the "last" of each span
    returns: bool[batch width] over the columns of encoded["input_ids"], on the CPU
    raises: ValueError without offsets, for another number of texts, or for a span that no token holds a
        character of
    """
    if "offset_mapping" not in encoded:
        raise ValueError(
            "span_mask expected offsets, got none: call the (fast) tokenizer with return_offsets_mapping=True"
        )
    if which not in ("all", "last"):
        raise ValueError(f"which expected 'all' or 'last', got {which!r}")
    starts, ends = torch.as_tensor(encoded["offset_mapping"]).unbind(-1)
    if len(spans) != len(starts):
        raise ValueError(f"span_mask expected a span for each of {len(starts)} texts, got {len(spans)}")
    mask = torch.zeros(starts.shape, dtype=torch.bool)
    for row, of_text in enumerate(spans):
        several = [of_text] if isinstance(of_text[0], int) else of_text
        for start, end in several:
            inside = (starts[row] < end) & (ends[row] > start) & (ends[row] > starts[row])
            if not inside.any():
                raise ValueError(f"span_mask found no token of text {row} in characters {start} to {end}")
            if which == "last":
                inside = torch.arange(len(inside)) == inside.nonzero().max()
            mask[row] |= inside
    return mask
