"""SAEDashboard's batches, which go to Neuronpedia: one JSON file of NeuronpediaDashboardBatch (0.8.0).

    {"model_id", "layer", "sae_set", "sae_id_suffix", "features": [{"feature_index", the lists of
     dashboards.LISTS, "frac_nonzero", "n_prompts_total", "n_tokens_in_prompt", "dataset", "activations":
     [{"bin_min", "bin_max", "bin_contains", "tokens", "values", "qualifying_token_index"}, …]}, …]}

Numbers have 3 decimals, shares 8; `qualifying_token_index` is a place among the tokens, in files of
SAEDashboard in the prompt: where it shows a part of one, the token stands in the middle of that. Its DFA
values of attention SAEs are not kept.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from saelens_lite.atomic import write_file
from saelens_lite.json_data import loads, misfit

from .dashboards import INTEGERS, LISTS, NUMBERS, TOKENS, Dashboards, Ragged, TextIds, cut, places

_FILE = re.compile(r"batch-(\d{1,9})\.json")
_ACTIVATION = {"tokens": [str], "values": [float], "bin_min": float, "bin_max": float, "bin_contains": float}
_FEATURE = {
    "feature_index": int,
    "frac_nonzero": float,
    **{name: [int] for name in INTEGERS},
    **{name: [str] for name in TOKENS},
    **{name: [float] for name in NUMBERS if name != "vector"},
    "vector?": [float],
    "activations": [_ACTIVATION],
    "n_prompts_total": int,
    "n_tokens_in_prompt": int,
    "dataset": str,
}
_BATCH = {"model_id": str, "layer": int, "sae_set": str, "sae_id_suffix?": str, "features": [_FEATURE]}


def write_batch(dashboards: Dashboards, file: Path) -> None:
    """Write dashboards as a batch."""
    facts = dashboards.facts
    content = {name: facts[name] for name in ("model_id", "layer", "sae_set", "sae_id_suffix")}
    write_file(file, json.dumps(content | {"features": features(dashboards)}, allow_nan=False))


def features(dashboards: Dashboards) -> list[dict[str, Any]]:
    """What a batch says of each latent."""
    facts = {name: dashboards.facts[name] for name in ("n_prompts_total", "n_tokens_in_prompt", "dataset")}
    columns = {
        name: dashboards.list_texts(name) if name in TOKENS else dashboards.rounded(name, 3) for name in LISTS
    }
    tokens = dashboards.window_texts()
    values = cut((np.round(dashboards.acts, 3) + 0.0).tolist(), dashboards.tokens.offsets)
    windows = [
        {
            "bin_min": low,
            "bin_max": high,
            "bin_contains": share,
            "tokens": tokens[i],
            "values": values[i],
            "qualifying_token_index": at,
        }
        for i, ((low, high, share), at) in enumerate(
            zip(dashboards.bins.tolist(), dashboards.at.tolist(), strict=True)
        )
    ]
    shares = (np.round(dashboards.frac_nonzero, 8) + 0.0).tolist()
    return [
        {
            "feature_index": latent,
            **{name: column[i] for name, column in columns.items()},
            "frac_nonzero": shares[i],
            **facts,
            "activations": activations,
        }
        for i, (latent, activations) in enumerate(
            zip(dashboards.latents.tolist(), cut(windows, dashboards.windows), strict=True)
        )
    ]


def batch_paths(folder: Path) -> list[Path]:
    """The files batch-N.json of a folder, in their order."""
    found = [
        (int(name[1]), path) for path in folder.glob("batch-*.json") if (name := _FILE.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


def read_batch(files: list[Path]) -> Dashboards:
    """Dashboards of one SAE's batches. raises: ValueError for a file of another kind or of another SAE"""
    facts: dict[str, Any] | None = None
    found: list[dict[str, Any]] = []
    for file in files:
        try:
            content = loads(file.read_bytes())
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{file} expected the JSON of a batch of SAEDashboard: {error}") from error
        if wrong := misfit(content, _BATCH):
            raise ValueError(f"{file} expected a batch of SAEDashboard: {wrong}")
        features = content["features"]
        if not features:
            raise ValueError(f"{file} expected a batch of SAEDashboard with features, it has none")
        of = {name: content.get(name) for name in ("model_id", "layer", "sae_set", "sae_id_suffix")}
        of |= {name: features[0][name] for name in ("n_prompts_total", "n_tokens_in_prompt", "dataset")}
        if facts is not None and of != facts:
            raise ValueError(
                f"{file} expected a batch of the SAE of {files[0]}, got one of {of}, not of {facts}"
            )
        facts = of
        found += features
    return of_features(found, (facts or {}) | {"hook_name": "", "created_at": ""}, str(files[0]))


def of_features(found: list[dict[str, Any]], facts: dict[str, Any], source: str) -> Dashboards:
    """Dashboards of features as a batch has them. raises: ValueError for tokens without a value each"""
    ids = TextIds()
    lists = {name: Ragged.of([one[name] for one in found], int) for name in INTEGERS}
    lists |= {name: Ragged.of([one.get(name) or [] for one in found], float) for name in NUMBERS}
    lists |= {name: Ragged.of([ids.of(one[name]) for one in found], int) for name in TOKENS}
    windows = [window for one in found for window in one["activations"]]
    for window in windows:
        if len(window["tokens"]) != len(window["values"]) or not window["tokens"]:
            raise ValueError(
                f"{source} expected a value for each token, got {len(window['tokens'])} tokens and "
                f"{len(window['values'])} values"
            )
    acts = Ragged.of([window["values"] for window in windows], float)
    sizes = Ragged.of([one["activations"] for one in found], object).offsets
    bins = [(window["bin_min"], window["bin_max"], window["bin_contains"]) for window in windows]
    values = [window["values"] for window in windows]
    at = places(values, bins, [*map(_qualifying, windows)], [len(of) // 2 for of in values])
    latents = np.array([one["feature_index"] for one in found], dtype=np.int64)
    strongest = [max((max(w["values"]) for w in one["activations"]), default=0.0) for one in found]
    return Dashboards(
        facts=facts,
        latents=latents,
        d_sae=int(latents.max()) + 1,
        frac_nonzero=np.array([one["frac_nonzero"] for one in found], dtype=float),
        largest=np.array([one.get("maxActApprox", most) for one, most in zip(found, strongest)], dtype=float),
        lists=lists,
        windows=sizes,
        bins=np.array(bins, dtype=float).reshape(-1, 3),
        prompt=np.arange(len(windows)),
        position=np.array(at, dtype=np.int64),
        at=np.array(at, dtype=np.int64),
        tokens=Ragged(
            np.array([i for window in windows for i in ids.of(window["tokens"])], dtype=np.int64),
            acts.offsets,
        ),
        acts=acts.values,
        logits=np.zeros(0),
        texts=ids.texts(),
    )


def _qualifying(window: dict[str, Any]) -> int:
    """The place that a file states; -1 for none"""
    at = window.get("qualifying_token_index")
    return at if isinstance(at, int) else -1
