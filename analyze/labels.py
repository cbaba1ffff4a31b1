"""What people wrote about latents: labels and notes in labels.sqlite beside an index, which a new index leaves alone.

    sae      sha256 TEXT                                       one row: whose latents these are
    labels   latent INTEGER PRIMARY KEY, label TEXT, notes TEXT

The file appears with the first label. Labels belong to the SAE's weights, not to a store, so they hold for any index of it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelens_lite.errors import FeatureIndexError


@dataclass(frozen=True, slots=True)
class Label:
    """label: in a few words what the latent stands for; notes: anything else"""

    latent: int
    label: str
    notes: str = ""


class Labels:
    """The labels of one SAE's latents.

    path: of the sqlite file
    sae: what the SAE is (indexfile.identity)
    raises, from every method: FeatureIndexError where the file is of another SAE, or no such file
    """

    def __init__(self, path: Path, sae: Mapping[str, Any]) -> None:
        self.path, self._sae = path, sae

    def set(self, latent: int, label: str, notes: str = "") -> None:
        """Write what a latent stands for, in place of what was written. raises: ValueError for a latent out of range"""
        if not 0 <= latent < self._sae["d_sae"]:
            raise ValueError(f"expected a latent from 0 to {self._sae['d_sae'] - 1}, got {latent}")
        with self._open() as db:
            db.execute("INSERT OR REPLACE INTO labels VALUES (?, ?, ?)", (int(latent), label, notes))

    def remove(self, latent: int) -> None:
        """Forget what was written about a latent; nothing if there is nothing."""
        if self.path.exists():
            with self._open() as db:
                db.execute("DELETE FROM labels WHERE latent = ?", (int(latent),))

    def get(self, latent: int) -> Label | None:
        """What was written about a latent, or None."""
        return next(iter(self._select("latent = ?", int(latent))), None)

    def all(self) -> list[Label]:
        """Everything, by latent."""
        return self._select("1")

    def search(self, text: str) -> list[Label]:
        """Labels that hold the text in label or notes, whatever the case of ASCII letters, by latent."""
        escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        return self._select("label LIKE ?1 ESCAPE '\\' OR notes LIKE ?1 ESCAPE '\\'", f"%{escaped}%")

    def _select(self, where: str, *values: Any) -> list[Label]:
        if not self.path.exists():
            return []
        with self._open() as db:
            rows = db.execute(f"SELECT latent, label, notes FROM labels WHERE {where} ORDER BY latent", values)
            return [Label(*row) for row in rows]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The database in a transaction, its tables made where it is new."""
        try:
            with closing(sqlite3.connect(self.path)) as db, db:
                db.execute("CREATE TABLE IF NOT EXISTS sae (sha256 TEXT)")
                db.execute("CREATE TABLE IF NOT EXISTS labels (latent INTEGER PRIMARY KEY, label TEXT, notes TEXT)")
                owner = db.execute("SELECT sha256 FROM sae").fetchone()
                if owner is None:
                    db.execute("INSERT INTO sae VALUES (?)", (self._sae["sha256"],))
                elif owner[0] != self._sae["sha256"]:
                    raise FeatureIndexError(
                        f"{self.path} holds labels of the SAE {owner[0][:8]}, this index is of {self._sae['sha256'][:8]}: "
                        "their latents have nothing in common; move that file away"
                    )
                yield db
        except sqlite3.DatabaseError as error:
            raise FeatureIndexError(f"{self.path} cannot be read or written as a file of labels: {error}") from error
