"""The folder of a feature index, version 2: its format, writing it, and which SAE it belongs to.

    index.json                 written last: format, version; plan (what determines the index: SAE, store,
                               hook point, settings); has (what was asked for: lens, output_score); decoder
                               (decoder_identity, not in old indexes); rows by position; names, bytes and
                               sha256 of the two files below; sha256 of this file without that entry
    latents-{key}.safetensors  one row a latent, first dimension d_sae:
        counts, first_fired, last_fired     I64[d_sae], rows on which it fires, first and last; -1 for none
        top_values, top_rows                {F32|F64}, I64[d_sae n_top], strongest first; row -1 if empty
        sample_values, sample_rows          {F32|F64}, I64[d_sae n_sample], a uniform sample of its firings
        histogram, positions                I32[d_sae 96], I32[d_sae 16], firings by activation, by position
                                            (tally.py)
        contrast_rows                       I64[d_sae n_contrast], random rows without it; -1 for none
        token_entropy                       F32[d_sae], nats; nan if it never fired, or rows have no tokens
        token_share, top_token_share, pair_share
                                            F32[d_sae], of its commonest token (unigram.py); nan as above
        common_token                        I32[d_sae], that token; -1 for none
        jaccard_ids, jaccard, pmi_ids, pmi  I32, F32[d_sae n_neighbors], latents that fire with it; id -1 for
                                            none
        cosine_ids, cosine                  I32, F32[d_sae n_neighbors], whose decoder rows point alike
        promoted_ids, promoted_logits, demoted_ids, demoted_logits
                                            I32, F32[d_sae n_logits], the logit lens; has "lens"
        output_score                        F32[d_sae]; has "output_score"
    tokens-{key}.safetensors   the store's tokens (token_table.py) and the sampled rows (token_sample.py)
    dashboards.safetensors     of an import: what its file said (exchange/dashboards.py); so is tokenizer/
    labels.sqlite              what people wrote about latents (labels.py); a new index of the SAE keeps it
    parts/plan.json            during a pass: the plan
    parts/{shard}.safetensors  the tally of some shards, named after the first; their numbers: I64 `shards`
    .lock                      there while a process makes the index

{key} names plan and what was asked for, so a new index appears beside the old one, and index.json decides
which counts. An index of a version before records no sha256 of its files. JSON is UTF-8 with sorted keys.
Every file appears by fsync and rename, so it is whole. Readers map files into memory and never unpickle.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saelens_lite.errors import FeatureIndexError
from saelens_lite.json_data import loads, misfit
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.store.folder import LocalFolder
from saelens_lite.store.layout import encode_json
from saelens_lite.store.writer import safetensors_head

FORMAT, VERSION = "saelens_lite feature index", 2
INDEX, PARTS = "index.json", "parts"
_DATA = re.compile(r"(latents|tokens)-[0-9a-f]{12}\.safetensors")
_SIGN = {"latents": "top_rows", "tokens": "shard_rows"}
"""A tensor that only such a file of an index has."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """A tensor that is written in pieces along its first dimension."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Iterable[Tensor]


def index_folder(path: str | os.PathLike[str]) -> LocalFolder:
    """The folder of an index. raises: ValueError for a URL, as its files are memory-mapped and sqlite's"""
    if "://" in os.fspath(path):
        raise ValueError(
            f"an index expected a local folder, got {os.fspath(path)}: copy or make it on this machine"
        )
    return LocalFolder(Path(path))


@contextlib.contextmanager
def only_writer(folder: LocalFolder, rank: int) -> Iterator[None]:
    """Refuse a second call that makes an index here; of several processes of a call the first holds the lock.

    raises: FeatureIndexError if another process has the lock
    """
    with folder.locked() if rank == 0 else contextlib.nullcontext(True) as ours:
        if not ours:
            raise FeatureIndexError(
                f"another process is making the index in {folder}: wait for it, or choose another folder"
            )
        yield


