"""The SAE folder: written so that it is whole or absent, read from disk or a Hugging Face repository.

<folder>/cfg.json                 what the SAE is, and the sha256 of the other two
<folder>/sae_weights.safetensors  its parameters, contiguous, no header metadata
<folder>/sparsity.safetensors     optional: `sparsity` float32[d_sae], log10(firing rate + 1e-10)
<folder>/.saving-XXXXXXXX/        during a save: the files that are on their way

The rename of cfg.json decides which SAE the folder holds. After a kill, what belongs to that cfg.json is read
from where it is, and the next save puts it into its place.

This is the SAELens 6 inference folder (formats/saelens.py holds its words), so what is saved here opens
there, and back. Nothing is pickled or unpickled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from saelens_lite.atomic import sync
from saelens_lite.errors import CheckpointError
from saelens_lite.formats import saelens
from saelens_lite.formats.convert import write_for
from saelens_lite.formats.recognise import FOREIGN
from saelens_lite.formats.saelens import BEFORE, CFG, SAVING, SPARSITY, WEIGHTS, found_aside
from saelens_lite.json_data import loads
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.config import SAEConfig
from saelens_lite.sae.source import Source, located

log = logging.getLogger(__name__)

_SHA256 = "sha256"


class SAEFolder:
    """Gives a module that is made by `cls(config)` and has a state dict its folder on disk."""

    config: SAEConfig

    @names_misfits
    def save(self, folder: str | Path, log_sparsity: Tensor | None = None) -> Path:
        """Write the SAE folder; an SAE in it is replaced, other files stay.

        A cfg.json of something else is refused.

        A full disk leaves the old SAE, and a kill the old one or the new one.
        log_sparsity: float[d_sae], log10(firing rate + 1e-10); None writes no sparsity file
        returns: the folder
        raises: CheckpointError when it cannot be written; ValueError when log_sparsity has another width, or
            the folder's cfg.json is no SAE's
        """
        folder, d_sae = Path(folder), self.config.d_sae
        if log_sparsity is not None and log_sparsity.shape != (d_sae,):
            raise ValueError(f"save expected log_sparsity[d_sae={d_sae}], got {list(log_sparsity.shape)}")
        if not _replaceable(folder / CFG):
            raise ValueError(
                f"save expected a folder without a {CFG}, or with an SAE's, got {folder / CFG}, which would "
                "be replaced: choose another folder"
            )
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        dtype = str(tensors["W_dec"].dtype).removeprefix("torch.")
        cfg = saelens.to_cfg(dataclasses.replace(self.config, dtype=dtype))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            settle(folder)
            try:
                staged = Path(tempfile.mkdtemp(prefix=SAVING, dir=folder))
                save_file(tensors, staged / WEIGHTS)
                if log_sparsity is not None:
                    rates = log_sparsity.detach().cpu().float().contiguous()
                    save_file({"sparsity": rates}, staged / SPARSITY)
                digests = {file.name: _sha256(file) for file in sorted(staged.iterdir())}
                (staged / CFG).write_text(json.dumps(_with_digests(cfg, digests)), encoding="utf-8")
                for file in staged.glob("*.safetensors"):  # safetensors lets only their owner read them
                    shutil.copymode(staged / CFG, file)
                for written in (*staged.iterdir(), staged, folder):
                    sync(written)
                if _meaning(_cfg_in(folder)) not in (None, _meaning(cfg)) and (folder / WEIGHTS).exists():
                    os.replace(folder / WEIGHTS, staged / BEFORE)  # others must not read it as the new one
                os.replace(staged / CFG, folder / CFG)
                if log_sparsity is None:
                    (folder / SPARSITY).unlink(missing_ok=True)
            finally:
                settle(folder)
            sync(folder)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot write an SAE to {folder}: {error}; free space or choose another folder, the SAE in "
                "memory is untouched"
            ) from error
        return folder

    @names_misfits
    def export(self, folder: str | Path, to: str) -> Path:
        """Write the SAE as another program's folder: to="sparsify" or "dictionary_learning".

        What that program computes is what this SAE computes: a subtraction of b_dec moves into the biases
        where it has none, or the other way round. SAELens opens what `save` writes.
        returns: the folder, which must be new or empty
        raises: ValueError for what the format cannot hold, such as a kind or a normalisation; FileExistsError
        """
        return write_for(self.config, self.state_dict(), Path(folder), to)

    @classmethod
    @names_misfits
    def load(
        cls,
        path_or_repo: str | Path,
        folder: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str | None = None,
        format: str | None = None,
    ) -> Self:
        """Read an SAE: ours, SAELens' standard, topk, jumprelu and gated, or one of another format.

        path_or_repo: in this order, a local folder or file; a release that `saelens-lite saes` lists,
            "release" or "release/id"; a repository "owner/name[/folder]" on the Hugging Face hub
        folder: the SAE's folder or file inside it, or its id in the release
        dtype: of the parameters; None takes the file's
        format: one of formats/recognise.NAMES, for files that are not recognised by themselves
        raises: CheckpointError when a file is missing, short or contradicts another; ValueError for what has
            no counterpart here (an architecture, a normalisation), each with the way out
        """
        return cls.of_state(*read(path_or_repo, folder, dtype, format)).to(device=device)

    @classmethod
    @names_misfits
    def of_state(cls, config: SAEConfig, state: dict[str, Tensor], name: str) -> Self:
        """The module of what `read` gives. raises: ValueError for what another class holds, naming it"""
        cls.check_opens(config, name)
        sae = cls(config)
        sae.load_state_dict(state)
        return sae

    @classmethod
    @names_misfits
    def check_opens(cls, config: SAEConfig, name: str) -> None:
        """raises: ValueError for what another class holds"""
        if config.sides:
            raise ValueError(
                f"{name}: expected an SAE, got a crosscoder of {len(config.sides)} sides: "
                "saelens_lite.sae.Crosscoder.load opens it"
            )
        if config.target is not None:
            raise ValueError(
                f"{name}: expected an SAE, got a transcoder of {config.d_model} to {config.d_out}: "
                "saelens_lite.sae.Transcoder.load opens it"
            )

    @staticmethod
    @names_misfits
    def read_config(path_or_repo: str | Path) -> SAEConfig:
        """What the SAE of a folder is, without its weights. raises: as `load`"""
        source = located(path_or_repo, None, None)
        if source.format != saelens.NAME:
            return _read_foreign(source, None)[0]
        return saelens.from_cfg(_read_cfg(source)[0], str(source.place.folder / CFG), None)


def read(
    path_or_repo: str | Path, folder: str | None, dtype: torch.dtype | str | None, format: str | None
) -> tuple[SAEConfig, dict[str, Tensor], str]:
    """What is there, its tensors and its name for messages. raises: as `load`, but for what a class holds"""
    source = located(path_or_repo, folder, format)
    wanted = None if dtype is None else saelens.dtype_name(str(dtype), "load")
    own = source.format == saelens.NAME
    config, state = _read(source, wanted) if own else _read_foreign(source, wanted)
    return config, state, source.place.name


def _read(found: Source, dtype: str | None) -> tuple[SAEConfig, dict[str, Tensor]]:
    """A folder of ours or of SAELens."""
    source = found.place.folder
    cfg, scale = _read_cfg(found)
    config = saelens.from_cfg(cfg, str(source / CFG), dtype)
    config = dataclasses.replace(config, metadata=_without_digests(config.metadata))
    try:
        weights = _place(source, WEIGHTS, cfg)
        tensors = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{source / WEIGHTS}: expected a complete safetensors file, got {error}; it is damaged or "
            "short, copy it again"
        ) from error
    rescaled = config.kind == "topk" and bool(cfg.get("rescale_acts_by_decoder_norm"))
    state = saelens.from_tensors(tensors, config, str(source / WEIGHTS), rescaled)
    if dtype is None and (rescaled or scale is not None) and config.dtype in ("bfloat16", "float16"):
        config = dataclasses.replace(config, dtype="float32")  # what is folded would be rounded again
    if scale is not None:
        state = saelens.with_scale_folded(state, scale)
    if (wanted := _digests(cfg).get(WEIGHTS)) not in (None, _sha256(weights)):
        if _cfg_in(source) not in (None, cfg):  # another process saved meanwhile
            return _read(found, dtype)
        log.warning(
            "%s has another sha256 than %s records (%s): another program wrote it, or it is damaged",
            weights, CFG, wanted,
        )  # fmt: skip
    return config, state


def _read_foreign(source: Source, dtype: str | None) -> tuple[SAEConfig, dict[str, Tensor]]:
    """An SAE of another format; what it is and what is to be said of it stand in the metadata, too."""
    config, tensors, notes = FOREIGN[source.format].read(source.place)
    log.info("%s: opened as %s", source.place.name, source.format)
    for note in notes:
        log.warning("%s: %s", source.place.name, note)
    told = {"format": source.format, "notes": list(notes), "source": source.repository}
    told |= config.metadata.get("saelens_lite", {})
    metadata = {**config.metadata, "saelens_lite": {key: value for key, value in told.items() if value}}
    return dataclasses.replace(config, metadata=metadata, dtype=dtype or config.dtype), tensors


def _read_cfg(source: Source) -> tuple[Any, float | None]:
    """cfg.json with what the table of releases knows of the SAE, and the scale of its input that it needs."""
    file = source.place.folder / CFG
    try:
        cfg = saelens.with_overrides(loads(file.read_text(encoding="utf-8")), source.overrides)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{file}: expected JSON, got {error}; the file is damaged, copy the folder again"
        ) from error
    if source.scale is None or not saelens.needs_scale(cfg):
        return cfg, None
    return {**cfg, "normalize_activations": "none"}, source.scale


NEVER_FIRED = -9.9
"""log10(firing rate + 1e-10) of a latent that did not fire is −10."""


def load_log_sparsity(path: str | Path) -> Tensor | None:
    """The log10(firing rate + 1e-10) recorded beside the weights, float32[d_sae]; None if there is none."""
    cfg = _cfg_in(Path(path)) or {}
    file = _place(Path(path), SPARSITY, cfg)
    expected = SPARSITY in (_digests(cfg) or [SPARSITY])
    return load_file(file)["sparsity"] if expected and file.exists() else None


def verify_sae(folder: Path) -> list[str]:
    """The files of an SAE folder that are not as they were written; empty if all is well."""
    try:
        cfg = json.loads((folder / CFG).read_text(encoding="utf-8"))
        saelens.from_cfg(cfg, str(folder / CFG), None)
    except (OSError, ValueError, CheckpointError) as error:
        return [f"{folder / CFG} cannot be read: {error}"]
    problems = []
    for name in (WEIGHTS, SPARSITY):
        place, wanted = _place(folder, name, cfg), _digests(cfg).get(name)
        if not place.is_file():
            problems += [f"{folder / name} is missing"] * (name == WEIGHTS or wanted is not None)
        elif wanted not in (None, _sha256(place)):
            problems.append(f"{place} has another sha256 than {CFG} records")
    return problems


def settle(folder: Path) -> None:
    """Put into place what belongs to the folder's cfg.json, and remove what else a killed save left."""
    if (cfg := _cfg_in(folder)) is not None:
        for name in (WEIGHTS, SPARSITY):
            if (found := _place(folder, name, cfg)) != folder / name:
                os.replace(found, folder / name)
                sync(folder)
    beside = folder.parent.glob(f".{glob.escape(folder.name)}.????????.tmp")  # of a version before
    for left in (*folder.glob(f"{SAVING}????????"), *beside):
        if is_left_over(left):
            shutil.rmtree(left, ignore_errors=True)


