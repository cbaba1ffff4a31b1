"""`saelens-lite diff-models`: what fine-tuning changed in a model, from two stores of one text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Annotated

from saelens_lite.atomic import check_output, write_file
from saelens_lite.cli.flags import configured
from saelens_lite.cli.shared import device_named, model_for
from saelens_lite.config import AtLeast


def run(argv: Sequence[str]) -> None:
    """What differs between two models that read one text: rows, predictions, words, latents"""
    config = configured(DiffModelsConfig, "diff-models", argv)
    from saelens_lite.analyze.latents.text_windows import Contexts
    from saelens_lite.analyze.model_diffing.exclusive import exclusive_latents
    from saelens_lite.analyze.model_diffing.mean_difference import difference_lens
    from saelens_lite.analyze.model_diffing.page import pair_page
    from saelens_lite.analyze.model_diffing.predictions import token_divergence
    from saelens_lite.analyze.model_diffing.row_differences import compare_rows
    from saelens_lite.lm.hooks import enters_stream
    from saelens_lite.sae.crosscoder import Crosscoder
    from saelens_lite.store.derived import paired_store
    from saelens_lite.store.reader import ActivationStore

    for file in filter(None, (config.output, config.page)):
        check_output(file)
    base, tuned = ActivationStore(config.base_store), ActivationStore(config.tuned_store)
    device, point, tokenizer = device_named(config.device), config.hook_point, Contexts(base).tokenizer
    found = {"rows": compare_rows(base, tuned, point)}
    base_model = model_for(config.base_model, device, base)
    tuned_model = model_for(config.tuned_model, device, tuned)
    if base_model is not None and tuned_model is not None:
        found["predictions"] = token_divergence(base_model, tuned_model, base, max_tokens=config.max_tokens)
    if tuned_model is not None and enters_stream(tuned_model, found["rows"].hook_point):
        found["words"] = difference_lens(base, tuned, tuned_model, point, tokenizer=tokenizer)
    if config.crosscoder is not None:
        crosscoder = Crosscoder.load(config.crosscoder, device=device)
        found["latents"] = exclusive_latents(
            crosscoder, paired_store([base, tuned], [point, point]), tokenizer
        )
    if config.output is not None:
        numbers = {name: result.to_dict() for name, result in found.items()}
        write_file(config.output, json.dumps(numbers, indent=1) + "\n")
    if config.page is not None:
        page = pair_page(found["rows"], found.get("predictions"), found.get("words"), found.get("latents"))
        write_file(config.page, page)
    print("\n\n".join(map(str, found.values())))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DiffModelsConfig:
    """What fine-tuning changed in a model, from two stores of one text: how far rows are apart and along
    what, how far predictions are apart, what the mean difference says in words, and, with a crosscoder, which
    latents are one model's alone."""

    base_store: str
    """Folder of the base model's activation store."""

    tuned_store: str
    """Folder of the tuned model's store, harvested from the same text with the same flags."""

    base_model: str | None = None
    """The base model, a hub id or a folder; with --tuned-model for predictions."""

    tuned_model: str | None = None
    """The tuned model; with it the mean difference is read in words."""

    crosscoder: str | None = None
    """Folder of a crosscoder of the two stores (train_crosscoder makes one)."""

    hook_point: str | None = None
    """Where to compare; None takes the one that the stores hold."""

    max_tokens: Annotated[int, AtLeast(1)] = 20_000
    """Predicted tokens to compare, at most."""

    page: str | None = None
    """HTML file for all of it as a page."""

    output: str | None = None
    """JSON file for the numbers."""

    device: str | None = None
    """cuda, mps or cpu; None takes the best one here."""
