"""One row of features for each text: activations and latents of SAEs, pooled over the text's tokens.

The rows go to any scikit-learn estimator; probes.py is one use of them. A text stands in a context of its
own, after a BOS where the tokenizer has one, as in a harvest. Special tokens and padding are never pooled.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from saelens_lite.arguments import takes_folders
from saelens_lite.errors import nearest, with_option
from saelens_lite.lm.decoder import Decoder, evaluation_mode
from saelens_lite.lm.hooks import resolve, run_to
from saelens_lite.lm.token_text import special_token_ids
from saelens_lite.misfits import names_misfits
from saelens_lite.progress import bar
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.latents import SparseLatents
from saelens_lite.store.packing import PADDING_ID

from ..latents.compatibility import check_finite_weights, fits
from ..latents.store_pass import to_cpu
from ..stats.document_split import document_ids

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

logger = logging.getLogger(__name__)

Pool = Literal["mean", "max", "last"]
POOLS = ("mean", "max", "last")


@dataclass(frozen=True, slots=True, eq=False)
class PooledLatents:
    """Features of n texts, in their order; `features["frozen"]` are the latents of the SAE of that name.

    acts: np.float32[n d_model]
    by_name: SAE → scipy CSR float32[n d_sae]
    documents: int64[n], equal for texts that are equal but for case and white space
    n_tokens: int64[n], tokens that were pooled; n_truncated: texts longer than max_tokens
    """

    acts: np.ndarray
    by_name: dict[str, csr_matrix]
    documents: Tensor
    n_tokens: np.ndarray
    n_truncated: int
    max_tokens: int | None
    pool: str
    acts_pool: str
    hook_point: str
    model_name: str

    def __len__(self) -> int:
        return len(self.acts)

    @names_misfits
    def __getitem__(self, name: str) -> csr_matrix:
        if name not in self.by_name:
            raise KeyError(f"no features of an SAE {name!r}, there are {', '.join(self.by_name) or 'none'}")
        return self.by_name[name]

    @property
    def latents(self) -> csr_matrix:
        """CSR float32[n d_sae] of the only SAE. raises: ValueError where there are several, or none"""
        if len(self.by_name) != 1:
            raise ValueError(
                f"latents expected one SAE, got {', '.join(self.by_name) or 'none'}: name one, features[name]"
            )
        return next(iter(self.by_name.values()))

    def __repr__(self) -> str:
        features = [("acts", self.acts), *self.by_name.items()]
        widths = ", ".join(f"{name} {list(found.shape)}" for name, found in features)
        return f"PooledLatents of {len(self):,} texts at {self.hook_point}: {widths}"


@takes_folders
@names_misfits
def pooled_latents(
    model: nn.Module,
    tokenizer: Any,
    texts: Iterable[str],
    saes: SparseAutoencoder | Mapping[str, SparseAutoencoder] | None = None,
    *,
    hook_point: str | None = None,
    pool: Pool = "mean",
    acts_pool: Pool | None = None,
    spans: Sequence[tuple[int, int]] | None = None,
    max_tokens: int | None = None,
    batch_size_texts: int = 32,
) -> PooledLatents:
    """Pooled activations and latents of texts, from one forward pass, which ends at the hook point.

    saes: one, called "sae" then, or several by name, all at one hook point; None for activations alone
    hook_point: by default where the SAEs were trained, which must be this model; naming one, the caller
        vouches that they read this place, and only widths are checked
    pool: "mean" over the tokens (SAEBench), "max", or "last", the last token alone (sae-probes)
    acts_pool: of the activations; by default as the latents, and the mean where those take the maximum
    spans: of each text the part that is pooled, in characters, such as an answer; by default the whole
    max_tokens: of a text, BOS included; the rest is not seen. None is the model's longest context, and then
        a warning says how many texts are cut
    raises: ValueError for no texts, one without tokens, SAEs of another model, hook point or width, weights
        or activations that are not finite; ImportError without scipy

    Between batch sizes features differ by about 1e-6 of their size, and of two latents of a TopK that are so
    close either may be kept. With batch_size_texts=1 no other text matters to any bit, on a CPU.
    """
    try:
        from scipy import sparse
    except ImportError as error:
        raise ImportError(
            "pooled_latents expected scipy, which is not installed: pip install 'saelens_lite[probes]'"
        ) from error
    for name, value in (("pool", pool), ("acts_pool", acts_pool or pool)):
        if value not in POOLS:
            raise ValueError(f"{name} expected one of {POOLS}, got {value!r}{nearest(str(value), POOLS)}")
    if batch_size_texts < 1:
        raise ValueError(f"batch_size_texts expected at least 1, got {batch_size_texts}")
    readers = {"sae": saes} if isinstance(saes, SparseAutoencoder) else dict(saes or {})
    for reader in readers.values():
        check_finite_weights(reader)
    decoder = Decoder(model)
    point = _common_hook_point(decoder, readers, hook_point)
    acts_pool = acts_pool or ("mean" if pool == "max" else pool)
    strings = _checked_texts(texts)
    ids, n_truncated = _cut(_token_ids(tokenizer, strings), _longest(decoder, max_tokens), max_tokens is None)
    inside = [None] * len(ids) if spans is None else _inside(tokenizer, strings, spans)
    special = torch.tensor(special_token_ids(tokenizer), dtype=torch.int64)

    acts_parts: list[Tensor] = []
    latent_parts: dict[str, list[csr_matrix]] = {name: [] for name in readers}
    n_tokens = np.zeros(len(ids), dtype=np.int64)
    order = sorted(range(len(ids)), key=lambda i: (-len(ids[i]), i))
    with evaluation_mode(decoder), torch.no_grad():
        for start in bar(range(0, len(order), batch_size_texts), "texts", "batch"):
            places = order[start : start + batch_size_texts]
            of_places = [(ids[i], inside[i]) for i in places]
            batch = _batch(decoder, point, of_places, special, places, strings)
            n_tokens[places] = torch.bincount(batch.of_text, minlength=len(places)).cpu().numpy()
            acts_parts.append(_pooled(batch, acts_pool, len(places)).cpu())
            read = batch.last if pool == "last" else batch
            for name, sae in readers.items():
                latents = to_cpu(sae.encode(read.rows.to(sae.device)))
                latent_parts[name].append(_pooled_latents(latents, read.of_text.cpu(), pool, len(places)))
    back = np.argsort(np.array(order))
    return PooledLatents(
        acts=torch.cat(acts_parts).numpy()[back],
        by_name={name: sparse.vstack(parts, format="csr")[back] for name, parts in latent_parts.items()},
        documents=document_ids([" ".join(text.split()).casefold() for text in strings]),
        n_tokens=n_tokens,
        n_truncated=n_truncated,
        max_tokens=_longest(decoder, max_tokens),
        pool=pool,
        acts_pool=acts_pool,
        hook_point=point,
        model_name=decoder.name or decoder.class_name,
    )


def _common_hook_point(
    decoder: Decoder, saes: Mapping[str, SparseAutoencoder], hook_point: str | None
) -> str:
    """Where all of them read this model. raises: ValueError where they do not"""
    if not saes and hook_point is None:
        raise ValueError("pooled_latents expected hook_point=, or an SAE that says where it was trained")
    points = {name: fits(sae, decoder, hook_point, name=f"the SAE {name!r}") for name, sae in saes.items()}
    (first, common), *others = points.items() or [("", str(hook_point))]
    for name, point in others:
        if resolve(decoder, point).end != resolve(decoder, common).end:
            raise with_option(
                ValueError(
                    f"the SAE {name!r} was trained on {point}, but {first!r} on {common}: call once for "
                    "each, or pass hook_point= to use both at one"
                ),
                "hook_point",
            )
    resolve(decoder, common)
    return common


def _checked_texts(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str):
        raise ValueError("texts expected several of them, got one string: pass a list")
    found = list(texts)
    if not found:
        raise ValueError("expected texts, got none")
    for i, text in enumerate(found):
        if not isinstance(text, str):
            raise ValueError(
                f"texts expected strings, got {type(text).__name__} at place {i}: name the column of the "
                "texts"
            )
        if not text.strip():
            raise ValueError(
                f"expected texts with words, got an empty one at place {i}: leave it and its label out"
            )
    # half of a surrogate pair, as cut JSON escapes leave it, is no character
    return [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in found]


def _token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text after a BOS; `verbose` would warn of texts longer than a context."""
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    encoded = tokenizer(
        list(texts), add_special_tokens=False, padding=False, truncation=False, verbose=False
    )["input_ids"]
    return [bos + list(ids) for ids in encoded]