def check_ours(folder: LocalFolder) -> None:
    """raises: ValueError where the folder of parts, which a pass replaces, holds anything else"""
    parts = folder.root / PARTS
    whole = parts.is_dir() and not parts.is_symlink()
    if not whole and not parts.is_symlink() and not parts.exists():
        return
    foreign = [name for name in os.listdir(parts) if not _is_part(parts / name)] if whole else [""]
    if foreign:
        raise ValueError(
            f"{parts / foreign[0]} is not of an index, and an index in {folder} would replace it: choose "
            "another "
            "folder for the index"
        )


def outdated(folder: LocalFolder, files: Collection[str]) -> list[str]:
    """Data files of earlier indexes; what only has such a name is left out. files: which count"""
    found = {name: _DATA.fullmatch(name) for name in os.listdir(folder.root) if name not in files}
    return [name for name, of in found.items() if of and _has_tensor(folder.root / name, _SIGN[of[1]])]


def _is_part(path: Path) -> bool:
    """Whether a pass wrote this file, whole or not."""
    if path.is_symlink() or not path.is_file():
        return False
    if path.name == "plan.json":
        with contextlib.suppress(ValueError, TypeError):
            return {"sae", "store", "settings"} <= {*loads(path.read_bytes())}
        return False
    return path.suffix == ".tmp" or (path.stem.isdecimal() and _has_tensor(path, "shards"))


def _has_tensor(path: Path, name: str) -> bool:
    if path.is_file() and not path.is_symlink():
        with contextlib.suppress(SafetensorError), safe_open(path, framework="pt") as tensors:
            return name in tensors.keys()  # noqa: SIM118 (no dict)
    return False


def write_tensors(
    folder: LocalFolder, name: str, tensors: Mapping[str, Tensor | Streamed]
) -> dict[str, int | str]:
    """Write a safetensors file without a second copy of any tensor; returns its bytes and sha256."""
    # Widest first, so that each is aligned.
    widest_first = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    with folder.appearing(name) as file:
        head = safetensors_head([(key, tensor.dtype, tuple(tensor.shape)) for key, tensor in widest_first])
        file.write(head)
        digest = hashlib.sha256(head)
        for _, tensor in widest_first:
            for piece in tensor.pieces if isinstance(tensor, Streamed) else (tensor,):
                content = _bytes(piece.to(tensor.dtype))
                file.write(content)
                digest.update(content)
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def open_tensors(folder: LocalFolder, name: str, size_bytes: int | None = None) -> Any:
    """A safetensors file of the index, mapped into memory.

    raises: FeatureIndexError when it is missing, has another size than recorded, or is no such file
    """
    found = folder.size(name)
    if found is None or (size_bytes is not None and found != size_bytes):
        state = "is missing" if found is None else f"has {found} bytes, {INDEX} records {size_bytes}"
        raise FeatureIndexError(
            f"{folder.describe(name)} {state}: make the index again with `saelens-lite analyze`"
        )
    try:
        return safe_open(folder.local(name, ""), framework="pt")
    except SafetensorError as error:
        raise FeatureIndexError(
            f"{folder.describe(name)} is no readable safetensors file ({error}): it was altered"
        ) from error


def write_index(folder: LocalFolder, facts: dict[str, Any]) -> None:
    """Write index.json, which makes an index count."""
    content = {"format": FORMAT, "version": VERSION, **facts}
    folder.write(INDEX, encode_json(content | {"sha256": _sha256(content)}))


_FORM = {
    "plan": {
        "sae": {"sha256": str, "d_sae": int, "d_model": int, "kind": str, "model": str, "hook_point": str},
        "hook_point": str,
        "rows": int,
        "settings": {"n_top": int, "n_sample": int, "seed": int, "n_logits": int},
        "store": {"sha256": str, "tokenizer": str},
    },
    "files": {name: {"file": str, "bytes": int} for name in ("latents", "tokens", "*")},
    "has": {"lens": bool, "output_score": bool},
    "bos_id?": int,
    "decoder?": str,
}
"""What is relied on of index.json, whoever wrote its checksum."""


