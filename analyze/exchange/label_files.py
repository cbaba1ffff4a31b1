"""Labels as files: JSON and CSV, out and in, and Neuronpedia's explanations, in.

    .json        what a page of features exports too (index/labels.py)
    .csv         a line a latent: latent,label,notes,starred,sae,decoder, where starred is 1 or empty and the
                 last two say whose latents these are; only latent and label must be there
    .jsonl[.gz]  Neuronpedia's explanations/batch-N.jsonl.gz: of each line index, description, typeName and
                 explanationModelName are read

Both of ours are UTF-8 with lines that end in \\n, by latent, so that equal labels are equal bytes.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

from saelens_lite.atomic import check_output, write_file
from saelens_lite.json_data import misfit
from saelens_lite.misfits import names_misfits

from ..index.feature_index import FeatureIndex
from ..index.labels import FORMAT, VERSION, Label
from .neuronpedia import batch_files, json_lines

_COLUMNS = ("latent", "label", "notes", "starred")
_OWNER = ("sae", "decoder")
_EXPLANATION = {"description": str, "typeName?": str, "explanationModelName?": str}


@names_misfits
def export_labels(index: FeatureIndex | str | os.PathLike[str], file: str | os.PathLike[str]) -> int:
    """Write the labels of an index to a .json or .csv file, which `import_labels` reads; returns how many.

    raises: ValueError for another kind of file
    """
    index, file = _opened(index), Path(file)
    check_output(file)
    labels, owner = index.labels.all(), index.labels.owner
    if _kind(file, (".json", ".csv")) == ".json":
        entries = [{name: getattr(label, name) for name in _COLUMNS} for label in labels]
        content = {"format": FORMAT, "version": VERSION, **owner, "labels": entries}
        write_file(file, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    else:
        text = io.StringIO(newline="")
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow((*_COLUMNS, *_OWNER))
        whose = [owner.get(name, "") for name in _OWNER]
        for label in labels:
            lines.writerow((label.latent, label.label, label.notes, "1" * label.starred, *whose))
        write_file(file, text.getvalue())
    return len(labels)


@names_misfits
def import_labels(
    index: FeatureIndex | str | os.PathLike[str], file: str | os.PathLike[str], *, keep: bool = False
) -> int:
    """Write the labels of a file into an index, all of them or none; returns how many.

    file: .json or .csv of `export_labels`, or Neuronpedia's explanations as .jsonl or .jsonl.gz, whose first
        description of a latent becomes its label and the others its notes
    keep: labels that are there stay; otherwise those of the file take their place
    raises: ValueError, and writes nothing, for a file of another kind or another SAE, a latent out of range
        or a text that holds half of a surrogate pair
    """
    index, file = _opened(index), Path(file)
    kind = _kind(file, (".json", ".csv", ".jsonl", ".jsonl.gz"))
    if kind == ".json":
        found = index.labels.read_json(file)
    else:
        found = _of_csv(index, file) if kind == ".csv" else _of_explanations(file)
    if keep:
        there = {label.latent for label in index.labels.all()}
        found = [label for label in found if label.latent not in there]
    try:
        index.labels.set_all(found)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error}") from error
    return len(found)


def _opened(index: FeatureIndex | str | os.PathLike[str]) -> FeatureIndex:
    return FeatureIndex.open(index) if isinstance(index, str | os.PathLike) else index


def _kind(file: Path, kinds: tuple[str, ...]) -> str:
    for kind in kinds:
        if file.name.lower().endswith(kind):
            return kind
    raise ValueError(f"{file} expected a name that ends in {' or '.join(kinds)}: it says what the file is")


def _of_csv(index: FeatureIndex, file: Path) -> list[Label]:
    try:
        with open(file, encoding="utf-8-sig", newline="") as text:
            lines = [*csv.DictReader(text, strict=True)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} expected labels as CSV in UTF-8: {error}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not {"latent", "label"} <= line.keys():
            raise ValueError(f"{file} expected columns latent and label, got {', '.join(map(str, line))}")
        if None in line or not re.fullmatch("[0-9]{1,18}", line["latent"] or ""):
            raise ValueError(
                f"{file} entry {number} expected a latent and its label, got {[*line.values()]!r:.80}"
            )
        index.labels.check_owner(file, *(line.get(name) or None for name in _OWNER))
        texts = (line["label"] or "", line.get("notes") or "")
        found.append(Label(int(line["latent"]), *texts, line.get("starred") not in (None, "", "0")))
    return found


def labels_of_folder(folder: Path) -> list[Label]:
    """The labels of all batches of a folder of Neuronpedia's explanations."""
    return [label for file in batch_files(folder) for label in _of_explanations(file)]


def _of_explanations(file: Path) -> list[Label]:
    """A label for each latent that Neuronpedia has descriptions of, by latent."""
    found: dict[int, Label] = {}
    for number, row in enumerate(json_lines(file), start=1):
        if wrong := misfit(row, _EXPLANATION):
            raise ValueError(f"{file} line {number} expected an explanation of Neuronpedia: {wrong}")
        if not re.fullmatch("[0-9]{1,18}", str(row.get("index"))):
            raise ValueError(
                f"{file} line {number} expected the index of a latent, got {row.get('index')!r:.80}"
            )
        latent, text = int(row["index"]), row["description"].strip()
        by = " by ".join(filter(None, (row.get("typeName"), row.get("explanationModelName"))))
        if latent in found:
            note = f"{text} ({by})" if by else text
            found[latent] = replace(found[latent], notes=f"{found[latent].notes}\n{note}".strip())
        else:
            found[latent] = Label(latent, text, by)
    return [label for _, label in sorted(found.items())]
