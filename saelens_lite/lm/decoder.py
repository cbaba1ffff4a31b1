"""A Hugging Face decoder, resolved once: its blocks, width, head, and what each block adds to the stream.

Everything is found by structure, not from a table of model families. The blocks are the ModuleList beside the
token embedding. Three tokens that run through the model show which two parts of each block sum to the
stream's change, and which modules run more than once.
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

        raises: HookError for an encoder-decoder, or where no list of blocks is beside the token embedding
        """
        return self._blocks[1]

    @cached_property
    def _blocks(self) -> tuple[str, nn.ModuleList]:
        if getattr(getattr(self.bare, "config", None), "is_encoder_decoder", False):
            raise HookError(
                f"{self.class_name} is an encoder-decoder, in which blocks.{{i}} would be ambiguous: "
                "name the module by its path, such as 'decoder.block.3'"
            )
        found = []
        for path, owner in self.bare.named_modules():
            children = dict(owner.named_children())
            lists = {
                key: m
                for key, m in children.items()
                if isinstance(m, nn.ModuleList) and len(m) and not self._holds_embedding([m])
            }
            beside = [child for key, child in children.items() if key not in lists]
            if lists and self._holds_embedding(beside):
                key = max(lists, key=lambda key: len(lists[key]))
                found.append((f"{path}.{key}" if path else key, lists[key]))
        if not found:
            modules = [path for path, _ in self.bare.named_modules() if path]
            raise HookError(
                f"no decoder found in {self.class_name}: expected a ModuleList of blocks beside the token "
                f"embedding. Name a module by its path; the first are {modules[:8]}"
            )
        return max(found, key=lambda item: item[0].count("."))

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
        layer = self.layers[block]
        if layer not in _parts:
            error = None
            try:
                _observe(self)
            except Exception as raised:
                error = raised
            if layer not in _parts and error is None:
                _parts[layer] = None  # a forward that leaves this block out
            elif layer not in _parts:
                raise HookError(
                    f"what the blocks of {self.class_name} add to the stream is unknown, since three tokens "
                    f"would not run through it ({type(error).__name__}: {error}). Name a module by its path "
                    "instead"
                ) from error
        return _parts[layer]

    def runs(self, module: nn.Module) -> int:
        """How often a forward pass runs the module; 0 where three tokens do not reach it."""
        if module not in _runs:
            with suppress(Exception):  # a model that needs more than tokens
                _observe(self)
        return _runs.get(module, 0)

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


_parts: weakref.WeakKeyDictionary[nn.Module, BlockParts | None] = weakref.WeakKeyDictionary()
"""Of blocks whose pass was observed."""

_runs: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
"""How often modules ran in an observed pass."""


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
    try:
        blocks = set(decoder.layers)
    except HookError:  # module paths alone
        blocks = set()
    counts = dict.fromkeys(decoder.bare.modules(), 0)

    def count(module: nn.Module, _args: tuple) -> None:
        counts[module] += 1

    handles = [module.register_forward_pre_hook(count) for module in counts]
    for block in blocks:
        handles += _observing(block)
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


def _observing(block: nn.Module) -> list[Any]:
    """Hooks that note the block's parts when it has run."""
    seen = _Observation()
    live: list[tuple[str, Tensor]] = []

    def on_entry(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.__init__()
        live.clear()
        seen.stream.append(stream_into(args, kwargs).clone())

    def on_exit(_module: nn.Module, _args: tuple, output: Any) -> None:
        seen.stream.append(main_tensor(output).clone())
        _parts[block] = _adding_parts(seen, dict(block.named_children()))
        seen.__init__()
        live.clear()

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

    handles = [part.register_forward_hook(on_part(name)) for name, part in block.named_children()]
    return [
        *handles,
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
