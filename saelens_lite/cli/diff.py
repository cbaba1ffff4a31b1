"""`saelens-lite diff`: latents that fire in more documents of one corpus than of another."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Sequence
from typing import Annotated, Literal

from saelens_lite.atomic import check_output, write_file
from saelens_lite.cli.flags import configured
from saelens_lite.cli.shared import device_named, model_and_tokenizer
from saelens_lite.config import Above, AtLeast, Below
from saelens_lite.text_table import in_format


def run(argv: Sequence[str]) -> None:
    """Latents that fire in more documents of one corpus than of another, and what explains it"""
    config = configured(DiffConfig, "diff", argv)
    import torch

    from saelens_lite.analyze.corpora.difference_page import difference_page
    from saelens_lite.analyze.corpora.differing_latents import compare_corpora
    from saelens_lite.analyze.corpora.examples import with_examples
    from saelens_lite.analyze.corpora.text_starts import text_starts
    from saelens_lite.analyze.probing.pooling import pooled_latents
    from saelens_lite.analyze.stats.surface import surface_rivals
    from saelens_lite.sae.autoencoder import SparseAutoencoder

    for file in filter(None, (config.output, config.page)):
        check_output(file)
    corpora = [_texts(name, config) for name in config.texts]
    device = device_named(config.device)
    sae = SparseAutoencoder.load(config.sae, device=device)
    model, tokenizer = model_and_tokenizer(config.model, device)
    texts = text_starts(model, tokenizer, [*itertools.chain(*corpora)], config.max_tokens)
    features = pooled_latents(
        model,
        tokenizer,
        texts,
        sae,
        pool="max",
        hook_point=config.hook_point,
        batch_size_texts=config.batch_size_texts,
    )
    in_a = torch.arange(len(texts)) < len(corpora[0])
    found = compare_corpora(features, in_a, surface_rivals(tokenizer, texts), q=config.q, seed=config.seed)
    found = with_examples(found, model, tokenizer, sae, features, texts, in_a, hook_point=config.hook_point)
    if config.output is not None:
        write_file(config.output, json.dumps(found.to_dict(), indent=1) + "\n")
    if config.page is not None:
        write_file(config.page, difference_page(found, *config.texts))
    print(in_format(found, config.format))


def _texts(name: str, config: DiffConfig) -> list[str]:
    """The texts of a file or a dataset of the hub, drawn by seed where there are more than max_texts."""
    from saelens_lite.harvest.text.sources import open_named

    source = open_named([name], split=config.split, text_column=config.text_column)
    texts = [text for text in source.open(0, None) if isinstance(text, str) and text.strip()]
    if not texts:
        raise ValueError(f"{name} expected texts, got none")
    if config.max_texts is not None and len(texts) > config.max_texts:
        texts = random.Random(config.seed).sample(texts, config.max_texts)
    return texts


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DiffConfig:
    """Latents that fire in more documents of one corpus than of another, with the same difference among
    documents of like length and word frequency, and a verdict beside these as rivals."""

    sae: str
    """Folder of the SAE, a release, or a hub repository."""

    model: str
    """The model that it was trained on, a hub id or a folder; "demo" is the embedded one."""

    texts: tuple[str, str]
    """Corpus A and corpus B: files (txt, jsonl, json, csv, parquet, compressed too), folders, or datasets of
    the hub."""

    text_column: str = "text"
    """Column that holds a document."""

    split: str = "train"
    """Split of a dataset of the hub."""

    max_texts: Annotated[int | None, AtLeast(2)] = 2000
    """Documents to use of each corpus, drawn at random from more; None for all."""

    q: Annotated[float, Above(0), Below(1)] = 0.1
    """Share of false discoveries allowed among those shown (Benjamini–Hochberg over all latents)."""

    hook_point: str | None = None
    """None takes the one that the SAE was trained on."""

    max_tokens: Annotated[int | None, AtLeast(1)] = None
    """Tokens read of a document; None takes the model's longest context."""

    batch_size_texts: Annotated[int, AtLeast(1)] = 32
    """Documents in a forward pass."""

    seed: int = 0
    """Of the draw of documents and of the split on which latents are judged."""

    output: str | None = None
    """JSON file for the numbers."""

    page: str | None = None
    """HTML file for the same as a page."""

    format: Literal["table", "markdown", "csv", "json"] = "table"
    """How the result is printed."""

    device: str | None = None
    """cuda, mps or cpu; None takes the best one here."""
