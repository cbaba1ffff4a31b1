"""The tokens of an index's rows, without vectors, so that an index needs no store.

In tokens-{key}.safetensors, where the rows come from text,

    input_ids I32, attended U8, kept U8 [n_seqs context], doc_id I32[n_seqs context]   those of the store's
    shards in order shard_seqs, shard_rows, first_docs   I64[n_shards]

with doc_id relative to first_docs as in the shards, and else row_docs I64[n_rows], shard_rows I64[n_shards].
"""

from __future__ import annotations

from itertools import accumulate
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from saelens_lite.store.reader import ActivationStore, ShardTokens

from .folder import Streamed

_NAMES = ("input_ids", "attended", "kept", "doc_id")


class TokenTable:
    """The tokens of an index, with the names that an ActivationStore gives them.

    file: the open tokens-{key}.safetensors; path: of the index; the rest: of the store
    """

    def __init__(self, file: Any, path: Any, tokenizer_name: str, bos_id: int | None) -> None:
        self._file, self.path, self.tokenizer_name = file, path, tokenizer_name
        self.plan = {"bos_id": bos_id}
        self.has_tokens = "input_ids" in file.keys()  # noqa: SIM118 (a safetensors file is no dict)
        self.shard_rows: list[int] = file.get_tensor("shard_rows").tolist()
        if self.has_tokens:
            self._seqs = [0, *accumulate(file.get_tensor("shard_seqs").tolist())]
            self._first_docs: list[int] = file.get_tensor("first_docs").tolist()
        self._rows = [0, *accumulate(self.shard_rows)]

    @property
    def n_rows(self) -> int:
        return self._rows[-1]

    @property
    def n_seqs(self) -> int:
        """Contexts; 0 for rows without text."""
        return self._seqs[-1] if self.has_tokens else 0

    @property
    def context_length(self) -> int:
        """Tokens a context; 0 for rows without text."""
        return self._file.get_slice("input_ids").get_shape()[1] if self.has_tokens else 0

    def tokens(self, shard: int) -> ShardTokens:
        span = slice(self._seqs[shard], self._seqs[shard + 1])
        parts = (self._file.get_slice(name)[span] for name in _NAMES)
        return ShardTokens(*parts, first_doc=self._first_docs[shard])

    def row_docs(self, shard: int) -> Tensor:
        """Global index of the document of each row: int64[n_rows]."""
        if not self.has_tokens:
            return self._file.get_slice("row_docs")[self._rows[shard] : self._rows[shard + 1]]
        tokens = self.tokens(shard)
        return tokens.doc_id[tokens.kept.bool()].long() + tokens.first_doc


def table_of(store: ActivationStore) -> dict[str, Tensor | Streamed]:
    """The tensors of a store's token table; a shard at a time is in memory while they are written."""
    shards = range(store.n_shards)
    tensors: dict[str, Tensor | Streamed] = {"shard_rows": torch.tensor(store.shard_rows)}
    if not store.has_tokens:
        pieces = (store.row_docs(shard) for shard in shards)
        return tensors | {"row_docs": Streamed(torch.int64, (store.n_rows,), pieces)}
    facts = [(len(tokens.input_ids), tokens.first_doc) for tokens in map(store.tokens, shards)]
    tensors["shard_seqs"], tensors["first_docs"] = torch.tensor(facts).T.contiguous()
    shape = (int(tensors["shard_seqs"].sum()), store.context_length)
    for name in _NAMES:
        dtype = torch.uint8 if name in ("attended", "kept") else torch.int32
        tensors[name] = Streamed(dtype, shape, map(attrgetter(name), map(store.tokens, shards)))
    return tensors


def token_ids(source: ActivationStore | TokenTable, rows: Tensor, back: int = 0) -> Tensor:
    """The token of each row int64[...], or the one `back` places before it in its context; -1 for none."""
    flat = rows.flatten()
    ascending, order = flat.sort()
    found, ends = torch.full_like(flat, -1), torch.tensor(source.shard_rows).cumsum(0)
    edges = torch.searchsorted(ascending, ends).tolist()
    start = int(torch.searchsorted(ascending, 0))
    for shard, stop in enumerate(edges):
        if start < stop:
            tokens = source.tokens(shard)
            width, first_row = tokens.input_ids.shape[1], ends[shard] - source.shard_rows[shard]
            shifted = torch.nn.functional.pad(tokens.input_ids, (back, 0), value=-1)[:, :width]
            ids = shifted[tokens.kept.bool()]
            found[order[start:stop]] = ids[ascending[start:stop] - first_row].long()
        start = stop
    return found.view(rows.shape)
