"""SAEDashboard's SaeVisData, which feeds its HTML viewer: the JSON of `save_json` and `load_json` (0.8.0).

    {"feature_data_dict": {"7": {"feature_tables_data", "acts_histogram_data", "logits_table_data",
     "logits_histogram_data", "sequence_data": {"seq_group_data": [{"title", "seq_data": [{"original_index",
     "qualifying_token_index", "token_ids", "feat_acts", "token_logits", …}, …]}, …]}, …}, …},
     "feature_stats"}

Tokens are ids, so reading one needs a tokenizer for texts. Intervals, shares and the largest activation stand
in titles ("INTERVAL 0.100 - 0.200<br>CONTAINS 1.000%"). The viewer marks the middle token of a window, so
windows are cut to equal sides; where SAEDashboard shows whole prompts, they lack the first token and
`qualifying_token_index` counts it. Quantiles for its view by prompts are left empty.
"""

from __future__ import annotations

import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from saelens_lite.atomic import write_file
from saelens_lite.json_data import loads, misfit

from .dashboards import Dashboards, Ragged, cut, places

_TABLES = {
    name: name.replace("_l1", "_cossim") if name.startswith("correlated") else name
    for name in (
        "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1",
        "correlated_neurons_indices", "correlated_neurons_pearson", "correlated_neurons_l1",
        "correlated_features_indices", "correlated_features_pearson", "correlated_features_l1",
    )
}  # fmt: skip
"""The lists of the tables, by their names in batches."""
_HISTOGRAM = {"bar_heights": [float], "bar_values": [float], "title?": str}
_WINDOW = {
    "original_index": int, "qualifying_token_index": int,
    "token_ids": [int], "feat_acts": [float], "token_logits": [float],
}  # fmt: skip
_FEATURE = {
    "feature_tables_data": {theirs: [int if "indices" in theirs else float] for theirs in _TABLES.values()},
    "acts_histogram_data": _HISTOGRAM,
    "logits_histogram_data": _HISTOGRAM,
    "logits_table_data": {
        f"{end}_{what}": [int if what == "token_ids" else float]
        for end in ("top", "bottom")
        for what in ("token_ids", "logits")
    },
    "sequence_data": {"seq_group_data": [{"title": str, "seq_data": [_WINDOW]}]},
}
_VIS = {"feature_data_dict": {"*": _FEATURE}, "feature_stats": {"max": [float], "frac_nonzero": [float]}}
_NO_PROMPT = {
    "original_index": 0, "qualifying_token_index": 0, "token_ids": [], "feat_acts": [],
    "loss_contribution": [], "token_logits": [],
    "top_token_ids": [], "top_logits": [], "bottom_token_ids": [], "bottom_logits": [],
}  # fmt: skip
_PRECISIONS = [[[0.0, 0.95], 3], [[0.95, 0.99], 4], [[0.99, 1.0], 5]]


def write_vis(dashboards: Dashboards, file: Path) -> None:
    """Write dashboards as SaeVisData. raises: ValueError for dashboards without a logit lens"""
    lists = dashboards.lists
    if len(lists["pos_values"].values) == 0:
        raise ValueError(
            "saedashboard-vis expected an index with the logit lens, which its viewer relies on: "
            "`saelens-lite analyze` with the same --sae, --store and --index, and --model adds it"
        )
    tables = {theirs: dashboards.rounded(ours, 5) for ours, theirs in _TABLES.items()}
    tables |= {
        f"correlated_b_features_{of}": [[]] * len(dashboards.latents)
        for of in ("indices", "pearson", "cossim")
    }
    logits_table = {
        f"{theirs}_{name}": column
        for ours, theirs in (("neg", "bottom"), ("pos", "top"))
        for name, column in (
            ("token_ids", lists[f"{ours}_str"].lists()),
            ("logits", dashboards.rounded(f"{ours}_values", 5)),
        )
    }
    histograms = {
        name: [dashboards.rounded(f"{name}_hist_data_bar_{part}", 5) for part in ("heights", "values")]
        for name in ("freq", "logits")
    }  # fmt: skip
    groups = cut(_sequences(dashboards), dashboards.windows)
    content = {}
    for i, latent in enumerate(dashboards.latents.tolist()):
        share = f"ACTIVATIONS<br>DENSITY = {dashboards.frac_nonzero[i]:.3%}"
        content[str(latent)] = {
            "feature_tables_data": {name: column[i] for name, column in tables.items()},
            "acts_histogram_data": _histogram(*(part[i] for part in histograms["freq"]), share),
            "logits_table_data": {name: column[i] for name, column in logits_table.items()},
            "logits_histogram_data": _histogram(*(part[i] for part in histograms["logits"]), None),
            "sequence_data": {
                "seq_group_data": [
                    {"title": title, "seq_data": [window for _, window in windows]}
                    for title, windows in groupby(groups[i], key=lambda pair: pair[0])
                ]
            },
            "prompt_data": _NO_PROMPT,
            "dfa_data": {},
            "decoder_weights_data": None,
        }
    write_file(
        file, json.dumps({"feature_data_dict": content, "feature_stats": _stats(dashboards)}, allow_nan=False)
    )


