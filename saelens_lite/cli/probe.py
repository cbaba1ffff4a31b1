"""`saelens-lite probe`: labelled texts told apart by latents and by activations."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Annotated, Literal

from saelens_lite.atomic import check_output, write_file
from saelens_lite.cli.flags import configured
from saelens_lite.cli.shared import device_named, model_and_tokenizer, with_short_names
from saelens_lite.config import Above, AtLeast, Below
from saelens_lite.text_table import in_format


def run(argv: Sequence[str]) -> None:
    """How well few latents tell labelled texts apart, beside the activations themselves"""
    config = configured(ProbeConfig, "probe", argv)
    from saelens_lite.analyze.probing.labelled_texts import read_labelled
    from saelens_lite.analyze.probing.pooling import pooled_latents
    from saelens_lite.analyze.probing.probes import sparse_probes
    from saelens_lite.analyze.stats.document_split import Split
    from saelens_lite.analyze.stats.surface import surface_rivals
    from saelens_lite.sae.any_kind import load_reader

    if config.output is not None:
        check_output(config.output)
    data = read_labelled(
        config.texts,
        text_field=config.text_field,
        label_field=config.label_field,
        group_field=config.group_field,
        rival_fields=config.rival_fields,
        labels=config.labels,
        split=config.split,
        max_texts=config.max_texts,
        seed=config.seed,
    )
    device = device_named(config.device)
    saes = {"sae": load_reader(config.sae, device=device)}
    if config.baseline is not None:
        saes["baseline"] = load_reader(config.baseline, device=device)
    model, tokenizer = model_and_tokenizer(config.model, device)
    features = pooled_latents(
        model,
        tokenizer,
        data.texts,
        saes,
        hook_point=config.hook_point,
        pool=config.pool,
        max_tokens=config.max_tokens,
        batch_size_texts=config.batch_size_texts,
    )
    result = sparse_probes(
        features,
        data.labels,
        data.groups,
        k=config.k,
        select_by=config.select_by,
        split=Split(test_fraction=config.test_fraction, seed=config.seed),
        n_splits=config.n_splits,
        rivals=surface_rivals(tokenizer, data.texts) | data.rivals,
    )
    if config.output is not None:
        write_file(config.output, json.dumps(result.to_dict(), indent=1) + "\n")
    print(with_short_names(in_format(result, config.format)))
    if config.format != "table":
        return
    if config.output is not None:
        print(f"numbers: {config.output}")
    if config.baseline is None:
        print("for what a dictionary of random directions reaches: --baseline, the run with --freeze-decoder")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    """How well the latents of an SAE tell labelled texts apart: probes of few latents, of all, and of the
    activations."""

    sae: str
    """Folder of the SAE, ours or SAELens', or a hub repository."""

    model: str
    """The model that it was trained on, a hub id or a folder; "demo" is the embedded one."""

    texts: str
    """A jsonl, json, csv or parquet file, compressed or not, or a dataset of the hub."""

    text_field: str = "text"
    """Its field with the text."""

    label_field: str = "label"
    """Its field with the class."""

    group_field: str | None = None
    """Its field with what texts share (author, entity, source); a group is never on both sides of the
    split."""

    rival_fields: tuple[str, ...] = ()
    """Fields of what else could give a text's class away, such as its source: numbers, or else categories. Of
    two classes, each probe has a verdict beside these and the text's length and word frequencies."""

    labels: tuple[str, ...] = ()
    """Keep only these classes. Of two, the last in order is positive; of more, each is probed against the
    rest."""

    split: str = "train"
    """Split of a dataset of the hub."""

    max_texts: Annotated[int | None, AtLeast(1)] = 5000
    """Texts to use, drawn at random from more; None for all."""

    baseline: str | None = None
    """Folder of an SAE to compare with: the one of the same run with --freeze-decoder."""

    k: Annotated[tuple[int, ...], AtLeast(1)] = (1, 2, 5, 16)
    """Numbers of latents that a probe sees."""

    select_by: Literal["mean_difference", "standardised"] = "mean_difference"
    """Latents by the difference of their means in the training texts, as it is or over their standard
    deviation."""

    pool: Literal["mean", "max", "last"] = "mean"
    """How the tokens of a text become one row: their mean, their maximum (activations: the mean), or the last
    token."""

    hook_point: str | None = None
    """None takes the one that the SAE was trained on."""

    max_tokens: Annotated[int | None, AtLeast(1)] = None
    """Tokens read of a text; None takes the model's longest context and warns of longer texts."""

    test_fraction: Annotated[float, Above(0), Below(1)] = 0.3
    """Share of the texts, or groups, that test."""

    seed: int = 0
    """Of the split, the draw of texts and the shuffled labels."""

    n_splits: Annotated[int, AtLeast(1)] = 1
    """Splits of further seeds: their mean and spread."""

    batch_size_texts: Annotated[int, AtLeast(1)] = 32
    """Texts in a forward pass."""

    format: Literal["table", "markdown", "csv", "json"] = "table"
    """How the numbers are printed; all but table print nothing else."""

    device: str | None = None
    """cuda, mps or cpu; None takes the best one here."""

    output: str | None = None
    """File that receives the numbers as JSON, with definitions."""
