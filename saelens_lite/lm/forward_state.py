"""What is known of the forward pass in progress: its tokens, how many came before, where the prompt ends.

A pass of length one is no sign of generation: prompts may have one token, prefills come in chunks, and
without a cache every step runs the whole text. So positions are counted from the cache, and the prompt's
length is taken from the generate call itself.
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from saelens_lite.errors import HookError
from saelens_lite.lm.decoder import Decoder, Model


@dataclass(frozen=True, slots=True)
class EditInfo:
    """What an edit may know of the pass it runs in.

    Columns count the tokens of the padded text from 0, over all the passes that share a cache.
    """

    columns: Tensor
    """int64[seq]: columns in the cache + 0, 1, …"""
    token_index: Tensor
    """int64[batch seq]: which real token of its text a position holds, from 0, the same under any padding; -1
    on padding before the text"""
    input_ids: Tensor | None
    """int64[batch seq], or None when the pass got inputs_embeds"""
    attention_mask: Tensor
    """bool[batch seq], False on padding; all True when the pass got no mask"""
    position_ids: Tensor | None
    """int64[batch seq] as the decoder got them, or None"""
    past_tokens: int
    """columns already in the cache"""
    prompt_columns: int | None
    """width of the prompt, padding included, when a generate call runs this pass; None in a plain forward"""
    n_examples: int | None
    """rows of that prompt; beam search and num_return_sequences make several rows of each, side by side"""
    call: int
    """passes of this thread since the watch began, this one excluded"""
    notes: dict[Any, Any]
    """what an edit leaves for later ones of the same pass"""


@dataclass(slots=True)
class _Pass:
    """What the modules from the model down to its decoder were called with, collected on the way in."""

    outermost: nn.Module
    call: int
    thread: int
    seen: dict[str, Any] = field(default_factory=dict)
    notes: dict[Any, Any] = field(default_factory=dict)
    past_tokens: int = 0
    differentiable: bool = False
    again: bool = False
    """whether gradient checkpointing runs a part of it again"""
    block_input: int | None = None
    """address of what entered the last edited block"""
    generation: _Generation | None = None


@dataclass(frozen=True, slots=True)
class _Generation:
    prompt_columns: int
    n_examples: int
    mask: Tensor | None = None
    """bool[n_examples prompt_columns]: the real tokens of the prompt"""


class _Now(threading.local):
    """What runs in this thread."""

    def __init__(self) -> None:
        self.pass_: _Pass | None = None
        self.generation: _Generation | None = None
        self.calls = 0


class Watch:
    """Watches a model's passes while at least one edit is on, and leaves no trace afterwards.

    Every thread has its own edits and passes. A thread without an edit of its own is refused meanwhile: no
    one can tell whether it means the model with another thread's edit or without. Meanwhile the model object
    has its own `generate`, which notes the prompt and calls the real one, and its
    own `init_continuous_batching` (which `generate_batch` calls), which refuses.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._model = weakref.ref(decoder.bare)
        self._users: Counter[int] = Counter()  # edits that are on, by thread
        self._lock = threading.Lock()
        self._handles: list[Any] = []
        self._now = _Now()
        self._entered: dict[tuple[nn.Module, int, torch.Size], _Pass] = {}  # what a recomputation looks up
        self._blocks: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._own: dict[str, Any] = {}  # methods that the model object itself had in the place of ours

    @contextmanager
    def on(self) -> Iterator[Watch]:
        """Watch inside; the contexts may nest."""
        thread = threading.get_ident()
        with self._lock:
            if not self._users:
                self._start()
            self._users[thread] += 1
        if self._users[thread] == 1:
            self._now.calls = 0
        try:
            yield self
        finally:
            with self._lock:
                self._users -= Counter([thread])
                if not self._users:
                    self._stop()

    def __deepcopy__(self, memo: dict[int, Any]) -> Watch:
        raise HookError(
            f"a copy of {type(self._module).__name__} would keep the edit that is on for ever: copy the "
            "model before the edit, or after it"
        )

    @property
    def calls(self) -> int:
        """Passes that this thread began since its first edit."""
        return self._now.calls

    def parts_of(self, block: nn.Module) -> list[nn.Module]:
        """The modules that `enter_part` hooks for an edit in this block."""
        self._blocks.add(block)
        return [block, *block.children()]

    @property
    def thread(self) -> int:
        """Whose pass is in progress: its thread, which in a recomputation may be another than the one at
        work."""
        return threading.get_ident() if self._now.pass_ is None else self._now.pass_.thread

    def info(self, acts: Tensor) -> EditInfo:
        """What is known for activations of this pass, float[batch seq d].

        raises: HookError for activations or a mask of a layout that does not say which token a row is
        """
        now = self._now.pass_ or _Pass(self._module, self.calls, threading.get_ident())
        _check_layout(acts, now)
        batch, seq = acts.shape[:2]
        past, generation = now.past_tokens, now.generation
        columns = past + torch.arange(seq, device=acts.device)
        whole = _real_tokens(now, batch, seq, acts.device)
        counted = columns.expand(batch, seq) if whole is None else whole.long().cumsum(-1)[:, past:] - 1
        ids, position_ids = now.seen.get("input_ids"), now.seen.get("position_ids")
        return EditInfo(
            columns=columns,
            token_index=counted,
            input_ids=ids.to(acts.device) if isinstance(ids, Tensor) and ids.shape == (batch, seq) else None,
            attention_mask=torch.ones_like(counted, dtype=torch.bool) if whole is None else whole[:, past:],
            position_ids=position_ids.to(acts.device) if isinstance(position_ids, Tensor) else None,
            past_tokens=past,
            prompt_columns=generation.prompt_columns if generation else None,
            n_examples=generation.n_examples if generation else None,
            call=now.call,
            notes=now.notes,
        )

    @property
    def _module(self) -> nn.Module:
        model = self._model()
        assert model is not None, "an edit holds the model it watches"
        return model

    def _start(self) -> None:
        model = self._module
        for module in Decoder(model).outside_in:
            self._handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._leave, always_call=True))
        for name, ours in (("generate", self._watched), ("init_continuous_batching", _refused)):
            if hasattr(type(model), name):
                self._own[name] = vars(model).get(name)
                setattr(model, name, ours(getattr(model, name)))

    def _stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        model = self._module
        for name, own in self._own.items():
            delattr(model, name)
            if own is not None:
                setattr(model, name, own)
        self._own.clear()
        self._entered.clear()
        self._now = _Now()

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if Decoder(self._module).being_observed:
            return
        # from a manager that was made before the edit began
        if "write_index" in kwargs and "cu_seq_lens_q" in kwargs:
            raise HookError(_PACKED)
        now = self._now
        if now.pass_ is None or now.pass_.again:
            if not self._users[threading.get_ident()]:
                raise HookError(
                    f"an edit of {type(self._module).__name__} is on in another thread, and this thread has "
                    "none of its own: enter the edit in the thread that runs the model, or run it "
                    "after the edit"
                )
            now.pass_ = _Pass(module, now.calls, threading.get_ident(), generation=now.generation)
            now.pass_.differentiable = torch.is_grad_enabled()
            now.calls += 1
        given = _by_name(module, args, kwargs)
        for name in ("input_ids", "inputs_embeds", "attention_mask", "position_ids"):
            if given.get(name) is not None:
                now.pass_.seen[name] = given[name]
        cache = given.get("past_key_values")
        now.pass_.past_tokens = int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0

    def _leave(self, module: nn.Module, _args: tuple, _output: Any) -> None:
        if self._now.pass_ is not None and self._now.pass_.outermost is module:
            self._now.pass_ = None

    def enter_part(self, part: nn.Module, args: tuple, kwargs: dict) -> None:
        """Hook of an edited block and its children: gradient checkpointing runs them again in the backward,
        without the model around them.

        Then their pass is found by the memory of the block's input, which the checkpoint has kept since.
        """
        stream = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(stream, Tensor):
            return
        now, key = self._now, (part, stream.data_ptr(), stream.shape)
        if now.pass_ is None or now.pass_.again:
            if key in self._entered:
                now.pass_ = replace(self._entered[key], again=True)
        elif now.pass_.differentiable:
            if now.pass_.block_input is None or part in self._blocks:
                now.pass_.block_input = key[1]
            if key[1] == now.pass_.block_input:
                self._entered[key] = now.pass_

    def _watched(self, generate: Any) -> Any:
        def watched_generate(*args: Any, **kwargs: Any) -> Any:
            now = self._now
            if now.generation is not None:  # self-assisted decoding drafts with the model itself
                return generate(*args, **kwargs)
            now.generation = _read_prompt(self._module, args, kwargs)
            if hasattr(getattr(self._module, "generation_config", None), "disable_compile"):
                # transformers compiles static caches, and would not see the hooks
                kwargs["disable_compile"] = True
            try:
                return generate(*args, **kwargs)
            finally:
                now.generation = None

        return watched_generate


