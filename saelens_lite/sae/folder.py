"""The SAE folder: written so that it is whole or absent, read from disk or a Hugging Face repository.

<folder>/cfg.json                 what the SAE is; written last, so a folder that has one is complete
<folder>/sae_weights.safetensors  its parameters, contiguous, no header metadata
<folder>/sparsity.safetensors     optional: `sparsity` float32[d_sae], log10(firing rate + 1e-10)

This is the SAELens 6 inference folder (formats/saelens.py holds its words), so what is saved here opens
there, and back. Nothing is pickled or unpickled.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from saelens_lite.atomic import sync
from saelens_lite.errors import CheckpointError
from saelens_lite.formats import saelens

if TYPE_CHECKING:
    from saelens_lite.sae.autoencoder import SparseAutoencoder

CFG, WEIGHTS, SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"


def save_sae(sae: SparseAutoencoder, folder: str | Path, log_sparsity: Tensor | None = None) -> Path:
    """Write the SAE folder, replacing an SAE that is there and leaving other files alone.

    All files are complete in a hidden folder beside it before the first is moved: a full disk leaves the old
    SAE, a kill the old, the new, or (between two moves) a folder that is refused.
    log_sparsity: float[d_sae], log10(firing rate + 1e-10), or None to write no sparsity file
    returns: the folder
    raises: CheckpointError when it cannot be written; ValueError when log_sparsity has another width
    """
    folder = Path(folder)
    config = dataclasses.replace(sae.config, dtype=str(sae.dtype).removeprefix("torch."))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sae.state_dict().items()}
    if log_sparsity is not None and log_sparsity.shape != (config.d_sae,):
        raise ValueError(
            f"save_sae expected log_sparsity[d_sae={config.d_sae}], got {list(log_sparsity.shape)}"
        )
    cfg = saelens.to_cfg(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent
        ) as scratch:
            staged = Path(scratch)
            save_file(tensors, staged / WEIGHTS)
            if log_sparsity is not None:
                save_file({"sparsity": log_sparsity.detach().cpu().float().contiguous()}, staged / SPARSITY)
            (staged / CFG).write_text(json.dumps(cfg), encoding="utf-8")
            for file in staged.glob(
                "*.safetensors"
            ):  # safetensors makes files that their owner alone may read
                shutil.copymode(staged / CFG, file)
            for file in staged.iterdir():
                sync(file)
            _move_in(staged, folder, cfg)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot write an SAE to {folder}: {error}; free space or choose another folder, the SAE in "
            "memory is untouched"
        ) from error
    return folder


def load_sae(
    path: str | Path,
    folder: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
) -> SparseAutoencoder:
    """Read an SAE folder: ours, or SAELens' standard, topk, jumprelu and gated.

    path: a local folder, or a repository "owner/name" on the Hugging Face hub
    folder: the SAE's folder inside it
    dtype: of the parameters; None takes the file's
    raises: CheckpointError when a file is missing, short or contradicts another; ValueError for what has no
        counterpart here (an architecture, a normalisation), each with the way out
    """
    from saelens_lite.sae.autoencoder import SparseAutoencoder

    source = _locate(path, folder)
    try:
        cfg = json.loads((source / CFG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{source / CFG}: expected JSON, got {error}; the file is damaged, copy the folder again"
        ) from error
    wanted = None if dtype is None else saelens.dtype_name(str(dtype), "load_sae")
    config = saelens.from_cfg(cfg, str(source / CFG), wanted)
    try:
        tensors = load_file(source / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{source / WEIGHTS}: expected a complete safetensors file, got {error}; it is damaged or "
            "short, copy it again"
        ) from error
    sae = SparseAutoencoder(config)
    rescaled = config.kind == "topk" and bool(cfg.get("rescale_acts_by_decoder_norm"))
    sae.load_state_dict(saelens.from_tensors(tensors, config, str(source / WEIGHTS), rescaled))
    return sae.to(device=device)


def load_log_sparsity(path: str | Path) -> Tensor | None:
    """float32[d_sae], log10(firing rate + 1e-10) as recorded beside the weights, or None when the folder has
    none."""
    file = Path(path) / SPARSITY
    return load_file(file)["sparsity"] if file.exists() else None


def _move_in(staged: Path, folder: Path, cfg: dict) -> None:
    """Move the staged files over; cfg.json last.

    New weights beside an old cfg.json of other meaning (another k, say) would load and be wrong, so then the
    old one goes
    first: a kill in that instant leaves a folder that is refused, with the new SAE whole in the hidden folder
        beside it.
    """
    try:
        old = json.loads((folder / CFG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        old = None
    if old is not None and {**old, "metadata": None} != {**cfg, "metadata": None}:
        (folder / CFG).unlink()
    if not (staged / SPARSITY).exists():
        (folder / SPARSITY).unlink(missing_ok=True)
    for name in (SPARSITY, WEIGHTS, CFG):
        if (staged / name).exists():
            os.replace(staged / name, folder / name)
    sync(folder)


def _locate(path: str | Path, folder: str | None) -> Path:
    """The local folder that holds cfg.json and the weights, downloaded when `path` names a repository."""
    local = Path(path)
    if local.is_dir():
        source = local / folder if folder else local
    elif (
        isinstance(path, str)
        and path.count("/") == 1
        and not path.startswith((".", "/", "~"))
        and "\\" not in path
    ):
        source = _download(path, folder)
    else:
        raise CheckpointError(
            f"no SAE at {path}: expected a folder with {CFG} and {WEIGHTS}, or a repository as owner/name"
        )
    for name in (CFG, WEIGHTS):
        if not (source / name).is_file():
            inside = (
                sorted(str(p.parent.relative_to(local)) for p in local.rglob(CFG)) if local.is_dir() else []
            )
            hint = (
                f"; SAEs in it: {', '.join(inside[:10])} (pass one as folder=)"
                if inside
                else "; the folder is an activation store, no SAE"
                if (source / "plan.json").is_file()
                else "; the folder is no complete SAE"
            )
            raise CheckpointError(f"{source}: expected {CFG} and {WEIGHTS}, {name} is missing{hint}")
    return source


def _download(repo: str, folder: str | None) -> Path:
    """Fetch one SAE folder of a hub repository into the hub's cache."""
    from huggingface_hub import list_repo_files, snapshot_download

    prefix = f"{folder}/" if folder else ""
    try:
        root = Path(
            snapshot_download(repo, allow_patterns=[prefix + name for name in (CFG, WEIGHTS, SPARSITY)])
        )
        if not (root / prefix / CFG).is_file():
            inside = sorted(
                name.removesuffix(f"/{CFG}") for name in list_repo_files(repo) if name.endswith(f"/{CFG}")
            )
            raise CheckpointError(
                f"{repo} has no SAE at folder={folder!r}; it has "
                f"{', '.join(inside[:10]) or 'none in this format'}"
                + (f" and {len(inside) - 10} more" if len(inside) > 10 else "")
            )
    except CheckpointError:
        raise
    except Exception as error:  # the hub client raises a dozen unrelated types (offline, gated, absent)
        raise CheckpointError(
            f"cannot fetch {repo} folder={folder!r} from the hub: {error}; there is no local folder {repo} "
            "either"
        ) from error
    return root / prefix
