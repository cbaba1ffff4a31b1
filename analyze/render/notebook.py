"""What a notebook shows of an index, or of one latent: HTML without script or style sheet, every word
escaped.

So it survives notebooks that are not trusted, previews and exports; colours are such that a dark notebook can
show them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from saelens_lite.sae.metrics import rate_interval

from ..latents.text_windows import Context
from .html import escaped

if TYPE_CHECKING:
    from ..index.feature_index import FeatureIndex
    from ..index.indexed_latent import IndexedLatent

SHOWN_LATENTS, SHOWN_FIRINGS, INTERVAL_EXAMPLES = 10, 8, 2
_LEVELS = "▁▂▃▄▅▆▇█"
_SOFT = "opacity:0.65"


def index_html(index: FeatureIndex) -> str:
    """The latents that fire most strongly, a line each."""
    strongest = index.column("top_values")[:, 0].argsort(descending=True, stable=True)[:SHOWN_LATENTS]
    rows = []
    for view in (index[latent] for latent in strongest.tolist()):
        tokens = list(dict.fromkeys(firing.token for firing in view.firings))[:5]
        largest = view.firings[0].value if view.firings else 0.0
        numbers = [f"{view.density:.3%}", f"{largest:.4g}", _number(view.token_entropy, "{:.2f}")]
        numbers += [_number(view.output_score, "{:.2f}")] if index.has("output_score") else []
        label = f"<i>{escaped(view.label.label)}</i> " if view.label is not None else ""
        words = label + _tokens(tokens)
        promoted = [_tokens([token for token, _ in view.promoted[:5]])] if index.has("lens") else []
        rows.append([str(view.latent), *numbers, words, *promoted])
    head = [
        "latent",
        "density",
        "largest",
        "token entropy",
        *["output score"] * index.has("output_score"),
        "strongest tokens",
    ]
    head += ["raises"] * index.has("lens")
    note = f"the {len(rows)} that fire most strongly; index[i] is one of them with its text, index.density the rates of all"
    return f"<p><code>{escaped(repr(index))}</code><br><span style='{_SOFT}'>{note}</span></p>{_table(head, rows)}"


def latent_html(view: IndexedLatent) -> str:
    """Numbers, strongest firings, quantile intervals with examples, rows without it, neighbours, logit
    lens."""
    low, high = rate_interval(view.n_fired, view.n_tokens)
    star = "★ " if view.label is not None and view.label.starred else ""
    label = (
        f" – <i>{star}{escaped(view.label.label)}</i> {escaped(view.label.notes)}"
        if view.label is not None
        else ""
    )
    facts = [
        f"fires on {view.n_fired:,} of {view.n_tokens:,} tokens, {view.density:.3%} ({low:.2%} to "
        f"{high:.2%}, 95 %, "
        "tokens taken as independent)"
    ]
    if view.firings:
        facts.append(f"largest {view.firings[0].value:.4g}")
    if not math.isnan(view.token_entropy):
        facts.append(f"token entropy {view.token_entropy:.2f} nats")
    if not math.isnan(view.token_share):
        facts.append(
            f"{_tokens([view.common_token])} has {view.token_share:.0%} of its "
            f"firings{', unigram' if view.unigram else ''}"
        )
    if not math.isnan(view.output_score):
        facts.append(f"output score {view.output_score:.3g}")
    parts = [f"<p><b>Latent {view.latent}</b>{label}<br>{' · '.join(facts)}</p>"]
    if view.histogram:
        ends = f"{view.histogram[0][0]:.3g} to {view.histogram[-1][1]:.3g}"
        parts.append(
            f"<p>{_sparkline([n for *_, n in view.histogram])} <span style='{_SOFT}'>activations {ends}, "
            "log axes</span></p>"
        )
    firings = [[f"{one.value:.4g}", _text(one.context)] for one in view.firings[:SHOWN_FIRINGS]]
    parts.append(_table(["activation", "strongest firings"], firings))
    if view.intervals:
        rows = []
        for at, interval in reversed(list(enumerate(view.intervals))):
            n = len(interval.rows)
            chosen = [j * n // INTERVAL_EXAMPLES for j in range(min(n, INTERVAL_EXAMPLES))]
            texts = "<br>".join(_text(view.contexts.at(interval.rows[j])) for j in chosen)
            share = f"q{100 * at // len(view.intervals)}–q{100 * (at + 1) // len(view.intervals)}"
            rows.append([share, f"{interval.low:.3g} to {interval.high:.3g}", texts])
        parts.append(_folded("Firings by quantile", _table(["quantiles", "activation", "a sample"], rows)))
    if view.contrast:
        silent = _table(
            ["random tokens on which it does not fire"],
            [[_text(context, False)] for context in view.contrast],
        )
        parts.append(_folded("Where it is silent", silent))
    near = [
        (name, pairs)
        for name, pairs in (("decoder cosine", view.cosine), ("Jaccard", view.jaccard), ("PMI", view.pmi))
        if pairs
    ]
    if near:
        rows = [
            [name, ", ".join(f"{latent} <span style='{_SOFT}'>{score:.2f}</span>" for latent, score in pairs)]
            for name, pairs in near
        ]
        parts.append(
            _folded("Neighbours", _table(["by", "latents; Jaccard and PMI over a sample of tokens"], rows))
        )
    if view.promoted:
        rows = [
            ["raises", _tokens([t for t, _ in view.promoted])],
            ["lowers", _tokens([t for t, _ in view.demoted])],
        ]
        parts.append(_table(["logit lens", ""], rows))
    return "".join(parts)


def _text(context: Context, fires: bool = True) -> str:
    """The window of a row with its token marked; faintly where the latent does not fire on it."""
    if not context.tokens:
        return f"row {context.row}"
    mark = "font-weight:bold;text-decoration:underline;background:rgba(224,108,0,0.35)"
    mark = mark if fires else "text-decoration:underline dotted"
    marked = f"<span style='{mark}'><bdi>{escaped(context.token)}</bdi></span>"
    around = f"<bdi>{escaped(context.before)}</bdi>{marked}<bdi>{escaped(context.after)}</bdi>"
    return f"<span style='font-family:monospace;white-space:pre-wrap'>{around}</span>"


def _tokens(tokens: Sequence[str]) -> str:
    return " ".join(f"<code><bdi>{escaped(token)}</bdi></code>" for token in tokens)


def _number(value: float, form: str) -> str:
    return "–" if math.isnan(value) else form.format(value)


def _sparkline(counts: Sequence[int]) -> str:
    """Counts as blocks on a logarithmic scale; a space for none."""
    most = math.log1p(max(counts))
    return (
        "<code style='white-space:pre'>"
        + "".join(_LEVELS[min(7, int(8 * math.log1p(n) / most))] if n else " " for n in counts)
        + "</code>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """cells: markup"""
    top = "".join(f"<th style='text-align:left'>{name}</th>" for name in head)
    lines = "".join(
        "<tr>"
        + "".join(f"<td style='text-align:left;vertical-align:top'>{cell}</td>" for cell in row)
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{top}</tr>{lines}</table>"


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>{body}</details>"
