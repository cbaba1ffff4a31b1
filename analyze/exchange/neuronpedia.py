"""Neuronpedia's export of a source: a folder of JSON lines, as neuronpedia.org publishes them.

    {model}/{layer}-{set}[__suffix]/
        release.jsonl, model.jsonl, sourceset.jsonl, source.jsonl    one row each
        features/batch-N.jsonl.gz       a row a latent, BATCH_LATENTS a file
        activations/batch-N.jsonl.gz    a row a window, of the same latents
        explanations/batch-N.jsonl.gz   a row a label; label_files.py reads it

The rows hold the columns of Neuronpedia's own tables (FEATURE, ACTIVATION). Numbers and lists are those of
saedashboard_batch.py; `index` is text.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saelens_lite.atomic import write_file
from saelens_lite.json_data import loads, misfit

from ..index.labels import Label
from .dashboards import LISTS, Dashboards
from .saedashboard_batch import features, of_features

BATCH_LATENTS = 1024
CREATOR = "saelens_lite"
_BATCH_FILE = re.compile(r"batch-(\d{1,9})\.jsonl(\.gz)?")
_FACTS = ("n_prompts_total", "n_tokens_in_prompt", "dataset", "hook_name", "created_at")
_FEATURE = {
    "modelId": str,
    "layer": str,
    "maxActApprox": float,
    "frac_nonzero": float,
    "hookName?": str,
    "sourceSetName?": str,
    "createdAt?": str,
    "pos_str": [str],
    "neg_str": [str],
    **{f"{name}?": [float] for name in LISTS if name not in ("pos_str", "neg_str")},
}
_ACTIVATION = {
    "tokens": [str],
    "values": [float],
    "binMin?": float,
    "binMax?": float,
    "binContains?": float,
    "qualifyingTokenIndex?": int,
    "dataSource?": str,
}


def write_source(dashboards: Dashboards, folder: Path, labels: list[Label]) -> Path:
    """Write dashboards and labels as the export of a source; returns its folder below `folder`."""
    facts = dashboards.facts
    source = f"{facts['layer']}-{facts['sae_set']}" + (
        f"__{facts['sae_id_suffix']}" if facts["sae_id_suffix"] else ""
    )
    own = {"modelId": facts["model_id"], "layer": source}
    made = {"creatorId": CREATOR, "createdAt": facts["created_at"]}
    place = folder / _name(facts["model_id"]) / _name(source)
    released = {"releaseName": facts["sae_set"]}
    heads = {
        "release": {"name": facts["sae_set"], "description": facts["sae_set"], **made},
        "model": {"id": facts["model_id"], "displayName": facts["model_id"], **made},
        "sourceset": {"modelId": facts["model_id"], "name": facts["sae_set"], **released, **made},
        "source": {
            "id": source, "modelId": facts["model_id"], "setName": facts["sae_set"], "hasDashboards": True,
            "dataset": facts["dataset"], "hookName": facts["hook_name"],
            "num_prompts": facts["n_prompts_total"], "num_tokens_in_prompt": facts["n_tokens_in_prompt"],
            **made,
        },
    }  # fmt: skip
    for name, row in heads.items():
        write_file(place / f"{name}.jsonl", json.dumps(row, allow_nan=False) + "\n")
    largest = dashboards.largest.round(3).tolist()
    of = [*zip(features(dashboards), largest, strict=True)]
    for first in range(0, len(of), BATCH_LATENTS):
        batch = of[first : first + BATCH_LATENTS]
        name = f"batch-{first // BATCH_LATENTS}.jsonl.gz"
        _write_lines(place / "features" / name, (_feature(*one, own, made, facts) for one in batch))
        rows = (
            _activation(window, number, one["feature_index"], own, made, facts)
            for one, _ in batch
            for number, window in enumerate(one["activations"])
        )
        _write_lines(place / "activations" / name, rows)
    explained = [
        own
        | {"index": str(label.latent), "authorId": CREATOR, "description": label.label}
        | {"typeName": "", "explanationModelName": ""}
        for label in labels
        if label.label
    ]
    if explained:
        _write_lines(place / "explanations" / "batch-0.jsonl.gz", iter(explained))
    return place


def _name(text: str) -> str:
    """A text as the name of a file: it may come from data, so it leads nowhere else."""
    return re.sub(r"[^\w.-]", "_", text).lstrip(".")[:200] or "_"


def _feature(one: dict[str, Any], largest: float, own: dict, made: dict, facts: dict) -> dict[str, Any]:
    has_vector = bool(one["vector"])
    return {
        **own,
        "index": str(one["feature_index"]),
        "sourceSetName": facts["sae_set"],
        **made,
        "maxActApprox": largest,
        "hasVector": has_vector,
        "vectorLabel": None,
        "vectorDefaultSteerStrength": largest if has_vector else None,
        "hookName": facts["hook_name"],
        "topkCosSimIndices": [],
        "topkCosSimValues": [],
        **{name: one[name] for name in LISTS},
        "frac_nonzero": one["frac_nonzero"],
    }


def _activation(
    window: dict[str, Any], number: int, latent: int, own: dict, made: dict, facts: dict
) -> dict[str, Any]:
    values = window["values"]
    largest = max(values)
    key = json.dumps([own, latent, number, facts["created_at"]]).encode()
    return {
        "id": hashlib.sha256(key).hexdigest()[:24],
        **own,
        "index": str(latent),
        **made,
        "dataSource": facts["dataset"],
        "dataIndex": str(number),
        "tokens": window["tokens"],
        "values": values,
        "maxValue": largest,
        "maxValueTokenIndex": values.index(largest),
        "minValue": min(values),
        "dfaValues": [],
        "dfaMaxValue": None,
        "dfaTargetIndex": None,
        "lossValues": [],
        "logitContributions": None,
        "binMin": window["bin_min"],
        "binMax": window["bin_max"],
        "binContains": window["bin_contains"],
        "qualifyingTokenIndex": window["qualifying_token_index"],
    }


def _write_lines(file: Path, rows: Iterator[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    # level 6 and no clock: equal rows are equal bytes
    write_file(file, gzip.compress(text.encode(), compresslevel=6, mtime=0))


def source_folder(folder: Path) -> Path:
    """The one folder at or below this one that holds a source. raises: ValueError for none, or for several"""
    places = (folder, *sorted(folder.glob("*")), *sorted(folder.glob("*/*")))
    found = [place for place in places if (place / "features").is_dir()]
    if len(found) != 1:
        raise ValueError(
            f"{folder} expected the export of one source of Neuronpedia, a folder with features/ and "
            f"activations/ in it, found {len(found)}: name one"
        )
    return found[0]


def read_source(folder: Path) -> tuple[Dashboards, Path | None]:
    """Dashboards of the export of a source, and its explanations.

    raises: ValueError for a folder of another kind, or rows of several sources
    """
    place = source_folder(folder)
    rows = _rows(place, "features", _FEATURE)
    if not rows:
        raise ValueError(f"{place} expected features of Neuronpedia, it has none")
    if len({(row["modelId"], row["layer"]) for row in rows}) > 1:
        raise ValueError(f"{place} expected features of one source of one model, it has several")
    windows: dict[int, list[dict[str, Any]]] = {}
    for row in _rows(place, "activations", _ACTIVATION):
        # missing in older exports: whatever a window was chosen for, it is shown as one of the strongest
        largest = max(row["values"], default=0.0)
        window = {"tokens": row["tokens"], "values": row["values"]}
        window["bin_min"] = row["binMin"] if row.get("binMin") is not None else -1
        window["bin_max"] = row["binMax"] if row.get("binMax") is not None else largest
        window["bin_contains"] = row["binContains"] if row.get("binContains") is not None else -1
        window["qualifying_token_index"] = row.get("qualifyingTokenIndex")
        windows.setdefault(row["index"], []).append(window)
    found = [
        {name: row.get(name) or [] for name in LISTS}
        | {"feature_index": row["index"], "activations": windows.get(row["index"], [])}
        | {name: row[name] for name in ("maxActApprox", "frac_nonzero")}
        for row in rows
    ]
    head = rows[0]
    layer, _, name = head["layer"].partition("-")
    suffix = name.partition("__")[2]
    set_name = head.get("sourceSetName") or name.partition("__")[0]
    facts = {
        "model_id": head["modelId"],
        "layer": int(layer) if layer.isdecimal() else 0,
        "sae_set": set_name,
    }
    source = _head(place / "source.jsonl")
    facts |= {"sae_id_suffix": suffix or None, "hook_name": head.get("hookName") or ""}
    facts |= {"dataset": str(source.get("dataset") or ""), "created_at": head.get("createdAt") or ""}
    for ours, theirs in (("n_prompts_total", "num_prompts"), ("n_tokens_in_prompt", "num_tokens_in_prompt")):
        facts[ours] = source[theirs] if isinstance(source.get(theirs), int) else 0
    explanations = place / "explanations"
    return of_features(found, facts, str(place)), explanations if explanations.is_dir() else None


def batch_files(folder: Path) -> list[Path]:
    """The files of a folder of batches, in their order."""
    found = [
        (int(name[1]), path) for path in folder.glob("batch-*") if (name := _BATCH_FILE.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


def _head(file: Path) -> dict[str, Any]:
    """The row of a file of one row; {} where there is none to read."""
    rows = [*json_lines(file)] if file.is_file() else []
    return rows[0] if rows and isinstance(rows[0], dict) else {}


def _rows(place: Path, kind: str, form: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of all batches, with their index as a number."""
    found = []
    for file in batch_files(place / kind):
        for number, row in enumerate(json_lines(file), start=1):
            if wrong := misfit(row, form):
                raise ValueError(f"{file} line {number} expected a row of Neuronpedia's {kind}: {wrong}")
            if not re.fullmatch("[0-9]{1,18}", str(row.get("index"))):
                raise ValueError(
                    f"{file} line {number} expected the index of a latent, got {row.get('index')!r:.80}"
                )
            found.append(row | {"index": int(row["index"])})
    return found


def json_lines(file: Path) -> Iterator[Any]:
    """The JSON of each line. raises: ValueError naming file and line"""
    content = file.read_bytes()
    if file.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{file} expected a gzip file: {error}") from error
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            try:
                yield loads(line)
            except (UnicodeDecodeError, json.JSONDecodeError) as error:
                raise ValueError(f"{file} line {number} expected a JSON object: {error}") from error
