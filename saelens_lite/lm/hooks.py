"""Hook points of any Hugging Face decoder: names to modules, activations out, a forward cut short, edits in.

`blocks.{i}.hook_resid_pre` and `hook_resid_post` are the residual stream before and after block i.
`hook_attn_out` and `hook_mlp_out` are what block i adds to it, after a post-norm where there is one (Gemma
2/3):

    resid_pre + attn_out + mlp_out = resid_post

(in training mode a dropout may come between). A plain module path, "model.layers.3.mlp", means that module's
output. Every change is undone on leaving, after an exception too; a model that the caller passed is never
altered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from saelens_lite.errors import HookError, nearest
from saelens_lite.lm.decoder import (
    being_observed,
    block_parts,
    d_model,
    decoder_layers,
    main_tensor,
    stream_into,
    undistributed,
    unwrap,
)
from saelens_lite.lm.forward_state import EditInfo, position_ids_from, prepared_inputs, watch, way_to_decoder

__all__ = [
    "EditInfo", "HookPoint", "capture", "d_model", "decoder_layers", "edit", "hook_points", "model_device",
    "position_ids_from", "resolve", "run_to",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class HookPoint:
    """A place in a model where activations are read or edited."""

    name: str
    """as it was asked for, "blocks.3.hook_resid_post" """
    module_path: str
    """"model.layers.3", in the model inside any PEFT wrapper"""
    block: int | None
    """index of the block; None for a module outside the decoder's blocks"""
    side: Literal["input", "output"]
    """side of the module"""
    kind: Literal["resid_pre", "resid_post", "attn_out", "mlp_out", "module"]

    def module(self, model: nn.Module) -> nn.Module:
        """The module in this model."""
        return unwrap(model).get_submodule(self.module_path)


def resolve(model: nn.Module, name: str) -> HookPoint:
    """The hook point of that name.

    raises: HookError naming the points there are, and the nearest
    """
    canonical = re.fullmatch(r"blocks\.(\d+)\.hook_(resid_pre|resid_post|attn_out|mlp_out)", name)
    paths = [] if canonical else [path for path, _ in unwrap(model).named_modules() if path]
    if name in paths:
        return HookPoint(name, name, _block_of(model, name), "output", "module")
    missing = f"no hook point {name!r} in {type(unwrap(model)).__name__}"
    if canonical is None:
        hint = nearest(name, hook_points(model) + paths)
        raise HookError(f"{missing}{hint}: it has {_summary(model)}, or any module path")
    path, layers = decoder_layers(model)
    block, kind = int(canonical[1]), canonical[2]
    if block >= len(layers):
        raise HookError(f"{missing}: it has {_summary(model)}")
    if kind in ("resid_pre", "resid_post"):
        return HookPoint(name, f"{path}.{block}", block, "input" if kind == "resid_pre" else "output", kind)
    parts = block_parts(model, block)
    if parts is None:
        raise HookError(
            f"{missing}: no two parts of block {block} ({type(layers[block]).__name__}) add up to the "
            "change of the "
            f"stream, as where branches are scaled or the stream is normalised. It has {_summary(model)}, "
            "or any "
            "module path"
        )
    part = parts.attn if kind == "attn_out" else parts.mlp
    return HookPoint(name, f"{path}.{block}.{part}", block, "output", kind)


def hook_points(model: nn.Module) -> list[str]:
    """Every canonical hook point of the model, in order of depth; none where it is no decoder."""
    try:
        _, layers = decoder_layers(model)
    except HookError:
        return []
    names = []
    for block in range(len(layers)):
        inner = ("attn_out", "mlp_out") if block_parts(model, block) else ()
        names += [f"blocks.{block}.hook_{kind}" for kind in ("resid_pre", *inner, "resid_post")]
    return names


