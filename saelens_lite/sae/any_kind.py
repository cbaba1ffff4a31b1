"""An SAE, a transcoder or a crosscoder, whichever a folder holds."""

from __future__ import annotations

from pathlib import Path

import torch

from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.crosscoder import Crosscoder
from saelens_lite.sae.folder import read
from saelens_lite.sae.transcoder import Transcoder


def load_reader(
    path_or_repo: str | Path, device: str | torch.device = "cpu"
) -> SparseAutoencoder | Transcoder:
    """The SAE or the transcoder that is there. raises: as SparseAutoencoder.load, for a crosscoder too"""
    config, state, name = read(path_or_repo, None, None, None)
    cls = Transcoder if config.target else SparseAutoencoder
    return cls.of_state(config, state, name).to(device=device)


def load_any(
    path_or_repo: str | Path,
    folder: str | None = None,
    dtype: torch.dtype | str | None = None,
    format: str | None = None,
) -> SparseAutoencoder:
    """What is there, as its own class; arguments and errors as SparseAutoencoder.load."""
    config, state, name = read(path_or_repo, folder, dtype, format)
    cls = Transcoder if config.target else Crosscoder if config.sides else SparseAutoencoder
    return cls.of_state(config, state, name)
