"""Three tokens that run through a model once: what each block takes, adds and hands on.

They show that each block takes what the one before gave, which two parts of each block sum to the stream's
change, which modules run more than once, and how wide is what they take and give. Edits and captures keep out
of the pass, and what was seen is kept as long as the modules live.
"""

from __future__ import annotations

import inspect
import math
import sys
import threading
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from saelens_lite.errors import HookError
from saelens_lite.lm.block_inputs import AttentionSeen, BlockInputs, mlp_entry, same_values


@dataclass(frozen=True, slots=True)
class BlockParts:
    """The parts of a block whose outputs are what it adds: resid_pre + attn + mlp = resid_post."""

    attn: str
    """name inside the block: "self_attn", or "post_attention_layernorm" where a post-norm follows (Gemma
    2/3)"""
    mlp: str
    """likewise for the MLP or the experts"""


@dataclass(frozen=True, slots=True)
class Anatomy:
    """What an observed pass showed of a block."""

    parts: BlockParts | None = None
    inputs: BlockInputs = field(default_factory=BlockInputs)


anatomies: weakref.WeakKeyDictionary[nn.Module, Anatomy] = weakref.WeakKeyDictionary()
"""Of blocks whose pass was observed."""

runs: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
"""How often modules ran in an observed pass."""

widths: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
"""Of the vectors that modules gave in it."""

input_widths: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
"""Of the vectors that they took first."""

unfed: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
"""Why an observed pass did not call a block on what the block before gave; "" if it did."""


class _Observing(threading.local):
    """The models that this thread observes."""

    def __init__(self) -> None:
        self.models: weakref.WeakSet[nn.Module] = weakref.WeakSet()


observed = _Observing()


@dataclass(slots=True)
class _Observation:
    """What passed through a block in one forward."""

    stream: list[Tensor] = field(default_factory=list)
    """before and after the block"""
    outputs: dict[str, list[Tensor]] = field(default_factory=dict)
    """of each part, call by call"""
    follows: dict[str, str] = field(default_factory=dict)
    """part → the part whose output it was called on"""


def observe(
    model: nn.Module, lists: Sequence[tuple[str, nn.ModuleList]], embeddings: Tensor, n_codebooks: int
) -> None:
    """Run three tokens through the model and note the parts of every block, and how often each module runs.

    model: in evaluation mode
    lists: those that may be its blocks, each with its path
    embeddings: float[vocab width], of its tokens
    n_codebooks: tokens a position
    raises: whatever the model raises; what ran until then is noted
    """
    counts = dict.fromkeys(model.modules(), 0)

    def count(module: nn.Module, args: tuple) -> None:
        counts[module] += 1
        if args and isinstance(args[0], Tensor) and args[0].ndim > 1:
            input_widths[module] = args[0].shape[-1]

    def measure(module: nn.Module, _args: tuple, output: Any) -> None:
        value = main_tensor(output)
        if isinstance(value, Tensor) and value.ndim == 3:
            widths[module] = value.shape[-1]

    handles = [module.register_forward_pre_hook(count) for module in counts]
    handles += [module.register_forward_hook(measure) for module in counts]
    for path, blocks in lists:
        chain = _Chain(path)
        for index, block in enumerate(blocks):
            handles += _observing(block, index, chain)
    device = embeddings.device if embeddings.device.type != "meta" else torch.device("cpu")
    ids = (torch.arange(3, device=device) % embeddings.shape[0]).expand(n_codebooks, -1)
    optional: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "use_cache": False}
    inputs = {name: value for name, value in optional.items() if accepts(model, name)}
    observed.models.add(model)
    try:
        with torch.no_grad(), _uncompiled():
            model(input_ids=ids, **inputs)
    finally:
        observed.models.discard(model)
        for handle in handles:
            handle.remove()
        runs.update(counts)


