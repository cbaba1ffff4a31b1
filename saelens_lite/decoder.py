"""Where the residual stream of a Hugging Face decoder runs: its layers, its width, and what each block adds to it.

Everything is found by structure. The layers are the ModuleList beside the token embedding; what a block adds is found by running a few tokens through it
once and looking which two of its parts sum to the change of the stream. There is no table of model families here.
"""

from __future__ import annotations

import inspect
import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saelens_lite.errors import HookError


@dataclass(frozen=True, slots=True)
class BlockParts:
    """The parts of a block whose outputs are added to the stream: resid_pre + attn_out + mlp_out = resid_post."""

    attn: str
    """name of the part inside the block, e.g. "self_attn", or "post_attention_layernorm" where a post-norm follows (Gemma 2/3)"""
    mlp: str
    """likewise for the MLP or the experts"""


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside PEFT, torch.compile and data-parallel wrappers: the one whose module paths a reader would write."""
    while True:
        if hasattr(model, "get_base_model") and hasattr(model, "peft_config"):
            model = model.get_base_model()
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def text_config(model: nn.Module) -> Any:
    """The configuration of the language model (the text part of a multimodal one), or None when the module has none."""
    config = getattr(unwrap(model), "config", None)
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The path and the list of the decoder's blocks, e.g. ("model.layers", ModuleList of 22).

    raises: HookError for an encoder-decoder, and where no list of blocks stands beside the token embedding
    """
    model = unwrap(model)
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise HookError(
            f"{type(model).__name__} is an encoder-decoder: blocks.{{i}} would be ambiguous. Name the module by its path instead, e.g. 'decoder.block.3'"
        )
    embedding = _token_embedding(model)
    found = []
    for path, owner in model.named_modules():
        lists = [(name, child) for name, child in owner.named_children() if isinstance(child, nn.ModuleList) and len(child)]
        beside = [child for child in owner.children() if not isinstance(child, nn.ModuleList)]
        if lists and any(_holds(child, embedding) for child in beside):
            name, layers = max(lists, key=lambda item: len(item[1]))
            found.append((f"{path}.{name}" if path else name, layers))
    if not found:
        raise HookError(
            f"no decoder found in {type(model).__name__}: expected a ModuleList of blocks beside the token embedding. Name a module by its path instead; "
            f"its first parts are {[name for name, _ in model.named_modules() if name][:12]}"
        )
    return max(found, key=lambda item: item[0].count("."))


def d_model(model: nn.Module) -> int:
    """Width of the residual stream. It is the text model's hidden size, or else the width of the token embedding."""
    width = getattr(text_config(model), "hidden_size", None)
    if isinstance(width, int):
        return width
    embedding = _token_embedding(unwrap(model))
    if embedding is None:
        raise HookError(f"the width of {type(model).__name__} is unknown: it has neither config.hidden_size nor a token embedding")
    return embedding.embedding_dim


def block_parts(model: nn.Module, block: int) -> BlockParts | None:
    """The parts of a block that are added to the stream, or None where the block offers no such two (scaled branches, other arithmetic).

    Blocks of the same make share one answer; the first of them is run once on three tokens, everything after it is skipped.
    The model is in evaluation mode meanwhile and gets its training flags back.
    """
    _, layers = decoder_layers(model)
    make = _make(layers[block])
    known = _parts_by_make.setdefault(layers, {})
    if make not in known:
        first = next(i for i, layer in enumerate(layers) if _make(layer) == make)
        known[make] = _observe(model, layers[first])
    return known[make]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off inside; every module's own training flag comes back after."""
    flags = {module: module.training for module in model.modules()}
    try:
        for module in flags:
            module.training = False
        yield
    finally:
        for module, training in flags.items():
            module.training = training


def main_tensor(output: Any) -> Any:
    """The activations in what a module returned: the tensor itself, or the first of a tuple or list."""
    return output[0] if isinstance(output, tuple | list) and len(output) else output


def accepts(module: nn.Module, argument: str) -> bool:
    """Does the module's forward name this argument? (The class is asked: accelerate replaces the instance's forward.)"""
    return argument in inspect.signature(type(module).forward).parameters


