"""One HTML file that shows the features of an SAE: no network, no library, token text never markup.

The data goes into the page as JSON in which `<`, `>` and `&` are escaped; the page's script (page.js) writes it as text
only, and a content security policy allows that script and nothing else. Not here: interventions, labels, more latents
than one file should hold.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saelens_lite.sae import SparseAutoencoder
from saelens_lite.store import ActivationStore

from .context import Contexts, visible
from .evaluate import Evaluation
from .featureindex import FeatureIndex
from .index import feature_table, index_latents
from .inert import inert_json, policy, style, write_page
from .lens import logit_lens
from .stream import BLOCK_ROWS, checked_latents, matching_hook_point, to_cpu
from .tally import Tally, bin_edges

DENSITY_RANGE = (1e-5, 5e-2)
MIN_FIRINGS = 10
BEFORE_TOKENS, AFTER_TOKENS = 24, 12


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

    path: of the HTML file, replaced when it exists
    model: gives the logit lens; without it that panel is left out
    n_latents: how many; those that fire on 1e-5 to 5e-2 of the tokens (and 10 times at least), largest maximum first
    latents: these instead, in this order
    n_examples: strongest firings shown of each
    evaluation: its fvu and ΔCE are shown in the head of the page
    tokenizer: None loads the store's own
    index: of this SAE over this store; its logit lens serves where there is no model. None makes a pass
    raises: ValueError when SAE, store, index and model do not belong together, or for a latent out of range
    """
    point = matching_hook_point(sae, store, hook_point)
    if index is not None:
        index.check(sae, store)
    tally = index_latents(sae, store, n_examples, hook_point) if index is None else index.tally
    if latents is None:
        chosen, rule = _top_latents(tally, n_latents)
    else:
        chosen, rule = checked_latents(sae, latents), "Selected by: the latents asked for."
    contexts = Contexts(store, tokenizer, BEFORE_TOKENS, AFTER_TOKENS)
    features = _features(sae, store, point, tally, chosen, contexts, n_examples)
    lens = index.lens(chosen, contexts.tokenizer) if index is not None else None
    if model is not None:
        lens = logit_lens(sae, model, chosen, n=10, tokenizer=contexts.tokenizer)
    if lens is not None:
        for feature in features:
            for end in ("top", "bottom"):
                pairs = getattr(lens, end)(feature["id"])
                feature[end] = [[visible(token), round(logit, 3)] for token, logit in pairs]
    model_name = os.path.basename(store.model_name) if os.path.isabs(store.model_name) else store.model_name
    data = {
        "title": visible(f"Features of {model_name} at {point}"),
        "facts": _facts(sae, tally, evaluation),
        "rule": rule,
        "tokens": tally.n_tokens,
        "features": features,
    }
    return write_page(path, render(data))


def render(data: dict[str, Any]) -> str:
    """The page as text. data: what page.js draws; `title` is also the document's title."""
    here = Path(__file__).parent
    css, script = style("page"), (here / "page.js").read_text(encoding="utf-8")
    parts = {
        "title": html.escape(data["title"]),
        "policy": policy(css, script),
        "style": css,
        "script": script,
        "data": inert_json(data),
    }
    template = (here / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def _top_latents(tally: Tally, n_latents: int) -> tuple[Tensor, str]:
    """int64[<= n_latents] by the page's rule, and the rule in words with its numbers."""
    counts, n_tokens = tally.counts, tally.n_tokens
    density, strongest = tally.density, tally.top.values[:, 0]
    low, high = DENSITY_RANGE
    within = (density >= low) & (density <= high) & (counts >= MIN_FIRINGS)
    words = (
        f"Selected by: density from {low:g} to {high:g} and at least {MIN_FIRINGS} firings in {n_tokens:,} tokens "
        f"({int(within.sum()):,} of {len(counts):,} latents), then by largest activation"
    )
    if not within.any():
        within = counts > 0
        words = f"Selected by: largest activation among all that fired (none has a density from {low:g} to {high:g})"
    order = strongest.masked_fill(~within, -1).argsort(descending=True, stable=True)
    chosen = order[: min(n_latents, int(within.sum()))]
    return chosen, f"{words}; {len(chosen):,} shown. These are not a random sample: a latent's top firings flatter it."


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


def _features(
    sae: SparseAutoencoder,
    store: ActivationStore,
    point: str,
    tally: Tally,
    latents: Tensor,
    contexts: Contexts,
    n_examples: int,
) -> list[dict[str, Any]]:
    """What the page shows of each latent, without the logit lens."""
    table = feature_table(tally, latents, contexts)
    views = [table.latent(latent, n_examples) for latent in latents.tolist()]
    rows_of = {firing.row: contexts.rows_of(firing.context) for view in views for firing in view}
    values = _values_around(
        sae, store, point, latents, sorted({row for rows in rows_of.values() for row in rows if row >= 0})
    )
    edges = bin_edges()
    norms = sae.W_dec[latents.to(sae.device)].detach().float().norm(dim=1).tolist()
    features = []
    for view, norm in zip(views, norms):
        examples = [
            {
                "value": _short(firing.value),
                "row": firing.row,
                "document": firing.document,
                "position": firing.position,
                "at": firing.context.at,
                "tokens": [visible(token) for token in firing.context.tokens],
                "acts": [None if row < 0 else _short(values.get((row, view.latent), 0.0)) for row in rows_of[firing.row]],
            }
            for firing in view
        ]
        counts = tally.histogram[view.latent]
        filled = counts.nonzero().flatten().tolist()
        span = range(filled[0], filled[-1] + 1) if filled else ()
        features.append(
            {
                "id": view.latent,
                "max": examples[0]["value"] if examples else 0.0,
                "fired": view.n_fired,
                "density": view.density,
                "norm": _short(norm),
                "bins": [[_short(edges[b]), _short(edges[b + 1]), int(counts[b])] for b in span],
                "examples": examples,
            }
        )
    return features


def _values_around(
    sae: SparseAutoencoder, store: ActivationStore, point: str, latents: Tensor, rows: list[int]
) -> dict[tuple[int, int], float]:
    """(row, latent) → activation, for the rows of all shown windows and those of `latents` that fire there."""
    shown = torch.zeros(sae.d_sae, dtype=torch.bool)
    shown[latents] = True
    values: dict[tuple[int, int], float] = {}
    for part in torch.tensor(rows, dtype=torch.int64).split(BLOCK_ROWS):
        with torch.no_grad():
            found = to_cpu(sae.encode(store.gather(part, point).to(sae.device)))
        wanted = shown[found.indices] & (found.values != 0)
        keys = zip(part[found.row_ids()[wanted]].tolist(), found.indices[wanted].tolist())
        values.update(zip(keys, found.values[wanted].float().tolist()))
    return values


def _short(value: float) -> float:
    """Four significant digits, for the size of the page."""
    return float(f"{value:.4g}")
