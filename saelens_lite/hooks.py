"""Hook points of any Hugging Face decoder: names to modules, activations out, a forward cut short, edits in. All of it is undone on leaving.

`blocks.{i}.hook_resid_pre` and `hook_resid_post` are the residual stream before and after block i. `hook_attn_out` and `hook_mlp_out` are what block i adds to
it, after a post-norm where there is one (Gemma 2/3): resid_pre + attn_out + mlp_out = resid_post. A plain module path ("model.layers.3.mlp") means that
module's output. In training mode a dropout may follow attn_out and mlp_out before they are added. The caller's model is never altered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from saelens_lite.decoder import accepts, block_parts, d_model, decoder_layers, main_tensor, unwrap
from saelens_lite.errors import HookError, nearest
from saelens_lite.passes import EditInfo, position_ids_from, watch

__all__ = ["EditInfo", "HookPoint", "capture", "d_model", "decoder_layers", "edit", "hook_points", "model_device", "position_ids_from", "resolve", "run_to"]

Edit = Callable[[Tensor, EditInfo], Tensor]


@dataclass(frozen=True, slots=True)
class HookPoint:
    """A place in a model where activations are read or edited."""

    name: str
    """as it was asked for, e.g. "blocks.3.hook_resid_post" """
    module_path: str
    """e.g. "model.layers.3", in the model inside any PEFT wrapper"""
    block: int | None
    """index of the block, None for a module outside the decoder's blocks"""
    side: Literal["input", "output"]
    """which side of the module"""
    kind: Literal["resid_pre", "resid_post", "attn_out", "mlp_out", "module"]

    def module(self, model: nn.Module) -> nn.Module:
        """The module in this model."""
        return unwrap(model).get_submodule(self.module_path)


def resolve(model: nn.Module, name: str) -> HookPoint:
    """The hook point of that name.

    raises: HookError naming the points there are, and the nearest
    """
    canonical = re.fullmatch(r"blocks\.(\d+)\.hook_(resid_pre|resid_post|attn_out|mlp_out)", name)
    if canonical is None:
        paths = [path for path, _ in unwrap(model).named_modules() if path]
        if name in paths:
            return HookPoint(name, name, _block_of(model, name), "output", "module")
        known = hook_points(model)
        raise HookError(f"no hook point {name!r} in {type(unwrap(model)).__name__}{nearest(name, known + paths)}; it has {_summary(model)}, or any module path")
    path, layers = decoder_layers(model)
    block, kind = int(canonical[1]), canonical[2]
    if block >= len(layers):
        raise HookError(f"no hook point {name!r} in {type(unwrap(model)).__name__}: it has {_summary(model)}")
    if kind in ("resid_pre", "resid_post"):
        return HookPoint(name, f"{path}.{block}", block, "input" if kind == "resid_pre" else "output", kind)
    parts = block_parts(model, block)
    if parts is None:
        raise HookError(
            f"no hook point {name!r} in {type(unwrap(model)).__name__}: no two parts of block {block} ({type(layers[block]).__name__}) add up to the change of "
            f"the stream, as where branches are scaled before they are added. It has {_summary(model)}, or any module path"
        )
    return HookPoint(name, f"{path}.{block}.{parts.attn if kind == 'attn_out' else parts.mlp}", block, "output", kind)


def hook_points(model: nn.Module) -> list[str]:
    """Every canonical hook point of the model, in order of depth; empty where it is no decoder."""
    try:
        _, layers = decoder_layers(model)
    except HookError:
        return []
    names = []
    for block in range(len(layers)):
        inner = ["attn_out", "mlp_out"] if block_parts(model, block) else []
        names += [f"blocks.{block}.hook_{kind}" for kind in ("resid_pre", *inner, "resid_post")]
    return names


