"""Documents that choose latents, and other documents that test them.

A latent chosen as the best of thousands looks good on the data that chose it. `select_latents` sees one side
of the split only, and its Selection refuses documents that had a say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from saelens_lite.arguments import takes_folders
from saelens_lite.config import check_fields
from saelens_lite.errors import nearest
from saelens_lite.hashing import is_held_out
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder

Documents = Tensor | Sequence[int] | Sequence[str]
_STATISTICS = ("separation", "welch_t", "output_score", "both")


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Two sides, by a hash of the document: what else is in the data does not matter.

    With the seed of training (0), its held-out documents are all on the test side.
    """

    test_fraction: float = 0.5
    """expected share of documents that test"""
    seed: int = 0
    """another seed draws another split"""

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"test_fraction expected a share between 0 and 1, got {self.test_fraction}")

    @names_misfits
    def tests(self, documents: Documents) -> Tensor:
        """bool[n]: which items are on the test side.

        documents: of each item, its document's index (as a store counts them) or name, such as an entity's
        """
        if isinstance(documents, Tensor) and documents.ndim != 1:
            raise ValueError(f"tests expected documents[n], got {list(documents.shape)}")
        return is_held_out(document_ids(documents), self.test_fraction, self.seed)


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Latents and what chose them.

    latents: int64[n], best first; statistic: float64[n], of name `by`, on the selecting side's n_items
    """

    latents: Tensor
    statistic: Tensor
    by: str
    split: Split
    n_items: int

    @names_misfits
    def check_unseen(self, documents: Documents) -> None:
        """raises: ValueError for a document of the side that chose the latents."""
        seen = ~self.split.tests(documents)
        if seen.any():
            place = int(seen.nonzero()[0])
            first = documents[place].item() if isinstance(documents, Tensor) else documents[place]
            raise ValueError(
                f"a test expected documents that did not choose the latents, got {int(seen.sum())} of "
                f"{len(seen)} items from the selecting side, the first of document {first!r}; keep those "
                "with split.tests(documents)"
            )


@takes_folders
@names_misfits
def select_latents(
    sae: SparseAutoencoder,
    acts: Tensor,
    labels: Tensor,
    documents: Documents,
    *,
    n: int = 1,
    by: Literal["separation", "welch_t", "output_score", "both"] = "separation",
    split: Split | None = None,
    allowed: Tensor | None = None,
    output_score: Tensor | None = None,
    output_quantile: float = 0.75,
) -> Selection:
    """The latents that tell label 1 from label 0 best, on the selecting side of the split alone.

    Latents that read a concept often do not write it. To steer, choose by "both".

    acts: float[n_items d_model], one row an item, such as the last token of an entity
    labels: bool[n_items]; documents: one an item
    by: "separation" is P(fires | 1) − P(fires | 0); "welch_t" the difference of mean activations over its
        standard error; "output_score" what the latent promotes in the output, among latents of positive
        separation; "both" the separation among latents whose output score is above a quantile of all scores
    split: by default Split(); allowed: bool[d_sae], latents to choose from, such as those that fire rarely
    output_score: float[d_sae], nan for none, such as an index's column("output_score"); for the last two
    output_quantile: with "both"
    raises: ValueError for arguments that do not fit each other, or a selecting side without both labels
    source: Ferrando et al. 2024, arXiv:2411.14257; Arad et al. 2025, arXiv:2505.20063
    """
    if by not in _STATISTICS:
        raise ValueError(f"by expected one of {_STATISTICS}, got {by!r}{nearest(str(by), _STATISTICS)}")
    writes = by in ("output_score", "both")
    if writes != (output_score is not None):
        raise ValueError(
            f"output_score expected {'float[d_sae], as an index has it, with' if writes else 'None with'} "
            f"by={by!r}, got {'none' if output_score is None else 'one'}"
        )
    if not 0 <= output_quantile < 1:
        raise ValueError(f"output_quantile expected a share of at least 0 below 1, got {output_quantile}")
    split = split or Split()
    rows, ones = selecting_side(acts, labels, documents, split)
    with torch.no_grad():
        latents = sae.encode(rows.to(sae.device))
    values, indices = latents.values.cpu().double(), latents.indices.cpu()
    of_one = ones[latents.row_ids().cpu()]

    def sums(of: Tensor, label: bool) -> Tensor:
        here = of_one if label else ~of_one
        return torch.zeros(sae.d_sae, dtype=torch.float64).index_add_(0, indices[here], of[here])

    counts = (int((~ones).sum()), int(ones.sum()))
    if by != "welch_t":
        fires = (values > 0).double()
        statistic = sums(fires, True) / counts[1] - sums(fires, False) / counts[0]
    else:
        mean = [sums(values, label) / counts[label] for label in (False, True)]
        square = [sums(values**2, label) / counts[label] for label in (False, True)]
        error = sum((square[i] - mean[i] ** 2).clamp_min(0) / max(counts[i] - 1, 1) for i in (0, 1))
        statistic = (mean[1] - mean[0]) / torch.where(error > 0, error, torch.inf).sqrt()
    if output_score is not None:
        scores = _of_latents(output_score, sae)
        reads = statistic > 0
        if by == "output_score":
            statistic = torch.where(reads & ~scores.isnan(), scores, -torch.inf)
        else:
            least = scores.nanquantile(output_quantile)
            statistic = torch.where(reads & (scores >= least), statistic, -torch.inf)
    if allowed is not None:
        statistic = statistic.masked_fill(~allowed.cpu(), -torch.inf)
    if n > (n_allowed := int(statistic.isfinite().sum())):
        raise ValueError(f"n={n} latents were asked for, got {n_allowed} that may be chosen")
    best = statistic.argsort(descending=True, stable=True)[:n]
    return Selection(best, statistic[best], by, split, len(rows))


def _of_latents(scores: Tensor, sae: SparseAutoencoder) -> Tensor:
    scores = torch.as_tensor(scores).detach().cpu().double()
    if scores.shape != (sae.d_sae,) or scores.isnan().all():
        raise ValueError(
            f"output_score expected a score of each of d_sae={sae.d_sae} latents, got {list(scores.shape)}"
            f"{' of nan alone' if scores.numel() else ''}: analyze --output-score makes them"
        )
    return scores


def selecting_side(
    acts: Tensor, labels: Tensor, documents: Documents | None, split: Split
) -> tuple[Tensor, Tensor]:
    """Rows and bool labels of the documents that choose; of all where documents is None.

    raises: ValueError unless rows are finite, there are a label, 0 or 1, and a document for each, and both
        labels on that side
    """
    labels = torch.as_tensor(labels).cpu().bool()
    if acts.ndim != 2 or labels.shape != acts.shape[:1]:
        raise ValueError(
            f"expected acts [n_items d_model] and a label each, got {list(acts.shape)} and "
            f"{list(labels.shape)}"
        )
    if not (finite := acts.isfinite().all(1)).all():
        raise ValueError(
            f"expected finite acts, got nan or infinity in row {int((~finite).nonzero()[0])}: leave it out"
        )
    if documents is not None:
        if isinstance(documents, Tensor) and documents.ndim != 1:
            raise ValueError(f"expected documents[n_items], one an item, got {list(documents.shape)}")
        if len(documents) != len(acts):
            raise ValueError(f"documents expected one for each of {len(acts)} items, got {len(documents)}")
        chooses = ~split.tests(documents)
        acts, labels = acts[chooses.to(acts.device)], labels[chooses]
    if not labels.any() or labels.all():
        raise ValueError(
            f"expected items of both labels on the selecting side, got {int(labels.sum())} of {len(labels)} "
            "with 1"
        )
    return acts, labels


def document_ids(documents: Documents) -> Tensor:
    """int64[n] on the CPU; a name becomes a hash of it."""
    if isinstance(documents, Tensor):
        return documents.cpu().long()

    def number(document: int | str) -> int:
        if not isinstance(document, str):
            return int(document)
        return int.from_bytes(hashlib.sha256(document.encode()).digest()[:8], "little", signed=True)

    return torch.tensor([number(document) for document in documents], dtype=torch.int64)
