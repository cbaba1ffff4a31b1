"""How good an SAE is, beside what gives the numbers their meaning: a baseline, zero ablation and mean ablation.

Reconstruction is scored on rows of held-out documents, and the cross-entropy on their tokens. Replaced are the positions
that have rows in the store, so BOS, special tokens and padding stay as they are, in every row of the table alike.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saelens_lite.contexts import cross_entropies
from saelens_lite.metrics import FiringSums, ReconstructionSums, ce_score, window_name
from saelens_lite.sae import SparseAutoencoder
from saelens_lite.store import ActivationStore
from saelens_lite.tokens import is_held_out

from .stream import BLOCK_ROWS, latent_blocks, matching_hook_point, to_cpu

WINDOWS_TOKENS = (10_000, 100_000, 1_000_000)
TRAINED, BASELINE, ZERO, MEAN = "trained", "baseline", "zero ablation", "mean ablation"

DEFINITIONS = {
    "fvu": "fraction of variance unexplained: the sum of ‖x − x̂‖² over that of ‖x − mean‖²",
    "explained_variance": "1 − fvu",
    "mse": "mean ‖x − x̂‖² of a token",
    "cosine": "mean cosine of x with x̂",
    "norm_ratio": "mean ‖x̂‖ / ‖x‖",
    "l0": "mean number of latents that fire on a token",
    "dead": "dead@N: share of the latents silent during the last N tokens of the store; null where it has fewer",
    "ce": "cross-entropy with the replacement in place, nats a token",
    "delta_ce": "ce minus that of the model as it is, nats a token",
    "ce_score_mean": "loss recovered relative to mean ablation: 1 no damage, 0 as bad",
    "ce_score_zero": "loss recovered relative to zero ablation, which is flattering: 1 no damage, 0 as bad",
}
"""The numbers of a row, as the JSON explains them."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRow:
    """One line of an evaluation, its numbers as in DEFINITIONS; None where one was not asked for or does not exist."""

    name: str
    given: bool = True
    """False for a baseline that was not given."""
    fvu: float | None = None
    explained_variance: float | None = None
    mse: float | None = None
    cosine: float | None = None
    norm_ratio: float | None = None
    l0: float | None = None
    dead: dict[int, float | None] = dataclasses.field(default_factory=dict)
    """Window in tokens → share."""
    ce: float | None = None
    delta_ce: float | None = None
    ce_score_mean: float | None = None
    ce_score_zero: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What evaluate_sae found; `print(evaluation.table())`.

    rows: trained, baseline, zero ablation, mean ablation
    n_tokens: rows that fvu and l0 rest on; held_out: whether of held-out documents only
    n_ce_tokens, n_contexts: predicted tokens that the cross-entropy rests on, and contexts that were run; 0 without a model
    ce_clean: cross-entropy of the model as it is on these tokens, nats
    """

    hook_point: str
    store: str
    held_out: bool
    same_store: bool
    """Whether every SAE records that it was trained on this very store; else "held out" is only a sample of documents."""
    n_tokens: int
    n_ce_tokens: int
    n_contexts: int
    ce_clean: float | None
    rows: tuple[EvaluationRow, ...]

    def row(self, name: str) -> EvaluationRow:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold, with their definitions; windows as "10k", nan as None."""

        def plain(value: Any) -> Any:
            return None if isinstance(value, float) and not math.isfinite(value) else value

        facts = {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self) if field.name != "rows"}
        rows = []
        for row in self.rows:
            numbers = {field.name: plain(getattr(row, field.name)) for field in dataclasses.fields(row)}
            dead = {f"dead@{window_name(window)}": share for window, share in row.dead.items()}
            rows.append({key: value for key, value in numbers.items() if key != "dead"} | dead)
        return facts | {"rows": rows, "definitions": DEFINITIONS}

    def table(self) -> str:
        """Aligned text, with what the numbers rest on below it."""
        windows = list(self.rows[0].dead)
        head = ["", "fvu", "expl.var", "l0", *(f"dead@{window_name(w)}" for w in windows)]
        head += ["CE", "ΔCE", "score(mean)", "score(zero)"] if self.ce_clean is not None else []
        lines = [head]
        for row in self.rows:
            if not row.given:
                lines.append([row.name, "not given"])
                continue
            cells = [row.name, _cell(row.fvu, 4), _cell(row.explained_variance, 4), _cell(row.l0, 1)]
            cells += [_cell(row.dead.get(w), 3, absent="n/a" if row.dead else "") for w in windows]
            if self.ce_clean is not None:
                cells += [_cell(row.ce, 4), _cell(row.delta_ce, 4), _cell(row.ce_score_mean, 3), _cell(row.ce_score_zero, 3)]
            lines.append(cells)
        full = [line for line in lines if len(line) == len(head)]
        widths = [max(len(line[i]) for line in full) for i in range(len(head))]
        widths[0] = max(len(line[0]) for line in lines)
        text = [
            "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:]))]).rstrip()
            for line in lines
        ]
        rows_of = "held-out documents" if self.held_out else "all documents"
        text.append(f"{self.hook_point} of {self.store}")
        text.append(f"fvu, l0 over {self.n_tokens:,} tokens of {rows_of}; dead over the last tokens of the store")
        if self.ce_clean is not None:
            text.append(
                f"CE in nats over {self.n_ce_tokens:,} predicted tokens of {rows_of} in {self.n_contexts:,} contexts; "
                f"clean {self.ce_clean:.4f}"
            )
        if self.held_out and not self.same_store:
            text.append("not every SAE records this store as its own: it may have been trained on documents held out here")
        return "\n".join(text)

    __str__ = table


