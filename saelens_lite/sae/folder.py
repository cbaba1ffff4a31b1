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
import re
import shutil
import tempfile
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from saelens_lite.atomic import sync
from saelens_lite.errors import CheckpointError
from saelens_lite.formats import saelens
from saelens_lite.sae.config import SAEConfig

CFG, WEIGHTS, SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"


class SAEFolder:
    """Gives a module that is made by `cls(config)` and has a state dict its folder on disk."""

    config: SAEConfig

    def save(self, folder: str | Path, log_sparsity: Tensor | None = None) -> Path:
        """Write the SAE folder; an SAE in it is replaced, other files stay.

        All files are complete in a hidden folder beside it before the first one moves. A full disk leaves the
        old SAE; a kill leaves the old one, the new one, or (between two moves) a folder that is refused.
        log_sparsity: float[d_sae], log10(firing rate + 1e-10); None writes no sparsity file
        returns: the folder
        raises: CheckpointError when it cannot be written; ValueError when log_sparsity has another width
        """
        folder, d_sae = Path(folder), self.config.d_sae
        if log_sparsity is not None and log_sparsity.shape != (d_sae,):
            raise ValueError(f"save expected log_sparsity[d_sae={d_sae}], got {list(log_sparsity.shape)}")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        dtype = str(tensors["W_dec"].dtype).removeprefix("torch.")
        cfg = saelens.to_cfg(dataclasses.replace(self.config, dtype=dtype))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            hidden = {"prefix": f".{folder.name}.", "suffix": ".tmp", "dir": folder.parent}
            with tempfile.TemporaryDirectory(**hidden) as scratch:
                staged = Path(scratch)
                save_file(tensors, staged / WEIGHTS)
                if log_sparsity is not None:
                    rates = log_sparsity.detach().cpu().float().contiguous()
                    save_file({"sparsity": rates}, staged / SPARSITY)
                (staged / CFG).write_text(json.dumps(cfg), encoding="utf-8")
                for file in staged.glob("*.safetensors"):  # safetensors lets only their owner read them
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

    @classmethod
    def load(
        cls,
        path_or_repo: str | Path,
        folder: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str | None = None,
    ) -> Self:
        """Read an SAE folder: ours, or SAELens' standard, topk, jumprelu and gated.

        path_or_repo: a local folder, or a repository "owner/name" on the Hugging Face hub
        folder: the SAE's folder inside it
        dtype: of the parameters; None takes the file's
        raises: CheckpointError when a file is missing, short or contradicts another; ValueError for what has
            no counterpart here (an architecture, a normalisation), each with the way out
        """
        source = _locate(path_or_repo, folder)
        try:
            cfg = json.loads((source / CFG).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise CheckpointError(
                f"{source / CFG}: expected JSON, got {error}; the file is damaged, copy the folder again"
            ) from error
        wanted = None if dtype is None else saelens.dtype_name(str(dtype), "load")
        config = saelens.from_cfg(cfg, str(source / CFG), wanted)
        try:
            tensors = load_file(source / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{source / WEIGHTS}: expected a complete safetensors file, got {error}; it is damaged or "
                "short, copy it again"
            ) from error
        sae = cls(config)
        rescaled = config.kind == "topk" and bool(cfg.get("rescale_acts_by_decoder_norm"))
        sae.load_state_dict(saelens.from_tensors(tensors, config, str(source / WEIGHTS), rescaled))
        return sae.to(device=device)


def load_log_sparsity(path: str | Path) -> Tensor | None:
    """The log10(firing rate + 1e-10) recorded beside the weights, float32[d_sae]; None if there is none."""
    file = Path(path) / SPARSITY
    return load_file(file)["sparsity"] if file.exists() else None


def _move_in(staged: Path, folder: Path, cfg: dict) -> None:
    """Move the staged files over, cfg.json last.

    New weights beside an old cfg.json of other meaning (another k, say) would load and be wrong, so that goes
    first: a kill in that instant leaves a folder that is refused, and the new SAE whole in the hidden one.
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
    """The local folder of cfg.json and weights, downloaded when `path` names a repository."""
    local = Path(path)
    if local.is_dir():
        source = local / folder if folder else local
    elif isinstance(path, str) and re.fullmatch(r"[^./~\\][^/\\]*/[^/\\]*", path):
        source = _download(path, folder)
    else:
        raise CheckpointError(
            f"no SAE at {path}: expected a folder with {CFG} and {WEIGHTS}, or a repository as owner/name"
        )
    for name in (CFG, WEIGHTS):
        if not (source / name).is_file():
            inside = sorted(str(p.parent.relative_to(local)) for p in local.rglob(CFG))
            if inside:
                hint = f"SAEs in it: {', '.join(inside[:10])} (pass one as folder=)"
            elif (source / "plan.json").is_file():
                hint = "the folder is an activation store, no SAE"
            else:
                hint = "the folder is no complete SAE"
            raise CheckpointError(f"{source}: expected {CFG} and {WEIGHTS}, {name} is missing; {hint}")
    return source


def _download(repo: str, folder: str | None) -> Path:
    from huggingface_hub import list_repo_files, snapshot_download

    prefix, end = f"{folder}/" if folder else "", f"/{CFG}"
    try:
        wanted = [prefix + name for name in (CFG, WEIGHTS, SPARSITY)]
        source = Path(snapshot_download(repo, allow_patterns=wanted)) / prefix
        if (source / CFG).is_file():
            return source
        inside = sorted(name.removesuffix(end) for name in list_repo_files(repo) if name.endswith(end))
    except Exception as error:  # the hub client raises a dozen unrelated types (offline, gated, absent)
        raise CheckpointError(
            f"cannot fetch {repo} folder={folder!r} from the hub: {error}; there is no local folder {repo} "
            "either"
        ) from error
    more = f" and {len(inside) - 10} more" if len(inside) > 10 else ""
    raise CheckpointError(
        f"{repo} has no SAE at folder={folder!r}; "
        f"it has {', '.join(inside[:10]) or 'none in this format'}{more}"
    )
