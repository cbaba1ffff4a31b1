"""What went wrong, in one line, for whoever typed the command: what to lower, which flag, which process.

Errors of the library and of the machine are told so. What only a fault of this program can raise keeps its
traceback.
"""

from __future__ import annotations

import dataclasses
import re
from types import ModuleType

OURS = (LookupError, TypeError, AttributeError, NameError, AssertionError)
"""Builtin errors that are a fault of this program; what other libraries derive from them is not."""

TO_LOWER = {
    "demo": "the number of steps",
    "harvest": "--batch-size-seqs or --context-length",
    "train": "--batch-size-rows, --buffer-rows, or --d-sae or --expansion",
    "evaluate": "--max-tokens",
    "analyze": "--sample-tokens, --n-top or --n-latents",
    "diff": "--batch-size-texts, --max-texts or --max-tokens",
    "diff-models": "--max-tokens",
    "probe": "--batch-size-texts or --max-tokens",
    "study": "--batch-size-seqs or --n-ablated",
}
"""What takes the memory of each command."""

_MEMORY = re.compile(r"out of memory|can.t allocate|Cannot allocate|[Ss]torage size calculation overflowed")
_CONTEXT_LOST = re.compile(r"illegal memory access|device-side assert|misaligned address|launch failure")
_PEER = re.compile(r"closed by peer|reset by peer|Connect(ion)? (refused|timeout)|remote process|NCCL|gloo")


def is_ours(error: Exception) -> bool:
    """Whether only a fault of this program raises such an error."""
    return isinstance(error, OURS) and type(error).__module__ == "builtins"


def error_line(error: BaseException, command: str, module: ModuleType | None = None) -> str:
    """What went wrong, in one line; fields of the command's configuration become flags, and so does the
    argument that an error offers (errors.with_option).

    module: of the command
    """
    line = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _MEMORY.search(line)):
        lower = f": lower {TO_LOWER[command]}" if command in TO_LOWER else ""
        return f"not enough memory on this machine or device{lower} ({line[:200]})"
    if isinstance(error, RuntimeError) and _CONTEXT_LOST.search(line):
        return (
            "a kernel broke this process's CUDA context, so nothing can go on in it: run again with "
            f"SAELENS_LITE_KERNELS=torch, and please report this line ({line[:200]})"
        )
    if isinstance(error, RecursionError):
        return f"expected data of ordinary depth, got brackets in brackets by the thousand ({line})"
    if isinstance(error, RuntimeError) and _PEER.search(line):
        return (
            "another process of this run has died or cannot be reached; its own last line says why. Start "
            f"all of them again with the same command: it resumes ({line[:200]})"
        )
    if type(error).__module__.split(".")[0] not in ("builtins", "saelens_lite", "json"):
        line = f"{line} ({type(error).__module__.split('.')[0]} {type(error).__name__})"
    return _with_flags(line, getattr(error, "option", None), _fields(module))


def _fields(module: ModuleType | None) -> set[str]:
    """The fields of all configurations that a command's file knows."""
    known = [value for value in vars(module or object).values() if isinstance(value, type)]
    return {field.name for cls in known if dataclasses.is_dataclass(cls) for field in dataclasses.fields(cls)}


def _with_flags(line: str, option: str | None, fields: set[str]) -> str:
    def flag(name: str) -> str:
        return f"--{name.replace('_', '-')}"

    # what a cfg.json says, an SAEConfig, is no flag
    named = re.compile(r"\b(?!SAEConfig)\w+(?:Config|Command)\.(\w+)")
    line = named.sub(lambda found: flag(found[1]) if found[1] in fields else found[0], line)
    if option is None:
        return line
    said = re.compile(rf"\b{option}=(?:True\b|'([^']*)')?")
    return said.sub(lambda found: f"{flag(option)} {found[1]}" if found[1] else flag(option), line)
