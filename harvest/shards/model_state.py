"""What rows depend on beside the model's name and configuration: its numbers, adapters, autocast and hooks.

Reading all weights would take as long as loading them. So at most 4,096 values of each tensor count, spread
over it: 16 KB a tensor, tens of milliseconds for a model of 7 B. Weights that accelerate offloads are brought
in once. What stands beside the sample is left to the comparison of rows when a harvest resumes, and so are
the buffers that a model makes anew, such as rotary frequencies.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saelens_lite.hashing import hashed_uniform
from saelens_lite.lm.decoder import Decoder

_SAMPLES = 4096
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_OF_ADAPTERS = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")
_LIBRARIES = ("torch.", "transformers.", "accelerate.", "peft.")
"""Their hooks move weights and record outputs."""


def state_facts(model: nn.Module) -> dict[str, Any]:
    """For the plan; autocast, adapters and hooks are as they are now."""
    decoder = Decoder(model)
    device = decoder.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return {
        "values_sha256": _values_sha256(decoder.called),
        "adapters": _adapters(decoder.called),
        "autocast": None if autocast is None else str(autocast).removeprefix("torch."),
        "hooks": sorted(_hooks(decoder.called)),
    }


def autocast_of(plan: Mapping[str, Any], device: torch.device) -> contextlib.AbstractContextManager:
    """The autocast that a plan records, which a thread does not inherit."""
    autocast = plan.get("state", {}).get("autocast")
    return torch.autocast(device.type, getattr(torch, autocast)) if autocast else contextlib.nullcontext()


def _values_sha256(model: nn.Module) -> str:
    """Of names, shapes, types and sampled values of all that `state_dict` holds: parameters, buffers, packed
    weights."""
    digest = hashlib.sha256()
    for name, value in model.state_dict(keep_vars=True).items():
        for tensor in _tensors(_brought_in(model, name, value)):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(_sampled(tensor))
    return digest.hexdigest()


def _brought_in(model: nn.Module, name: str, value: Any) -> Any:
    """The value, from where accelerate keeps it if it is offloaded."""
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    hook = getattr(module, "_hf_hook", None)
    if hook is None or not isinstance(value, Tensor) or value.device.type != "meta":
        return value
    hook.pre_forward(module)
    try:
        return getattr(module, own).detach().cpu()
    finally:
        hook.post_forward(module, None)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The plain tensors in a value: of a quantised or other special tensor those that it is made of."""
    if isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, Tensor) and value.is_quantized:
        yield value.dequantize()
    elif hasattr(value, "__tensor_flatten__"):
        for name in value.__tensor_flatten__()[0]:
            yield from _tensors(getattr(value, name))
    elif isinstance(value, Tensor):
        yield value.detach()


def _sampled(tensor: Tensor) -> bytes:
    """At most 4,096 values, each from its own equal part of the tensor, at a place drawn within it."""
    if tensor.device.type == "meta" or tensor.layout != torch.strided:
        return b""
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    places, n = np.arange(min(_SAMPLES, tensor.numel())), tensor.numel()
    if n > _SAMPLES:
        places = ((places + hashed_uniform(places)) * (n / _SAMPLES)).astype(np.int64).clip(max=n - 1)
    bits = tensor.view(_INTEGERS[tensor.element_size()])
    return torch.take(bits, torch.from_numpy(places).to(bits.device)).cpu().numpy().tobytes()


def _adapters(model: nn.Module) -> dict[str, Any] | None:
    """Which adapters act (PEFT), and a hash of how every layer scales, merges or disables them."""
    active, settings = set(), []
    for path, module in model.named_modules():
        names = getattr(module, "active_adapters", None)
        if isinstance(names, list | tuple):
            active.update(names)
            settings.append([path, *(getattr(module, name, None) for name in _OF_ADAPTERS)])
    if not settings:
        return None
    encoded = json.dumps(settings, sort_keys=True, default=repr).encode()
    return {"active": sorted(active), "settings_sha256": hashlib.sha256(encoded).hexdigest()}


def _hooks(model: nn.Module) -> Iterator[str]:
    """ "module path: hook" for each hook on a module, but for those of the libraries."""
    for path, module in model.named_modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            made_in = getattr(hook, "__module__", None) or type(hook).__module__
            if not f"{made_in}.".startswith(_LIBRARIES):
                name = getattr(hook, "__qualname__", type(hook).__qualname__)
                yield f"{path or 'the model'}: {made_in}.{name}"
