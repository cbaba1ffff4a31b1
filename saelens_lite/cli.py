"""The command line: `saelens-lite COMMAND`, one of COMMANDS.

Commands are the configuration dataclasses (commands.py and those of the rooms), turned into flags by tyro, and what they
print: what was made, where, and what to type next (clistores.py, clianalysis.py). Rooms load when their command runs, so
that --help costs nothing. What the user can put right is one line on stderr and exit code 2; --traceback or
SAELENS_LITE_TRACEBACK=1 shows where it came from.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from saelens_lite.clianalysis import analyze, evaluate, probe, report, search, study
from saelens_lite.clistores import add_hook_points, demo, harvest, train, verify
from saelens_lite.errors import SaelensLiteError, nearest

COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "demo": demo,
    "harvest": harvest,
    "add-hook-points": add_hook_points,
    "verify": verify,
    "train": train,
    "evaluate": evaluate,
    "analyze": analyze,
    "search": search,
    "probe": probe,
    "report": report,
    "study": study,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for a store with problems or without room, 2 for what the user can put
    right, 130 after Ctrl-C."""
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
            raise ValueError(f"no command {args[0]!r}{nearest(args[0], COMMANDS)}; there are {', '.join(COMMANDS)}")
        with _logging():
            return COMMANDS[args[0]](args[1:]) or 0
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
    """What went wrong, in one line, with flags where the library names the arguments of a call."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line.replace("overwrite=True", "--overwrite").replace("pass hook_point=", "pass --hook-point")


def _share_the_cores() -> None:
    """Let OpenMP's threads sleep while they wait for each other; has an effect until torch is loaded.

    By default they spin. Where other programs want the cores too, that made training 8 times slower on a machine with two
    cores; without them it gains little, since the products between two waits are long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: saelens-lite COMMAND [flags]      saelens-lite COMMAND --help lists the flags",
            "",
            "Sparse autoencoders for any Hugging Face language model: from text to activations to features.",
            "",
            *lines,
            "",
            "  --config FILE  defaults from a JSON file, such as the train_config.json of a run; flags come on top",
            "  --preset NAME  (train) defaults from a published recipe; with --help after it, the recipe's values",
            "  --traceback    show where an error came from (or SAELENS_LITE_TRACEBACK=1)",
            "  --model demo   the embedded language model;  --dataset demo  the source of Python's standard library",
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


if __name__ == "__main__":
    sys.exit(main())
