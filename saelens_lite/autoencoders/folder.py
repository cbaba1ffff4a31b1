"""A relative of the SAE on disk: one file, whole or absent, so that weights and facts always belong together.

<folder>/autoencoder.safetensors   the module's state dict, contiguous; its header's metadata has one entry,
    autoencoder                    JSON: format "saelens_lite autoencoder", version 1, d_model, shape (a list
                                   or null), config (the fields of Relative), metadata (facts of training)

A run's settings stand beside it in train_config.json. Nothing is pickled or unpickled.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from saelens_lite.atomic import write_file
from saelens_lite.config import from_mapping
from saelens_lite.errors import CheckpointError
from saelens_lite.json_data import loads
from saelens_lite.misfits import methods_name_misfits, names_misfits

from .fields import Relative
from .kinds import class_of

FILE = "autoencoder.safetensors"
_FORMAT, _VERSION, _KEY = "saelens_lite autoencoder", 1, "autoencoder"
_BROKEN = (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError)


class OnDisk:
    """Gives a relative its file; the class of what is loaded is that of its kind."""

    config: Relative
    d_model: int
    shape: tuple[int, ...] | None
    metadata: dict[str, Any]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        methods_name_misfits(cls)

    @names_misfits
    def save(self, folder: str | Path) -> Path:
        """Write autoencoder.safetensors into a folder; a relative in it is replaced, other files stay.

        returns: the folder
        raises: CheckpointError when it cannot be written; what was there is untouched then
        """
        folder = Path(folder)
        facts = {
            "format": _FORMAT,
            "version": _VERSION,
            "d_model": self.d_model,
            "shape": self.shape and list(self.shape),
            "config": {field.name: getattr(self.config, field.name) for field in fields(Relative)},
            "metadata": self.metadata,
        }
        state = self.state_dict()  # type: ignore[attr-defined]
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_file(folder / FILE, save(tensors, {_KEY: json.dumps(facts)}), shared=False)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot write an autoencoder to {folder}: {error}; free space or choose another folder"
            ) from error
        return folder

    @staticmethod
    @names_misfits
    def load(folder: str | Path, device: str | torch.device = "cpu") -> Any:
        """The relative that `save` wrote into a folder, of its kind's class.

        raises: CheckpointError where there is none, or it is damaged or of another release
        """
        path = Path(folder) / FILE
        try:
            with safe_open(path, "pt") as file:
                facts: Any = loads((file.metadata() or {})[_KEY].encode())
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
            if (facts["format"], facts["version"]) != (_FORMAT, _VERSION):
                raise ValueError(f"got {facts['format']!r} of version {facts['version']!r}")
            config = {k: tuple(v) if isinstance(v, list) else v for k, v in facts["config"].items()}
            relative, shape = from_mapping(Relative, config, str(path)), facts["shape"]
            with torch.device("meta"):
                found = class_of(relative.kind)(relative, facts["d_model"], shape and tuple(shape))
            found.load_state_dict(tensors, assign=True)
            found.metadata = dict(facts["metadata"])
        except _BROKEN as error:
            said = "there is no such file" if isinstance(error, FileNotFoundError) else error
            raise CheckpointError(
                f"{path} expected {_FORMAT!r} version {_VERSION}, which train --kind dense and its like "
                f"write: {said}"
            ) from error
        return found.to(device)
