"""What is known of the forward pass in progress: its tokens, how many came before, where the prompt ends.

A pass of length one is no sign of generation: prompts may have one token, prefills come in chunks, and
without a cache every step runs the whole text. So positions are counted from the cache, and the prompt's
length is taken from the generate call itself.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
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
    """passes since the watch began, this one excluded"""


@dataclass(slots=True)
class _Pass:
    """What the modules from the model down to its decoder were called with, collected on the way in."""

    outermost: nn.Module
    call: int
    seen: dict[str, Any] = field(default_factory=dict)
    past_tokens: int = 0


@dataclass(frozen=True, slots=True)
class _Generation:
    prompt_columns: int
    n_examples: int


class Watch:
    """Watches a model's passes while at least one edit is on, and leaves no trace afterwards.

    Meanwhile the model object has its own `generate`, which notes the prompt and calls the real one, and its
    own `init_continuous_batching` (which `generate_batch` calls), which refuses.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._model = weakref.ref(decoder.bare)
        self._users = 0
        self._handles: list[Any] = []
        self._pass: _Pass | None = None
        self._calls = 0
        self._generation: _Generation | None = None
        self._own: dict[str, Any] = {}  # methods that the model object itself had in the place of ours

    @contextmanager
    def on(self) -> Iterator[Watch]:
        """Watch inside; the contexts may nest."""
        if self._users == 0:
            self._start()
        self._users += 1
        try:
            yield self
        finally:
            self._users -= 1
            if self._users == 0:
                self._stop()

    def info(self, acts: Tensor) -> EditInfo:
        """What is known for activations of this pass, float[batch seq d]."""
        now = self._pass or _Pass(outermost=self._module, call=self._calls)
        batch, seq = acts.shape[:2]
        past, generation = now.past_tokens, self._generation
        columns = past + torch.arange(seq, device=acts.device)
        whole = _key_mask(now.seen.get("attention_mask"), batch, past + seq, acts.device)
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
        )

    @property
    def _module(self) -> nn.Module:
        model = self._model()
        assert model is not None, "an edit holds the model it watches"
        return model

    def _start(self) -> None:
        model = self._module
        self._pass, self._calls = None, 0
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
        self._pass = None

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if Decoder(self._module).being_observed:
            return
        # from a manager that was made before the edit began
        if "write_index" in kwargs and "cu_seq_lens_q" in kwargs:
            raise HookError(_PACKED)
        if self._pass is None:
            self._pass = _Pass(outermost=module, call=self._calls)
            self._calls += 1
        given = _by_name(module, args, kwargs)
        for name in ("input_ids", "attention_mask", "position_ids"):
            if given.get(name) is not None:
                self._pass.seen[name] = given[name]
        cache = given.get("past_key_values")
        self._pass.past_tokens = int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0

    def _leave(self, module: nn.Module, _args: tuple, _output: Any) -> None:
        if self._pass is not None and self._pass.outermost is module:
            self._pass = None

    def _watched(self, generate: Any) -> Any:
        def watched_generate(*args: Any, **kwargs: Any) -> Any:
            if self._generation is not None:  # self-assisted decoding drafts with the model itself
                return generate(*args, **kwargs)
            self._generation = _read_prompt(self._module, args, kwargs)
            if hasattr(getattr(self._module, "generation_config", None), "disable_compile"):
                # transformers compiles static caches, and would not see the hooks
                kwargs["disable_compile"] = True
            try:
                return generate(*args, **kwargs)
            finally:
                self._generation = None

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
    names = [name for name in inspect.signature(type(module).forward).parameters if name != "self"]
    return {**dict(zip(names, args)), **kwargs}


def _key_mask(mask: Any, batch: int, width: int, device: torch.device) -> Tensor | None:
    """bool[batch width], True on the real tokens of the text so far; None where the pass got no mask."""
    if isinstance(mask, dict):  # one mask a kind of layer: the full one sees everything
        mask = mask.get("full_attention")
    if not isinstance(mask, Tensor):
        return None
    if mask.ndim == 4:  # bool or additive [batch 1 queries keys]: the last query sees every real token
        mask = mask[:, 0, -1, :] if mask.dtype == torch.bool else mask[:, 0, -1, :] >= 0
    if mask.ndim != 2 or mask.shape[1] < width:
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
    return _Generation(prompt_columns=prompt.shape[1], n_examples=prompt.shape[0])
