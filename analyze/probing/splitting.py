"""Feature splitting: how many latents it takes to say one thing, by probes on few latents of an SAE.

A probe on k latents is a logistic regression on their activations. Latents are added one by one, and each
that raises its F1 by F1_RISE or more counts as a part of what the label names; the first that does not ends
the search. Several latents are a feature that the SAE has split.

The next latent is the one whose activations point most along what the probe so far leaves unexplained, the
label less its probability: Σ_i (label_i − p_i) · z_i / ‖z‖, the gradient by its weight in units of its length
(logistic matching pursuit). Only latents that speak for the label are added. Latents are ranked and weighted
on one side of a split; F1, and with it where the search ends, is of the other.

source: "A is for Absorption", arXiv:2409.14507, and SAEBench, where the k latents are those of largest weight
    in one probe on all latents under an L1 penalty. A child's latent that has taken its parent's place on
    more than about 3 % of the parent's tokens counts as a part here, as it does there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saelens_lite.arguments import takes_folders
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.latents import SparseLatents

from ..stats.document_split import Documents, Split
from ..stats.logistic import f1_of, fit_logistic
from .labelled_items import columns, encoded, testing_side

F1_RISE = 0.03
MAX_LATENTS = 10


@dataclass(frozen=True, slots=True)
class Splitting:
    """The latents that say one thing.

    latents: in the order in which they were added; none where no latent speaks for the label
    f1: of the probe on the first latent, the first two, …, on the test side; last that of one tried in vain
    """

    latents: tuple[int, ...]
    f1: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.latents)

    def __repr__(self) -> str:
        curve = ", ".join(f"{f1:.3f}" for f1 in self.f1)
        latents = ", ".join(map(str, self.latents)) or "none"
        return f"Splitting({self.n} latents: {latents}; F1 of 1, 2, …: {curve})"


@takes_folders
@names_misfits
def feature_splitting(
    sae: SparseAutoencoder,
    acts: Tensor,
    labels: Tensor,
    documents: Documents | None = None,
    split: Split | None = None,
    *,
    max_latents: int = MAX_LATENTS,
    f1_rise: float = F1_RISE,
) -> Splitting:
    """In how many latents an SAE has what a label names.

    acts: float[n_items d_model]; labels: bool[n_items]
    documents: of each item; those of the test side of `split`, by default Split(), give F1. None: its own
    max_latents: to try; f1_rise: the least by which one that counts raises F1
    raises: ValueError for arguments that do not fit each other, or a side without both labels; ImportError
        without scikit-learn
    """
    tests = testing_side(acts, labels, documents, split)
    labels = torch.as_tensor(labels).cpu().bool()
    selecting, testing = (encoded(sae, acts[side.to(acts.device)]) for side in (~tests, tests))
    limits = {"max_latents": max_latents, "f1_rise": f1_rise}
    return splits(selecting, testing, labels[~tests], labels[tests], **limits)


def splits(
    selecting: SparseLatents,
    testing: SparseLatents,
    selecting_labels: Tensor,
    testing_labels: Tensor,
    allowed: Tensor | None = None,
    *,
    max_latents: int = MAX_LATENTS,
    f1_rise: float = F1_RISE,
) -> Splitting:
    """The same of latents on the CPU; labels: bool[n]; allowed: bool[d_sae], latents to choose from."""
    if max_latents < 1 or not f1_rise > 0:
        raise ValueError(
            f"expected max_latents of 1 or more and f1_rise above 0, got {max_latents} and {f1_rise}"
        )
    rows, indices, values = selecting.row_ids(), selecting.indices, selecting.values.double()
    lengths = torch.zeros(selecting.d_sae, dtype=torch.float64).index_add_(0, indices, values**2).sqrt()
    ones = selecting_labels.double()
    unexplained = ones - ones.mean()
    chosen: list[int] = []
    f1s: list[float] = []
    while len(chosen) < max_latents:
        gradient = torch.zeros_like(lengths).index_add_(0, indices, unexplained[rows] * values)
        score = torch.where(lengths > 0, gradient / lengths, -torch.inf)
        score[chosen] = -torch.inf
        if allowed is not None:
            score[~allowed] = -torch.inf
        best = int(score.argmax())
        if not score[best] > 0:
            break
        tried = torch.tensor([*chosen, best])
        inputs = columns(selecting, tried)
        weights, bias = fit_logistic(inputs, selecting_labels)
        f1s.append(f1_of(columns(testing, tried) @ weights + bias > 0, testing_labels))
        if f1s[-1] < f1_rise + (f1s[-2] if chosen else 0.0):
            break
        chosen.append(best)
        unexplained = ones - (inputs @ weights + bias).sigmoid()
    return Splitting(tuple(chosen), tuple(f1s))
