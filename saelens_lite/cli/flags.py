"""A command's configuration from what was typed: flags, over a --config file, over a --preset."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from saelens_lite.cli.places import PLACES, flags_for_places, with_places
from saelens_lite.config import PERMISSION, bounds_in_words, check_fields, from_mapping, marked
from saelens_lite.errors import nearest
from saelens_lite.formats.peer_names import field_hint, is_runner_config, runner_commands
from saelens_lite.json_data import loads

if TYPE_CHECKING:
    from tyro.constructors import ConstructorRegistry

T = TypeVar("T")


def configured(
    cls: type[T],
    command: str,
    argv: Sequence[str],
    with_preset: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> T:
    """The configuration of a command from its flags and what stands in their PLACES, with --config FILE as
    defaults and --preset NAME beneath these.

    with_preset: adds what the preset sets that a mapping names; of commands that have presets
    raises: ValueError for a file that is no JSON object of the fields, a preset beside a file that has
        another, or more words than places
    """
    import tyro

    defaults = {field.name: field.default for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    args, file = _without(argv, "--config", "a JSON file")
    mapping: Any = {}
    if file is not None:
        mapping = _read_json(file)
        if not isinstance(mapping, dict):
            raise ValueError(
                f"{file} expected a JSON object with fields of {cls.__name__}, got {type(mapping).__name__}"
            )
        if is_runner_config(mapping):
            raise ValueError(
                f"{file} is a configuration of SAELens' runner. What its fields mean here: "
                f"{runner_commands(mapping)} (other fields have no counterpart, or one of another unit: see "
                "saelens_lite/COMING_FROM.md)"
            )
        mapping = {key: tuple(value) if isinstance(value, list) else value for key, value in mapping.items()}
        for name in marked(cls, PERMISSION) & mapping.keys():
            if mapping[name] != defaults[name]:
                flag = name.replace("_", "-")
                raise ValueError(
                    f"{file} sets {name}, which only the command line can: type "
                    f"--{'no-' * defaults[name]}{flag}"
                )
    if with_preset is not None:
        args, preset = _without(args, "--preset", "its name")
        if preset is not None and mapping.setdefault("preset", preset) != preset:
            raise ValueError(
                f"{file} has the preset {mapping['preset']!r}, and its fields win over a preset's: one or "
                "the other"
            )
        mapping = with_preset(mapping)
    where = file or f"saelens-lite {command}"
    default = {"default": from_mapping(cls, mapping, where)} if mapping or file is not None else {}
    settled = {name for name, value in defaults.items() if value is not dataclasses.MISSING} | mapping.keys()
    args = flags_for_places(cls, command, args, settled)
    told = io.StringIO()
    try:
        with _bounds_shown(), redirect_stderr(told):
            config = tyro.cli(cls, prog=with_places(cls, command), args=args, **default)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_mistake(told.getvalue(), command, cls, args)) from None
    check_fields(config)
    return config


def _mistake(box: str, command: str, cls: Any, args: Sequence[str]) -> str:
    """What tyro says in a box of many lines, in one; a hint for a flag that is none."""
    lines = [line.strip("│╭╮╰╯ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    parts = re.split(r"^[─-]{8,}$", "\n".join(lines[1:]), flags=re.MULTILINE)
    said = " ".join(next(filter(str.strip, parts), "").split())
    help_ = f"; saelens-lite {command} --help lists its flags"
    flags = {f"--{field.name.replace('_', '-')}": field for field in dataclasses.fields(cls)}
    for arg in args:
        typed = arg.partition("=")[0]
        if typed.startswith("--") and typed.replace("_", "-").replace("--no-", "--", 1) not in flags:
            name = typed.removeprefix("--").replace("-", "_")
            hint = field_hint(name, ()) or nearest(typed, flags)
            return f"{command} has no flag {typed}{hint}{help_}"
    if "Missing from" in said:
        missing = re.findall(r"--[\w-]+", said)
        by_place = {f"--{place.replace('_', '-')}": place.upper() for place in PLACES.get(command, ())}
        needed = [name for flag, name in by_place.items() if flag in missing]
        needed += [flag for flag in missing if flag not in by_place]
        return f"{command} needs {' and '.join(needed)}{help_}"
    said = re.sub(r"^Error parsing (\w+: )?", "", said)
    # of a flag that may be left out, what was said of its value's own type
    said = re.sub(r": no type matching .* - <class '\w+'>(?=: )", "", said)
    said = re.sub(r": (invalid literal|could not convert string).*?: ", " expected a number, got ", said)
    return said[:1].lower() + said[1:].rstrip(".") + help_


def _bounds_shown() -> ConstructorRegistry:
    """What ends the help of a flag with the bounds of its field, and fills its lines."""
    from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

    def shown(field: StructFieldSpec) -> StructFieldSpec:
        def help_() -> str:
            bounds = bounds_in_words(field.type).capitalize()
            return " ".join([*(field.helptext() or "").split(), *([f"{bounds}."] if bounds else [])])

        return dataclasses.replace(field, helptext=help_)

    registry, inside = ConstructorRegistry(), False

    @registry.struct_rule
    def with_bounds(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal inside
        if inside or not dataclasses.is_dataclass(info.type):
            return None  # the rule of tyro itself comes next
        inside = True
        spec = ConstructorRegistry.get_struct_spec(info)
        inside = False
        return dataclasses.replace(spec, fields=tuple(map(shown, spec.fields)))

    return registry


def _read_json(file: str) -> Any:
    try:
        return loads(Path(file).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} expected JSON: {error}") from error


def _without(argv: Sequence[str], flag: str, expected: str) -> tuple[list[str], str | None]:
    """The arguments without `flag VALUE` or `flag=VALUE`, and the value."""
    args, value = list(argv), None
    for i, arg in enumerate(args):
        if arg.startswith(f"{flag}="):
            value = args.pop(i).removeprefix(f"{flag}=")
            break
        if arg == flag:
            if i + 1 == len(args):
                raise ValueError(f"{flag} expected {expected} after it, got nothing")
            value = args[i + 1]
            del args[i : i + 2]
            break
    return args, value
