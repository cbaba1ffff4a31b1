"""A resumed harvest makes a batch of a finished shard again and compares it before it writes.

So another model, tokenizer or state of them is noticed where the plan says nothing of it, and a store of an
older version resumes. The cost is one forward pass. The rows must be equal where the device, threads and
versions are those of the log; elsewhere, or where the model itself gives other bits every time, they may
differ by `tolerance`.
"""

from __future__ import annotations

import contextlib
import logging
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from saelens_lite.errors import ShardError
from saelens_lite.lm.decoder import Decoder
from saelens_lite.store.codecs import STORE_DTYPES, decode, encoder
from saelens_lite.store.event_log import events
from saelens_lite.store.folder import Folder
from saelens_lite.store.layout import commit_name, data_name, tokens_name
from saelens_lite.store.packing import PackedContexts

from ..text.documents import Source
from ..text.tokenized import PackedShard, first_contexts
from .forward import forward_batches

logger = logging.getLogger(__name__)


def tolerance(plan: Mapping[str, Any]) -> float:
    """Relative difference that other devices and versions may make: five units in the last place of the
    coarsest type at work. float32 counts as float16, whose digits TF32 has.
    """
    coarse = "bfloat16" in (plan["dtype"], plan["model"]["compute_dtype"]) or plan["dtype"] == "int8"
    return 0.02 if coarse else 0.005


def difference(rows: Tensor, stored: Tensor) -> float:
    """Mean over rows of ‖row − stored‖ / ‖stored‖: few rows of massive norm do not hide the others."""
    norms = stored.float().norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    return float(((rows.float() - stored.float()).norm(dim=1) / norms).mean())


def circumstances(model: nn.Module) -> dict[str, Any]:
    """What the last bits of rows depend on."""
    from transformers import __version__ as transformers_version

    device = Decoder(model).device
    return {
        "device": device.type,
        "processor": _processor(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers_version,
        "machine": platform.machine(),
        "matmul_precision": torch.get_float32_matmul_precision(),
    }


def changed_circumstances(store: Folder, now: Mapping[str, Any]) -> list[str]:
    """What was otherwise when the harvest was last begun, as "threads 2 then, 4 now"."""
    *_, before = {}, *(event["environment"] for event in events(store, "start"))
    return [
        f"{key} {before[key]} then, {now[key]} now" for key in now if before.get(key, now[key]) != now[key]
    ]


def check_same_rows(
    model: nn.Module,
    tokenizer: Any,
    source: Source,
    plan: dict[str, Any],
    store: Folder,
    finished: Mapping[int, int],
) -> None:
    """raises: ShardError if the first batch of a finished shard, made again, has other tokens or rows"""
    index = next((index for index, n_rows in finished.items() if n_rows), None)
    if index is None:
        return
    if 0 in finished:
        _check_same_tokens(first_contexts(source, tokenizer, plan), _contexts(store, 0, plan), store)
    contexts = _contexts(store, index, plan).first(plan["batch_size_seqs"])
    then = [event.get("environment") for event in events(store, "start")]
    exactly = then != [] and all(before == circumstances(model) for before in then)
    rows = _made(model, index, contexts, plan, finished[index])
    for name, made in rows.items():
        stored = _stored(store, index, name, len(made))
        if torch.equal(made, stored):
            continue
        off = difference(made, stored)
        if exactly:
            again = _made(model, index, contexts, plan, finished[index])[name]
            exactly = torch.equal(made, again)
        if exactly or not off < tolerance(plan):
            expected = "equal rows" if exactly else f"at most {tolerance(plan)}"
            raise ShardError(
                f"{store}: {name} of shard {index}, computed again, differs from its stored rows by "
                f"{off:.2g} (expected {expected}): the model, or a state of it, is not the one that the "
                "harvest was begun with. Use that one, or choose another folder; `saelens-lite verify` tells "
                "whether the store itself was altered"
            )
        logger.info("%s of shard %d, computed again, differs by %.2g", name, index, off)


def _made(
    model: nn.Module, index: int, contexts: PackedContexts, plan: dict[str, Any], n_rows: int
) -> dict[str, Tensor]:
    """The first rows of a shard as a reader would get them, by hook point."""
    (batch,) = forward_batches(
        model, [PackedShard(index, contexts, 0, None)], list(plan["hook_points"]), plan
    )
    made = {}
    for name, rows in batch.rows.items():
        codec = encoder(STORE_DTYPES[plan["dtype"]], n_rows, plan["hook_points"][name]["d_model"])
        made[name] = codec.encode(rows.wait())[1]
    return made


def _check_same_tokens(packed: PackedContexts, stored: PackedContexts, store: Folder) -> None:
    n = min(packed.n_seqs, stored.n_seqs)
    real = packed.attended[:n].astype(bool)
    if not np.array_equal(packed.input_ids[:n][real], stored.input_ids[:n][real]):
        raise ShardError(
            f"{store}: the first documents have other tokens than those in shard 0: the tokenizer, or a "
            "setting of it, is not the one that the harvest was begun with. Use that one, or choose another "
            "folder"
        )


def _contexts(store: Folder, index: int, plan: dict[str, Any]) -> PackedContexts:
    found = _file(store, index, next(iter(plan["hook_points"])), tokens_name(index))
    names = ("input_ids", "attended", "kept", "doc_id")
    return PackedContexts(*(found[name].numpy() for name in names), int(found["first_doc"]))


def _stored(store: Folder, index: int, hook_point: str, n_rows: int) -> Tensor:
    return decode(_file(store, index, hook_point, data_name(index, hook_point)), slice(n_rows))


def _file(store: Folder, index: int, hook_point: str, name: str) -> dict[str, Tensor]:
    """The tensors of a file of a finished shard, mapped into memory."""
    cache_key = store.sha256(commit_name(index, hook_point))
    try:
        with safe_open(store.local(name, cache_key), framework="pt") as file:
            names = file.keys()
            return {key: file.get_tensor(key) for key in names}
    except SafetensorError as error:
        raise ShardError(f"{store}/{name} is no readable safetensors file: it was altered") from error


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor()
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as file:
        name = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    return f"{name} with {torch.backends.cpu.get_cpu_capability()}"
