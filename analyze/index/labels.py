"""What people wrote about latents: labels.sqlite beside an index, which a new index leaves alone.

    sae      sha256 TEXT                                       one row: whose latents these are
    labels   latent INTEGER PRIMARY KEY, label TEXT, notes TEXT, starred INTEGER

The file appears with the first label. Labels belong to the SAE's weights, so they hold for any index of it.
What a reader of the HTML page writes there, the page gives as JSON for `Labels.import_json`:

    {"format": "saelens_lite labels", "version": 1, "sae": sha256,
     "labels": [{"latent": 7, "label": "…", "notes": "…", "starred": true}, …]}
"""

from __future__ import annotations

import json
import operator
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelens_lite.errors import FeatureIndexError
from saelens_lite.json_data import loads, misfit
from saelens_lite.misfits import names_misfits

FORMAT, VERSION = "saelens_lite labels", 1
_FORM = {
    "format": str,
    "version": int,
    "sae": str,
    "labels": [{"latent": int, "label": str, "notes": str, "starred": bool}],
}


@dataclass(frozen=True, slots=True)
class Label:
    """label: in a few words what the latent stands for; notes: anything else"""

    latent: int
    label: str
    notes: str = ""
    starred: bool = False


class Labels:
    """The labels of one SAE's latents. sae: its folder.identity

    raises, from every method: FeatureIndexError where the file is of another SAE, or no such file
    """

    @names_misfits
    def __init__(self, path: Path, sae: Mapping[str, Any]) -> None:
        self.path, self._sae = path, sae

    @names_misfits
    def set(self, latent: int, label: str, notes: str = "", starred: bool = False) -> None:
        """Write what a latent stands for, in place of what was written.

        raises: ValueError for a latent out of range, TypeError for one that is no integer
        """
        self._write([Label(operator.index(latent), label, notes, starred)])

    @names_misfits
    def remove(self, latent: int) -> None:
        """Remove the label of a latent, if it has one."""
        if self.path.exists():
            with self._open() as db:
                db.execute("DELETE FROM labels WHERE latent = ?", (operator.index(latent),))

    @names_misfits
    def get(self, latent: int) -> Label | None:
        """The label of a latent, or None."""
        return next(iter(self._select("latent = ?", operator.index(latent))), None)

    def all(self) -> list[Label]:
        """All labels, by latent."""
        return self._select("1")

    def check(self) -> None:
        """raises: FeatureIndexError if the file is damaged"""
        if self.path.exists():
            with self._open() as db:
                found = [line for (line,) in db.execute("PRAGMA integrity_check")]
            if found != ["ok"]:
                raise FeatureIndexError(f"{self.path} is damaged: {'; '.join(found[:3])}")

    @names_misfits
    def search(self, text: str) -> list[Label]:
        """Labels that hold the text in label or notes, whatever the case of ASCII letters, by latent."""
        escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        return self._select("label LIKE ?1 ESCAPE '\\' OR notes LIKE ?1 ESCAPE '\\'", f"%{escaped}%")

    @names_misfits
    def import_json(self, file: str | os.PathLike[str]) -> int:
        """Write what the HTML page exported, in place of what was written; returns how many there were.

        A latent with neither label, notes nor star is forgotten.
        raises: ValueError, and writes nothing, for a file of another kind or SAE, or a latent out of range
        """
        try:
            content = loads(Path(file).read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{file} expected labels that a page of features exported: {error!r}") from error
        if wrong := misfit(content, _FORM):
            raise ValueError(f"{file} expected labels that a page of features exported: {wrong}")
        kind, version, sae = content["format"], content["version"], content["sae"]
        if (kind, version) != (FORMAT, VERSION):
            raise ValueError(
                f"{file} expected {FORMAT!r} version {VERSION}, it states {kind!r} version {version}"
            )
        if sae != self._sae["sha256"]:
            raise ValueError(
                f"{file} holds labels of the SAE {str(sae)[:8]}, this index is of {self._sae['sha256'][:8]}"
            )
        keys = ("latent", "label", "notes", "starred")
        self._write([Label(*map(one.get, keys)) for one in content["labels"]])
        return len(content["labels"])

    def _write(self, labels: list[Label]) -> None:
        """All of them or none."""
        for one in labels:
            if not isinstance(one.latent, int) or not 0 <= one.latent < self._sae["d_sae"]:
                raise ValueError(f"expected a latent from 0 to {self._sae['d_sae'] - 1}, got {one.latent}")
            for text in (one.label, one.notes):
                if not isinstance(text, str):
                    raise TypeError(f"expected label and notes as text, got {type(text).__name__} {text!r}")
                if any("\ud800" <= character <= "\udfff" for character in text):
                    raise ValueError(
                        f"latent {one.latent} expected text, got half of a surrogate pair: {text!r:.80}"
                    )
        with self._open() as db:
            for one in labels:
                if one.label or one.notes or one.starred:
                    values = (one.latent, one.label, one.notes, int(one.starred))
                    db.execute("INSERT OR REPLACE INTO labels VALUES (?, ?, ?, ?)", values)
                else:
                    db.execute("DELETE FROM labels WHERE latent = ?", (one.latent,))

    def _select(self, where: str, *values: Any) -> list[Label]:
        if not self.path.exists():
            return []
        with self._open() as db:
            rows = db.execute(
                f"SELECT latent, label, notes, starred FROM labels WHERE {where} ORDER BY latent", values
            )
            return [Label(latent, label, notes, bool(starred)) for latent, label, notes, starred in rows]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The database in a transaction, its tables made where it is new."""
        try:
            with closing(sqlite3.connect(self.path)) as db, db:
                db.execute("CREATE TABLE IF NOT EXISTS sae (sha256 TEXT)")
                db.execute(
                    "CREATE TABLE IF NOT EXISTS labels "
                    "(latent INTEGER PRIMARY KEY, label TEXT, notes TEXT, starred INTEGER NOT NULL DEFAULT 0)"
                )
                columns = {name for _, name, *_ in db.execute("PRAGMA table_info(labels)")}
                if "starred" not in columns:  # of a first release
                    db.execute("ALTER TABLE labels ADD COLUMN starred INTEGER NOT NULL DEFAULT 0")
                owner = db.execute("SELECT sha256 FROM sae").fetchone()
                if owner is None:
                    db.execute("INSERT INTO sae VALUES (?)", (self._sae["sha256"],))
                elif owner[0] != self._sae["sha256"]:
                    raise FeatureIndexError(
                        f"{self.path} holds labels of the SAE {owner[0][:8]}, this index is of "
                        f"{self._sae['sha256'][:8]}, whose latents are others: move that file away"
                    )
                yield db
        except sqlite3.DatabaseError as error:
            raise FeatureIndexError(
                f"{self.path} cannot be read or written as a file of labels: {error}"
            ) from error
