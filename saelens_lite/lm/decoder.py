"""Where the residual stream of a Hugging Face decoder runs: its layers, its width, and what each block adds
to it.

Everything is found by structure. The layers are the ModuleList beside the token embedding. What a block adds
is found by running three tokens through it once and looking which two of its parts sum to the change of the
stream. There is no table of model families here.
"""

from __future__ import annotations

import inspect
import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from saelens_lite.errors import HookError


@dataclass(frozen=True, slots=True)
class BlockParts:
    """The parts of a block whose outputs are what it adds: resid_pre + attn + mlp = resid_post."""

    attn: str
    """name inside the block: "self_attn", or "post_attention_layernorm" where a post-norm follows (Gemma
    2/3)"""
    mlp: str
    """likewise for the MLP or the experts"""


def undistributed(model: nn.Module) -> nn.Module:
    """The model inside torch.compile and data-parallel wrappers; PEFT stays, since its forward may add
    tokens."""
    while True:
        if isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside all wrappers, PEFT's too: the one whose module paths people write."""
    model = undistributed(model)
    while hasattr(model, "get_base_model") and hasattr(model, "peft_config"):
        model = undistributed(model.get_base_model())
    return model


def text_config(model: nn.Module) -> Any:
    """The language model's configuration (the text part of a multimodal one); None when there is none."""
    config = getattr(unwrap(model), "config", None)
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Path and list of the decoder's blocks, e.g. ("model.layers", ModuleList of 22).

    raises: HookError for an encoder-decoder, and where no list of blocks stands beside the token embedding
    """
    model = unwrap(model)
    name = type(model).__name__
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise HookError(
            f"{name} is an encoder-decoder, in which blocks.{{i}} would be ambiguous: "
            "name the module by its path, such as 'decoder.block.3'"
        )
    embedding = token_embedding(model)
    found = []
    for path, owner in model.named_modules():
        children = dict(owner.named_children())
        lists = {
            key: child for key, child in children.items() if isinstance(child, nn.ModuleList) and len(child)
        }
        beside = [child for key, child in children.items() if key not in lists]
        if (
            lists
            and embedding is not None
            and any(part is embedding for child in beside for part in child.modules())
        ):
            key = max(lists, key=lambda key: len(lists[key]))
            found.append((f"{path}.{key}" if path else key, lists[key]))
    if not found:
        raise HookError(
            f"no decoder found in {name}: expected a ModuleList of blocks beside the token embedding. Name "
            "a module "
            f"by its path; the first are {[path for path, _ in model.named_modules() if path][:8]}"
        )
    return max(found, key=lambda item: item[0].count("."))


def d_model(model: nn.Module) -> int:
    """Width of the residual stream: the text model's hidden size, or else the width of its token
    embedding."""
    width = getattr(text_config(model), "hidden_size", None)
    if isinstance(width, int):
        return width
    embedding = token_embedding(unwrap(model))
    if embedding is None:
        raise HookError(
            f"the width of {type(model).__name__} is unknown: no config.hidden_size, no token embedding"
        )
    return embedding.embedding_dim


def token_embedding(model: nn.Module) -> Any:
    """The module that embeds tokens, or None."""
    found = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    return found or next((module for module in model.modules() if isinstance(module, nn.Embedding)), None)


def block_parts(model: nn.Module, block: int) -> BlockParts | None:
    """The two parts that a block adds to the stream; None where no two do (scaled branches, a normalised
    stream).

    Blocks of one make share an answer: the first of them is run once on three tokens, nothing after it is.
    The model is in evaluation mode meanwhile, then every module has its own training flag back; edits that
    are on do not act on those tokens.
    """
    _, layers = decoder_layers(model)
    make = _make(layers[block])
    known = _parts_by_make.setdefault(layers, {})
    if make not in known:
        first = next(layer for layer in layers if _make(layer) == make)
        known[make] = _adding_parts(_observe(model, first), dict(first.named_children()))
    return known[make]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """No dropout inside; every module's own training flag comes back after."""
    flags = {module: module.training for module in model.modules()}
    try:
        for module in flags:
            module.training = False
        yield
    finally:
        for module, training in flags.items():
            module.training = training


def accepts(module: nn.Module, argument: str) -> bool:
    """Does the forward name this argument? The class is asked, since accelerate replaces the instance's
    forward."""
    return argument in inspect.signature(type(module).forward).parameters


def being_observed(model: nn.Module) -> bool:
    """Is the forward in progress one of ours, to find a block's parts? Edits and captures keep out of it."""
    return unwrap(model) in _observed