def is_left_over(path: Path) -> bool:
    """Whether a save made this folder."""
    ours = {CFG, WEIGHTS, SPARSITY, BEFORE}
    return path.is_dir() and not path.is_symlink() and {*os.listdir(path)} <= ours


def _place(folder: Path, name: str, cfg: dict[str, Any]) -> Path:
    """Where the file is that a cfg.json was written with: in its place, unless a save was killed."""
    if not (aside := found_aside(folder, name)):
        return folder / name
    if (wanted := _digests(cfg).get(name)) is None:  # of a version before, or without this file
        before = [path for path in aside if path.name == BEFORE and not (folder / name).exists()]
        return (*before, folder / name)[0]
    right = (path for path in (folder / name, *aside) if path.is_file() and _sha256(path) == wanted)
    return next(right, folder / name)


def _cfg_in(folder: Path) -> dict[str, Any] | None:
    """The folder's cfg.json, if it has one that can be read."""
    with contextlib.suppress(OSError, ValueError):
        cfg = loads((folder / CFG).read_text(encoding="utf-8"))
        return cfg if isinstance(cfg, dict) else None
    return None


def _replaceable(cfg: Path) -> bool:
    """Whether nothing has the name, or a file that says what an SAE is."""
    return not os.path.lexists(cfg) or (not cfg.is_symlink() and "d_sae" in (_cfg_in(cfg.parent) or {}))


def _meaning(cfg: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if cfg is None else {**cfg, "metadata": None}


def _with_digests(cfg: dict[str, Any], digests: dict[str, str]) -> dict[str, Any]:
    ours = cfg["metadata"].get("saelens_lite") or {}
    return {**cfg, "metadata": {**cfg["metadata"], "saelens_lite": {**ours, _SHA256: digests}}}


def _without_digests(metadata: dict[str, Any]) -> dict[str, Any]:
    """They are of the folder, not of the SAE."""
    ours = metadata.get("saelens_lite")
    if not isinstance(ours, dict) or _SHA256 not in ours:
        return metadata
    ours = {key: value for key, value in ours.items() if key != _SHA256}
    others = {key: value for key, value in metadata.items() if key != "saelens_lite"}
    return others | ({"saelens_lite": ours} if ours else {})


def _digests(cfg: dict[str, Any]) -> dict[str, str]:
    """The sha256 of each file that a cfg.json records; empty if another program or version wrote it."""
    with contextlib.suppress(KeyError, TypeError, AttributeError, ValueError):
        return dict(cfg["metadata"]["saelens_lite"][_SHA256])
    return {}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