def read_index(folder: LocalFolder) -> dict[str, Any] | None:
    """The content of index.json; None where there is none.

    raises: FeatureIndexError when it is altered, or of another format or version
    """
    if folder.size(INDEX) is None:
        return None
    try:
        content = loads(folder.read(INDEX).decode())
        stated = content.pop("sha256")
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise FeatureIndexError(
            f"{folder.describe(INDEX)} is not the JSON of an index ({error}): it was altered"
        ) from error
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        raise FeatureIndexError(
            f"{folder.describe(INDEX)} expected {FORMAT!r} version {VERSION}, it states "
            f"{content.get('format')!r} version {content.get('version')}: read it with the release that "
            "wrote it, or remove that file and analyze again; labels stay"
        )
    if stated != _sha256(content):
        raise FeatureIndexError(
            f"{folder.describe(INDEX)} was altered: it does not have the sha256 it states"
        )
    if found := misfit(content, _FORM):
        raise FeatureIndexError(f"{folder.describe(INDEX)} is not the JSON of an index: {found}")
    return content


def key_of(*parts: Any) -> str:
    """A short name for JSON values."""
    return hashlib.blake2b(encode_json({"parts": parts}), digest_size=6).hexdigest()


def identity(sae: SparseAutoencoder) -> dict[str, Any]:
    """An SAE's facts to show, and the sha256 of its weights and of what it computes with them."""
    config = sae.config
    facts = {"kind": config.kind, "d_model": config.d_model, "d_sae": config.d_sae, "k": config.k}
    facts |= {"model": config.model_name, "hook_point": config.hook_point}
    computes = facts | {"normalize": config.normalize_activations, "b_dec": config.apply_b_dec_to_input}
    if sae.prune_above is not None:
        facts["prune_above"] = computes["prune_above"] = sae.prune_above
    digest = hashlib.sha256(encode_json(computes))
    for name, parameter in sorted(sae.state_dict().items()):
        digest.update(name.encode())
        weights = parameter.detach().T if name == "W_enc" else parameter.detach()
        digest.update(_bytes(weights.cpu()))
    return facts | {"sha256": digest.hexdigest()}


def decoder_identity(sae: SparseAutoencoder) -> str:
    """A sha256 of the signs of all decoder weights: what stays of an SAE that is converted.

    Another format, data type or norm of the decoder's rows alters no sign; another training alters many.
    """
    signs = np.packbits(torch.signbit(sae.W_dec.detach()).cpu().numpy(), axis=1)
    return hashlib.sha256(encode_json({"shape": [*sae.W_dec.shape]}) + signs.tobytes()).hexdigest()


def described(sae: Mapping[str, Any]) -> str:
    """An identity in a clause, for errors."""
    of = f"{sae['model']} {sae['hook_point']}".strip() or "a model it does not name"
    return f"the {sae['kind']} SAE {sae['sha256'][:8]} of {sae['d_sae']:,} latents on {of}"


def check_same_sae(
    folder: LocalFolder, recorded: Mapping[str, Any], sae: Mapping[str, Any], way_out: str
) -> None:
    """raises: ValueError naming both unless the two identities are one"""
    if recorded["sha256"] != sae["sha256"]:
        raise ValueError(
            f"{folder} is the index of {described(recorded)}, not of {described(sae)}: {way_out}"
        )


def _bytes(tensor: Tensor) -> memoryview | bytes:
    """The bytes of a tensor, without a copy of one that is contiguous."""
    if tensor.numel() == 0:
        return b""
    array = np.ascontiguousarray(
        (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    )
    return memoryview(array.reshape(-1).view(np.uint8))


def _sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(encode_json(content)).hexdigest()