def stream_into(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """The residual stream in what a block was called with: by position, or as hidden_states.

    raises: HookError where it is neither
    """
    stream = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(stream, Tensor):
        raise HookError(
            f"a block expected the stream first or as hidden_states, got keywords {sorted(kwargs)}"
        )
    return stream


def main_tensor(output: Any) -> Any:
    """The activations in what a module returned: the tensor itself, or the first of a tuple or list."""
    return output[0] if isinstance(output, tuple | list) and len(output) else output


_parts_by_make: weakref.WeakKeyDictionary[nn.ModuleList, dict[str, BlockParts | None]] = (
    weakref.WeakKeyDictionary()
)

_observed: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class _Observed(Exception):
    """Ends an observation: never leaves this file."""


@dataclass(slots=True)
class _Observation:
    """What passed through a block in one forward."""

    stream: list[Tensor] = field(default_factory=list)
    """before and after the block"""
    outputs: dict[str, list[Tensor]] = field(default_factory=dict)
    """of each part, call by call"""
    follows: dict[str, str] = field(default_factory=dict)
    """part → the part whose output it was called on"""


def _make(layer: nn.Module) -> str:
    return ",".join(
        [type(layer).__name__, *(f"{key}:{type(child).__name__}" for key, child in layer.named_children())]
    )


def _observe(model: nn.Module, layer: nn.Module) -> _Observation:
    model = unwrap(model)
    seen = _Observation()
    live: list[tuple[str, Tensor]] = []

    def on_entry(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.stream.append(stream_into(args, kwargs).clone())

    def on_exit(_module: nn.Module, _args: tuple, output: Any) -> None:
        seen.stream.append(main_tensor(output).clone())
        raise _Observed

    def on_part(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple, output: Any) -> None:
            value = main_tensor(output)
            if isinstance(value, Tensor) and value.is_floating_point():
                for source, tensor in live:
                    if args and args[0] is tensor:
                        seen.follows[name] = source
                # a clone, because Falcon adds the attention into the MLP's output in place
                seen.outputs.setdefault(name, []).append(value.clone())
                live.append((name, value))

        return hook

    handles = [
        layer.register_forward_pre_hook(on_entry, with_kwargs=True),
        layer.register_forward_hook(on_exit),
    ]
    handles += [part.register_forward_hook(on_part(name)) for name, part in layer.named_children()]
    embedding = token_embedding(model)
    device = embedding.weight.device if embedding.weight.device.type != "meta" else torch.device("cpu")
    ids = (torch.arange(3, device=device) % embedding.weight.shape[0])[None]
    masked = {"attention_mask": torch.ones_like(ids)} if accepts(model, "attention_mask") else {}
    _observed.add(model)
    try:
        with evaluation_mode(model), torch.no_grad():
            model(input_ids=ids, **masked)
    except _Observed:
        pass
    except Exception as error:
        raise HookError(
            f"what the blocks of {type(model).__name__} add to the stream is unknown, since three tokens "
            "would not run "
            f"through it ({type(error).__name__}: {error}). Name a module by its path instead"
        ) from error
    finally:
        _observed.discard(model)
        for handle in handles:
            handle.remove()
    return seen


def _adding_parts(seen: _Observation, parts: dict[str, nn.Module]) -> BlockParts | None:
    """The attention, or the norm right after it, and the other part that with it makes up the change of the
    stream."""
    if len(seen.stream) != 2:  # a forward that leaves this block out
        return None
    before, after = seen.stream
    once = {
        name: outputs[0]
        for name, outputs in seen.outputs.items()
        if len(outputs) == 1
        and outputs[0].numel() == before.numel()
        and outputs[0].shape[-1] == before.shape[-1]
        and not isinstance(parts[name], nn.Dropout)  # looked through: hook points lie before it
    }
    mixers = [name for name in once if accepts(parts[name], "attention_mask")]
    attn_side = [name for name in once if name in mixers or seen.follows.get(name) in mixers]
    # the sum has two rounded additions, each off by half a unit in the last place at most
    slack = 4 * max(torch.finfo(tensor.dtype).eps for tensor in (after, *once.values()))
    values = {name: output.float().to(before.device).reshape(before.shape) for name, output in once.items()}
    before, after = before.float(), after.float().to(before.device)
    best, smallest = None, math.inf
    for attn in attn_side:
        for mlp in (name for name in once if name not in attn_side):
            size = before.abs() + values[attn].abs() + values[mlp].abs()
            gap = (before + values[attn] + values[mlp] - after).abs() / size.clamp_min(1e-6)
            if gap.max() <= slack and gap.max() < smallest:
                best, smallest = BlockParts(attn=attn, mlp=mlp), float(gap.max())
    return best
