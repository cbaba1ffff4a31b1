"""What people wrote about latents: labels.sqlite beside an index, which a new index leaves alone.

    sae      sha256 TEXT, decoder TEXT                         one row: whose latents these are
    labels   latent INTEGER PRIMARY KEY, label TEXT, notes TEXT, starred INTEGER

The file appears with the first label. Labels belong to the SAE's latents, so they hold for any index of it,
and for an SAE that was imported or converted, whose decoder is the same (folder.decoder_identity). What a
reader of the HTML page writes there, the page gives as JSON for `Labels.import_json`:

    {"format": "saelens_lite labels", "version": 1, "sae": sha256, "decoder": sha256 (may be missing),
     "labels": [{"latent": 7, "label": "…", "notes": "…", "starred": true}, …]}
"""

from __future__ import annotations

import json
import operator
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
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
    "decoder?": str,
    "labels": [{"latent": int, "label": str, "notes": str, "starred": bool}],
}

_LATER_COLUMNS = (("labels", "starred", "INTEGER NOT NULL DEFAULT 0"), ("sae", "decoder", "TEXT"))
"""What files of earlier releases lack: table, column and its type."""


@dataclass(frozen=True, slots=True)
class Label:
    """label: in a few words what the latent stands for; notes: anything else"""

    latent: int
    label: str
    notes: str = ""
    starred: bool = False


class Labels:
    """The labels of one SAE's latents. sae: its folder.identity, and its decoder_identity as "decoder" where
    that is known

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
        self.set_all([Label(operator.index(latent), label, notes, starred)])

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
        labels = self.read_json(file)
        self.set_all(labels)
        return len(labels)

    @names_misfits
    def read_json(self, file: str | os.PathLike[str]) -> list[Label]:
        """The labels of a file that a page or `export_labels` wrote. raises: ValueError as `import_json`"""
        try:
            content = loads(Path(file).read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{file} expected labels that a page of features exported: {error!r}") from error
        if wrong := misfit(content, _FORM):
            raise ValueError(f"{file} expected labels that a page of features exported: {wrong}")
        kind, version = content["format"], content["version"]
        if (kind, version) != (FORMAT, VERSION):
            raise ValueError(
                f"{file} expected {FORMAT!r} version {VERSION}, it states {kind!r} version {version}"
            )
        self.check_owner(file, content["sae"], content.get("decoder"))
        keys = ("latent", "label", "notes", "starred")
        return [Label(*map(one.get, keys)) for one in content["labels"]]

    @property
    def owner(self) -> dict[str, str]:
        """Whose latents these are: sha256 of the SAE, and of its decoder where that is known."""
        known = {"sae": self._sae["sha256"], "decoder": self._sae.get("decoder")}
        return {name: value for name, value in known.items() if value}

    @names_misfits
    def check_owner(self, file: str | os.PathLike[str], sae: str | None, decoder: str | None) -> None:
        """raises: ValueError for a file that says it holds labels of an SAE with another decoder"""
        if (sae or decoder) and not self._is_owner(sae, decoder):
            raise ValueError(
                f"{file} holds labels of the SAE {str(sae or decoder)[:8]}, this index is of "
                f"{self._sae['sha256'][:8]}"
            )

    def _is_owner(self, sae: str | None, decoder: str | None) -> bool:
        return sae == self._sae["sha256"] or (decoder is not None and decoder == self._sae.get("decoder"))

    @names_misfits
    def set_all(self, labels: Iterable[Label]) -> None:
        """Write several labels in place of what was written: all of them or none. One with neither label,
        notes nor star is forgotten.

        raises: ValueError for a latent out of range, or half of a surrogate pair; TypeError for what is no
            text
        """
        labels = list(labels)
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
                db.execute("CREATE TABLE IF NOT EXISTS sae (sha256 TEXT, decoder TEXT)")
                db.execute(
                    "CREATE TABLE IF NOT EXISTS labels "
                    "(latent INTEGER PRIMARY KEY, label TEXT, notes TEXT, starred INTEGER NOT NULL DEFAULT 0)"
                )
                for table, column, kind in _LATER_COLUMNS:
                    if column not in {name for _, name, *_ in db.execute(f"PRAGMA table_info({table})")}:
                        db.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
                ours = (self._sae["sha256"], self._sae.get("decoder"))
                owner = db.execute("SELECT sha256, decoder FROM sae").fetchone()
                if owner is None:
                    db.execute("INSERT INTO sae VALUES (?, ?)", ours)
                elif not self._is_owner(*owner):
                    raise FeatureIndexError(
                        f"{self.path} holds labels of the SAE {owner[0][:8]}, this index is of "
                        f"{self._sae['sha256'][:8]}, whose latents are others: move that file away"
                    )
                elif owner[1] is None and ours[1] is not None:
                    db.execute("UPDATE sae SET decoder = ?", ours[1:])
                yield db
        except sqlite3.DatabaseError as error:
            raise FeatureIndexError(
                f"{self.path} cannot be read or written as a file of labels: {error}"
            ) from error