def model_device(model: nn.Module, point: HookPoint | None = None) -> torch.device:
    """The device where a point's activations appear, or where the model takes its inputs when no point is given; offloaded modules included."""
    model = unwrap(model)
    module = point.module(model) if point else model
    for inner in module.modules():
        device = getattr(getattr(inner, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        parameter = next(inner.parameters(recurse=False), None)
        if parameter is not None:
            return parameter.device
    return torch.device("cpu")


def run_to(model: nn.Module, names: Sequence[str], **model_inputs: Any) -> dict[str, Tensor]:
    """The activations at these hook points, from one forward that ends at the deepest: no later block, no head.

    model_inputs: what the model's forward takes (input_ids, attention_mask, pixel_values, …); tensors go to the model's device. With a left-padded
    attention_mask and no position_ids, positions are counted from the mask. No cache is built.
    returns: {name: float[batch seq d_model]} in the model's dtype, each on its block's device; gradients as the caller's grad mode says
    raises: HookError for an unknown name, or a module that this forward does not run
    """
    points = {name: resolve(model, name) for name in names}
    device = model_device(model)
    inputs = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in model_inputs.items()}
    if accepts(unwrap(model), "use_cache"):
        inputs["use_cache"] = False
    mask = inputs.get("attention_mask")
    if mask is not None and mask.ndim == 2 and "position_ids" not in inputs and accepts(unwrap(model), "position_ids") and not bool(mask[:, 0].all()):
        inputs["position_ids"] = position_ids_from(mask)

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
                return acts.clone()

            stack.enter_context(_hooked(model, point, keep))
            if holder is not None:
                stack.callback(holder.register_forward_hook(stop_when_complete).remove)
        try:
            getattr(model, "_orig_mod", model)(**inputs)  # a compiled model would not see hooks set after compiling
        except _Finished as reached:
            if reached is not finished:
                raise
    _check_found(model, points, found)
    return {name: found[name] for name in points}


@contextmanager
def capture(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """A dict that each forward run inside fills with the activations at these hook points, float[batch seq d_model]; they stay in the graph.

    raises: HookError for an unknown name, or a compiled model
    """
    _refuse_compiled(model)
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name in names:

            def keep(acts: Tensor, name: str = name) -> Tensor:
                found[name] = acts
                return acts.clone()  # the model goes on with a copy: some blocks add into these tensors in place

            stack.enter_context(_hooked(model, resolve(model, name), keep))
        yield found


@contextmanager
def edit(model: nn.Module, name: str, fn: Edit) -> Iterator[None]:
    """Every forward inside goes on with fn(acts, info) at this hook point, in `generate` too. Nested edits act in the order they were entered.

    fn: takes acts float[batch seq d_model] and an EditInfo; returns the same shape. Returning acts itself leaves the forward bit-identical.
    raises: HookError for an unknown name, a compiled model, or an fn that returns another shape; inside, ValueError from a right-padded generate
    """
    _refuse_compiled(model)
    point = resolve(model, name)
    with watch(model).on() as now, _hooked(model, point, lambda acts: fn(acts, now.info(acts))):
        yield


class _Finished(Exception):
    """Ends a truncated forward; only run_to catches it, and only its own."""


@contextmanager
def _hooked(model: nn.Module, point: HookPoint, fn: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Pass the point's activations through fn, whatever form the module takes or returns them in."""
    module = point.module(model)
    shape: list[torch.Size] = []  # of the stream entering the block: OPT's MLP works on [batch*seq d_model]

    def note_shape(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        shape[:] = [_stream(args, kwargs).shape]

    def changed(acts: Any) -> Tensor | None:
        if not isinstance(acts, Tensor):
            raise HookError(f"{point.name!r} expected a tensor of activations from {point.module_path}, got {type(acts).__name__}")
        viewed = acts.view(shape[0]) if shape and acts.ndim == 2 else acts
        new = fn(viewed)
        if new is viewed:
            return None
        if new.shape != viewed.shape:
            raise HookError(f"an edit at {point.name!r} expected to return {list(viewed.shape)}, got {list(new.shape)}")
        return new.to(acts.dtype).view(acts.shape)

    def on_input(_module: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
        new = changed(_stream(args, kwargs))
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    def on_output(_module: nn.Module, _args: tuple, output: Any) -> Any:
        new = changed(main_tensor(output))
        if new is None or isinstance(output, Tensor):
            return new
        rest = (new, *output[1:])
        return type(output)(*rest) if hasattr(output, "_fields") else type(output)(rest)

    with ExitStack() as stack:
        if point.kind in ("attn_out", "mlp_out"):
            _, layers = decoder_layers(model)
            assert point.block is not None, "points inside a block know it"
            stack.callback(layers[point.block].register_forward_pre_hook(note_shape, with_kwargs=True).remove)
        if point.side == "input":
            stack.callback(module.register_forward_pre_hook(on_input, with_kwargs=True).remove)
        else:
            stack.callback(module.register_forward_hook(on_output).remove)
        yield


def _stream(args: tuple, kwargs: dict) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _offloaded_holder(model: nn.Module, point: HookPoint) -> nn.Module | None:
    """The outermost module around the point whose weights accelerate brings in and takes out again: a forward must leave it properly."""
    names = point.module_path.split(".")
    for depth in range(len(names)):
        module = unwrap(model).get_submodule(".".join(names[:depth]))
        if getattr(getattr(module, "_hf_hook", None), "offload", False):
            return module
    return None


def _refuse_compiled(model: nn.Module) -> None:
    if isinstance(getattr(model, "_orig_mod", None), nn.Module):
        raise HookError("expected a model as it was before torch.compile, which does not see hooks set after compiling: pass the uncompiled model and call that")


def _check_found(model: nn.Module, points: dict[str, HookPoint], found: dict[str, Tensor]) -> None:
    missing = [f"{name} ({points[name].module_path})" for name in points if name not in found]
    if missing:
        raise HookError(f"the forward of {type(unwrap(model)).__name__} never ran {', '.join(missing)}: is it part of what these inputs use?")


def _block_of(model: nn.Module, module_path: str) -> int | None:
    try:
        path, _ = decoder_layers(model)
    except HookError:
        return None
    inside = re.match(re.escape(path) + r"\.(\d+)(\.|$)", module_path)
    return int(inside[1]) if inside else None


def _summary(model: nn.Module) -> str:
    """The canonical points in one line: "blocks.0 to blocks.21 with .hook_resid_pre, …"."""
    known = hook_points(model)
    if not known:
        return "no blocks"
    kinds = list(dict.fromkeys(name.split(".")[2] for name in known))
    last = known[-1].split(".")[1]
    return f"blocks.0 to blocks.{last} with {', '.join('.' + kind for kind in kinds)}" if last != "0" else f"blocks.0 with {', '.join('.' + kind for kind in kinds)}"