def _inside(tokenizer: Any, texts: Sequence[str], spans: Sequence[tuple[int, int]]) -> list[list[bool]]:
    """Of each text's ids as above, whether they hold a character of its span."""
    if len(spans) != len(texts):
        raise ValueError(f"spans expected one for each of {len(texts)} texts, got {len(spans)}")
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"spans expected a fast tokenizer, which gives offsets, got {type(tokenizer).__name__}"
        )
    how = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    offsets = tokenizer(list(texts), **how)["offset_mapping"]
    bos = [] if tokenizer.bos_token_id is None else [False]
    return [
        bos + [max(left, start) < min(right, end) for left, right in of_text]
        for of_text, (start, end) in zip(offsets, spans)
    ]


def _longest(decoder: Decoder, max_tokens: int | None) -> int | None:
    limit = getattr(decoder.text_config, "max_position_embeddings", None)
    limit = limit if limit and limit > 0 else None
    if max_tokens is None:
        return limit
    if max_tokens < 2 or (limit is not None and max_tokens > limit):
        raise ValueError(
            f"max_tokens expected 2 to {limit or '…'}, the positions of the model, got {max_tokens}"
        )
    return max_tokens


def _cut(ids: list[list[int]], longest: int | None, warn: bool) -> tuple[list[list[int]], int]:
    n_truncated = 0 if longest is None else sum(len(one) > longest for one in ids)
    if n_truncated and warn:
        logger.warning(
            "%d of %d texts are longer than the model's %d positions: what is behind them is not seen "
            "(max_tokens= says that this is meant)",
            n_truncated, len(ids), longest,
        )  # fmt: skip
    return [one[:longest] for one in ids], n_truncated


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """What is pooled of some texts: float[n d_model], int64[n], bool[n]."""

    rows: Tensor
    of_text: Tensor
    is_last: Tensor

    @property
    def last(self) -> _Batch:
        return _Batch(self.rows[self.is_last], self.of_text[self.is_last], self.is_last[self.is_last])


