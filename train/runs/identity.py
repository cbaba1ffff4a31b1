"""Whether an output folder holds this run, finished or stopped, or another one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saelens_lite.config import differing_fields, marked, to_mapping, to_record
from saelens_lite.errors import with_option
from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..config import FREE, LEFT_OPEN, TrainConfig
from ..kinds.choice import unused
from ..rows.protocol import Rows, n_steps
from .checkpoints import Checkpoint, circumstances, load_checkpoint
from .output import check_ours, remove_leftovers
from .process import device_of, writes

log = logging.getLogger(__name__)
_FREE = marked(TrainConfig, FREE)


def finished(rows: Rows, config: TrainConfig) -> SparseAutoencoder | None:
    """The SAE of this run, if it has ended in its output; else None, also if overwrite replaces it.

    raises: ValueError if another run ended there, or something else has a name that a run needs
    """
    output = Path(config.output)
    check_ours(output)
    if config.overwrite or (output / "state").exists() or not (output / "cfg.json").exists():
        return None
    sae = _sae_of(output, rows, config)
    if sae is None or _steps(sae) != n_steps(config, rows.steps_per_epoch):
        return None
    if writes():
        remove_leftovers(output)
    return sae


def _sae_of(output: Path, rows: Rows, config: TrainConfig) -> SparseAutoencoder | None:
    """The SAE in `output`, if this run saved it; None for one that no run made.

    raises: ValueError if another run did
    """
    sae = SparseAutoencoder.load(output, device="cpu" if config.latent_shards > 1 else device_of(config))
    facts = sae.config.metadata.get("saelens_lite", {})
    if "train" not in facts:  # no run's, but an SAE that was put there
        return None
    published = to_record(config, published=True)  # in cfg.json, a path is its last name
    recorded = {
        name: getattr(config, name) if value == published.get(name) else value
        for name, value in facts["train"].items()
        if name not in _FREE
    }
    name = "stream" if "stream" in facts else "store"
    contents = [f"content {of.get(name)}" for of in facts.get("stores", [facts])]
    earlier = {
        **recorded,
        "hook_point": sae.config.hook_point,
        name: contents[0] if len(contents) == 1 else contents,
    }
    if differing := _differing(earlier, rows, config):
        raise with_option(
            ValueError(
                f"{output} holds another run, finished: {'; '.join(differing)}. Set these as expected to "
                "keep "
                "it, choose another output, or overwrite=True to replace it"
            ),
            "overwrite",
        )
    return sae


def _steps(sae: SparseAutoencoder) -> int:
    return sae.config.metadata["saelens_lite"]["steps"]


def unfinished(output: Path, rows: Rows, config: TrainConfig) -> Checkpoint | None:
    """The checkpoint from which this run resumes; None if it begins.

    raises: ValueError if `output` holds another run, or an SAE that no run made
    """
    if config.overwrite:
        return None
    found = load_checkpoint(output)
    if found is None:
        if (output / "cfg.json").exists():
            sae = _sae_of(output, rows, config)
            if sae is None or _steps(sae) >= n_steps(config, rows.steps_per_epoch):
                raise with_option(
                    ValueError(
                        f"{output} holds an SAE already: choose another output, or overwrite=True to "
                        "replace it"
                    ),
                    "overwrite",
                )
            log.info("the run in %s ended before its first checkpoint: it begins anew", output)
        return None
    if differing := _differing(found.run, rows, config):
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


def _differing(earlier: Mapping[str, Any], rows: Rows, config: TrainConfig) -> list[str]:
    """Where an earlier run is another one; older releases let fields be set that change nothing."""
    now = identity(rows, config)
    # older checkpoints of a stream do not record its state
    defaults = to_mapping(TrainConfig()) | LEFT_OPEN | {"state": now.get("state")}
    return differing_fields(earlier, now, defaults, unused(config))


def identity(rows: Rows, config: TrainConfig) -> dict[str, Any]:
    """What determines a run: a checkpoint of it fits no other."""
    fields = {name: value for name, value in to_mapping(config).items() if name not in _FREE}
    return {**fields, **rows.identity}