@dataclass(slots=True)
class _Chain:
    """What the blocks of a list hand on in one forward."""

    path: str
    last: int | None = None
    """the block that ran last"""
    gave: Tensor | None = None
    """its output, cloned"""
    beside: list[Tensor] = field(default_factory=list)
    """what it returned with it"""

    def enter(self, index: int, args: tuple, kwargs: dict) -> str:
        """Why the block is not called on what the one before gave, "" if it is."""
        try:
            given = stream_into(args, kwargs)
        except HookError as error:
            return f"{self.path}.{index} is no block, since {error}"
        if self.last is None:
            return ""
        block, before = f"{self.path}.{index}", f"{self.path}.{self.last}"
        if not same_values(given, self.gave):
            return f"{block} is not called on what {before} gave"
        second = [other for other in self.beside if other.shape == given.shape and other is not given]
        if any(value is other for value in (*args, *kwargs.values()) for other in second):  # Reformer
            return f"{block} is called on two streams that {before} gave, and the blocks' is one"
        return ""

    def leave(self, index: int, output: Any) -> None:
        stream = main_tensor(output)
        self.last, self.gave = index, stream.clone() if isinstance(stream, Tensor) else None
        others = output[1:] if isinstance(output, tuple | list) else ()
        self.beside = [other for other in others if isinstance(other, Tensor)]


def _observing(block: nn.Module, index: int, chain: _Chain) -> list[Any]:
    """Hooks that note the block's parts when it has run, and whether the block before fed it."""
    seen = _Observation()
    live: list[tuple[str, Tensor]] = []
    parts = dict(block.named_children())
    attention = {name: AttentionSeen(part) for name, part in parts.items() if accepts(part, "attention_mask")}
    z: dict[str, str | None] = {}

    def on_call(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        unfed[block] = chain.enter(index, args, kwargs)

    def on_entry(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.__init__()
        live.clear()
        z.clear()
        if not unfed[block]:
            seen.stream.append(stream_into(args, kwargs).clone())

    def on_exit(_module: nn.Module, _args: tuple, output: Any) -> None:
        chain.leave(index, output)
        anatomies[block] = Anatomy()
        if seen.stream and chain.gave is not None:
            seen.stream.append(chain.gave)
            ran = {name: part for name, part in parts.items() if len(seen.outputs.get(name, ())) == 1}
            inputs = BlockInputs(
                next(iter(z.values())) if len(z) == 1 else None, mlp_entry(ran, z.keys(), seen.follows)
            )
            anatomies[block] = Anatomy(_adding_parts(seen, parts), inputs)
        seen.__init__()
        live.clear()
        z.clear()

    def on_part(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            value = main_tensor(output)
            if isinstance(value, Tensor) and value.is_floating_point():
                for source, tensor in live:
                    if args and args[0] is tensor:
                        seen.follows[name] = source
                # a clone, because Falcon adds the attention into the MLP's output in place
                seen.outputs.setdefault(name, []).append(value.clone())
                live.append((name, value))
                if name in attention:
                    given = args[0] if args else kwargs.get("hidden_states")
                    path = attention[name].projection(given if isinstance(given, Tensor) else None, value)
                    z[name] = path and f"{name}.{path}"

        return hook

    handles = [part.register_forward_hook(on_part(name), with_kwargs=True) for name, part in parts.items()]
    for of in attention.values():
        handles += of.handles()
    return [
        *handles,
        # first, since hooks that someone put there may change what the block takes
        block.register_forward_pre_hook(on_call, with_kwargs=True, prepend=True),
        block.register_forward_pre_hook(on_entry, with_kwargs=True),
        block.register_forward_hook(on_exit),
    ]


def _uncompiled() -> AbstractContextManager:
    """Inside, compiled modules run as they were written: what is compiled now would keep our hooks."""
    dynamo = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if dynamo else nullcontext()


def _adding_parts(seen: _Observation, parts: dict[str, nn.Module]) -> BlockParts | None:
    """The attention, or the norm right after it, and the part that with it makes up the stream's change."""
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


def accepts(module: nn.Module, argument: str) -> bool:
    """Does the forward name this argument? The class is asked: accelerate replaces the instance's forward."""
    return argument in inspect.signature(type(module).forward).parameters


def stream_into(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """The stream that a block was called with, first or as hidden_states. raises: HookError if neither"""
    stream = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(stream, Tensor):
        raise HookError(
            f"a block expected the stream first or as hidden_states, got keywords {sorted(kwargs)}"
        )
    return stream


def main_tensor(output: Any) -> Any:
    """The activations that a module returned: the tensor itself, or the first of a tuple or list."""
    return output[0] if isinstance(output, tuple | list) and len(output) else output