def _batch(
    model: nn.Module,
    point: str,
    of_places: Sequence[tuple[list[int], list[bool] | None]],
    special: Tensor,
    places: Sequence[int],
    texts: Sequence[str],
) -> _Batch:
    """One forward pass, and its rows that are text. raises: ValueError for a text that has none, or nan"""
    input_ids, attended = _padded([ids for ids, _ in of_places])
    kept = attended & ~torch.isin(input_ids, special)
    for row, (ids, inside) in enumerate(of_places):
        if inside is not None:
            kept[row, : len(ids)] &= torch.tensor(inside[: len(ids)])
    if not (filled := kept.any(1)).all():
        i = places[int((~filled).nonzero()[0])]
        raise ValueError(
            f"expected texts with tokens, got {texts[i]!r} at place {i}: leave it and its label out"
        )
    acts = run_to(model, [point], input_ids=input_ids, attention_mask=attended)[point]
    rows, of_text = acts[kept.to(acts.device)], kept.nonzero()[:, 0]
    if not rows.isfinite().all():
        i = places[int(of_text[(~rows.isfinite().all(1)).cpu()][0])]
        raise ValueError(
            f"text {i} has activations with nan or infinity at {point}: load the model in float32"
        )
    is_last = torch.cat([of_text.diff() != 0, torch.tensor([True])])
    return _Batch(rows, of_text.to(acts.device), is_last.to(acts.device))


def _padded(ids: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """int64[batch width] and bool[batch width]: padding comes last, where no token sees it."""
    width = max(1, max(map(len, ids)))
    input_ids = torch.full((len(ids), width), PADDING_ID)
    attended = torch.zeros(len(ids), width, dtype=torch.bool)
    for row, one in enumerate(ids):
        input_ids[row, : len(one)] = torch.tensor(one, dtype=torch.int64)
        attended[row, : len(one)] = True
    return input_ids, attended


def _pooled(batch: _Batch, pool: str, n_texts: int) -> Tensor:
    """float32[n_texts d_model], text by text; sums in float64 where the device has it."""
    rows, of_text = batch.rows, batch.of_text
    if pool == "last":
        return batch.last.rows.float()
    if pool == "max":
        largest = rows.new_full((n_texts, rows.shape[1]), -torch.inf)
        return largest.scatter_reduce_(0, of_text[:, None].expand_as(rows), rows, "amax").float()
    rows = rows.to(torch.float32 if rows.device.type == "mps" else torch.float64)
    sums = rows.new_zeros(n_texts, rows.shape[1]).index_add_(0, of_text, rows)
    return (sums / torch.bincount(of_text, minlength=n_texts)[:, None]).float()


def _pooled_latents(latents: SparseLatents, of_text: Tensor, pool: str, n_texts: int) -> csr_matrix:
    """The same of latents on the CPU, as CSR float32[n_texts d_sae]; where one is silent it counts as 0."""
    from scipy.sparse import csr_matrix

    fires = latents.values != 0
    values, text = latents.values[fires].double(), of_text[latents.row_ids()[fires]]
    cells, cell = (text * latents.d_sae + latents.indices[fires]).unique(return_inverse=True)
    cell_text, cell_latent = cells // latents.d_sae, cells % latents.d_sae
    if pool == "mean":
        pooled = values.new_zeros(len(cells)).index_add_(0, cell, values)
        pooled = pooled / torch.bincount(of_text, minlength=n_texts)[cell_text]
    else:
        pooled = values.new_zeros(len(cells)).scatter_reduce_(0, cell, values, "amax")
    offsets = torch.cat([cells.new_zeros(1), torch.bincount(cell_text, minlength=n_texts).cumsum(0)])
    arrays = (pooled.float().numpy(), cell_latent.numpy(), offsets.numpy())
    return csr_matrix(arrays, shape=(n_texts, latents.d_sae))
