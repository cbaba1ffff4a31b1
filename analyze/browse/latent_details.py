"""Everything that a page shows of some latents, as arrays: no step of it is taken latent by latent.

`latent_details` gives, for b latents:

    latents         int32[b]
    first, last     float64[b], the first and the last row on which it fires; -1 for never
    quantiles       float32[b 2], the median of its firings and what a twentieth of them exceeds
    histogram, positions
                    uint32[b 96], uint32[b 16], as in the index
    {jaccard, pmi, cosine}_ids, {jaccard, pmi, cosine}
                    int32, int16[b m], the score in thousandths; id -1 for none
    {promoted, demoted}_ids, {promoted, demoted}_logits
                    int32, float32[b m], where there is a logit lens
    sampled         int32[b], firings whose token is known; common, common_n: int32[b 5], commonest of these
    low, high       float32[b 5], bounds of its intervals, strongest first; within: int32[b 5], sampled
                    firings in each
    far_, near_     its examples: far_ the strongest firings, near_ those of the intervals, 5 each, then rows
                    on which it does not fire, with half the window:
        row         int32[b n], float64 of many rows, -1 for none; value: float32[b n]; document, position:
        int32[b n] tokens      int32[b n width], -1 for none, the row's own token at `before` of the page's
        head firings     uint8[b n], places of the window of which place: int16[f] and act: float32[f] speak,
                    in this order: where the latent fires, and nan on a token that has no row
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..attribution.lens import LogitLens
from ..index.feature_index import FeatureIndex
from ..index.intervals import N_INTERVALS, all_quantile_edges
from ..index.latent_facts import N_QUANTILES
from ..index.token_table import token_ids
from .token_windows import TokenWindows, firings_within, token_windows

Firings = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From latents and rows to (keys, values) of firings, where the rows need looking at; see
known_firings.py."""

INTERVAL_EXAMPLES = 5
COMMON_TOKENS = 5


