"""A page that shows the features of an SAE: no network, no library, token text never markup.

The page is the browser of ../browse over data that it holds itself. A content security policy allows its
script and nothing else; text enters it as text only. Labels written in the page leave it as a download, which
labels.py imports. Not here: what needs a model at hand, which `saelens-lite browse` has.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from saelens_lite.arguments import takes_folders
from saelens_lite.atomic import check_output, temporary_folder
from saelens_lite.errors import with_option
from saelens_lite.lm.hooks import enters_stream
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.store.places import Place, same_place
from saelens_lite.store.reader import ActivationStore

from ..attribution.lens import LogitLens, logit_lens
from ..browse.head import page_head
from ..browse.known_firings import encoded_firings
from ..browse.static_files import EMBEDDED, write_page
from ..browse.token_texts import TokenTexts
from ..evaluation.recorded import recorded_evaluation
from ..evaluation.result import Evaluation
from ..index.build import IndexConfig, check_is_harvested, index_features
from ..index.feature_index import FeatureIndex
from ..index.tally import Tally
from ..latents.compatibility import checked_latents, fits, output_place
from ..latents.geometry import decoder_norms
from ..latents.text_windows import Contexts

DENSITY_RANGE = (1e-5, 5e-2)
MIN_FIRINGS = 10
WINDOW, WINDOW_OF_MANY = (24, 12), (10, 10)
"""Tokens before and after the strongest firings, the second on pages of more latents than one file holds."""


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
    evaluation: Evaluation | str | os.PathLike[str] | None = None,
    hook_point: str | None = None,
    tokenizer: Any = None,
    index: FeatureIndex | None = None,
) -> Path:
    """Write an HTML page of the top features and return its path.

    All latents stand in its table and scatter plot. Of each chosen one it shows strongest firings, quantile
    intervals of its firings with examples, rows on which it does not fire, histogram, counts with their
    interval, where in the context it fires and on which tokens, neighbours, logit lens, output score and
    labels where there are any. Up to 1,024 latents the page is one file, 1 to 3 kB a latent and a vocabulary.
    Beyond, a folder of data beside it, `page.data` for `page.html`, belongs to it.

    path: of the HTML file, replaced when it exists
    model: gives the logit lens; without it that panel is left out
    n_latents: how many; those that fire on 1e-5 to 5e-2 of the tokens (and 10 times at least), largest
        maximum first
    latents: these instead, in this order
    n_examples: strongest firings shown of each
    evaluation: one of the SAE, or its file: fvu and ΔCE are shown in the head of the page
    tokenizer: None loads the store's own
    index: of this SAE over this store; its logit lens serves where there is no model. None makes one for this
        call, by a pass over the store
    raises: ValueError when SAE, store, index and model do not belong together, or for a latent out of range
    """
    check_output(path)
    point = fits(sae, store, hook_point)
    written = output_place(sae, point)
    check_is_harvested(model, store, point)
    if latents is not None:
        latents = checked_latents(sae, latents)
        if not len(latents):
            raise ValueError("latents expected at least one index, got none; None shows the top ones")
    scores = None if evaluation is None else recorded_evaluation(evaluation, written)
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
        if latents is None:
            chosen, rule = _top_latents(index.tally, n_latents)
        else:
            chosen, rule = latents, "Selected by: the latents asked for."
        before, after = WINDOW if len(chosen) <= EMBEDDED else WINDOW_OF_MANY
        if tokenizer is not None:
            index.contexts = Contexts(index.tokens, tokenizer)
        texts = TokenTexts(index.contexts.tokenizer)

        def firings(some: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            return encoded_firings(sae, store, point, some, rows)

        def lens(some: Tensor) -> LogitLens:
            return logit_lens(sae, model, some, n=10)

        return write_page(
            Path(path),
            index,
            page_head(index, texts, before, after, rule=rule, evaluation=scores),
            texts,
            chosen,
            n_examples=n_examples,
            after=after,
            encoded=firings,
            lens=lens if model is not None and enters_stream(model, written) else None,
            norms=decoder_norms(sae),
        )


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
