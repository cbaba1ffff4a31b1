"""The command line: `saelens-lite COMMAND`, one of COMMANDS.

A command is a file: its configuration, which tyro turns into flags, and `run`, which prints what was made,
where, and what to type next. The file loads when its command runs, so this overview costs nothing. What the
user can put right is one line on stderr and exit code 2; --traceback or SAELENS_LITE_TRACEBACK=1 shows where
it came from.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from typing import Any, TextIO, cast

from saelens_lite.cli.error_line import error_line, is_ours
from saelens_lite.config import without_credentials
from saelens_lite.errors import nearest

COMMANDS = {
    "demo": "The whole way on a small embedded model, in three minutes",
    "harvest": "Text through a language model: its activations into a store",
    "add-hook-points": "Further hook points for a store, from its stored tokens",
    "verify": "Whether every bit of a store is as it was written; mends what is not",
    "train": "A sparse autoencoder, or a grid of them, from the rows of a store, or straight from a model",
    "refit": "A relu SAE's magnitudes and decoder, fitted again without the penalty that shrank them",
    "evaluate": "fvu, l0, dead latents and the cost in cross-entropy, with their controls",
    "analyze": "Every latent in one pass: an index to search, and the strongest firings as one HTML page",
    "search": "Latents of an index by token, text, regex, direction, number or label",
    "export": "Dashboards for SAEDashboard or Neuronpedia from an index",
    "import": "An index to search and browse from dashboards of SAEDashboard or Neuronpedia",
    "labels": "Labels of latents: shown, into a file, from a file",
    "browse": "The features of an index in a live page: read, label, type, steer, compare",
    "probe": "How well few latents tell labelled texts apart, beside the activations themselves",
    "diff": "Latents that fire in more documents of one corpus than of another, and what explains it",
    "diff-models": "What differs between two models that read one text: rows, predictions, words, latents",
    "report": "What training runs did, beside each other, as one HTML page",
    "convert": "An SAE of one format into another",
    "saes": "The SAEs that others published, and which of them open here",
    "steer": "Latents edited while a model writes, beside what it writes anyway and a matched random latent",
    "push": "SAEs of a run or a grid to the Hugging Face hub, with a model card",
    "pull": "SAEs of a repository of the Hugging Face hub into a folder",
    "study": "Latents of what the model knows, edited: does it then hallucinate, or refuse?",
}
"""Each command and what it does. A command is the file of its name, whose `run` takes the words behind it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for a store with problems or without room, 2 for what the
    user can put right, 130 after Ctrl-C.

    Characters that the output cannot show become escapes. Where the reader of stdout stops early, such as
    head, the command ends quietly at its next line; where that of stderr does, the work goes on.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    results, words = _Output(sys.stdout, ends=True), _Output(sys.stderr, ends=False)
    try:
        with redirect_stdout(cast(TextIO, results)), redirect_stderr(cast(TextIO, words)):
            try:
                return _run(argv)
            finally:
                results.flush()
    except _Unread:
        # what Python flushes as it exits must not fail once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


class _Unread(BaseException):
    """Nobody reads the results any more."""


class _Output:
    """stdout or stderr, where no URL shows its password.

    ends: whether the command ends where nobody reads it; else the work goes on
    """

    def __init__(self, stream: TextIO, ends: bool) -> None:
        self._stream, self._ends = stream, ends

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._to_reader(self._stream.write, without_credentials(text)) or len(text)

    def flush(self) -> None:
        self._to_reader(self._stream.flush)

    def _to_reader(self, send: Callable[..., Any], *text: str) -> Any:
        try:
            return send(*text)
        except BrokenPipeError:
            if self._ends:
                raise _Unread from None


def _run(argv: Sequence[str] | None) -> int:
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
    module = None
    try:
        if args[0] in ("ablate", "clamp", "scale", "generate"):
            mode = "" if args[0] == "generate" else f" --mode {args[0]}"
            raise ValueError(
                f"no command {args[0]!r}: `saelens-lite steer{mode} --sae SAE --model MODEL --prompt TEXT "
                "--latent …` edits latents while a model writes"
            )
        if args[0] not in COMMANDS:
            raise ValueError(
                f"no command {args[0]!r}{nearest(args[0], COMMANDS)}; there are {', '.join(COMMANDS)}"
            )
        with _logging():
            module = import_module(f"saelens_lite.cli.{args[0].replace('-', '_')}")
            return module.run(args[1:]) or 0
    except KeyboardInterrupt:
        print("saelens-lite: interrupted", file=sys.stderr)
        if traceback:
            raise
        return 130
    except Exception as error:
        if traceback or is_ours(error):
            raise
        print(f"saelens-lite: {error_line(error, args[0], module)}", file=sys.stderr)
        return 2


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
            "usage: saelens-lite COMMAND [words] [flags]      saelens-lite COMMAND --help lists the flags",
            "       a word by its place, such as STORE or SAE, has a flag of its name too: --store, --sae",
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
