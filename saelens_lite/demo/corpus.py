"""The source of the Python standard library as a corpus: real text that every installation already has.

The embedded language model was trained on the "train" documents, and its model card's loss is that of the
"held_out" ones. The demo harvests from both; what it calls held out was held out from its SAEs, not from the
language model. A module belongs to one split for good, by a hash of its name, so the split does not move when
Python adds or removes a file.
"""

import random
import sysconfig
import tokenize
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Literal, TypedDict

HELD_OUT_PERCENT = 5

_SKIPPED_FOLDERS = {
    "site-packages", "dist-packages", "__pycache__", "lib-dynload",  # not the standard library, or not source
    "test", "tests", "idle_test", "turtledemo",  # tests and showpieces
    "pydoc_data", "encodings",  # generated help text and character tables
}  # fmt: skip
_SKIPPED_PREFIXES = ("_sysconfigdata", "config-", "_bundled")  # written by one interpreter's build
_SKIPPED_FILES = {"html/entities.py"}  # a table of character names


class Document(TypedDict):
    """One module: its source, and its path below the standard library, e.g. "json/decoder.py"."""

    text: str
    name: str


def is_held_out(name: str) -> bool:
    """Whether the module of this `Document.name` is of the held-out split (about 5 % of the names)."""
    digest = blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 100 < HELD_OUT_PERCENT


def stdlib_documents(split: Literal["train", "held_out", "all"] = "train") -> Iterator[Document]:
    """The modules of the running interpreter's standard library, in the order of their names.

    Line ends are "\\n", empty files are left out.
    raises: ValueError for another split, FileNotFoundError if this Python comes without its source
    """
    if split not in ("train", "held_out", "all"):
        raise ValueError(f"stdlib_documents expected split 'train', 'held_out' or 'all', got {split!r}")
    root = Path(sysconfig.get_paths()["stdlib"])
    names = sorted(filter(_is_wanted, (path.relative_to(root).as_posix() for path in root.rglob("*.py"))))
    if not names:
        raise FileNotFoundError(
            f"expected the source of the Python standard library in {root}, found no module there: this "
            "interpreter was installed without its source; use a regular CPython, or pass a corpus of your "
            "own"
        )
    return _read(
        root, [name for name in names if split == "all" or is_held_out(name) == (split == "held_out")]
    )


def _is_wanted(name: str) -> bool:
    parts = name.split("/")
    return (
        _SKIPPED_FOLDERS.isdisjoint(parts)
        and not any(part.startswith(_SKIPPED_PREFIXES) for part in parts)
        and name not in _SKIPPED_FILES
    )


def _read(root: Path, names: list[str]) -> Iterator[Document]:
    for name in names:
        with tokenize.open(root / name) as file:  # honours the encoding line of the module
            text = file.read()
        if text.strip():
            yield Document(text=text, name=name)


def documents(seed: int = 0) -> list[Document]:
    """All modules in an order drawn by the seed, so that the first ones are a sample."""
    found = list(stdlib_documents("all"))
    random.Random(seed).shuffle(found)
    return found