def evaluate_sae(
    sae: SparseAutoencoder,
    store: ActivationStore,
    model: nn.Module | None = None,
    baseline: SparseAutoencoder | None = None,
    *,
    held_out: bool = True,
    held_out_fraction: float | None = None,
    max_tokens: int | None = 100_000,
    windows_tokens: Sequence[int] = WINDOWS_TOKENS,
    hook_point: str | None = None,
    batch_size_seqs: int = 8,
) -> Evaluation:
    """Reconstruction, sparsity, dead share and, with a model, what the reconstruction costs in cross-entropy.

    model: the one that was harvested; without it there are no CE columns. Needs no tokenizer: the store has the tokens
    baseline: an SAE to compare with, usually the frozen-decoder one (train_sae(freeze_decoder=True))
    held_out: score rows and tokens of held-out documents only (saelens_lite.tokens.is_held_out)
    held_out_fraction: the share of documents that training held out; None takes what the SAEs record, else 0.05
    max_tokens: stop after about so many rows, and as many predicted tokens; None for all
    windows_tokens: for the dead share, over the last tokens of the store, whichever document they are of
    hook_point: None takes the one that the SAE was trained on
    raises: ValueError when SAE, baseline, model and store do not belong together, or no document is held out
    """
    point = matching_hook_point(sae, store, hook_point)
    saes = {TRAINED: sae}
    if baseline is not None:
        if (point_there := matching_hook_point(baseline, store, hook_point)) != point:
            raise ValueError(f"the baseline is of {point_there} and the SAE of {point}: compare SAEs of one hook point")
        saes[BASELINE] = baseline
    if held_out_fraction is None:
        held_out_fraction = _recorded_fraction(saes)
    fraction = held_out_fraction if held_out else None

    sums, l0 = _reconstruction(saes, store, point, fraction, max_tokens)
    dead = {name: _dead_shares(one, store, point, windows_tokens) for name, one in saes.items()}
    ce, n_ce_tokens, n_contexts = {}, 0, 0
    if model is not None:
        replacements: dict[str, dict[str, Any] | None] = {
            "clean": None,
            **{name: {"sae": one} for name, one in saes.items()},
        }
        mean = {"sae": None, "mode": "mean", "mean": store.mean(point)}
        replacements |= {ZERO: {"sae": None, "mode": "zero"}, MEAN: mean}
        ce, n_ce_tokens, n_contexts = cross_entropies(
            model, store, point, replacements, fraction=fraction, max_tokens=max_tokens, batch_size_seqs=batch_size_seqs
        )

    def row(name: str) -> EvaluationRow:
        if name not in sums:
            return EvaluationRow(name=name, given=False)
        numbers = {key: getattr(sums[name], key) for key in ("fvu", "explained_variance", "mse", "cosine", "norm_ratio")}
        if ce:
            numbers |= {"ce": ce[name], "delta_ce": ce[name] - ce["clean"]}
            numbers |= {"ce_score_mean": ce_score(ce["clean"], ce[name], ce[MEAN])}
            numbers |= {"ce_score_zero": ce_score(ce["clean"], ce[name], ce[ZERO])}
        return EvaluationRow(name=name, l0=l0.get(name, 0.0), dead=dead.get(name, {}), **numbers)

    return Evaluation(
        hook_point=point,
        store=store.model_name or str(store.path),
        held_out=held_out,
        same_store=all(store.fingerprint in _stores(one) for one in saes.values()),
        n_tokens=sums[TRAINED].n_tokens,
        n_ce_tokens=n_ce_tokens,
        n_contexts=n_contexts,
        ce_clean=ce.get("clean"),
        rows=tuple(row(name) for name in (TRAINED, BASELINE, ZERO, MEAN)),
    )


