"""Explained variance as other libraries define it, to compare with the figures they print.

    name                 definition on one batch                     batches   where it misleads
    legacy               mean of 1 − ‖x − x̂‖² / ‖x − x̄‖² of tokens   all rows  tokens near x̄ decide it
    dictionary_learning  1 − Σ Var(x − x̂) / Σ Var(x)                 mean      a constant error is invisible
    overcomplete         1 − Σ (x − x̂)² / Σ (x − m)², m a number     mean      predicting x̄ scores high
    sparsify             1 − Σ ‖x − x̂‖² / Σ ‖x − x̄‖²                mean      changes with the batch

x̄ is the mean of each dimension over the batch. `legacy` is what SAEBench's tables and Neuronpedia show, and
SAELens' evals call `explained_variance_legacy`; SAELens' `explained_variance` is ours (sae/metrics.py).
sparsify prints 1 minus the number above, as fvu.

Not here is that of SAEBench 0.6.0, a mistake: E‖x‖² less the square of the mean of x² over tokens and
dimensions stands for the variance, so predicting x̄ explains 0.96 of activations with mean 5 and deviation 1
in each of 512 dimensions (tests/analyze/evaluation/test_library_variants.py).

Where other numbers of `evaluate_sae` differ from those of the same name in SAELens' evals, with their
defaults and ours (tests/peer/test_evals.py, which finds the rest equal to 1e-3):

    CE, ΔCE        theirs is averaged over positions that hold no special token and have a next one, ours over
                   tokens that have a row and are not the first of their context. Of a context of n tokens
                   with a BOS theirs leaves out the prediction from the BOS, which no replacement reaches: its
                   ΔCE is (n − 1) / (n − 2) of ours
    KL             theirs counts the last position of a context too, ours the positions where CE is scored
    zero ablation  theirs sets special positions to zero as well, though its reconstruction leaves them; ours
                   replaces the same positions in every row
    relative bias  theirs is the mean of the batches' ratios, ours the ratio of sums
"""

from __future__ import annotations

import math

from torch import Tensor

VARIANTS = ("legacy", "dictionary_learning", "overcomplete", "sparsify")


class LibraryVariants:
    """Each variant over the batches seen: one `update` is one batch of theirs.

    A batch in which nothing varies is left out, as is a token that lies on x̄ from `legacy`.
    """

    def __init__(self) -> None:
        self._sums = dict.fromkeys(VARIANTS, 0.0)
        self._counts = dict.fromkeys(VARIANTS, 0)

    def update(self, acts: Tensor, recons: Tensor) -> None:
        """Add a batch; acts and recons: float[... d_model], alike."""
        x = acts.detach().reshape(-1, acts.shape[-1]).double()
        error = x - recons.detach().reshape(x.shape).double()
        if len(x) == 0:
            return
        deviation = (x - x.mean(0)).square().sum(1)
        squared_error = error.square().sum(1)
        varies = deviation > 0
        self._add("legacy", (1 - squared_error[varies] / deviation[varies]).sum(), int(varies.sum()))
        spread = {
            "dictionary_learning": ((error - error.mean(0)).square().sum(), deviation.sum()),
            "overcomplete": (squared_error.sum(), (x - x.mean()).square().sum()),
            "sparsify": (squared_error.sum(), deviation.sum()),
        }
        for name, (unexplained, total) in spread.items():
            if total > 0:
                self._add(name, 1 - unexplained / total, 1)

    def values(self) -> dict[str, float]:
        """Explained variance by name; nan where no batch had any variance."""
        return {name: self._sums[name] / n if (n := self._counts[name]) else math.nan for name in VARIANTS}

    def _add(self, name: str, value: Tensor, count: int) -> None:
        self._sums[name] += value.item()
        self._counts[name] += count
