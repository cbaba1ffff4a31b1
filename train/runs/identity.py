"""Whether an output folder holds this run, finished or stopped, or another one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saelens_lite.config import differing_fields, marked, to_mapping, to_record
from saelens_lite.errors import with_option

from ..rows.protocol import Rows, n_steps
from ..run_config import FREE, RunConfig
from .checkpoints import Checkpoint, circumstances, load_checkpoint
from .learner import Learner
from .output import SAVED, check_ours, remove_leftovers
from .process import device_of, writes
from .sae_learner import SAELearner

log = logging.getLogger(__name__)


def finished(rows: Rows, config: RunConfig, learns: type[Learner] = SAELearner) -> Any:
    """What this run trained, if it has ended in its output; else None, also if overwrite replaces it.

    raises: ValueError if another run ended there, or something else has a name that a run needs
    """
    output = Path(config.output)
    check_ours(output)
    if config.overwrite or (output / "state").exists() or not _saved(output, learns):
        return None
    trained = _trained_in(output, rows, config, learns)
    if trained is None or _steps(trained, learns) != n_steps(config, rows.steps_per_epoch):
        return None
    if writes():
        remove_leftovers(output)
    return trained


def _saved(output: Path, learns: type[Learner]) -> bool:
    """Whether something is saved in `output`. raises: ValueError for what another learner saved"""
    others = [name for name in SAVED if name != learns.FILE and (output / name).exists()]
    if others:
        raise ValueError(
            f"{output} expected {learns.FILE}, got {others[0]}, which another kind of training wrote: choose "
            "another output"
        )
    return (output / learns.FILE).exists()


def _trained_in(output: Path, rows: Rows, config: RunConfig, learns: type[Learner]) -> Any:
    """What stands in `output`, if this run saved it; None for what no run made.

    raises: ValueError if another run did
    """
    trained = learns.load(output, config)
    facts = learns.record(trained)
    if facts is None:  # no run's, but one that was put there
        return None
    published = to_record(config, published=True)  # in the saved file, a path is its last name
    free = marked(type(config), FREE)
    recorded = {
        name: getattr(config, name) if value == published.get(name) else value
        for name, value in facts["train"].items()
        if name not in free
    }
    name = "stream" if "stream" in facts else "store"
    contents = [f"content {of.get(name)}" for of in facts.get("stores", [facts])]
    earlier = {
        **recorded,
        "hook_point": facts["hook_point"],
        name: contents[0] if len(contents) == 1 else contents,
    }
    if differing := _differing(earlier, rows, config, learns):
        raise with_option(
            ValueError(
                f"{output} holds another run, finished: {'; '.join(differing)}. Set these as expected to "
                "keep "
                "it, choose another output, or overwrite=True to replace it"
            ),
            "overwrite",
        )
    return trained


def _steps(trained: Any, learns: type[Learner]) -> int:
    facts = learns.record(trained)
    assert facts is not None
    return facts["steps"]


def unfinished(
    output: Path, rows: Rows, config: RunConfig, learns: type[Learner] = SAELearner
) -> Checkpoint | None:
    """The checkpoint from which this run resumes; None if it begins.

    raises: ValueError if `output` holds another run, or something that no run made
    """
    if config.overwrite:
        return None
    found = load_checkpoint(output)
    if found is None:
        if _saved(output, learns):
            trained = _trained_in(output, rows, config, learns)
            if trained is None or _steps(trained, learns) >= n_steps(config, rows.steps_per_epoch):
                raise with_option(
                    ValueError(
                        f"{output} holds an {learns.NAME} already: choose another output, or overwrite=True "
                        "to replace it"
                    ),
                    "overwrite",
                )
            log.info("the run in %s ended before its first checkpoint: it begins anew", output)
        return None
    if differing := _differing(found.run, rows, config, learns):
        raise with_option(
            ValueError(
                f"{output} holds another run, stopped at step {found.step}: {'; '.join(differing)}. Set "
                "these "
                "as expected to resume it, choose another output, or overwrite=True to replace it"
            ),
            "overwrite",
        )
    log.info("resuming the run in %s at step %d", output, found.step)
    made_by = circumstances(device_of(config))
    then = found.made_by
    # a checkpoint of an older release does not say which kernels it had
    changed = [
        f"{name} {then[name]} → {made_by[name]}"
        for name in made_by
        if then.get(name, made_by[name]) != made_by[name]
    ]
    if changed:
        log.info("the last bits may differ from those of an uninterrupted run: %s", ", ".join(changed))
    return found


def _differing(earlier: Mapping[str, Any], rows: Rows, config: RunConfig, learns: type[Learner]) -> list[str]:
    """Where an earlier run is another one; older releases let fields be set that change nothing."""
    now = identity(rows, config)
    # older checkpoints of a stream do not record its state
    defaults = to_mapping(type(config)()) | learns.LEFT_OPEN | {"state": now.get("state")}
    return differing_fields(earlier, now, defaults, learns.unused(config))


def identity(rows: Rows, config: RunConfig) -> dict[str, Any]:
    """What determines a run: a checkpoint of it fits no other."""
    free = marked(type(config), FREE)
    fields = {name: value for name, value in to_mapping(config).items() if name not in free}
    return {**fields, **rows.identity}
