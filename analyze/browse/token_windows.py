"""The tokens around many rows at once, as arrays, and where one latent fires among them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..latents.store_pass import spans
from ..latents.text_windows import Contexts


@dataclass(frozen=True, slots=True, eq=False)
class TokenWindows:
    """The tokens around rows int64[n], each window of before + 1 + after places, within the row's context.

    ids: int32[n width], -1 where the context ends
    rows: int64[n width], the row of each token; -1 where it has none
    document, position: int64[n], of the row; its position in the context is -1 for rows without tokens
    before: places in front of the row's own token
    """

    ids: Tensor
    rows: Tensor
    document: Tensor
    position: Tensor
    before: int


def token_windows(contexts: Contexts, rows: Tensor, before: int, after: int) -> TokenWindows:
    """The windows of rows int64[n]; a row below 0 has none, and its ids and rows are all -1."""
    n, width, source = len(rows), before + 1 + after, contexts.store
    ids = torch.full((n, width), -1, dtype=torch.int32)
    around = torch.full((n, width), -1, dtype=torch.int64)
    document, position = (torch.full((n,), -1, dtype=torch.int64) for _ in range(2))
    ends = torch.tensor(source.shard_rows).cumsum(0)
    ascending, order = rows.sort()
    edges = torch.searchsorted(ascending, ends).tolist()
    start = int(torch.searchsorted(ascending, 0))
    for shard, stop in enumerate(edges):
        if start < stop:
            places, first_row = order[start:stop], int(ends[shard]) - source.shard_rows[shard]
            local = ascending[start:stop] - first_row
            if not contexts.has_tokens:
                document[places] = source.row_docs(shard)[local].long()
            else:
                tokens, sequences, positions, row_at = contexts.shard(shard)
                sequence, at = sequences[local], positions[local]
                columns = at[:, None] + torch.arange(-before, after + 1)
                inside = (columns >= 0) & (columns < tokens.attended.long().sum(1)[sequence][:, None])
                flat = columns.clamp(0, tokens.input_ids.shape[1] - 1)
                flat += sequence[:, None] * tokens.input_ids.shape[1]
                ids[places] = tokens.input_ids.flatten()[flat].int().masked_fill(~inside, -1)
                found = row_at.flatten()[flat]
                around[places] = (found + first_row).masked_fill(~inside | (found < 0), -1)
                document[places] = tokens.doc_id[sequence, at].long() + tokens.first_doc
                position[places] = at
        start = stop
    return TokenWindows(ids, around, document, position, before)


def firings_within(
    windows: TokenWindows, centres: Tensor, latents: Tensor, keys: Tensor, values: Tensor, n_rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Where a latent fires in the windows: (window, place in it, activation), by window and place.

    centres, latents: int64[n], the row of each window and the latent asked for
    keys, values: of known firings, latent · n_rows + row ascending, float32
    """
    width = windows.rows.shape[1]
    known = windows.rows >= 0
    low = torch.where(known, windows.rows, n_rows).amin(1)
    high = torch.where(known, windows.rows, -1).amax(1)
    first = torch.searchsorted(keys, latents * n_rows + low)
    last = torch.searchsorted(keys, latents * n_rows + high, right=True)
    sizes = (last - first).masked_fill(~known.any(1), 0).clamp_min(0)
    firing = spans(first, sizes)
    window = torch.arange(len(centres)).repeat_interleave(sizes)
    row = keys[firing] - latents[window] * n_rows
    # rows of a window follow each other, but for tokens that have none
    place = (windows.before + row - centres[window]).clamp(0, width - 1)
    missed = (windows.rows[window, place] != row).nonzero().flatten()
    if len(missed):
        place[missed] = (windows.rows[window[missed]] == row[missed][:, None]).int().argmax(1)
    return window, place, values[firing]