def _histogram(heights: list[float], values: list[float], title: str | None) -> dict[str, Any]:
    largest = max(map(abs, values), default=0.0)
    ticks = [round(largest * step / 3, 1) for step in range(4)] if values else []
    negative = [-tick for tick in reversed(ticks[1:]) if values and -tick >= values[0]]
    return {"bar_heights": heights, "bar_values": values, "tick_vals": negative + ticks, "title": title}


def _sequences(dashboards: Dashboards) -> list[tuple[str, dict[str, Any]]]:
    """The title of its group, and what is written of it, for every window."""
    starts, ends = dashboards.tokens.offsets[:-1], dashboards.tokens.offsets[1:]
    side = np.minimum(dashboards.at, ends - starts - dashboards.at - 1)
    first = (starts + dashboards.at - side).tolist()
    last = (starts + dashboards.at + side + 1).tolist()
    ids = dashboards.tokens.values.tolist()
    acts = (np.round(dashboards.acts, 4) + 0.0).tolist()
    logits = (np.round(dashboards.logits, 5) + 0.0).tolist() if len(dashboards.logits) else [0.0] * len(ids)
    bins, prompt, position = (of.tolist() for of in (dashboards.bins, dashboards.prompt, dashboards.position))
    return [
        (
            _title(*bins[i]),
            _NO_PROMPT
            | {
                "original_index": prompt[i],
                "qualifying_token_index": position[i],
                "token_ids": ids[a:b],
                "feat_acts": acts[a:b],
                "token_logits": logits[a:b],
            },
        )
        for i, (a, b) in enumerate(zip(first, last, strict=True))
    ]


def _title(low: float, high: float, share: float) -> str:
    if low == -1:
        return f"TOP ACTIVATIONS<br>MAX = {high:.3f}"
    return f"INTERVAL {low:.3f} - {high:.3f}<br>CONTAINS {share:.3%}"


_TITLE = re.compile(
    r"TOP ACTIVATIONS<br>MAX = (-?[\d.]+)|INTERVAL (-?[\d.]+) - (-?[\d.]+)<br>CONTAINS ([\d.]+)%"
)


def _bins(title: str, file: Path) -> tuple[float, float, float]:
    """The interval that a title names."""
    found = _TITLE.fullmatch(title)
    if not found:
        raise ValueError(f"{file} expected the title of a group of activations, got {title!r:.80}")
    if found[1]:
        return -1.0, float(found[1]), -1.0
    return float(found[2]), float(found[3]), round(float(found[4]) / 100, 5)


def _stats(dashboards: Dashboards) -> dict[str, Any]:
    quantiles = [q for (start, end), p in _PRECISIONS for q in np.arange(start, end - 0.5 * 10**-p, 10**-p)]
    return {
        "max": (np.round(dashboards.largest, 5) + 0.0).tolist(),
        "frac_nonzero": (np.round(dashboards.frac_nonzero, 8) + 0.0).tolist(),
        "skew": [],
        "kurtosis": [],
        "quantile_data": [[] for _ in dashboards.latents],
        "quantiles": [round(float(q), 6) for q in [*quantiles, 1.0]],
        "ranges_and_precisions": _PRECISIONS,
    }


