"""One HTML file that shows the features of an SAE: no network, no library, token text never markup.

The data (feature_page_data.py) goes into the page as JSON in which `<`, `>` and `&` are escaped. The page's
scripts (feature.js draws one latent, page.js lists them all) write it as text only, and a content security
policy allows them and nothing else. Labels written in the page leave it as a download, which labels.py
imports. Not here: interventions.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from torch import Tensor, nn

from saelens_lite.arguments import takes_folders
from saelens_lite.atomic import check_output, temporary_folder, write_file
from saelens_lite.errors import with_option
from saelens_lite.lm.hooks import enters_stream
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.store.places import Place, same_place
from saelens_lite.store.reader import ActivationStore

from ..attribution.lens import logit_lens
from ..evaluation.result import Evaluation
from ..index.build import IndexConfig, check_is_harvested, index_features
from ..index.feature_index import FeatureIndex
from ..index.labels import FORMAT, VERSION
from ..index.tally import Tally, bin_edges
from ..latents.compatibility import checked_latents, fits
from ..latents.text_windows import Contexts, invisible_in_js, visible
from ..render.html import inert_json, policy, rendered, style
from .feature_page_data import AFTER_TOKENS, BEFORE_TOKENS, Vocabulary, features

DENSITY_RANGE = (1e-5, 5e-2)
MIN_FIRINGS = 10
SCRIPTS = ("feature.js", "page.js")
_HERE = Path(__file__).parent


@takes_folders
@names_misfits
def feature_page(
    sae: SparseAutoencoder,
    store: ActivationStore,
    path: str | Path,
    model: nn.Module | None = None,
    n_latents: int = 100,
    *,
    latents: Sequence[int] | Tensor | None = None,
    n_examples: int = 12,
    evaluation: Evaluation | None = None,
    hook_point: str | None = None,
    tokenizer: Any = None,
    index: FeatureIndex | None = None,
) -> Path:
    """Write one self-contained HTML page of the top features and return its path.

    Of each latent: strongest firings, quantile intervals of its firings with examples, rows on which it does
    not fire, histogram, counts with their interval, where in the context it fires and on which tokens,
    neighbours, logit lens, output score and labels where there are any. 5 to 10 kB a latent, and a
    vocabulary.

    path: of the HTML file, replaced when it exists
    model: gives the logit lens; without it that panel is left out
    n_latents: how many; those that fire on 1e-5 to 5e-2 of the tokens (and 10 times at least), largest
        maximum first
    latents: these instead, in this order
    n_examples: strongest firings shown of each
    evaluation: its fvu and ΔCE are shown in the head of the page
    tokenizer: None loads the store's own
    index: of this SAE over this store; its logit lens serves where there is no model. None makes one for this
        call, by a pass over the store
    raises: ValueError when SAE, store, index and model do not belong together, or for a latent out of range
    """
    check_output(path)
    point = fits(sae, store, hook_point)
    check_is_harvested(model, store, point)
    if latents is not None:
        latents = checked_latents(sae, latents)
    if n_examples < 1:
        raise ValueError(f"expected n_examples >= 1 firings a latent, got {n_examples}")
    with contextlib.ExitStack() as stack:
        if index is None:
            folder = stack.enter_context(temporary_folder())
            config = IndexConfig(n_top=max(n_examples, IndexConfig().n_top))
            index = index_features(sae, store, folder, None, config, hook_point=point, tokenizer=tokenizer)
        index.check(sae, store)
        if not same_place(Place(index.hook_point), store.place(point)):
            raise with_option(
                ValueError(
                    f"{index.path} is an index over {index.hook_point}, not over {point}: pass hook_point="
                ),
                "hook_point",
            )
        data = _data(sae, store, point, index, model, n_latents, latents, n_examples, evaluation, tokenizer)
    return write_file(path, render(data))


def render(data: dict[str, Any]) -> str:
    """The page as text. data: what the scripts draw; `title` is also the document's title."""
    css, script = style("page"), "\n".join((_HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return rendered(
        "feature_page.html",
        title=data["title"],
        policy=policy(css, script),
        style=css,
        script=Markup(script),
        data=inert_json(data),
    )


def _data(
    sae: SparseAutoencoder,
    store: ActivationStore,
    point: str,
    index: FeatureIndex,
    model: nn.Module | None,
    n_latents: int,
    latents: Tensor | None,
    n_examples: int,
    evaluation: Evaluation | None,
    tokenizer: Any,
) -> dict[str, Any]:
    """All that the page says, as plain values."""
    tally = index.tally
    if latents is None:
        chosen, rule = _top_latents(tally, n_latents)
    else:
        chosen, rule = latents, "Selected by: the latents asked for."
    contexts = Contexts(store, tokenizer, BEFORE_TOKENS, AFTER_TOKENS)
    lens = index.lens(chosen, contexts.tokenizer)
    if model is not None and enters_stream(model, point):
        lens = logit_lens(sae, model, chosen, n=10, tokenizer=contexts.tokenizer)
    vocabulary = Vocabulary()
    shown = features(sae, store, point, index, chosen, contexts, vocabulary, n_examples, lens)
    model_name = os.path.basename(store.model_name) if os.path.isabs(store.model_name) else store.model_name
    return {
        "title": visible(f"Features of {model_name} at {point}"),
        "facts": _facts(sae, tally, evaluation),
        "rule": rule,
        "tokens": tally.n_tokens,
        "top": min(index.plan["settings"]["n_top"], tally.n_tokens),
        "sampled": len(index.token_sample.rows),
        "positions": tally.token_positions.tolist(),
        "bos": store.plan.get("bos_id") is not None,
        "edges": bin_edges(),
        "invisible": invisible_in_js(),
        "labels": {"format": FORMAT, "version": VERSION, "sae": index.sae["sha256"]},
        "vocabulary": vocabulary.texts,
        "ids": vocabulary.ids,
        "features": shown,
    }


def _top_latents(tally: Tally, n_latents: int) -> tuple[Tensor, str]:
    """int64[<= n_latents] by the page's rule, and the rule in words with its numbers."""
    counts, n_tokens = tally.counts, tally.n_tokens
    density, strongest = tally.density, tally.top.values[:, 0]
    low, high = DENSITY_RANGE
    within = (density >= low) & (density <= high) & (counts >= MIN_FIRINGS)
    words = (
        f"density from {low:g} to {high:g} and at least {MIN_FIRINGS} firings in {n_tokens:,} tokens "
        f"({int(within.sum()):,} of {len(counts):,} latents), then by largest activation"
    )
    if not within.any():
        within = counts > 0
        words = f"largest activation among all that fired (none has a density from {low:g} to {high:g})"
    order = strongest.masked_fill(~within, -1).argsort(descending=True, stable=True)
    chosen = order[: min(n_latents, int(within.sum()))]
    sample = "These are not a random sample: a latent's top firings flatter it."
    return chosen, f"Selected by: {words}; {len(chosen):,} shown. {sample}"


def _facts(sae: SparseAutoencoder, tally: Tally, evaluation: Evaluation | None) -> list[list[str]]:
    """Name and value of each line in the page's head."""
    silent = int((tally.counts == 0).sum())
    kind = f"{sae.kind}, k={sae.config.k}" if sae.config.k else sae.kind
    facts = [
        ["SAE", f"{kind}, {sae.d_sae:,} latents, width {sae.d_model:,}"],
        ["l0", f"{tally.l0:.1f}"],
        ["tokens seen", f"{tally.n_tokens:,}"],
        ["never fired on them", f"{silent:,} ({silent / sae.d_sae:.1%})"],
    ]
    if evaluation is not None:
        row = evaluation.row("trained")
        of = "held-out " if evaluation.held_out else ""
        facts.append(["fvu", f"{row.fvu:.4f} ({evaluation.n_tokens:,} {of}tokens)"])
        if row.delta_ce is not None:
            facts.append(["ΔCE", f"{row.delta_ce:.4f} nats ({evaluation.n_ce_tokens:,} {of}tokens)"])
    return facts