def latent_details(
    index: FeatureIndex,
    latents: Tensor,
    firings: Firings,
    *,
    n_examples: int,
    before: int,
    after: int,
    lens: LogitLens | None = None,
) -> dict[str, Tensor]:
    """The arrays, by name. The index's own lens is taken without `lens`, which is of the same latents.

    firings: gives what is known of when latents fire on rows, as in known_firings.py
    before, after: tokens around the strongest firings; half as many around other examples
    """
    of = {
        name: index.column(name)[latents] for name in ("counts", "histogram", "sample_values", "sample_rows")
    }
    largest = index.column("top_values")[latents, 0].double()
    found = {
        "latents": latents.int(),
        "first": index.column("first_fired")[latents].double(),
        "last": index.column("last_fired")[latents].double(),
        "histogram": of["histogram"],
        "positions": index.column("positions")[latents],
    }
    sample = of["sample_values"].masked_fill(of["sample_rows"] < 0, 0)
    edges = all_quantile_edges(of["histogram"], sample, of["counts"], largest, N_QUANTILES)
    found["quantiles"] = edges[:, [N_QUANTILES // 2, N_QUANTILES - 1]].float()
    for name in ("jaccard", "pmi", "cosine"):
        found[f"{name}_ids"] = index.column(f"{name}_ids")[latents]
        scores = (index.column(name)[latents] * 1000).round().clamp(-32767, 32767)
        found[name] = scores.to(torch.int16)
    found |= _lens(index, latents, lens) | _common(index, of["sample_rows"])
    bounds = all_quantile_edges(of["histogram"], sample, of["counts"], largest, N_INTERVALS)
    rows, values, found["within"] = _interval_examples(bounds, sample, of["sample_rows"])
    found["low"], found["high"] = bounds[:, :-1].flip(1).float(), bounds[:, 1:].flip(1).float()
    contrast = index.column("contrast_rows")[latents]
    rows, values = torch.cat([rows, contrast], 1), torch.cat([values, torch.zeros(contrast.shape)], 1)
    strongest = index.column("top_rows")[latents, :n_examples]
    of_strongest = index.column("top_values")[latents, :n_examples].float()
    examples = {
        "far": (strongest, of_strongest, before, after),
        "near": (rows, values, before // 2, after // 2),
    }
    windows = {
        kind: token_windows(index.contexts, rows.flatten(), *around)
        for kind, (rows, _, *around) in examples.items()
    }
    known = firings(latents, torch.cat([one.rows.flatten() for one in windows.values()]))
    for kind, (rows, values, *_) in examples.items():
        parts = _examples(index, latents, rows, values, windows[kind], known)
        found |= {f"{kind}_{name}": part for name, part in parts.items()}
    return found


def as_shown(details: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with float32 as a page carries it."""
    return {
        name: _to_13_bits(array) if array.dtype == torch.float32 else array for name, array in details.items()
    }


def _to_13_bits(values: Tensor) -> Tensor:
    """The nearest numbers of 13 significant bits, within a part in 16,384: what is shown has four digits."""
    bits = values.contiguous().view(torch.int32)
    return torch.where(values.isfinite(), ((bits + 0x400) & ~0x7FF).view(torch.float32), values)


def _lens(index: FeatureIndex, latents: Tensor, lens: LogitLens | None) -> dict[str, Tensor]:
    if lens is None and (lens := index.lens(latents, index.contexts.tokenizer)) is None:
        return {}
    return {
        "promoted_ids": lens.top_ids.int(),
        "promoted_logits": lens.top_logits.float(),
        "demoted_ids": lens.bottom_ids.int(),
        "demoted_logits": lens.bottom_logits.float(),
    }


def _common(index: FeatureIndex, rows: Tensor) -> dict[str, Tensor]:
    """The commonest tokens of the sampled firings, the lower id first of equally common ones."""
    n = COMMON_TOKENS
    common, counts = (torch.full((len(rows), n), fill, dtype=torch.int32) for fill in (-1, 0))
    if not index.tokens.has_tokens or not rows.shape[1]:
        return {"sampled": counts[:, 0].clone(), "common": common, "common_n": counts}
    ids = token_ids(index.tokens, rows).sort(dim=1).values
    begins = torch.ones_like(ids, dtype=torch.bool)
    begins[:, 1:] = ids[:, 1:] != ids[:, :-1]
    lengths = torch.zeros_like(ids).scatter_add_(1, begins.cumsum(1) - 1, (ids >= 0).long())
    of_run = torch.full_like(ids, -1).scatter_(1, begins.cumsum(1) - 1, ids)
    most = lengths.argsort(dim=1, descending=True, stable=True)[:, :n]
    counts[:, : most.shape[1]] = lengths.gather(1, most).int()
    common[:, : most.shape[1]] = of_run.gather(1, most).int()
    return {
        "sampled": (ids >= 0).sum(1).int(),
        "common": common.masked_fill(counts == 0, -1),
        "common_n": counts,
    }


def _interval_examples(bounds: Tensor, sample: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sampled firings of each interval, strongest interval first, spread evenly from its strongest on.

    bounds: float64[b 6]; sample, rows: [b m]
    returns: rows int64[b 25] and values float32[b 25], -1 and 0 in empty places, and how many firings each
        interval has: int32[b 5]
    """
    n = INTERVAL_EXAMPLES
    if not sample.shape[1]:
        none = (len(rows), N_INTERVALS * n)
        return torch.full(none, -1), torch.zeros(none), torch.zeros(len(rows), N_INTERVALS, dtype=torch.int32)
    by_row = rows.argsort(dim=1, stable=True)
    values, rows = sample.double().gather(1, by_row), rows.gather(1, by_row)
    values, order = values.sort(dim=1, descending=True, stable=True)
    rows = rows.gather(1, order)
    # of values that descend, the first below each lower bound; empty places hold 0, below every bound
    lows = bounds[:, :-1].flip(1).clamp_min(5e-324)
    ends = torch.searchsorted(-values, -lows, right=True)
    starts = torch.nn.functional.pad(ends[:, :-1], (1, 0))
    sizes = ends - starts
    shown = sizes.clamp_max(n)[..., None]
    step = torch.arange(n)
    at = starts[..., None] + step * sizes[..., None] // shown.clamp_min(1)
    there = (step < shown).flatten(1)
    at = at.flatten(1).clamp_max(values.shape[1] - 1)
    return (
        rows.gather(1, at).masked_fill(~there, -1),
        values.gather(1, at).masked_fill(~there, 0).float(),
        sizes.int(),
    )


def _examples(
    index: FeatureIndex,
    latents: Tensor,
    rows: Tensor,
    values: Tensor,
    windows: TokenWindows,
    known: tuple[Tensor, Tensor],
) -> dict[str, Tensor]:
    """The examples of latents int64[b] around rows int64[b n]. known: keys and values of firings"""
    of_window = latents.repeat_interleave(rows.shape[1])
    window, place, act = firings_within(windows, rows.flatten(), of_window, *known, index.tokens.n_rows)
    absent = ((windows.ids >= 0) & (windows.rows < 0)).nonzero()
    window = torch.cat([window, absent[:, 0]])
    order = window.argsort(stable=True)
    return {
        "row": rows.double() if index.tokens.n_rows >= 2**31 else rows.int(),
        "value": values,
        "document": windows.document.view(rows.shape).int(),
        "position": windows.position.view(rows.shape).int(),
        "tokens": windows.ids.view(*rows.shape, -1),
        "firings": torch.bincount(window, minlength=rows.numel()).view(rows.shape).to(torch.uint8),
        "place": torch.cat([place, absent[:, 1]])[order].to(torch.int16),
        "act": torch.cat([act, torch.full((len(absent),), torch.nan)])[order],
    }
