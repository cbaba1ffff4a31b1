"""A Hugging Face decoder, resolved once: its blocks, width, head, and what each block adds to the stream.

Everything is found by structure, not from a table of model families. The blocks are the ModuleList beside the
token embedding or near it (BERT). Three tokens that run through the model show that each block takes what the
one before gave, which two parts of each block sum to the stream's change, and which modules run more than
once.
"""

from __future__ import annotations

import inspect
import math
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
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


class Decoder:
    """A language model and its parts, each looked up when first asked for; nothing in the model changes.

    It does not outlive the call that made it, since the caller may alter the model in between.

    given: the model as the caller passed it
    called: without torch.compile and data-parallel wrappers. PEFT stays, since its forward may add tokens
    bare: inside all wrappers, PEFT's too: the model whose module paths people write
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            what = f"its name {model!r}" if isinstance(model, str) else type(model).__name__
            raise TypeError(
                f"expected a language model, got {what}: load it first, as with "
                "AutoModelForCausalLM.from_pretrained(name)"
            )
        self.given = model
        self.called = _undistributed(model)
        self.bare = self.called
        while hasattr(self.bare, "get_base_model") and hasattr(self.bare, "peft_config"):
            self.bare = _undistributed(self.bare.get_base_model())

    @classmethod
    def of(cls, model: Model) -> Decoder:
        return model if isinstance(model, Decoder) else cls(model)

    @property
    def class_name(self) -> str:
        return type(self.bare).__name__

    @property
    def name(self) -> str:
        """The hub id or folder that the model was loaded from, "" if it does not say."""
        return getattr(getattr(self.bare, "config", None), "name_or_path", "") or ""

    @property
    def text_config(self) -> Any:
        """The configuration of the language model (of a multimodal one its text part); None without one."""
        config = getattr(self.bare, "config", None)
        return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config

    @property
    def path(self) -> str:
        """Of the list of blocks: "model.layers". raises: as `layers`"""
        return self._blocks[0]

    @property
    def layers(self) -> nn.ModuleList:
        """The blocks.

        raises: HookError for an encoder-decoder, or where no list is that of the blocks
        """
        return self._blocks[1]

    @cached_property
    def _blocks(self) -> tuple[str, nn.ModuleList]:
        if getattr(getattr(self.bare, "config", None), "is_encoder_decoder", False):
            raise HookError(
                f"{self.class_name} is an encoder-decoder, in which blocks.{{i}} would be ambiguous: "
                "name the module by its path, such as 'decoder.block.3'"
            )
        lists, beside = self._lists
        if any(block not in _runs for _, blocks in lists for block in blocks):
            with suppress(Exception):  # a model that needs more than tokens
                _observe(self)
        apart = [why for _, blocks in lists for block in blocks if (why := _unfed.get(block))]
        if not beside:  # only what was seen to be a chain
            lists = [item for item in lists if all(_runs.get(b) == 1 and not _unfed.get(b) for b in item[1])]
        if apart and (beside or not lists):
            raise HookError(f"the blocks of {self.class_name} do not feed each other: {apart[0]}. {_BY_PATH}")
        if not lists:
            modules = [path for path, _ in self.bare.named_modules() if path]
            raise HookError(
                f"no decoder found in {self.class_name}: expected a ModuleList of blocks beside the token "
                f"embedding, or near it a list whose members run once and feed each other. {_BY_PATH}; the "
                f"first are {modules[:8]}"
            )
        return max(lists, key=lambda item: len(item[1]))

    @cached_property
    def _lists(self) -> tuple[list[tuple[str, nn.ModuleList]], bool]:
        """The lists that may be the blocks, each with its path; and whether it is the one beside the
        embedding.

        Without one there, those of the innermost module around the embedding that has some elsewhere.
        """
        beside, near = [], []
        for path, owner in self.bare.named_modules():
            inside: dict[str, nn.ModuleList] = {}
            holds = False
            for key, child in owner.named_children():
                if self._holds_embedding([child]):
                    holds = True
                else:
                    inside |= _outermost_lists(child, f"{path}.{key}" if path else key)
            if not holds:
                continue
            here = {name: blocks for name, blocks in inside.items() if name.rpartition(".")[0] == path}
            if here:
                beside.append(max(here.items(), key=lambda item: len(item[1])))
            elif inside:
                near.append(list(inside.items()))
        if beside:
            return [max(beside, key=lambda item: item[0].count("."))], True
        return (near[-1] if near else []), False

    def _holds_embedding(self, modules: list[nn.Module]) -> bool:
        return self.embedding is not None and any(
            part is self.embedding for module in modules for part in module.modules()
        )

    @cached_property
    def outside_in(self) -> list[nn.Module]:
        """The model and what stands between it and its blocks; the model alone where it is no decoder."""
        try:
            names = self.path.split(".")[:-1]
        except HookError:  # a plain module path was asked for
            return [self.bare]
        return [self.bare.get_submodule(".".join(names[:depth])) for depth in range(len(names) + 1)]

    @cached_property
    def embedding(self) -> Any:
        """The module that embeds tokens, or None."""
        found = self._given_embedding
        if isinstance(found, nn.ModuleList):
            found = found[0]
        return found or next((m for m in self.bare.modules() if isinstance(m, nn.Embedding)), None)

    @property
    def _given_embedding(self) -> Any:
        return self.bare.get_input_embeddings() if hasattr(self.bare, "get_input_embeddings") else None

    @property
    def n_codebooks(self) -> int:
        """How many tokens a position has, each with an embedding of its own, given as rows of input_ids."""
        found = self._given_embedding
        return len(found) if isinstance(found, nn.ModuleList) else 1

    @property
    def head(self) -> nn.Module:
        """The output embedding, from the last stream to logits. raises: ValueError where there is none"""
        found = self.bare.get_output_embeddings() if hasattr(self.bare, "get_output_embeddings") else None
        if found is None:
            raise ValueError(
                f"expected a model with an output embedding, got {self.class_name}: load it as a …ForCausalLM"
            )
        return found

    @cached_property
    def width(self) -> int:
        """d_model of the stream: the text model's hidden size, or the width of its token embedding."""
        width = getattr(self.text_config, "hidden_size", None)
        if isinstance(width, int):
            return width
        if self.embedding is None:
            raise HookError(
                f"the width of {self.class_name} is unknown: no config.hidden_size, no token embedding"
            )
        return self.embedding.embedding_dim

    @property
    def device(self) -> torch.device:
        return device_of(self.bare)

    def accepts(self, argument: str) -> bool:
        return accepts(self.bare, argument)

    @cached_property
    def special_ids(self) -> tuple[int, ...]:
        """The bos, eos and pad ids of the model's configurations, ascending."""
        found: set[int] = set()
        for settings in (self.text_config, getattr(self.bare, "generation_config", None)):
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
                ids = getattr(settings, name, None)
                found.update(ids if isinstance(ids, list | tuple) else [] if ids is None else [ids])
        return tuple(sorted(found))

    def parts(self, block: int) -> BlockParts | None:
        """The two parts that a block adds to the stream; None where no two do (scaled or normalised streams).

        Three tokens run through the model once, in evaluation mode and unedited; every block is looked at.
        raises: HookError if they do not reach the block
        """
        return self._anatomy(block).parts

    def inputs(self, block: int) -> BlockInputs:
        """The modules of a block whose inputs are hook points. raises: as `parts`"""
        return self._anatomy(block).inputs

    def _anatomy(self, block: int) -> _Anatomy:
        layer = self.layers[block]
        if layer not in _anatomies:
            error = None
            try:
                _observe(self)
            except Exception as raised:
                error = raised
            if layer not in _anatomies and error is None:
                _anatomies[layer] = _Anatomy()  # a forward that leaves this block out
            elif layer not in _anatomies:
                raise HookError(
                    f"what the blocks of {self.class_name} add to the stream is unknown, since three tokens "
                    f"would not run through it ({type(error).__name__}: {error}). {_BY_PATH}"
                ) from error
        return _anatomies[layer]

    def runs(self, module: nn.Module) -> int:
        """How often a forward pass runs the module; 0 where three tokens do not reach it."""
        if module not in _runs:
            with suppress(Exception):  # a model that needs more than tokens
                _observe(self)
        return _runs.get(module, 0)

    def width_of(self, module: nn.Module) -> int | None:
        """Width of the vectors that the module gives a token; None where three tokens do not show it."""
        return _widths.get(module) if self.runs(module) else None

    def input_width_of(self, module: nn.Module) -> int | None:
        """The same of the vectors that the module takes first."""
        return _input_widths.get(module) if self.runs(module) else None

    @property
    def being_observed(self) -> bool:
        """Is the forward in progress ours, to find a block's parts? Edits and captures keep out of it."""
        return self.bare in _observed.models


