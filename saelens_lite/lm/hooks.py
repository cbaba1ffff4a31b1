"""Hook points of any Hugging Face decoder: names to modules, activations out, a forward cut short, edits in.

`blocks.{i}.hook_resid_pre` and `hook_resid_post` are the residual stream before and after block i.
`hook_attn_out` and `hook_mlp_out` are what block i adds to it, after a post-norm where there is one (Gemma
2/3):

    resid_pre + attn_out + mlp_out = resid_post

(in training mode a dropout may come between). Two points lie inside the parts: `blocks.{i}.attn.hook_z` is
what the attention's output projection takes, its heads side by side, so head h is the h-th slice of d_head;
`blocks.{i}.mlp.hook_in` is what the MLP module takes, after its norm and gain.

A plain module path, "model.layers.3.mlp", means that module's output. Every change is undone on leaving,
after an exception too; a model that the caller passed is never altered. The first edit or read of a model
runs one pass of three tokens, which shows where its blocks are and what they add.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from saelens_lite.errors import HookError, nearest
from saelens_lite.lm.decoder import Decoder, Model, device_of, evaluation_mode
from saelens_lite.lm.forward_state import EditInfo, Watch, placed_inputs, watch
from saelens_lite.lm.observed_pass import main_tensor, stream_into
from saelens_lite.misfits import names_misfits
from saelens_lite.store.places import CANONICAL, OF_INPUTS, canonical

INSIDE = ("z", "mlp_in")
"""Kinds that lie inside attention and MLP, and are no part of the stream."""

_NOT_ADDED = (
    "no two parts of {block} add up to the change of the stream: branches are scaled or the stream is "
    "normalised"
)
_NO_MODULE = {
    "z": "no module inside the attention of {block} projects its heads onto what it gives",
    "attn_out": _NOT_ADDED,
    "mlp_in": "no single part of {block} beside its attention is the MLP",
    "mlp_out": _NOT_ADDED,
}

_ELSEWHERE = {
    "hook_mlp_in": "TransformerLens' hook_mlp_in is the stream before the MLP's norm, which no module takes "
    "alone. After the norm and its gain, what the MLP reads is blocks.{block}.mlp.hook_in",
    "ln2.hook_normalized": "TransformerLens' ln2.hook_normalized lies between a norm and its gain, where no "
    "module ends. After the gain, what the MLP reads is blocks.{block}.mlp.hook_in",
}
"""Names of TransformerLens that people come with, and what to take in their place."""


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
    kind: Literal["resid_pre", "z", "attn_out", "module", "mlp_in", "mlp_out", "resid_post"]

    @property
    def end(self) -> tuple[str, str]:
        """Module and side: equal for two names of one place."""
        return self.module_path, self.side

    def module(self, model: Model) -> nn.Module:
        """The module in this model."""
        return Decoder.of(model).bare.get_submodule(self.module_path)

    def width(self, model: Model) -> int | None:
        """Of its activations, which need not be the model's; None for a module that three tokens do not
        reach."""
        decoder = Decoder.of(model)
        if self.kind in INSIDE:
            return decoder.input_width_of(self.module(decoder))
        found = decoder.width_of(self.module(decoder))
        return decoder.width if found is None and self.kind != "module" else found

    def device(self, model: Model) -> torch.device:
        """Where its activations appear."""
        return device_of(self.module(model))


def resolve(model: Model, name: str) -> HookPoint:
    """The hook point of that name.

    raises: HookError naming the points there are, and the nearest; or for a module that runs several times a
        forward, so that no one could tell which run is meant
    """
    decoder = Decoder.of(model)
    point = _named(decoder, name)
    if (n_runs := decoder.runs(point.module(decoder))) > 1:
        raise HookError(
            f"{name!r} expected a module that runs once a forward, got {point.module_path} of "
            f"{decoder.class_name}, which runs {n_runs} times: name a module around it or beside it"
        )
    return point


def _named(decoder: Decoder, name: str) -> HookPoint:
    known = canonical(name)
    paths = [] if known else [path for path, _ in decoder.bare.named_modules() if path]
    if name in paths:
        return HookPoint(name, name, _block_of(decoder, name), "output", "module")
    missing = f"no hook point {name!r} in {decoder.class_name}"
    if known is None:
        number, _, rest = name.removeprefix("blocks.").partition(".")
        if rest in _ELSEWHERE:
            raise HookError(f"{missing}: {_ELSEWHERE[rest].format(block=number)}")
        hint = nearest(name, hook_points(decoder, inside=True) + paths)
        raise HookError(f"{missing}{hint}: it has {_summary(decoder)}, or any module path")
    block, kind = known
    if block >= len(decoder.layers):
        raise HookError(f"{missing}: it has {_summary(decoder)}")
    path, side = f"{decoder.path}.{block}", "input" if kind in OF_INPUTS else "output"
    if kind in ("resid_pre", "resid_post"):
        return HookPoint(name, path, block, side, kind)
    inner = _module_inside(decoder, block, kind)
    if inner is None:
        why = _NO_MODULE[kind].format(block=f"block {block} ({type(decoder.layers[block]).__name__})")
        raise HookError(f"{missing}: {why}. It has {_summary(decoder)}, or any module path")
    return HookPoint(name, f"{path}.{inner}", block, side, kind)


def _module_inside(decoder: Decoder, block: int, kind: str) -> str | None:
    """Path inside a block of the module whose input or output is the point; None where there is none."""
    if kind in INSIDE:
        inputs = decoder.inputs(block)
        return inputs.z if kind == "z" else inputs.mlp
    parts = decoder.parts(block)
    return parts and (parts.attn if kind == "attn_out" else parts.mlp)


def enters_stream(model: Model, name: str) -> bool:
    """Whether what the point gives is the stream or is added to it, so that the unembedding reads it.

    A module path is a place of the stream where three tokens give the very values of a canonical point there,
    or of the token embedding; a part of a block whose parts do not add up is none.
    """
    decoder, point = Decoder.of(model), resolve(model, name)
    if point.kind in INSIDE:
        return False
    if point.kind != "module":
        return True
    if point.module(decoder) is decoder.embedding:
        return True
    if point.block is None:
        return False
    prefix = f"blocks.{point.block}."
    there = [other for other in hook_points(decoder) if other.startswith(prefix)]
    ids = torch.arange(3, device=decoder.device)[None] % decoder.embedding.weight.shape[0]
    with evaluation_mode(decoder), torch.no_grad():
        found = run_to(decoder, [name, *there], input_ids=ids)
    own = found.pop(name)
    return any(
        own.numel() == other.numel() and torch.equal(own.view_as(other), other) for other in found.values()
    )


@names_misfits
def hook_points(model: Model, *, inside: bool = False) -> list[str]:
    """Every canonical hook point of the stream and of what is added to it, in order of depth; none where the
    model is no decoder.

    inside: also attn.hook_z and mlp.hook_in, which lie inside attention and MLP
    """
    decoder = Decoder.of(model)
    try:
        n_blocks = len(decoder.layers)
    except HookError:
        return []
    names = []
    for block in range(n_blocks):
        there = {"resid_pre", "resid_post"} | ({"attn_out", "mlp_out"} if decoder.parts(block) else set())
        if inside:
            inputs = decoder.inputs(block)
            there |= {kind for kind, found in (("z", inputs.z), ("mlp_in", inputs.mlp)) if found}
        names += [f"blocks.{block}.{name}" for name, kind in CANONICAL.items() if kind in there]
    return names


@names_misfits
def run_to(model: Model, names: Sequence[str], **model_inputs: Any) -> dict[str, Tensor]:
    """The activations at these hook points, from one forward that stops at the deepest.

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
    decoder = Decoder.of(model)
    points = {name: resolve(decoder, name) for name in names}
    inputs = placed_inputs(decoder, model_inputs)
    found: dict[str, Tensor] = {}
    finished = _Finished()

    def stop_when_complete(*_: Any) -> None:
        if len(found) == len(points):
            raise finished

    with ExitStack() as stack:
        for name, point in points.items():
            holder = _offloaded_holder(decoder, point)

            def keep(acts: Tensor, name: str = name, holder: nn.Module | None = holder) -> Tensor:
                found[name] = acts
                if holder is None:
                    stop_when_complete()
                return acts.clone()  # for the model: some blocks add into their parts in place

            stack.enter_context(_hooked(decoder, point, keep))
            if holder is not None:
                stack.callback(holder.register_forward_hook(stop_when_complete).remove)
        try:
            decoder.called(**inputs)
        except _Finished as reached:
            if reached is not finished:
                raise
            # its frames hold the activations, and would until the next garbage collection
            reached.__traceback__ = None
    absent = [f"{name} ({points[name].module_path})" for name in points if name not in found]
    if absent:
        raise HookError(f"the forward of {decoder.class_name} with {sorted(model_inputs)} never ran {absent}")
    return {name: found[name] for name in points}


