"""`saelens-lite search`: one search in a feature index, and its answer in lines."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Annotated

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
from saelens_lite.analyze.latents.text_windows import visible
from saelens_lite.cli.flags import configured
from saelens_lite.cli.shared import device_named, model_for, print_next
from saelens_lite.config import AtLeast, check_fields
from saelens_lite.sae.autoencoder import SparseAutoencoder

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
) -> list[str]:
    """What a search found, line by line.

    sae, model: loaded from what the configuration names, where it does
    raises: ValueError for what cannot be searched, or an SAE that is not the index's, both named
    """
    if sae is not None:
        index.check(sae)
    n = config.n
    if config.latent is not None:
        view = index[config.latent]
        if config.label is not None:
            if config.label:
                before = view.label or Label(config.latent, "")
                notes = before.notes if config.notes is None else config.notes
                index.labels.set(config.latent, config.label, notes, before.starred)
            else:
                index.labels.remove(config.latent)
            view = index[config.latent]
        return [repr(view)]
    if config.like is not None:
        view = index[config.like]
        nearest = (("cosine", view.cosine), ("jaccard", view.jaccard), ("pmi", view.pmi))
        return [line for name, pairs in nearest for line in _lines(index, pairs[:n], name)]
    if config.import_labels is not None:
        n_labels = index.labels.import_json(config.import_labels)
        return [f"labels of {n_labels} latents from {config.import_labels}"]
    if config.labelled is not None:
        return [visible(repr(label)) for label in index.labels.search(config.labelled)]
    if config.unigram is not None:
        return [repr(index.unigram), *map(repr, unigram_latents(index, config.unigram, n))]
    if config.by is not None:
        return _lines(
            index, by_number(index, config.by, config.low, config.high, n, config.ascending), config.by
        )
    if config.promotes is not None:
        return _lines(index, promotes_token(index, config.promotes, n), "logit")
    if config.demotes is not None:
        return _lines(index, promotes_token(index, config.demotes, n, demotes=True), "logit")
    if config.token is not None:
        return [repr(match) for match in index.token(config.token, n)]
    if config.direction is not None:
        assert sae is not None, "the configuration asks for it"
        return _lines(index, nearest_to(sae, _direction(config.direction), n), "cosine")
    if config.text is not None and model is not None:
        assert sae is not None, "the configuration asks for it"
        found = fires_on_text(
            sae, model, index.contexts.tokenizer, config.text, n, hook_point=index.hook_point
        )
        return [repr(firings) for firings in found]
    found = index.text(config.text, n) if config.text is not None else index.regex(config.regex or "", n)
    return [repr(match) for match in found]


def _lines(index: FeatureIndex, pairs: Sequence[tuple[int, float]], what: str) -> list[str]:
    labels = {label.latent: f"  {label.label!r}" for label in index.labels.all()}
    return [f"latent {latent:>7}  {what} {number:.4g}{labels.get(latent, '')}" for latent, number in pairs]


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
        sae = SparseAutoencoder.load(config.sae, device=device)
        model = model_for(config.model, device, index)
    lines = answer(config, index, sae, model)
    if not lines:
        sample = f"{len(index.token_sample.rows):,} sampled tokens of {index.n_tokens:,}"
        print(f"no latent of {config.index} fits" + f", of {sample}" * (kind in ("token", "regex", "text")))
        return
    print("\n".join(lines))
    if kind == "import_labels":
        print_next("search", config.index, by="max")
    elif kind != "latent" and (first := re.search(r"\blatent +(\d+)", "\n".join(lines))):
        print_next("search", config.index, latent=first[1])