Model = nn.Module | Decoder
"""A model as a caller passes it, or one whose parts are looked up already."""


def device_of(module: nn.Module) -> torch.device:
    """Where accelerate puts a module, or else where its first parameter lies."""
    for inner in module.modules():
        device = getattr(getattr(inner, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        parameter = next(inner.parameters(recurse=False), None)
        if parameter is not None:
            return parameter.device
    return torch.device("cpu")


def _undistributed(model: nn.Module) -> nn.Module:
    while True:
        if isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


@contextmanager
def evaluation_mode(model: Model) -> Iterator[None]:
    """No dropout inside; every module's own training flag comes back after."""
    flags = {module: module.training for module in Decoder.of(model).given.modules()}
    try:
        for module in flags:
            module.training = False
        yield
    finally:
        for module, training in flags.items():
            module.training = training


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


_BY_PATH = "Name a module by its path"


def _outermost_lists(module: nn.Module, path: str) -> dict[str, nn.ModuleList]:
    """The lists in a module that are in no other list, by their paths; itself if it is one."""
    if isinstance(module, nn.ModuleList):
        return {path: module} if len(module) else {}
    found: dict[str, nn.ModuleList] = {}
    for key, child in module.named_children():
        found |= _outermost_lists(child, f"{path}.{key}")
    return found


@dataclass(frozen=True, slots=True)
class _Anatomy:
    """What an observed pass showed of a block."""

    parts: BlockParts | None = None
    inputs: BlockInputs = field(default_factory=BlockInputs)


_anatomies: weakref.WeakKeyDictionary[nn.Module, _Anatomy] = weakref.WeakKeyDictionary()
"""Of blocks whose pass was observed."""

_runs: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
"""How often modules ran in an observed pass."""

_widths: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
"""Of the vectors that modules gave in it."""

_input_widths: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
"""Of the vectors that they took first."""

_unfed: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
"""Why an observed pass did not call a block on what the block before gave; "" if it did."""


class _Observing(threading.local):
    """The models that this thread observes."""

    def __init__(self) -> None:
        self.models: weakref.WeakSet[nn.Module] = weakref.WeakSet()


_observed = _Observing()


@dataclass(slots=True)
class _Observation:
    """What passed through a block in one forward."""

    stream: list[Tensor] = field(default_factory=list)
    """before and after the block"""
    outputs: dict[str, list[Tensor]] = field(default_factory=dict)
    """of each part, call by call"""
    follows: dict[str, str] = field(default_factory=dict)
    """part → the part whose output it was called on"""


def _observe(decoder: Decoder) -> None:
    """Run three tokens through the model and note the parts of every block, and how often each module runs.

    raises: whatever the model raises; what ran until then is noted
    """
    counts = dict.fromkeys(decoder.bare.modules(), 0)

    def count(module: nn.Module, args: tuple) -> None:
        counts[module] += 1
        if args and isinstance(args[0], Tensor) and args[0].ndim > 1:
            _input_widths[module] = args[0].shape[-1]

    def measure(module: nn.Module, _args: tuple, output: Any) -> None:
        value = main_tensor(output)
        if isinstance(value, Tensor) and value.ndim == 3:
            _widths[module] = value.shape[-1]

    handles = [module.register_forward_pre_hook(count) for module in counts]
    handles += [module.register_forward_hook(measure) for module in counts]
    for path, blocks in decoder._lists[0]:
        chain = _Chain(path)
        for index, block in enumerate(blocks):
            handles += _observing(block, index, chain)
    weight = decoder.embedding.weight
    device = weight.device if weight.device.type != "meta" else torch.device("cpu")
    ids = (torch.arange(3, device=device) % weight.shape[0]).expand(decoder.n_codebooks, -1)
    inputs: dict[str, Any] = (
        {"attention_mask": torch.ones_like(ids)} if decoder.accepts("attention_mask") else {}
    )
    if decoder.accepts("use_cache"):
        inputs["use_cache"] = False
    _observed.models.add(decoder.bare)
    try:
        with evaluation_mode(decoder.bare), torch.no_grad(), _uncompiled():
            decoder.bare(input_ids=ids, **inputs)
    finally:
        _observed.models.discard(decoder.bare)
        for handle in handles:
            handle.remove()
        _runs.update(counts)


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
        _unfed[block] = chain.enter(index, args, kwargs)

    def on_entry(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.__init__()
        live.clear()
        z.clear()
        if not _unfed[block]:
            seen.stream.append(stream_into(args, kwargs).clone())

    def on_exit(_module: nn.Module, _args: tuple, output: Any) -> None:
        chain.leave(index, output)
        _anatomies[block] = _Anatomy()
        if seen.stream and chain.gave is not None:
            seen.stream.append(chain.gave)
            ran = {name: part for name, part in parts.items() if len(seen.outputs.get(name, ())) == 1}
            inputs = BlockInputs(
                next(iter(z.values())) if len(z) == 1 else None, mlp_entry(ran, z.keys(), seen.follows)
            )
            _anatomies[block] = _Anatomy(_adding_parts(seen, parts), inputs)
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