@contextmanager
@names_misfits
def capture(model: Model, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """A dict that every forward inside fills anew: {name: float[batch seq d_model]}, still in the autograd
    graph.

    raises: HookError for an unknown name or a compiled model
    """
    decoder = Decoder.of(model)
    points = {name: resolve(decoder, name) for name in names}
    for point in points.values():
        _check_hooks_are_seen(decoder, point)
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name, point in points.items():

            def keep(acts: Tensor, name: str = name) -> Tensor:
                found[name] = acts
                return acts.clone()  # as in run_to

            stack.enter_context(_hooked(decoder, point, keep))
        yield found


@contextmanager
@names_misfits
def edit(model: Model, name: str, fn: Callable[[Tensor, EditInfo], Tensor]) -> Iterator[None]:
    """Inside, every forward continues with fn(acts, info) at this hook point, in `generate` too.

    Nested edits act in the order they were entered, each on what the one before left.

    fn: takes acts float[batch seq d_model] and returns the same shape; returning `acts` itself changes no bit
    raises: HookError for an unknown name, a compiled model, learned prompts (PEFT), or an fn that returns
        another shape; inside, ValueError from a right-padded `generate`, HookError from a forward in a thread
        that has no edit of its own
    warns: on leaving, where forwards ran but never this hook point
    """
    decoder = Decoder.of(model)
    if getattr(getattr(decoder.given, "active_peft_config", None), "is_prompt_learning", False):
        raise HookError(
            "edits expected the text's own tokens, got a PEFT model that puts learned tokens before them"
        )
    point = resolve(decoder, name)
    _check_hooks_are_seen(decoder, point)
    owner, acted = threading.get_ident(), False
    with watch(decoder).on() as now, _found_again(decoder, point, now):

        def edited(acts: Tensor) -> Tensor:
            nonlocal acted
            if now.thread != owner:  # which has edits of its own
                return acts
            acted = True
            return fn(acts, now.info(acts))

        with _hooked(decoder, point, edited):
            before = now.calls
            yield
            if now.calls > before and not acted:
                warnings.warn(_never_acted(decoder, point, now.calls - before), stacklevel=3)


@contextmanager
def _found_again(decoder: Decoder, point: HookPoint, now: Watch) -> Iterator[None]:
    """Inside, the point's block finds its pass when gradient checkpointing runs it again."""
    if point.block is None:
        yield
        return
    parts = now.parts_of(decoder.layers[point.block])
    handles = [part.register_forward_pre_hook(now.enter_part, with_kwargs=True) for part in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _never_acted(decoder: Decoder, point: HookPoint, n_passes: int) -> str:
    why = "a layer or branch was skipped, or other code ran in its place"
    try:
        _check_hooks_are_seen(decoder, point)
    except HookError:
        why = "it was compiled after the edit was entered"
    return (
        f"the edit at {point.name!r} changed nothing: {n_passes} forward passes of {decoder.class_name} ran, "
        f"and none ran {point.module_path} ({why})"
    )


class _Finished(Exception):
    """Ends a truncated forward; only the run_to that raised it catches it."""


@contextmanager
def _hooked(decoder: Decoder, point: HookPoint, fn: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Pass the point's activations through fn, whatever form the module takes or returns them in."""
    module = point.module(decoder)
    stream_shape: list[int] = []  # of what enters the block: OPT's MLP works on [batch·seq d_model]

    def note_shape(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        stream_shape[:] = stream_into(args, kwargs).shape

    def changed(acts: Any) -> Tensor | None:
        if decoder.being_observed:
            return None
        if not isinstance(acts, Tensor):
            raise HookError(
                f"{point.name!r} expected {point.module_path} to give a tensor, got {type(acts).__name__}"
            )
        viewed = acts.view(*stream_shape[:-1], -1) if stream_shape and acts.ndim == 2 else acts
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
        if point.kind not in ("resid_pre", "resid_post", "module"):
            assert point.block is not None, "these points belong to a block"
            block = decoder.layers[point.block]
            stack.callback(block.register_forward_pre_hook(note_shape, with_kwargs=True).remove)
        if point.side == "input":
            stack.callback(module.register_forward_pre_hook(on_input, with_kwargs=True).remove)
        else:
            stack.callback(module.register_forward_hook(on_output).remove)
            _put_first(module, on_output)
        yield


def _put_first(module: nn.Module, hook: Callable) -> None:
    """Let our hooks on a module's output run before others, still in their own order.

    transformers leaves its own hooks on the blocks once output_hidden_states was asked for; they should
    report the edited stream.
    """
    hook.is_ours = True
    ours = [key for key, other in module._forward_hooks.items() if hasattr(other, "is_ours")]
    for key in reversed(ours):
        module._forward_hooks.move_to_end(key, last=False)


def _check_hooks_are_seen(decoder: Decoder, point: HookPoint) -> None:
    """raises: HookError where the point is in, or is, a compiled module: its call skips later hooks"""

    def compiled(module: nn.Module) -> bool:
        return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None

    def compiled_inside(module: nn.Module) -> bool:
        return compiled(module) or hasattr(module.forward, "_torchdynamo_orig_callable")

    names = point.module_path.split(".")
    around = [decoder.bare.get_submodule(".".join(names[:depth])) for depth in range(len(names))]
    around += [decoder.given, *decoder.outside_in]
    if any(map(compiled_inside, around)) or compiled(point.module(decoder)):
        raise HookError(
            f"{point.name!r} expected a model before torch.compile, since what is compiled may not see later "
            "hooks: pass the uncompiled model or compile other modules, and call that one inside"
        )


def _offloaded_holder(decoder: Decoder, point: HookPoint) -> nn.Module | None:
    """The outermost module around the point whose own weights accelerate brings in and takes out at every
    call.

    A forward must leave such a module through its end, or the weights stay where they are.
    """
    names = point.module_path.split(".")
    for depth in range(len(names)):
        module = decoder.bare.get_submodule(".".join(names[:depth]))
        if getattr(getattr(module, "_hf_hook", None), "offload", False):
            return module
    return None


def _block_of(decoder: Decoder, module_path: str) -> int | None:
    try:
        blocks = decoder.path
    except HookError:
        return None
    inside = re.match(re.escape(blocks) + r"\.(\d+)(\.|$)", module_path)
    return int(inside[1]) if inside else None


def _summary(decoder: Decoder) -> str:
    """The canonical points in a clause: "blocks.0 to blocks.21 with .hook_resid_pre, .hook_attn_out, …"."""
    known = [name.split(".", 2) for name in hook_points(decoder, inside=True)]
    if not known:
        return "no blocks that hooks understand"
    kinds = dict.fromkeys(kind for _, _, kind in known)
    return f"blocks.0 to blocks.{known[-1][1]} with " + ", ".join(f".{kind}" for kind in kinds)
