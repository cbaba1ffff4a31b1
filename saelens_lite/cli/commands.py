"""The command line: `saelens-lite COMMAND`, one of COMMANDS.

A command is a file: its configuration, which tyro turns into flags, and `run`, which prints what was made,
where, and what to type next. The file loads when its command runs, so this overview costs nothing. What the
user can put right is one line on stderr and exit code 2; --traceback or SAELENS_LITE_TRACEBACK=1 shows where
it came from.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

from saelens_lite.errors import SaelensLiteError, nearest

COMMANDS = {
    "demo": "The whole way on a small embedded model, in three minutes",
    "harvest": "Text through a language model: its activations into a store",
    "add-hook-points": "Further hook points for a store, from its stored tokens",
    "verify": "Whether every bit of a store is as it was written; mends what is not",
    "train": "A sparse autoencoder, or a grid of them, from the rows of a store, or straight from a model",
    "evaluate": "fvu, l0, dead latents and the cost in cross-entropy, with their controls",
    "analyze": "Every latent in one pass: an index to search, and the strongest firings as one HTML page",
    "search": "Latents of an index by token, text, regex, direction, number or label",
    "probe": "How well few latents tell labelled texts apart, beside the activations themselves",
    "report": "What training runs did, beside each other, as one HTML page",
    "study": "Latents of what the model knows, edited: does it then hallucinate, or refuse?",
}
"""Each command and what it does. A command is the file of its name, whose `run` takes the words behind it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for a store with problems or without room, 2 for what the
    user can put right, 130 after Ctrl-C."""
    args = list(sys.argv[1:] if argv is None else argv)
    traceback = "--traceback" in args or os.environ.get("SAELENS_LITE_TRACEBACK", "0") not in ("", "0")
    args = [arg for arg in args if arg != "--traceback"]
    if not args or args[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if args[0] == "--version":
        from saelens_lite import __version__

        print(f"saelens-lite {__version__}")
        return 0
    _share_the_cores()
    try:
        if args[0] not in COMMANDS:
            raise ValueError(
                f"no command {args[0]!r}{nearest(args[0], COMMANDS)}; there are {', '.join(COMMANDS)}"
            )
        with _logging():
            command = import_module(f"saelens_lite.cli.{args[0].replace('-', '_')}")
            return command.run(args[1:]) or 0
    except KeyboardInterrupt:
        print("saelens-lite: interrupted", file=sys.stderr)
        if traceback:
            raise
        return 130
    except (SaelensLiteError, ValueError, OSError, FloatingPointError, ImportError) as error:
        if traceback:
            raise
        print(f"saelens-lite: {_as_typed(error)}", file=sys.stderr)
        return 2


def _as_typed(error: BaseException) -> str:
    """What went wrong, in one line; the argument that an error offers (errors.with_option) becomes a flag."""
    line = " ".join(str(error).split()) or type(error).__name__
    option = getattr(error, "option", None)
    if option is None:
        return line
    flag = f"--{option.replace('_', '-')}"
    said = re.compile(rf"\b{option}=(?:True\b|'([^']*)')?")
    return said.sub(lambda found: f"{flag} {found[1]}" if found[1] else flag, line)


def _share_the_cores() -> None:
    """Let OpenMP's threads sleep while they wait for each other; has an effect until torch is loaded.

    By default they spin. Where other programs want the cores too, that made training 8 times slower on a
    machine with two cores; without them it gains little, since the products between two waits are long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: saelens-lite COMMAND [flags]      saelens-lite COMMAND --help lists the flags",
            "",
            "Sparse autoencoders for any Hugging Face language model: from text to activations to features.",
            "",
            *lines,
            "",
            "  --config FILE  defaults from a JSON file, such as the train_config.json of a run; flags come "
            "on top",
            "  --preset NAME  (train) defaults from a published recipe; with --help after it, the recipe's "
            "values",
            "  --traceback    show where an error came from (or SAELENS_LITE_TRACEBACK=1)",
            "  --model demo   the embedded language model;  --dataset demo  the source of Python's standard "
            "library",
        ]
    )


@contextmanager
def _logging() -> Iterator[None]:
    """What the library says goes to stderr, one line each; other libraries keep their own way."""
    logger, handler = logging.getLogger("saelens_lite"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