class _Enough(Exception):
    """Ends an observation: never leaves this file."""


_parts_by_make: weakref.WeakKeyDictionary[nn.ModuleList, dict[str, BlockParts | None]] = weakref.WeakKeyDictionary()


def _make(layer: nn.Module) -> str:
    return ",".join([type(layer).__name__, *(f"{name}:{type(child).__name__}" for name, child in layer.named_children())])


def _token_embedding(model: nn.Module) -> nn.Module | None:
    if hasattr(model, "get_input_embeddings"):
        embedding = model.get_input_embeddings()
        if embedding is not None:
            return embedding
    return next((module for module in model.modules() if isinstance(module, nn.Embedding)), None)


def _holds(module: nn.Module, part: nn.Module | None) -> bool:
    return part is not None and any(inner is part for inner in module.modules())


def _mixes_positions(module: nn.Module) -> bool:
    return accepts(module, "attention_mask")


def _adds_itself(module: nn.Module) -> bool:
    return accepts(module, "residual")  # Bloom and MPT hand the stream in and get the sum back


def _observe(model: nn.Module, layer: nn.Module) -> BlockParts | None:
    """Run three tokens into `layer` and find the two parts whose outputs sum to the change of the stream."""
    stream: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    calls: dict[str, int] = {}
    follows: dict[str, str] = {}
    live: list[tuple[str, Tensor]] = []

    def on_entry(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        stream["pre"] = (args[0] if args else kwargs["hidden_states"]).clone()

    def on_exit(_module: nn.Module, _args: tuple, output: Any) -> None:
        stream["post"] = main_tensor(output).clone()
        raise _Enough

    def on_part(name: str):
        def hook(_module: nn.Module, args: tuple, output: Any) -> None:
            value = main_tensor(output)
            calls[name] = calls.get(name, 0) + 1
            if not isinstance(value, Tensor):
                return
            for source, tensor in live:
                if args and args[0] is tensor:
                    follows[name] = source
            outputs[name] = value.clone()  # a clone: Falcon adds the attention into the MLP's output in place
            live.append((name, value))

        return hook

    parts = dict(layer.named_children())
    handles = [layer.register_forward_pre_hook(on_entry, with_kwargs=True), layer.register_forward_hook(on_exit)]
    handles += [part.register_forward_hook(on_part(name)) for name, part in parts.items()]
    embedding = _token_embedding(unwrap(model))
    vocabulary = getattr(embedding, "num_embeddings", 3)
    tokens = torch.arange(3, device=embedding.weight.device if embedding is not None and embedding.weight.device.type != "meta" else None) % vocabulary
    try:
        with evaluation_mode(model), torch.no_grad():
            unwrap(model)(input_ids=tokens[None], **({"attention_mask": torch.ones_like(tokens[None])} if accepts(unwrap(model), "attention_mask") else {}))
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()

    pre, post = stream["pre"].float(), stream["post"].float()
    usable = {
        name: value.float().to(pre.device).reshape(pre.shape)
        for name, value in outputs.items()
        if value.numel() == pre.numel() and value.shape[-1] == pre.shape[-1] and calls[name] == 1 and not isinstance(parts[name], nn.Dropout)
    }
    mixers = [name for name in parts if name in usable and _mixes_positions(parts[name])]
    attn_side = [name for name in usable if name in mixers or follows.get(name) in mixers]
    # two rounded additions: each is off by at most half a unit in the last place of what it adds
    slack = 4 * max(torch.finfo(tensor.dtype).eps for tensor in (stream["post"], *(outputs[name] for name in usable)))
    best, smallest = None, math.inf
    for attn in attn_side:
        for mlp in usable:
            if mlp in attn_side or _adds_itself(parts[attn]) or _adds_itself(parts[mlp]):
                continue
            a, m = usable[attn], usable[mlp]
            gap = ((pre + a + m - post).abs() / (pre.abs() + a.abs() + m.abs()).clamp_min(1e-6)).max().item()
            if gap <= slack and gap < smallest:
                best, smallest = BlockParts(attn=attn, mlp=mlp), gap
    return best
