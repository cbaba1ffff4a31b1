"""A Hugging Face decoder, resolved once: its blocks, width, head, and what each block adds to the stream.

Everything is found by structure, not from a table of model families. The blocks are the ModuleList beside the
token embedding or near it (BERT); what each of them does with the stream, observed_pass.py sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

import torch
from torch import nn

from saelens_lite.errors import HookError
from saelens_lite.lm import observed_pass
from saelens_lite.lm.block_inputs import BlockInputs
from saelens_lite.lm.observed_pass import Anatomy, BlockParts, accepts


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
        if any(block not in observed_pass.runs for _, blocks in lists for block in blocks):
            with suppress(Exception):  # a model that needs more than tokens
                self._observe()
        runs, unfed = observed_pass.runs, observed_pass.unfed
        apart = [why for _, blocks in lists for block in blocks if (why := unfed.get(block))]
        if not beside:  # only what was seen to be a chain
            lists = [item for item in lists if all(runs.get(b) == 1 and not unfed.get(b) for b in item[1])]
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

    def _anatomy(self, block: int) -> Anatomy:
        layer = self.layers[block]
        if layer not in observed_pass.anatomies:
            error = None
            try:
                self._observe()
            except Exception as raised:
                error = raised
            if layer not in observed_pass.anatomies and error is None:
                observed_pass.anatomies[layer] = Anatomy()  # a forward that leaves this block out
            elif layer not in observed_pass.anatomies:
                raise HookError(
                    f"what the blocks of {self.class_name} add to the stream is unknown, since three tokens "
                    f"would not run through it ({type(error).__name__}: {error}). {_BY_PATH}"
                ) from error
        return observed_pass.anatomies[layer]

    def _observe(self) -> None:
        with evaluation_mode(self.bare):
            observed_pass.observe(self.bare, self._lists[0], self.embedding.weight, self.n_codebooks)

    def runs(self, module: nn.Module) -> int:
        """How often a forward pass runs the module; 0 where three tokens do not reach it."""
        if module not in observed_pass.runs:
            with suppress(Exception):  # a model that needs more than tokens
                self._observe()
        return observed_pass.runs.get(module, 0)

    def width_of(self, module: nn.Module) -> int | None:
        """Width of the vectors that the module gives a token; None where three tokens do not show it."""
        return observed_pass.widths.get(module) if self.runs(module) else None

    def input_width_of(self, module: nn.Module) -> int | None:
        """The same of the vectors that the module takes first."""
        return observed_pass.input_widths.get(module) if self.runs(module) else None

    @property
    def being_observed(self) -> bool:
        """Is the forward in progress ours, to find a block's parts? Edits and captures keep out of it."""
        return self.bare in observed_pass.observed.models


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


_BY_PATH = "Name a module by its path"


def _outermost_lists(module: nn.Module, path: str) -> dict[str, nn.ModuleList]:
    """The lists in a module that are in no other list, by their paths; itself if it is one."""
    if isinstance(module, nn.ModuleList):
        return {path: module} if len(module) else {}
    found: dict[str, nn.ModuleList] = {}
    for key, child in module.named_children():
        found |= _outermost_lists(child, f"{path}.{key}")
    return found
