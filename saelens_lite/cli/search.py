"""`saelens-lite search`: one search in a feature index, and its answer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Annotated, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from saelens_lite.analyze.index.feature_index import FeatureIndex
from saelens_lite.analyze.index.labels import Label
from saelens_lite.analyze.index.search import (
    by_number,
    fires_on_text,
    nearest_to,
    promotes_token,
    unigram_latents,
)
from saelens_lite.cli.flags import configured
from saelens_lite.cli.search_answer import (
    SearchAnswer,
    with_facts,
    with_firings,
    with_labels,
    with_matches,
    with_numbers,
    with_unigrams,
)
from saelens_lite.cli.shared import device_named, model_for, print_next
from saelens_lite.config import AtLeast, check_fields
from saelens_lite.sae.any_kind import load_reader
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.text_table import in_format

KINDS = (
    "latent", "token", "regex", "text", "like", "direction", "promotes", "demotes", "by", "unigram",
    "labelled", "import_labels",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """Find latents in a feature index, by one thing at a time."""

    index: str
    """Folder of the index that `analyze` made."""

    latent: int | None = None
    """Everything about one latent."""

    token: str | None = None
    """Latents that mark a token, such as " Paris" with its space, among the sampled tokens."""

    regex: str | None = None
    """Latents that mark the matches of a regular expression in the text of the sampled tokens."""

    text: str | None = None
    """Latents that mark this text where it occurs; with --sae and --model, those that fire on each token of
    it."""

    like: int | None = None
    """Latents near a latent: by decoder row, and by the tokens on which both fire."""

    direction: str | None = None
    """Latents whose decoder rows point along a direction: a safetensors file of one tensor [d_model]; needs
    --sae."""

    promotes: str | None = None
    """Latents that argue for a token, by the logit lens."""

    demotes: str | None = None
    """Latents that argue against a token, by the logit lens."""

    by: str | None = None
    """Latents in the order of a number: density, max, token_entropy, token_share (of its firings on its
    commonest token), top_token_share (of the strongest ones), pair_share (with the token before) or
    output_score."""

    low: float = float("-inf")
    """With --by: only numbers from here,"""

    high: float = float("inf")
    """and up to here."""

    ascending: bool = False
    """With --by: the smallest first."""

    unigram: str | None = None
    """Latents that fire on one token nearly always and whose token holds this text; "" for all of them."""

    labelled: str | None = None
    """Latents whose label or notes hold this text; "" for all that have one."""

    label: str | None = None
    """With --latent: write what it stands for; "" forgets it."""

    notes: str | None = None
    """With --label: anything else; without it notes stay as they are."""

    import_labels: str | None = None
    """Write the labels, notes and stars of a file that the HTML page gave."""

    sae: str | None = None
    """Folder of the index's SAE; one of another SAE is refused."""

    model: str | None = None
    """The model that was harvested; "demo" is the embedded one."""

    device: str | None = None
    """cuda, mps or cpu; None takes the best one here."""

    n: Annotated[int, AtLeast(1)] = 10
    """Latents to show."""

    format: Literal["table", "markdown", "csv", "json"] = "table"
    """How what was found is printed; all but table print nothing else."""

    def __post_init__(self) -> None:
        check_fields(self)
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            flags, asked = ([f"--{kind.replace('_', '-')}" for kind in kinds] for kinds in (KINDS, given))
            raise ValueError(
                f"search expected one of {', '.join(flags)}, got {' and '.join(asked) or 'none'}"
            )
        if self.notes is not None and self.label is None:
            raise ValueError("search --notes expected --label too: notes stand beside a label")
        if self.label is not None and self.latent is None:
            raise ValueError("search --label expected --latent too: the latent that it is about")
        if (self.direction or (self.text is not None and self.model)) and self.sae is None:
            raise ValueError("this search needs --sae too, the folder of the index's SAE")
        if self.text is not None and self.sae is not None and self.model is None:
            raise ValueError(
                "search --text with --sae needs --model too; without both it looks where the text occurs"
            )

    @property
    def kind(self) -> str:
        """What is asked, one of KINDS."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)


def answer(
    config: SearchConfig,
    index: FeatureIndex,
    sae: SparseAutoencoder | None = None,
    model: nn.Module | None = None,
) -> SearchAnswer:
    """What a search found.

    sae, model: loaded from what the configuration names, where it does
    raises: ValueError for what cannot be searched, or an SAE that is not the index's, both named
    """
    if sae is not None:
        index.check(sae)
    n = config.n
    if config.label is not None:
        assert config.latent is not None, "the configuration asks for it"
        _write_label(index, config.latent, config.label, config.notes)
    labels = {label.latent: label.label for label in index.labels.all()}
    if config.latent is not None:
        return with_facts(index[config.latent], n)
    if config.like is not None:
        view = index[config.like]
        near = {"cosine": view.cosine[:n], "jaccard": view.jaccard[:n], "pmi": view.pmi[:n]}
        return with_numbers(near, labels)
    if config.import_labels is not None:
        n_labels = index.labels.import_json(config.import_labels)
        return SearchAnswer(
            [{"n_labels": n_labels, "file": config.import_labels}],
            [f"labels of {n_labels} latents from {config.import_labels}"],
        )
    if config.labelled is not None:
        return with_labels(index.labels.search(config.labelled))
    if config.unigram is not None:
        return with_unigrams(index.unigram, unigram_latents(index, config.unigram, n))
    if config.by is not None:
        found = by_number(index, config.by, config.low, config.high, n, config.ascending)
        return with_numbers({config.by: found}, labels)
    if config.promotes is not None:
        return with_numbers({"logit": promotes_token(index, config.promotes, n)}, labels)
    if config.demotes is not None:
        return with_numbers({"logit": promotes_token(index, config.demotes, n, demotes=True)}, labels)
    if config.direction is not None:
        assert sae is not None, "the configuration asks for it"
        return with_numbers({"cosine": nearest_to(sae, _direction(config.direction), n)}, labels)
    if config.text is not None and model is not None:
        assert sae is not None, "the configuration asks for it"
        tokenizer, point = index.contexts.tokenizer, index.hook_point
        return with_firings(fires_on_text(sae, model, tokenizer, config.text, n, hook_point=point))
    if config.token is not None:
        return with_matches(index.token(config.token, n), labels)
    if config.text is not None:
        return with_matches(index.text(config.text, n), labels)
    return with_matches(index.regex(config.regex or "", n), labels)


def _write_label(index: FeatureIndex, latent: int, label: str, notes: str | None) -> None:
    """Write what a latent stands for, or forget it for "". Notes of None and the star stay as they were."""
    before = index[latent].label or Label(latent, "")
    if label:
        index.labels.set(latent, label, before.notes if notes is None else notes, before.starred)
    else:
        index.labels.remove(latent)


def _direction(file: str) -> Tensor:
    """The tensor of a safetensors file that holds one."""
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} expected a safetensors file: {error}") from error
    if len(tensors) != 1:
        raise ValueError(
            f"{file} expected one tensor, the direction; it holds {len(tensors)}: {', '.join([*tensors][:4])}"
        )
    return next(iter(tensors.values()))


def run(argv: Sequence[str]) -> None:
    """Latents of an index by token, text, regex, direction, number or label"""
    config = configured(SearchConfig, "search", argv)
    kind = config.kind
    index = FeatureIndex.open(config.index)
    sae = model = None
    if kind in ("text", "direction") and config.sae is not None:
        device = device_named(config.device)
        sae = load_reader(config.sae, device=device)
        model = model_for(config.model, device, index)
    found = answer(config, index, sae, model)
    if not found.lines:
        sample = f"{len(index.token_sample.rows):,} sampled tokens of {index.n_tokens:,}"
        of_sample = f", of {sample}" * (kind in ("token", "regex", "text"))
        found = dataclasses.replace(found, nothing=f"no latent of {config.index} fits{of_sample}")
    print(in_format(found, config.format))
    if config.format != "table":
        return
    if kind == "import_labels":
        print_next("search", config.index, by="max")
    elif kind != "latent" and (first := re.search(r"\blatent +(\d+)", str(found))):
        print_next("search", config.index, latent=first[1])