def _recorded_fraction(saes: dict[str, SparseAutoencoder]) -> float:
    """The share of documents that no SAE was trained on, by their records: a smaller share is part of a larger one."""
    records = map(_record, saes.values())
    return min((record["train"]["held_out_fraction"] for record in records if "train" in record), default=0.05)


def _record(sae: SparseAutoencoder) -> dict[str, Any]:
    """What our training wrote into the SAE's metadata; empty for one from elsewhere."""
    return sae.config.metadata.get("saelens_lite", {})


def _stores(sae: SparseAutoencoder) -> set[str]:
    """Fingerprints of the stores that an SAE was trained on, by its record."""
    record = _record(sae)
    return {record.get("store", "")} | {mixed["store"] for mixed in record.get("stores", ())}


def _reconstruction(
    saes: dict[str, SparseAutoencoder], store: ActivationStore, point: str, fraction: float | None, max_tokens: int | None
) -> tuple[dict[str, ReconstructionSums], dict[str, float]]:
    """Sums of every row of the table over the scored rows, and the l0 of the SAEs."""
    sums = {name: ReconstructionSums(store.d_model(point)) for name in (*saes, ZERO, MEAN)}
    firing = {name: FiringSums(one.d_sae) for name, one in saes.items()}
    mean = store.mean(point)
    for acts in _scored_rows(store, point, fraction, max_tokens):
        for name, one in saes.items():
            with torch.no_grad():
                out = one(acts.to(one.device))
            sums[name].update(acts, out.recons.to(acts.device, torch.float32))
            firing[name].update(to_cpu(out.latents))
        sums[ZERO].update(acts, torch.zeros_like(acts))
        sums[MEAN].update(acts.double(), mean.expand_as(acts))
    if sums[ZERO].n_tokens == 0:
        raise ValueError(
            f"{store.path} has no rows of held-out documents (share {fraction}); "
            "harvest more documents, or pass held_out=False to score rows that training has seen"
        )
    return sums, {name: one.l0 for name, one in firing.items()}


def _scored_rows(store: ActivationStore, point: str, fraction: float | None, max_tokens: int | None) -> Iterator[Tensor]:
    """Blocks float32[n d_model] of the rows to score, at most max_tokens of them."""
    left = store.n_rows if max_tokens is None else max_tokens
    first_row = 0
    for shard, n_rows in enumerate(store.shard_rows):
        rows = torch.arange(first_row, first_row + n_rows)
        if fraction is not None:
            rows = rows[is_held_out(store.row_docs(shard), fraction)]
        for block in rows[:left].split(BLOCK_ROWS) if len(rows) else ():
            yield store.gather(block, point)
        first_row += n_rows
        left -= min(left, len(rows))
        if left == 0:
            return


def _dead_shares(
    sae: SparseAutoencoder, store: ActivationStore, point: str, windows_tokens: Sequence[int]
) -> dict[int, float | None]:
    """Dead share by window over the last rows of the store, as many as the longest window that fits."""
    windows = sorted(windows_tokens)
    n_rows = max((window for window in windows if window <= store.n_rows), default=0)
    firing = FiringSums(sae.d_sae)
    if n_rows:
        for _, latents in latent_blocks(sae, store, point, start_row=store.n_rows - n_rows):
            firing.update(latents)
    return firing.dead_shares(windows)


def _cell(value: float | None, digits: int, absent: str = "") -> str:
    if value is None:
        return absent
    return "n/a" if math.isnan(value) else f"{value:.{digits}f}"
