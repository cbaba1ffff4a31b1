"""What an evaluation found: numbers and their definitions, as a table and as values for JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from saelens_lite.misfits import names_misfits
from saelens_lite.sae.metrics import rate_bound, window_name
from saelens_lite.text_table import Lines, Tabular, aligned, number, plain

from ..stats.interval_plots import new_axes
from .seed_noise import SeedNoise, Stability

TRAINED, BASELINE, ZERO, MEAN = "trained", "baseline", "zero ablation", "mean ablation"

DEFINITIONS = {
    "fvu": "fraction of variance unexplained: the sum of ‖x − x̂‖² over that of ‖x − mean‖²",
    "fvu_within_10x": "fvu of the rows whose norm is at most 10 times the median norm of the store",
    "share_within_10x": "share of the scored rows that these are",
    "explained_variance": "1 − fvu",
    "mse": "mean ‖x − x̂‖² of a token, summed over dimensions",
    "cosine": "mean cosine of x with x̂",
    "norm_ratio": "mean ‖x̂‖ / ‖x‖",
    "relative_bias": "mean ‖x̂‖² over mean x·x̂: 1 none, below 1 shrinkage",
    "l0": "mean number of latents that fire on a token",
    "l1": "mean sum of the latents of a token, in the SAE's own scale",
    "l1_weighted": "the same with each latent times the norm of its decoder row",
    "dead": "dead@N: share of the latents silent during the last N tokens of the store; null where it has "
    "fewer",
    "density_q05": "density, a latent's share of scored tokens on which it fires: 5 % of the latents have "
    "less",
    "density_q50": "median density of the latents",
    "density_q95": "density that 5 % of the latents exceed",
    "dense_1pct": "share of the latents that fire on more than 1 % of scored tokens",
    "dense_10pct": "share of the latents that fire on more than 10 % of scored tokens",
    "encoder_decoder_cosine": "mean cosine of a latent's encoder column with its decoder row",
    "ce": "cross-entropy with the replacement in place, nats a token",
    "delta_ce": "ce minus that of the model as it is, nats a token",
    "ce_score_mean": "loss recovered relative to mean ablation: 1 no damage, 0 as bad",
    "ce_score_zero": "loss recovered relative to zero ablation, which is flattering: 1 no damage, 0 as bad",
    "kl": "KL(p_clean ‖ p) of next-token predictions, nats a token, where ce is scored",
    "kl_score_mean": "1 − kl over that of mean ablation",
    "kl_score_zero": "1 − kl over that of zero ablation, which is flattering",
    "ev_legacy": "for comparison, SAEBench's tables and Neuronpedia: mean over tokens of 1 − ‖x − x̂‖² / ‖x "
    "− batch mean‖²",
    "ev_dictionary_learning": "for comparison: 1 − variance of x − x̂ over that of x, so that a constant "
    "error is not seen",
    "ev_overcomplete": "for comparison: about one mean of all numbers, so that predicting the mean of each "
    "dimension scores",
    "ev_sparsify": "for comparison: 1 − fvu of a batch, mean over batches",
}
"""The numbers of a row, as the JSON explains them. The ev_ are over batches of 4,096 rows; see
library_variants.py."""

BESIDE_ROWS = {
    "densities": "latents by their density on scored tokens: counts, those from 10^a up to 10^b for "
    "neighbours a, b of log10_edges, the first with what lies below; never, those that did not fire",
    "intervals": "95 % intervals, by SAE and number, from drawing whole documents again (cluster bootstrap)",
    "dead_rate_bounds": "a latent dead@N fires on less than this share of tokens, 95 % confidence: rule of "
    "three, 3 / N",
    "seed_noise": "of each number over the SAEs of several seeds: mean; sd, standard deviation of one; "
    "detectable, the smallest difference between two single SAEs that is not seed noise with 95 % confidence",
    "stability": "agreement of the seeds' decoders, mean over pairs: mmcs, mean over latents of the largest "
    "cosine with "
    "a latent of the other; mcc, mean |cos| under the best one-to-one pairing; random_, of random directions",
}
"""What the JSON holds beside its rows."""

DENSITY_LOG10_EDGES = tuple(i / 4 for i in range(-32, 1))
"""Four bins a decade, from 1e-8 to 1."""

_COLUMNS = {"fvu": ("fvu", 4), "explained_variance": ("expl.var", 4), "l0": ("l0", 1)}
_CE_COLUMNS = {
    "ce": ("CE", 4),
    "delta_ce": ("ΔCE", 4),
    "kl": ("KL", 4),
    "ce_score_mean": ("score(mean)", 3),
    "ce_score_zero": ("score(zero)", 3),
}

_HEADS = {"fvu": "fvu", "ce": "CE", "delta_ce": "ΔCE"}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRow:
    """One line of an evaluation, its numbers as in DEFINITIONS; None for what does not exist."""

    name: str
    given: bool = True
    """False for a baseline that was not given."""
    fvu: float | None = None
    fvu_within_10x: float | None = None
    share_within_10x: float | None = None
    explained_variance: float | None = None
    mse: float | None = None
    cosine: float | None = None
    norm_ratio: float | None = None
    relative_bias: float | None = None
    l0: float | None = None
    l1: float | None = None
    l1_weighted: float | None = None
    dead: dict[int, float | None] = dataclasses.field(default_factory=dict)
    """Window in tokens → share."""
    density: dict[str, float] = dataclasses.field(default_factory=dict)
    """density_q05, density_q50, density_q95, dense_1pct, dense_10pct."""
    encoder_decoder_cosine: float | None = None
    ce: float | None = None
    delta_ce: float | None = None
    ce_score_mean: float | None = None
    ce_score_zero: float | None = None
    kl: float | None = None
    kl_score_mean: float | None = None
    kl_score_zero: float | None = None
    variants: dict[str, float] = dataclasses.field(default_factory=dict)
    """Explained variance as other libraries define it, by the names of library_variants.py."""

    def numbers(self) -> dict[str, float | None]:
        """Every number by its name in the JSON, such as "dead@10k" and "ev_legacy"."""
        flat: dict[str, float | None] = {}
        for field in dataclasses.fields(self)[2:]:
            value = getattr(self, field.name)
            if field.name == "dead":
                flat |= {f"dead@{window_name(window)}": share for window, share in value.items()}
            elif field.name == "variants":
                flat |= {f"ev_{name}": variant for name, variant in value.items()}
            else:
                flat |= value if isinstance(value, dict) else {field.name: value}
        return flat


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Densities:
    """Latents by the share of scored tokens on which they fire: counts by DENSITY_LOG10_EDGES."""

    never: int
    counts: tuple[int, ...]

    @classmethod
    def of(cls, density: Tensor) -> Densities:
        """density: float64[d_sae]"""
        fired = density[density > 0].log10()
        inner = torch.tensor(DENSITY_LOG10_EDGES[1:-1], dtype=fired.dtype, device=fired.device)
        bins = torch.bucketize(fired, inner, right=True)
        counts = torch.bincount(bins, minlength=len(DENSITY_LOG10_EDGES) - 1).tolist()
        return cls(never=len(density) - len(fired), counts=tuple(counts))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation(Tabular):
    """What evaluate_sae found; `print(evaluation)`.

    rows: trained, baseline, zero ablation, mean ablation
    n_tokens: rows that fvu and l0 rest on; held_out: whether of held-out documents only
    n_ce_tokens, n_contexts: predicted tokens and contexts of the cross-entropy; 0 without a model
    ce_clean: cross-entropy of the model as it is on these tokens, nats
    seeds: rows of the SAEs of other seeds; seed_noise, stability: of these with the trained one
    """

    hook_point: str
    store: str
    held_out: bool
    same_store: bool | None
    """Whether every SAE records this very store, else "held out" is only a sample of documents; None where
    one records no store, and none another."""
    n_tokens: int
    n_ce_tokens: int
    n_contexts: int
    ce_clean: float | None
    rows: tuple[EvaluationRow, ...]
    n_documents: int = 0
    """Documents that the rows are of."""
    sampled: bool = False
    """Whether max_tokens left documents out, which a hash chose."""
    intervals: dict[str, dict[str, tuple[float, float]]] = dataclasses.field(default_factory=dict)
    """By SAE and number (fvu, ce, delta_ce) the 95 % interval over documents."""
    seeds: tuple[EvaluationRow, ...] = ()
    seed_noise: dict[str, SeedNoise] = dataclasses.field(default_factory=dict)
    stability: Stability | None = None
    densities: dict[str, Densities] = dataclasses.field(default_factory=dict)
    """Of the SAE and its baseline, by the name of the row."""

    @names_misfits
    def row(self, name: str) -> EvaluationRow:
        """The row of that name."""
        for row in self.rows:
            if row.name == name:
                return row
        raise ValueError(f"row expected one of {[row.name for row in self.rows]}, got {name!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold, with their definitions; windows as "10k", nan as None."""
        nested = ("rows", "seeds", "seed_noise", "stability", "densities", "intervals")
        names = [field.name for field in dataclasses.fields(self) if field.name not in nested]
        facts = {name: getattr(self, name) for name in names}
        tables: dict[str, Any] = {
            "rows": [{"name": row.name, "given": row.given} | row.numbers() for row in self.rows],
            "dead_rate_bounds": {
                f"dead@{window_name(window)}": rate_bound(window) for window in self._windows_that_fit()
            },
        }
        if self.intervals:
            tables["intervals"] = {
                name: {number: list(ends) for number, ends in of.items()}
                for name, of in self.intervals.items()
            }
        if self.densities:
            counted = {
                name: {"never": one.never, "counts": list(one.counts)} for name, one in self.densities.items()
            }
            tables["densities"] = {"log10_edges": list(DENSITY_LOG10_EDGES), **counted}
        if self.seeds:
            tables["seeds"] = [{"name": row.name} | row.numbers() for row in self.seeds]
            tables["seed_noise"] = {
                name: dataclasses.asdict(noise) for name, noise in self.seed_noise.items()
            }
            tables["stability"] = None if self.stability is None else dataclasses.asdict(self.stability)
        defined = DEFINITIONS | {name: text for name, text in BESIDE_ROWS.items() if name in tables}
        return plain(facts | tables) | {"definitions": defined}

    @names_misfits
    def table(self, every_number: bool = False) -> str:
        """every_number: a line for each number in place of one for each SAE."""
        lines = self._numbers_as_lines() if every_number else self._rows_as_lines()
        return "\n".join([aligned(lines), *self._notes()])

    __str__ = table

    @names_misfits
    def plot(self, ax: Any = None) -> Any:
        """Matplotlib axes: how many latents fire how often, of the SAE and its baseline.

        ax: to draw on; None makes a figure. raises: ImportError without matplotlib
        """
        ax = new_axes(ax)
        for name, of in self.densities.items():
            label = f"{name} ({of.never:,} never)" if of.never else name
            ax.stairs(of.counts, DENSITY_LOG10_EDGES, fill=True, alpha=0.5, label=label)
        ax.set_xlabel("log10 of the share of tokens on which a latent fires")
        ax.set_ylabel("latents")
        ax.legend()
        return ax

    def _tables(self) -> list[tuple[str, Lines]]:
        return [("", self._rows_as_lines())]

    def _rows_as_lines(self) -> Lines:
        # the first that is too long stands for the rest
        windows = list(self.rows[0].dead)[: len(self._windows_that_fit()) + 1]
        dead = {f"dead@{window_name(window)}": (f"dead@{window_name(window)}", 3) for window in windows}
        columns = _COLUMNS | dead | (_CE_COLUMNS if self.ce_clean is not None else {})
        lines = [["", *(head for head, _ in columns.values())]]
        for row in self.rows:
            if not row.given:
                lines.append([row.name, "not given"])
                continue
            numbers = row.numbers()
            absent = dict.fromkeys(dead, "n/a" if row.dead else "")
            cells = []
            for name, (_, digits) in columns.items():
                value = numbers.get(name)
                cells.append(absent.get(name, "") if value is None else number(value, f".{digits}f"))
            lines.append([row.name, *cells])
        for what in ("sd", "detectable") if self.seed_noise else ():
            noise = {name: f"{getattr(one, what):.2g}" for name, one in self.seed_noise.items()}
            lines.append([f"seed noise: {what}", *(noise.get(name, "") for name in columns)])
        return lines

    def _numbers_as_lines(self) -> Lines:
        given = [row for row in self.rows if row.given]
        noise = ("sd", "detectable") if self.seed_noise else ()
        lines = [["", *(row.name for row in given), *(f"seed {what}" for what in noise)]]
        columns = [row.numbers() for row in given]
        for name, first in columns[0].items():
            values = [column.get(name) for column in columns]
            cells = ["" if value is None else number(value, ".4g") for value in values]
            if name.startswith("dead@") and first is None:
                cells = ["n/a" if row.dead else "" for row in given]
            if any(cells):
                of = self.seed_noise.get(name)
                lines.append([name, *cells, *(f"{getattr(of, what):.2g}" if of else "" for what in noise)])
        return lines

    def _notes(self) -> list[str]:
        rows_of = "held-out documents" if self.held_out else "all documents"
        if self.sampled:
            rows_of = f"{self.n_documents:,} {'held-out ' * self.held_out}documents drawn by hash"
        text = [f"{self.hook_point} of {self.store}"]
        dead = "dead over the last tokens of the store"
        if fitting := self._windows_that_fit():
            dead += f", dead@{window_name(fitting[-1])}: a rate < {rate_bound(fitting[-1]):.0e} (95 %)"
        trained = self.rows[0]
        if (share := trained.share_within_10x) is not None and share < 1:
            text.append(
                f"fvu of the {share:.2%} of rows within 10 times the median norm: "
                f"{trained.fvu_within_10x:.4f}"
            )
        text.append(f"fvu, l0 over {self.n_tokens:,} tokens of {rows_of}; {dead}")
        if self.ce_clean is not None:
            text.append(
                f"CE in nats over {self.n_ce_tokens:,} predicted tokens of {rows_of} in {self.n_contexts:,} "
                f"contexts; clean {self.ce_clean:.4f}"
            )
        for name, of in self.intervals.items():
            said = [f"{_HEADS[number]} {low:.4f} to {high:.4f}" for number, (low, high) in of.items()]
            if name in (TRAINED, BASELINE):
                text.append(f"{name}, 95 % over {self.n_documents:,} documents: {', '.join(said)}")
        if self.seed_noise:
            text.append(
                f"seed noise over {len(self.seeds) + 1} SAEs: sd of one, and the smallest difference "
                "between two that is more than it (95 %)"
            )
        if (found := self.stability) is not None:
            text.append(
                f"the same directions in two seeds: mmcs {found.mmcs:.3f} (random {found.random_mmcs:.3f}), "
                f"mcc {found.mcc:.3f} (random {found.random_mcc:.3f})"
            )
        if self.held_out and not self.same_store:
            other = "another store, or this one before hook points were added"
            text.append(
                f"an SAE here records {'no store' if self.same_store is None else other}: it may have been "
                "trained on documents held out here"
            )
        return text

    def _windows_that_fit(self) -> list[int]:
        return [window for window, share in self.rows[0].dead.items() if share is not None]