def model_device(model: nn.Module, point: HookPoint | None = None) -> torch.device:
    """Where a point's activations appear, or where the model takes its inputs when no point is given."""
    module = point.module(model) if point else unwrap(model)
    for inner in module.modules():
        device = getattr(getattr(inner, "_hf_hook", None), "execution_device", None)  # accelerate's placement
        if device is not None:
            return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        parameter = next(inner.parameters(recurse=False), None)
        if parameter is not None:
            return parameter.device
    return torch.device("cpu")


def run_to(model: nn.Module, names: Sequence[str], **model_inputs: Any) -> dict[str, Tensor]:
    """The activations at these hook points, from one forward that ends at the deepest: no later block, no
    head.

    model_inputs: what the model's forward takes (input_ids, attention_mask, pixel_values, …); tensors are
        moved to the model's device. With a left-padded attention_mask and no position_ids, positions come
        from the mask
    returns: {name: float[batch seq d_model]} in the model's dtype, on each block's device; with gradients if
        the caller's grad mode says so
    raises: HookError for an unknown name, or a module that this forward does not run; ValueError for no name
        at all
    """
    if not names:
        raise ValueError("run_to expected at least one hook point, got none")
    points = {name: resolve(model, name) for name in names}
    device = model_device(model)
    inputs = {
        key: value.to(device) if isinstance(value, Tensor) else value for key, value in model_inputs.items()
    }
    found: dict[str, Tensor] = {}
    finished = _Finished()

    def stop_when_complete(*_: Any) -> None:
        if len(found) == len(points):
            raise finished

    with ExitStack() as stack:
        for name, point in points.items():
            holder = _offloaded_holder(model, point)

            def keep(acts: Tensor, name: str = name, holder: nn.Module | None = holder) -> Tensor:
                found[name] = acts
                if holder is None:
                    stop_when_complete()
                return (
                    acts.clone()
                )  # the model goes on with a copy: some blocks add into their parts in place

            stack.enter_context(_hooked(model, point, keep))
            if holder is not None:
                stack.callback(holder.register_forward_hook(stop_when_complete).remove)
        try:
            undistributed(model)(**prepared_inputs(model, inputs))
        except _Finished as reached:
            if reached is not finished:
                raise
            reached.__traceback__ = (
                None  # its frames hold the activations, and would until the next garbage collection
            )
    absent = [f"{name} ({points[name].module_path})" for name in points if name not in found]
    if absent:
        raise HookError(
            f"the forward of {type(unwrap(model)).__name__} with {sorted(inputs)} never ran {absent}"
        )
    return {name: found[name] for name in points}


