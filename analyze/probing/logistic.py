"""TODO clause of analyze/probing/logistic.py."""

from __future__ import annotations

import torch
from torch import Tensor

from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.latents import SparseLatents

from ..latents.store_pass import to_cpu
from ..stats.document_split import Documents, Split, selecting_side


def fit_logistic(inputs: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """Weights float64[d], in units of the inputs, and bias of a logistic regression on standardised inputs
    float[n d].

    raises: ImportError without scikit-learn
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ImportError(
            "expected scikit-learn, which is not installed: pip install 'saelens_lite[probes]'"
        ) from error
    rows = inputs.detach().cpu().double()
    mean, spread = rows.mean(0), rows.std(0, correction=0)
    spread = torch.where(spread > 0, spread, 1.0)
    probe = LogisticRegression(max_iter=1000).fit(((rows - mean) / spread).numpy(), labels.cpu().numpy())
    weights = torch.from_numpy(probe.coef_[0]) / spread
    return weights, float(probe.intercept_[0] - mean @ weights)


def f1_of(said: Tensor, true: Tensor) -> float:
    """2 · both / (said + true), 0 where neither is ever so; bool[n] each."""
    total = int(said.sum()) + int(true.sum())
    return 2 * int((said & true).sum()) / total if total else 0.0


def columns(latents: SparseLatents, chosen: Tensor) -> Tensor:
    """The activations of some latents, none twice: float64[n len(chosen)]."""
    places = torch.full((latents.d_sae,), -1)
    places[chosen] = torch.arange(len(chosen))
    at = places[latents.indices]
    found = torch.zeros(latents.batch, len(chosen), dtype=torch.float64)
    found[latents.row_ids()[at >= 0], at[at >= 0]] = latents.values[at >= 0].double()
    return found


def encoded(sae: SparseAutoencoder, acts: Tensor) -> SparseLatents:
    """Latents of rows float[n d_model], without gradients, on the CPU."""
    with torch.no_grad():
        return to_cpu(sae.encode(acts.to(sae.device)))


def testing_side(acts: Tensor, labels: Tensor, documents: Documents | None, split: Split | None) -> Tensor:
    """Which rows test: bool[n]; documents None makes every row one.

    raises: ValueError as `selecting_side`, and for a test side without both labels
    """
    documents = torch.arange(len(acts)) if documents is None else documents
    selecting_side(acts, labels, documents, split or Split())
    tests = (split or Split()).tests(documents)
    ones = torch.as_tensor(labels).cpu().bool()[tests]
    if not ones.any() or ones.all():
        raise ValueError(
            f"expected items of both labels on the test side, got {int(ones.sum())} of {len(ones)} with 1"
        )
    return tests
