"""Prepares a harvest: loads what came by name, checks everything that can be wrong, and makes the plan."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from saelens_lite.config import from_mapping
from saelens_lite.errors import HookError
from saelens_lite.lm import hooks
from saelens_lite.lm.decoder import Decoder, evaluation_mode
from saelens_lite.lm.token_text import special_token_ids
from saelens_lite.store.folder import open_folder
from saelens_lite.store.layout import finished_shards
from saelens_lite.store.packing import APART

from .config import HarvestConfig
from .estimate import Estimate, estimate
from .shards.model import (
    NoTokenizer,
    load_model,
    load_tokenizer,
    model_facts,
    positions_limit,
    tokenizer_facts,
    tokenizer_settings,
)
from .shards.model_state import state_facts
from .shards.plan import STATE, documents_per_shard, make_plan
from .shards.resuming import difference
from .text.chat import chat_facts
from .text.documents import Source, is_token_ids
from .text.mixture import open_mixture
from .text.sources import as_names, open_given, open_named
from .text.tokenized import token_ids

logger = logging.getLogger(__name__)

_OF_NAMED_DATASETS = ("split", "text_unit", "dataset_config", "dataset_revision")
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(HarvestConfig)}


def hook_point_facts(model: nn.Module, points: Sequence[hooks.HookPoint]) -> dict[str, Any]:
    """What a plan says of hook points and how to run the model; found by a pass over a few tokens.

    returns: "hook_points" and, where a token sees those after it, "attention_mask": True, without which the
        real tokens of a padded context would see its padding
    raises: HookError for a module whose output is not one vector a token, or where no mask hides padding;
        ValueError for two names of one place
    """
    decoder, names = Decoder(model), [point.name for point in points]
    if decoder.n_codebooks > 1:
        raise HookError(
            f"a harvest expected one token a position, got {decoder.class_name}, which reads "
            f"{decoder.n_codebooks}: collect its activations with run_to and ActivationStore.from_arrays"
        )
    if len({point.end for point in points}) < len(points):
        raise ValueError(f"hook_points expected each place once, got two names of one in {', '.join(names)}")
    input_ids = _two_endings(decoder)
    acts = hooks.run_to(decoder, names, input_ids=input_ids)
    for name, found in acts.items():
        if found.ndim != 3 or found.shape[:2] != input_ids.shape:
            raise HookError(
                f"{name} expected [batch, seq, d_model], one vector a token, got {list(found.shape)} for "
                f"{list(input_ids.shape)} tokens: choose another module or a hook point such as "
                "blocks.0.hook_resid_post"
            )
    facts: dict[str, Any] = {
        "hook_points": {
            point.name: {
                "module_path": point.module_path,
                "side": point.side,
                "d_model": acts[point.name].shape[-1],
            }
            for point in points
        }
    }
    seeing = [name for name, (one, other) in acts.items() if _differ(one[:-1], other[:-1])]
    if seeing:
        _check_mask_hides_padding(decoder, names, input_ids)
        facts["attention_mask"] = True
    return facts


def _two_endings(decoder: Decoder) -> torch.Tensor:
    """int64[2 3]: two texts of plain tokens that differ in their last one."""
    n_embeddings, special = decoder.embedding.weight.shape[0], decoder.special_ids
    a, b, c, d, *_ = [*(i for i in range(n_embeddings) if i not in special), 0, 0, 0, 0]
    return torch.tensor([[a, b, c], [a, b, d]], device=decoder.device)


def _check_mask_hides_padding(decoder: Decoder, names: Sequence[str], input_ids: torch.Tensor) -> None:
    alone = hooks.run_to(decoder, names, input_ids=input_ids[:, :-1])
    masked = {}
    if decoder.accepts("attention_mask"):
        mask = torch.ones_like(input_ids).index_fill(1, torch.tensor(2, device=input_ids.device), 0)
        masked = hooks.run_to(decoder, names, input_ids=input_ids, attention_mask=mask)
    for name in names:
        if name not in masked or _differ(masked[name][:, :-1], alone[name]):
            raise HookError(
                f"{name} expected tokens that do not see padding after them, and {decoder.class_name} sees "
                "it, also with an attention_mask: choose a causal model"
            )


def _differ(rows: torch.Tensor, others: torch.Tensor) -> bool:
    """By more than rounding: experts of other batches round otherwise."""
    return difference(rows.flatten(0, -2), others.flatten(0, -2)) > max(1e-5, 4 * torch.finfo(rows.dtype).eps)


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """What a caller asked for; a model or tokenizer by name is None."""

    config: HarvestConfig
    source: Source
    model: nn.Module | None = None
    tokenizer: Any = None
    by_names: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """A harvest whose inputs were checked.

    ours: whether the model was loaded here, so it may be cut and compiled
    mean_tokens: mean length of the source's first documents
    """

    config: HarvestConfig
    source: Source
    model: nn.Module
    ours: bool
    tokenizer: Any
    points: list[hooks.HookPoint]
    plan: dict[str, Any]
    mean_tokens: float

    def estimate(self) -> Estimate:
        """What is still to do, without its time."""
        store, first = open_folder(self.config.store), self.source.first
        n_bytes = sum(len(str(document).encode("utf-8", "surrogatepass")) for document in first)
        rows_there = sum(finished_shards(store, list(self.plan["hook_points"])).values())
        return estimate(self.plan, self.source, self.mean_tokens, n_bytes / len(first), store, rows_there)


def _left_out(options: dict[str, Any], field: str) -> bool:
    """Whether an option is as by default; of another type, such as a tensor, it is not."""
    given, default = options.get(field, _DEFAULTS[field]), _DEFAULTS[field]
    return type(given) is type(default) and bool(given == default)


def requested(
    model: str | nn.Module,
    dataset: Any,
    hook_points: str | Sequence[str],
    store: str | os.PathLike[str],
    max_tokens: int,
    tokenizer: Any,
    options: dict[str, Any],
) -> Request:
    named = isinstance(model, str | os.PathLike)
    if not named:
        for field in ("model_revision", "compute_dtype", "device", "compile"):
            if not _left_out(options, field):
                raise ValueError(
                    f"{field} says how to load a model, and this one is an object: leave {field} out"
                )
    mixed = options.get("dataset_weights") is not None
    dataset_names = as_names(dataset)
    if dataset_names is None and not mixed:
        for field in _OF_NAMED_DATASETS:
            if not _left_out(options, field) and not (field == "split" and isinstance(dataset, Mapping)):
                raise ValueError(
                    f"{field} says how to read a dataset by name, and this one is an object: leave it out"
                )
    if isinstance(tokenizer, os.PathLike):
        tokenizer = os.fspath(tokenizer)
    described = dataset_names or [type(part).__name__ for part in (dataset if mixed else [dataset])]
    settings = options | {
        "model": os.fspath(model) if named else type(model).__name__,
        "dataset": tuple(described),
        "hook_points": (hook_points,) if isinstance(hook_points, str) else tuple(hook_points),
        "store": os.fspath(store),
        "max_tokens": max_tokens,
        "tokenizer": tokenizer if isinstance(tokenizer, str) else None,
    }
    config = from_mapping(HarvestConfig, settings, where="harvest_activations")
    if dataset_names is not None:
        source = source_of_names(config, dataset_names)
    elif mixed:
        source = open_mixture(
            [_open_part(config, part) for part in dataset], config.dataset_weights, config.seed
        )
    else:
        source = open_given(dataset, split=config.split, text_column=config.text_column)
    tokenizer = None if isinstance(tokenizer, str) else tokenizer
    by_names = named and dataset_names is not None and tokenizer is None
    return Request(config, source, None if named else model, tokenizer, by_names)


def _open_part(config: HarvestConfig, part: Any) -> Source:
    """One dataset of a mixture: a name, or the documents themselves."""
    if (names := as_names(part)) is not None:
        return source_of_names(dataclasses.replace(config, dataset=tuple(names), dataset_weights=None), names)
    return open_given(part, split=config.split, text_column=config.text_column)


def source_of_names(config: HarvestConfig, names: Sequence[str]) -> Source:
    if config.dataset_weights is not None:
        return open_mixture([_open_part(config, name) for name in names], config.dataset_weights, config.seed)
    return open_named(
        names,
        split=config.split,
        text_column=config.text_column,
        text_unit=config.text_unit,
        config=config.dataset_config,
        revision=config.dataset_revision,
    )


@contextlib.contextmanager
def prepare(request: Request) -> Iterator[Prepared]:
    """Load what came by name and check what can be wrong; inside, the model is in evaluation mode."""
    config, model, tokenizer = request.config, request.model, request.tokenizer
    if model is None:
        model = load_model(
            config.model,
            compute_dtype=config.compute_dtype,
            device=config.device,
            revision=config.model_revision,
            trust_remote_code=config.trust_remote_code,
        )
    if tokenizer is None:
        name = config.tokenizer or (config.model if request.model is None else model.config.name_or_path)
        revision = config.model_revision if config.tokenizer is None else None
        try:
            tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=config.trust_remote_code)
        except ValueError as error:
            if config.tokenizer is not None or not all(map(is_token_ids, request.source.first)):
                raise
            logger.warning("token ids are harvested as they are, without BOS and separators, since %s", error)
            tokenizer = NoTokenizer()
    limit = positions_limit(model)
    if limit is not None and config.context_length > limit:
        raise ValueError(
            f"context_length {config.context_length} is beyond the model's {limit} positions: "
            f"choose at most {limit}"
        )
    points = [hooks.resolve(model, name) for name in config.hook_points]
    with evaluation_mode(model), torch.inference_mode():
        lengths = [len(ids) for ids in token_ids(tokenizer, request.source.first)]
        mean_tokens = sum(lengths) / len(lengths)
        plan = _plan(config, model, tokenizer, request.source, points, mean_tokens)
        yield Prepared(
            config, request.source, model, request.model is None, tokenizer, points, plan, mean_tokens
        )


def _plan(
    config: HarvestConfig,
    model: nn.Module,
    tokenizer: Any,
    source: Source,
    points: Sequence[hooks.HookPoint],
    mean_tokens: float,
) -> dict[str, Any]:
    """Everything that determines the rows, from the objects at hand."""
    bos_id, eos_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    separator_id = {"bos": eos_id if bos_id is None else bos_id, "eos": eos_id, "none": None}[
        config.separator
    ]
    n_documents = config.documents_per_shard
    if n_documents is None:
        batch_tokens = config.batch_size_seqs * config.context_length
        n_documents = documents_per_shard(mean_tokens, config.max_tokens, batch_tokens)
    return make_plan(
        {
            "model": model_facts(model) | ({"compiled": True} if config.compile else {}),
            STATE: state_facts(model) | tokenizer_settings(tokenizer),
            "tokenizer": tokenizer_facts(tokenizer) | chat_facts(tokenizer, source.first),
            **hook_point_facts(model, points),
            "dataset": source.facts,
            **({"packing": APART} if config.documents_apart else {}),
            "context_length": config.context_length,
            "bos_id": bos_id,
            "separator_id": separator_id,
            "special_ids": [] if config.keep_special_tokens else special_token_ids(tokenizer),
            "batch_size_seqs": config.batch_size_seqs,
            "documents_per_shard": n_documents,
            "max_tokens": config.max_tokens,
            "dtype": config.dtype,
        }
    )