@contextmanager
def capture(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """A dict that every forward inside fills anew: {name: float[batch seq d_model]}, still in the autograd
    graph.

    raises: HookError for an unknown name or a compiled model
    """
    _check_hooks_are_seen(model)
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name in names:

            def keep(acts: Tensor, name: str = name) -> Tensor:
                found[name] = acts
                return acts.clone()  # as in run_to

            stack.enter_context(_hooked(model, resolve(model, name), keep))
        yield found


@contextmanager
def edit(model: nn.Module, name: str, fn: Callable[[Tensor, EditInfo], Tensor]) -> Iterator[None]:
    """Every forward inside goes on with fn(acts, info) at this hook point, in `generate` too.

    Nested edits act in the order they were entered, each on what the one before left.

    fn: takes acts float[batch seq d_model] and returns the same shape; returning `acts` itself changes no bit
    raises: HookError for an unknown name, a compiled model, learned prompts (PEFT), or an fn that returns
        another shape; inside, ValueError from a right-padded `generate`
    """
    _check_hooks_are_seen(model)
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise HookError(
            "edits expected the text's own tokens, got a PEFT model that puts learned ones before them"
        )
    point = resolve(model, name)
    with watch(model).on() as now, _hooked(model, point, lambda acts: fn(acts, now.info(acts))):
        yield


class _Finished(Exception):
    """Ends a truncated forward; only the run_to that raised it catches it."""


@contextmanager
def _hooked(model: nn.Module, point: HookPoint, fn: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Pass the point's activations through fn, whatever form the module takes or returns them in."""
    module = point.module(model)
    stream_shape: list[int] = []  # of what enters the block: OPT's MLP works on [batch·seq d_model]

    def note_shape(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        stream_shape[:] = stream_into(args, kwargs).shape

    def changed(acts: Any) -> Tensor | None:
        if being_observed(model):
            return None
        if not isinstance(acts, Tensor):
            raise HookError(
                f"{point.name!r} expected {point.module_path} to give a tensor, got {type(acts).__name__}"
            )
        viewed = acts.view(stream_shape) if stream_shape and acts.ndim == 2 else acts
        new = fn(viewed)
        if new is viewed:
            return None
        if new.shape != viewed.shape:
            raise HookError(
                f"an edit at {point.name!r} expected {list(viewed.shape)} back, got {list(new.shape)}"
            )
        return new.to(acts.dtype).reshape(acts.shape)

    def on_input(_module: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
        new = changed(stream_into(args, kwargs))
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    def on_output(_module: nn.Module, _args: tuple, output: Any) -> Any:
        new = changed(main_tensor(output))
        if new is None or isinstance(output, Tensor):
            return new
        parts = (new, *output[1:])
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)

    with ExitStack() as stack:
        if point.kind in ("attn_out", "mlp_out"):
            _, layers = decoder_layers(model)
            assert point.block is not None, "these points belong to a block"
            stack.callback(layers[point.block].register_forward_pre_hook(note_shape, with_kwargs=True).remove)
        if point.side == "input":
            stack.callback(module.register_forward_pre_hook(on_input, with_kwargs=True).remove)
        else:
            stack.callback(module.register_forward_hook(on_output).remove)
            _put_first(module, on_output)
        yield


def _put_first(module: nn.Module, hook: Callable) -> None:
    """Let our hooks on a module's output run before others, still in their own order.

    transformers leaves hooks of its own on the blocks once output_hidden_states was asked for; they should
    report what the model goes on with.
    """
    hook.is_ours = True
    ours = [key for key, other in module._forward_hooks.items() if hasattr(other, "is_ours")]
    for key in reversed(ours):
        module._forward_hooks.move_to_end(key, last=False)


def _check_hooks_are_seen(model: nn.Module) -> None:
    """raises: HookError for a model whose call was compiled, in any of the three ways: such a call skips
    later hooks"""

    def compiled(module: nn.Module) -> bool:
        return (
            hasattr(module, "_orig_mod")
            or getattr(module, "_compiled_call_impl", None) is not None
            or hasattr(module.forward, "_torchdynamo_orig_callable")
        )

    if compiled(model) or any(map(compiled, way_to_decoder(unwrap(model)))):
        raise HookError(
            "expected a model as it was before torch.compile, which may not see hooks set after compiling: "
            "pass the uncompiled model, and call that one inside"
        )


def _offloaded_holder(model: nn.Module, point: HookPoint) -> nn.Module | None:
    """The outermost module around the point whose own weights accelerate brings in and takes out at every
    call.

    A forward must leave such a module through its end, or the weights stay where they are.
    """
    names = point.module_path.split(".")
    for depth in range(len(names)):
        module = unwrap(model).get_submodule(".".join(names[:depth]))
        if getattr(getattr(module, "_hf_hook", None), "offload", False):
            return module
    return None


def _block_of(model: nn.Module, module_path: str) -> int | None:
    try:
        path, _ = decoder_layers(model)
    except HookError:
        return None
    inside = re.match(re.escape(path) + r"\.(\d+)(\.|$)", module_path)
    return int(inside[1]) if inside else None


def _summary(model: nn.Module) -> str:
    """The canonical points in a clause: "blocks.0 to blocks.21 with .hook_resid_pre, .hook_attn_out, …"."""
    known = [name.split(".") for name in hook_points(model)]
    if not known:
        return "no blocks that hooks understand"
    kinds = dict.fromkeys(kind for _, _, kind in known)
    return f"blocks.0 to blocks.{known[-1][1]} with " + ", ".join(f".{kind}" for kind in kinds)