def watch(decoder: Decoder) -> Watch:
    """The model's watch: one for all edits on it."""
    return _watches.setdefault(decoder.bare, Watch(decoder))


def position_ids_from(attention_mask: Tensor) -> Tensor:
    """Positions that count real tokens only, which a left-padded plain forward needs.

    Hugging Face counts columns unless told otherwise, so pass `position_ids=position_ids_from(mask)`.
    `generate` and our own forwards (run_to, token_losses) do this themselves.

    attention_mask: {bool|int}[batch seq], non-zero on real tokens
    returns: int64[batch seq]; padding before the first token gets 0
    """
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp_min(0)


def placed_inputs(model: Model, model_inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs for our own forwards: on the model's device, without a cache, positions counted from a
    left-padded mask unless given.

    raises: ValueError for input_ids without a token
    """
    decoder = Decoder.of(model)
    device = decoder.device
    inputs = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in model_inputs.items()}
    ids = inputs.get("input_ids")
    if ids is not None and (not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32)):
        got = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"expected input_ids as a tensor of whole numbers [batch seq], got {got}")
    if isinstance(ids, Tensor) and not ids.numel():
        raise ValueError(f"expected a text of at least one token, got input_ids of shape {list(ids.shape)}")
    if decoder.accepts("use_cache"):
        inputs["use_cache"] = False
    mask = inputs.get("attention_mask")
    left_padded = isinstance(mask, Tensor) and mask.ndim == 2 and not bool(mask[:, 0].all())
    if left_padded and "position_ids" not in inputs and decoder.accepts("position_ids"):
        inputs["position_ids"] = position_ids_from(mask)
    return inputs


_PACKED = (
    "edits expected the texts of a batch in rows of their own, got continuous batching (generate_batch), "
    "which packs them into one row, where prompts and examples cannot be told apart: pass model.generate a "
    "left-padded batch"
)


def _refused(_method: Any) -> Any:
    def refused_continuous_batching(*_args: Any, **_kwargs: Any) -> Any:
        raise HookError(_PACKED)

    return refused_continuous_batching


_watches: weakref.WeakKeyDictionary[nn.Module, Watch] = weakref.WeakKeyDictionary()


def _by_name(module: nn.Module, args: tuple, kwargs: dict) -> dict[str, Any]:
    return {**dict(zip(_arguments(type(module)), args)), **kwargs}


@functools.cache
def _arguments(kind: type[nn.Module]) -> tuple[str, ...]:
    """Of its forward; looked up once, for every pass asks."""
    return tuple(name for name in inspect.signature(kind.forward).parameters if name != "self")


def _check_layout(acts: Tensor, now: _Pass) -> None:
    """raises: HookError where acts are not [batch seq d] of the tokens that the pass got"""
    given = now.seen.get("input_ids", now.seen.get("inputs_embeds"))
    expected = list(given.shape[:2]) if isinstance(given, Tensor) and given.ndim > 1 else None
    if acts.ndim != 3 or expected not in (None, list(acts.shape[:2])):
        tokens = "" if expected is None else f" with [batch seq] = {expected}"
        raise HookError(
            f"edits expected activations [batch seq d_model]{tokens}, got {list(acts.shape)}: which token a "
            "row is cannot be told. Name a module that gives them so"
        )


def _real_tokens(now: _Pass, batch: int, seq: int, device: torch.device) -> Tensor | None:
    """bool[batch past+seq], True on the real tokens of the text so far; None where the pass got no mask.

    What one query sees is no sign: windows hide old tokens, packed texts each other. Every token sees itself,
    and padding is seen by none.
    """
    past, mask = now.past_tokens, now.seen.get("attention_mask")
    width = past + seq
    if isinstance(mask, dict):  # one a kind of layer
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    prompt = now.generation.mask if now.generation else None
    unclear = mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2)
    if prompt is not None and unclear and batch % len(prompt) == 0:
        # what generate adds is real
        whole = torch.ones(batch, max(width, prompt.shape[1]), dtype=torch.bool, device=device)
        whole[:, : prompt.shape[1]] = prompt.repeat_interleave(batch // len(prompt), 0).to(device)
        return whole[:, :width]
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        kind = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise HookError(
            "edits expected attention_mask [batch seq] or [batch heads queries keys], to tell text from "
            f"padding, got {kind}: pass the mask [batch seq]"
        )
    if mask.ndim == 4:  # bool, or additive
        seen = (mask >= 0 if mask.is_floating_point() else mask.bool())[:, 0]
        if seen.shape[2] < width:
            return None
        seen = seen.expand(-1, seq, -1) if seen.shape[1] == 1 else seen
        itself = seen[:, -seq:].diagonal(past, 1, 2)[:, :seq]
        mask = torch.cat([seen[..., :past].any(1), itself], 1)
    if mask.shape[1] < width:
        return None
    return mask[:, :width].to(device, torch.bool).expand(batch, width)


def _read_prompt(model: nn.Module, args: tuple, kwargs: dict) -> _Generation:
    """Where the prompt of a generate call ends. raises: ValueError when a row ends in padding"""
    given = {name: value for name, value in kwargs.items() if value is not None}
    ids = given.get("input_ids", given.get("inputs", args[0] if args else None))
    prompt = given.get("inputs_embeds", ids)
    if prompt is None:
        return _Generation(prompt_columns=1, n_examples=1)  # generate starts from BOS
    real = given.get("attention_mask")
    if real is None and ids is not None:
        settings = given.get("generation_config", getattr(model, "generation_config", None))
        pad = given.get("pad_token_id", getattr(settings, "pad_token_id", None))
        real = None if pad is None else ids != pad
    if real is not None and real.ndim == 2 and not bool(real[:, -1].all()):
        row = int((~real[:, -1].bool()).nonzero()[0])
        raise ValueError(
            f"generate expected left padding, got a prompt whose row {row} ends in padding: the model would "
            "continue from the padding. Tokenize with padding_side='left'; if that last token is text, pass "
            "attention_mask"
        )
    known = real.bool() if isinstance(real, Tensor) and real.shape == prompt.shape[:2] else None
    return _Generation(prompt_columns=prompt.shape[1], n_examples=prompt.shape[0], mask=known)