def read_vis(file: Path) -> Dashboards:
    """Dashboards of SaeVisData, their tokens without text. raises: ValueError for a file of another kind"""
    try:
        content = loads(file.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} expected the JSON of SaeVisData: {error}") from error
    if wrong := misfit(content, _VIS):
        raise ValueError(f"{file} expected SaeVisData of SAEDashboard: {wrong}")
    names, found = [*content["feature_data_dict"]], [*content["feature_data_dict"].values()]
    stats = content["feature_stats"]
    if not found or not all(re.fullmatch("[0-9]{1,18}", name) for name in names):
        raise ValueError(
            f"{file} expected SaeVisData of SAEDashboard with latents by number, got {names[:3]}"
        )
    if not len(stats["max"]) == len(stats["frac_nonzero"]) == len(found):
        raise ValueError(f"{file} expected feature_stats of {len(found)} features, got {len(stats['max'])}")
    tables = [one["feature_tables_data"] for one in found]
    lists = {
        ours: Ragged.of([one[theirs] for one in tables], int if "indices" in ours else float)
        for ours, theirs in _TABLES.items()
    }
    for name, theirs in (("freq", "acts_histogram_data"), ("logits", "logits_histogram_data")):
        for part in ("bar_heights", "bar_values"):
            lists[f"{name}_hist_data_{part}"] = Ragged.of([one[theirs][part] for one in found], float)
    for ours, theirs in (("neg", "bottom"), ("pos", "top")):
        for name, part, kind in (("str", "token_ids", int), ("values", "logits", float)):
            column = [one["logits_table_data"][f"{theirs}_{part}"] for one in found]
            lists[f"{ours}_{name}"] = Ragged.of(column, kind)
    lists |= {name: Ragged.empty(len(found), float) for name in ("decoder_weights_dist", "vector")}
    groups = [one["sequence_data"]["seq_group_data"] for one in found]
    windows = [(_bins(group["title"], file), w) for of in groups for group in of for w in group["seq_data"]]
    for _, window in windows:
        if not len(window["token_ids"]) == len(window["feat_acts"]) == len(window["token_logits"]) > 0:
            raise ValueError(f"{file} expected an activation and a logit for each token of a window")
    tokens = Ragged.of([window["token_ids"] for _, window in windows], int)
    values, bins = [window["feat_acts"] for _, window in windows], [of for of, _ in windows]
    of_prompt = [window["qualifying_token_index"] - 1 for _, window in windows]
    at = places(values, bins, [len(of) // 2 for of in values], of_prompt)
    sizes = np.array([sum(len(group["seq_data"]) for group in of) for of in groups], dtype=np.int64)
    latents = np.array([*map(int, names)], dtype=np.int64)
    used = np.unique(np.concatenate([tokens.values, lists["pos_str"].values, lists["neg_str"].values]))
    facts = {"model_id": "", "layer": 0, "sae_set": "", "sae_id_suffix": None, "hook_name": "", "dataset": ""}
    return Dashboards(
        facts=facts | {"n_prompts_total": 0, "n_tokens_in_prompt": 0, "created_at": ""},
        latents=latents,
        d_sae=int(latents.max()) + 1,
        frac_nonzero=np.array(stats["frac_nonzero"], dtype=float),
        largest=np.array(stats["max"], dtype=float),
        lists=lists,
        windows=np.concatenate([[0], sizes.cumsum()]),
        bins=np.array(bins, dtype=float).reshape(-1, 3),
        prompt=np.array([window["original_index"] for _, window in windows], dtype=np.int64),
        position=np.array([window["qualifying_token_index"] for _, window in windows], dtype=np.int64),
        at=np.array(at, dtype=np.int64),
        tokens=tokens,
        acts=Ragged.of(values, float).values,
        logits=Ragged.of([window["token_logits"] for _, window in windows], float).values,
        texts={int(i): f"<{i}>" for i in used},
    )
