"""One HTML file about training runs or SAEs, side by side: tables, curves, weights. It runs nothing.

Everything comes from the folders of the runs (run_folders.py), with what evaluations left there
(report_evaluations.py): no store, model or network, and a run may still be training. Each plot has its
definition above it and its numbers in the table below, its legend.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saelens_lite.atomic import check_output, write_file
from saelens_lite.errors import SaelensLiteError
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.decoder_cosine import mean_decoder_cosine
from saelens_lite.sae.folder import NEVER_FIRED, load_log_sparsity
from saelens_lite.sae.metrics import window_name
from saelens_lite.text_table import cell

from ..latents import geometry
from ..render.plot import MAX_POINTS, N_COLOURS, N_LINES, Axis, Series, curves, swatch
from ..render.report_blocks import Block, Figure, Figures, Folded, Paragraph, Section, Table, document
from .report_evaluations import against, comparison
from .run_folders import Run, find_runs

log = logging.getLogger(__name__)

N_BINS = 60

_COLUMNS = {
    "reconstruction": (
        "Reconstruction loss",
        "Mean ‖x − x̂‖² of a token of the batch, in the scale of training.",
        True,
    ),
    "held_out_fvu": (
        "Held-out fvu",
        "Fraction of variance unexplained, on rows of documents never trained on.",
        False,
    ),
    "held_out_l0": (
        "Held-out l0",
        "Latents that fire on a token, on rows of documents never trained on.",
        False,
    ),
    "held_out_delta_ce": (
        "Held-out ΔCE",
        "What the reconstruction costs in cross-entropy, nats a token, held out.",
        False,
    ),
    "l0": ("l0 in training", "Latents that fire on a token of the batch.", False),
    "dead": ("Dead latents", "dead@N: share of the latents silent for the last N tokens of training.", False),
    "auxk": (
        "AuxK loss",
        "Error of the dead latents' reconstruction of what is left over, before its coefficient.",
        False,
    ),
    "l1": ("L1 loss", "The L1 penalty, before its coefficient.", False),
    "penalty": ("Sparsity penalty", "The jumprelu penalty, before its coefficient.", False),
    "lr": ("Learning rate", "Of Adam, at that step.", False),
    "tokens_per_s": (
        "Tokens a second",
        "Mean since the run began, evaluation and checkpoints included.",
        False,
    ),
    "left_out_share": ("Rows left out", "Share of the training rows left out for their norm.", False),
}
"""Title, definition and whether the axis is logarithmic, of columns of metrics.jsonl."""

_WITHOUT_INTEREST = ("output", "overwrite", "progress")


@names_misfits
def report_page(runs: str | Path | Sequence[str | Path], path: str | Path = "report.html") -> Path:
    """Write one self-contained HTML page about training runs and SAEs and return its path.

    runs: folders of runs, finished, stopped or still going; SAE folders of SAELens; folders that hold such
        folders; or JSON that `saelens-lite evaluate --output` wrote, which is also found in the folders
    path: replaced when it exists
    raises: ValueError for a folder that holds no run, or a metrics.jsonl with a broken line before its last
    """
    check_output(path)
    found = find_runs([runs] if isinstance(runs, str | Path) else runs)
    problems = [f"{run.name}: {problem}" for run in found for problem in run.problems]
    weights = _weights(found, problems)
    of_runs = (_overview(found), _settings(found), _training(found), _trade_off(found))
    sections = [*filter(None, of_runs), *comparison(found, _told), *weights]
    for problem in problems:
        log.warning("%s", problem)
    what = "runs" if any(run.metrics.n_lines for run in found) else "SAEs"
    title = f"{found[0].name}: report" if len(found) == 1 else f"{len(found)} {what} compared"
    return write_file(path, document(title, sections, problems))


# The runs ---------------------------------------------------------------------------------------------------


def _overview(runs: Sequence[Run]) -> Section:
    rows = [_facts_of(run) for run in runs]
    names = list(dict.fromkeys(name for row in rows for name, value in row.items() if value is not None))
    lines = [[run.name, *map(row.get, names)] for run, row in zip(runs, rows)]
    table = Table(["run", *names], lines, [swatch(i) for i in range(len(runs))])
    stores = {str(run.facts["store"]) for run in runs if "store" in run.facts}
    notes = []
    if (n := len(stores)) > 1:
        notes.append(f"These runs are of {n} different stores: their losses and fvu do not compare.")
    if len(runs) > (n := N_COLOURS * N_LINES):
        notes.append(f"Colours and line styles repeat after {n} runs.")
    return Section("Runs", [*map(Paragraph, notes), table, _definitions(names)])


_DEFINITIONS = {
    "k": "latents kept a token, by batchtopk and matryoshka on average over a batch",
    "d_sae": "number of latents",
    "tokens": "rows trained on, repeated ones counted again",
    "peak lr": "learning rate of Adam between warm-up and decay",
    "held-out fvu": "fraction of variance unexplained, on rows of documents never trained on; the last of "
    "the run",
    "held-out l0": "latents that fire on a token, on the same rows",
    "held-out ΔCE": "nats a token that the model loses when it runs on the reconstruction, in documents "
    "never trained on",
    "seconds": "of training, evaluation and checkpoints included",
    "store": "fingerprint of the activation store, its first 12 digits",
}


def _facts_of(run: Run) -> dict[str, Any]:
    """What the first table says of a run; None for what its folder does not say."""
    facts, config, speed = run.facts, run.config, run.metrics.of("tokens_per_s").last
    windows = filter(_is_dead, run.metrics.names)
    dead = {f"dead@{_window(name)}": run.metrics.of(name).last for name in windows}
    frozen = " with frozen decoder" if run.settings.get("freeze_decoder") else ""
    return {
        "kind": f"{run.kind}{frozen}" if run.kind else None,
        "k": run.k,
        "d_sae": config.d_sae if config else run.settings.get("d_sae"),
        "held-out fvu": _final(run, "held_out_fvu"),
        "held-out l0": _final(run, "held_out_l0"),
        "held-out ΔCE": _final(run, "held_out_delta_ce"),
        **dead,
        "steps": run.steps,
        "tokens": run.tokens,
        "peak lr": facts.get("lr") or run.settings.get("lr") or run.metrics.of("lr").highest,
        "seconds": round(run.tokens / speed, 1) if speed and run.tokens is not None else None,
        "tokens/s": round(speed) if speed else None,
        "hook point": config.hook_point or None if config else run.settings.get("hook_point"),
        "model": _told(config.model_name) or None if config else None,
        "state": _state(run),
        "store": str(facts["store"])[:12] if "store" in facts else None,
        "version": facts.get("version"),
    }


def _state(run: Run) -> str | None:
    of_sae, planned = run.facts.get("steps"), run.settings.get("n_steps")
    if not run.metrics.n_lines:
        return None if of_sae is None else f"SAE of step {cell(of_sae)}, no numbers"
    if of_sae is None:
        return "no SAE yet" if run.config is None else None
    if of_sae == run.steps and not run.unfinished and planned in (None, of_sae):
        return "finished"
    return f"unfinished, SAE of step {cell(of_sae)}"


def _final(run: Run, column: str) -> float | None:
    """The last number of the log, or what the SAE records."""
    last = run.metrics.of(column).last
    return last if last is not None else run.facts.get(column)


def _told(value: Any) -> str:
    """A value in words; of the path of a model on this machine, the end."""
    text = cell(value)
    return "/".join(Path(text).parts[-2:]) if os.path.isabs(text) else text


def _settings(runs: Sequence[Run]) -> Section | None:
    """The fields of train_config.json: where the runs differ, and the rest."""
    told = [run for run in runs if run.settings]
    if not told:
        return None
    fields = [f for f in dict.fromkeys(f for run in told for f in run.settings) if f not in _WITHOUT_INTEREST]
    shared = [
        f for f in fields if all(f in run.settings and run.settings[f] == told[0].settings[f] for run in told)
    ]
    differing = [f for f in fields if f not in shared]
    blocks: list[Block] = []
    if differing:
        rows = [[run.name, *(_setting(run, f) for f in differing)] for run in told]
        blocks.append(Table(["run", *differing], rows, [swatch(runs.index(run)) for run in told]))
    elif len(told) > 1:
        blocks.append(Paragraph("All runs have the same settings."))
    if shared:
        words = "Settings" if len(told) == 1 else f"{len(shared)} settings that these runs share"
        blocks.append(Folded(words, {f: _setting(told[0], f) for f in shared}))
    return Section("Settings that differ" if differing else "Settings", blocks)


def _setting(run: Run, name: str) -> str:
    value = run.settings.get(name)
    return "–" if name not in run.settings else value if isinstance(value, str) else json.dumps(value)


# Curves -----------------------------------------------------------------------------------------------------


def _training(runs: Sequence[Run]) -> Section | None:
    """A plot for each column of the logs; the dead shares of all windows share one."""
    logged = [run for run in runs if run.metrics.names]
    if not logged:
        return None
    over_tokens = all(run.tokens_per_step is not None for run in logged)
    x = Axis("tokens" if over_tokens else "steps")
    names = dict.fromkeys(name for run in logged for name in run.metrics.names)
    found = dict.fromkeys("dead" if _is_dead(name) else name for name in names)
    windows = dict.fromkeys(_window(name) for name in filter(_is_dead, names))
    figures = []
    for number, column in enumerate(sorted(found, key=lambda c: [*_COLUMNS, c].index(c))):
        title, definition, is_log = _COLUMNS.get(column, (column, f"{column}, as the run logged it.", False))
        label = f"dead@{next(iter(windows))}" if column == "dead" and len(windows) == 1 else column
        series, rows = [], []
        for run in logged:
            for name in run.metrics.names:
                if name == column or (column == "dead" and _is_dead(name)):
                    of_window = f", dead@{_window(name)}" if column == "dead" and len(windows) > 1 else ""
                    points = run.points(name, over_tokens)
                    series.append(Series(run.name + of_window, points, runs.index(run)))
                    rows.append([series[-1].name, *_course(points[:, 1], run.metrics.of(name).told)])
        plot = curves(f"curve{number}", title, x, Axis(label, is_log), series)
        head = ["run", "points", "first", "lowest", "highest", "last"]
        table = Table(head, rows, [swatch(one.style) for one in series])
        figures.append(Figure(title, definition, plot, table))
    rule = f"Curves keep at most {MAX_POINTS:,} points: first, last, lowest and highest of each stretch."
    thinned = any(run.metrics.n_lines > MAX_POINTS for run in logged)
    return Section("Training", [*[Paragraph(rule)] * thinned, Figures(figures)])


def _course(values: NDArray[np.float64], told: Callable[[np.float64], float]) -> list[float]:
    """How many numbers there are, the first, lowest, highest and last."""
    found = values[~np.isnan(values)]
    return [len(found), *map(told, (found[0], found.min(), found.max(), found[-1]))]


def _trade_off(runs: Sequence[Run]) -> Section | None:
    ends = (_final(run, "held_out_l0") for run in runs), (_final(run, "held_out_fvu") for run in runs)
    known = [(run.name, *both, i) for i, (run, *both) in enumerate(zip(runs, *ends)) if None not in both]
    definition = (
        "Fraction of variance unexplained against latents a token; further down and to the left is better."
    )
    labels = ("held-out l0", "held-out fvu")
    figure = against("tradeoff", "Held-out fvu against l0", definition, labels, known)
    return figure and Section("Reconstruction against sparsity", [figure])


# Weights ----------------------------------------------------------------------------------------------------

_QUANTITIES: dict[str, tuple[str, str, Callable[[SparseAutoencoder], Tensor]]] = {
    "encoder–decoder cosine": (
        "Encoder–decoder cosine",
        "Cosine of a latent's encoder column with its decoder row.",
        geometry.encoder_decoder_cosine,
    ),
    "decoder norm": ("Decoder norms", "‖W_dec[i]‖ of each latent.", geometry.decoder_norms),
    "largest decoder cosine": (
        "Nearest decoder directions",
        "Largest cosine of a latent's decoder row with another's; near 1 for copies.",
        geometry.max_decoder_cosines,
    ),
}


_LEANING = (
    "Mean |cosine| of pairs of decoder rows, of latents that fire, against latents a token. Where it has a "
    "least value, fewer or more latents mix features (arXiv:2508.16560)."
)


def _weights(runs: Sequence[Run], problems: list[str]) -> list[Section]:
    """Sections on weights and firing rates; one SAE is in memory at a time."""
    measured: dict[str, dict[int, Tensor]] = {}
    rates: dict[int, Tensor] = {}
    cosines: list[tuple[str, float, float, int]] = []
    for i, run in enumerate(runs):
        if run.config is None:
            continue
        try:
            sae = SparseAutoencoder.load(run.folder)
            log_rates = load_log_sparsity(run.folder)
        except (ValueError, OSError, SaelensLiteError) as error:
            problems.append(f"{run.name}: no weights: {error}")
            continue
        for name, values in geometry.encoder_biases(sae).items():
            measured.setdefault(name, {})[i] = values
        for name, (_, _, measure) in _QUANTITIES.items():
            measured.setdefault(name, {})[i] = measure(sae)
        if log_rates is not None:
            rates[i] = log_rates
        if (l0 := _final(run, "held_out_l0")) is not None:
            fires = None if log_rates is None else log_rates > NEVER_FIRED
            cosines.append((run.name, l0, mean_decoder_cosine(sae.W_dec.detach(), fires), i))
    figures = []
    for number, (name, values) in enumerate(measured.items()):
        title, definition, _ = _QUANTITIES.get(
            name, (f"Encoder bias {name}", f"{name} of each latent.", None)
        )
        if name == "largest decoder cosine" and any(runs[i].config.d_sae > len(v) for i, v in values.items()):
            of = f"Of more than {geometry.ALL_PAIRS:,} latents"
            definition += f" {of} a random sample, each compared with all others."
        figures.append(_histogram(f"weights{number}", title, definition, name, runs, values))
    known = [of for of in cosines if math.isfinite(of[2])]
    if leaning := against(
        "leaning", "Decoder cosine against l0", _LEANING, ("held-out l0", "mean |cosine|"), known
    ):
        figures.append(leaning)
    sections = [Section("Weights", [Figures(figures)])] if figures else []
    if rates:
        fired = {i: log_rates[log_rates > NEVER_FIRED] for i, log_rates in rates.items()}
        silent = ", ".join(
            f"{runs[i].name} {len(rates[i]) - len(fired[i]):,} of {len(rates[i]):,}" for i in rates
        )
        definition = (
            "log10 of the share of tokens on which a latent fired when sparsity.safetensors was written. "
            f"Never fired: {silent}."
        )
        label = "log10 of the firing rate"
        figure = _histogram("density", "Firing rates", definition, label, runs, fired)
        sections.append(Section("Density", [figure]))
    return sections


def _histogram(
    name: str, title: str, definition: str, label: str, runs: Sequence[Run], values: Mapping[int, Tensor]
) -> Figure:
    """Outlines over common bins; values: number of the run → float[n]."""
    finite = {i: found[found.isfinite()].double() for i, found in values.items()}
    finite = {i: found for i, found in finite.items() if len(found)}
    if not finite:
        return Figure(title, f"{definition} There is nothing to draw.")
    low = min(float(found.min()) for found in finite.values())
    high = max(float(found.max()) for found in finite.values())
    if high - low < 1e-3 * max(abs(low), abs(high)) or high == low:  # all the same, up to rounding
        room = 0.05 * max(abs(low), abs(high)) or 1.0
        low, high = low - room, high + room
    edges = torch.linspace(low, high, N_BINS + 1, dtype=torch.float64).tolist()
    series, rows = [], []
    for i, found in finite.items():
        bins = ((found - low) / (high - low) * N_BINS).long().clamp(0, N_BINS - 1)
        shares = (torch.bincount(bins, minlength=N_BINS).double() / len(found)).tolist()
        outline = [(edges[0], 0.0)]
        for left, right, share in zip(edges, edges[1:], shares):
            outline += [(left, share), (right, share)]
        series.append(Series(runs[i].name, [*outline, (edges[-1], 0.0)], i))
        rows.append([runs[i].name, len(found), float(found.min()), float(found.median()), float(found.max())])
    plot = curves(name, title, Axis(label), Axis("share of latents"), series)
    head = ["run", "latents", "lowest", "median", "highest"]
    return Figure(title, definition, plot, Table(head, rows, [swatch(i) for i in finite]))


def _definitions(names: Sequence[str]) -> Folded:
    texts = {name: _DEFINITIONS[name] for name in names if name in _DEFINITIONS}
    for name in filter(_is_dead, names):
        texts[name] = f"share of the latents silent for the last {name.removeprefix('dead@')} tokens"
    return Folded("What the columns mean", texts)


def _is_dead(column: str) -> bool:
    return column.startswith("dead@")


def _window(column: str) -> str:
    """dead@200000 → 200k"""
    window = column.removeprefix("dead@")
    return window_name(int(window)) if window.isdecimal() else window
