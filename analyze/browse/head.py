"""What a page says of an index as a whole, as values for JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..evaluation.result import BASELINE, TRAINED
from ..index.feature_index import FeatureIndex
from ..index.labels import FORMAT, VERSION
from ..index.tally import bin_edges
from ..latents.text_windows import invisible_in_js, visible
from .token_texts import TokenTexts


def page_head(
    index: FeatureIndex,
    texts: TokenTexts,
    before: int,
    after: int,
    *,
    rule: str = "",
    evaluation: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The head without what depends on the host: see start() in app.js for the rest.

    evaluation: as recorded_evaluation gives it
    """
    plan = index.plan
    name = plan["model"]["name"] or "a model"
    name = os.path.basename(name) if os.path.isabs(name) else name
    counts = index.column("counts")
    sae = index.sae
    kind = f"{sae['kind']}, k={sae['k']}" if sae["k"] else sae["kind"]
    silent = int((counts == 0).sum())
    facts = [
        ["SAE", f"{kind}, {sae['d_sae']:,} latents, width {sae['d_model']:,}"],
        ["l0", f"{float(counts.sum()) / max(index.n_tokens, 1):.1f}"],
        ["tokens seen", f"{index.n_tokens:,}"],
        ["never fired on them", f"{silent:,} ({silent / sae['d_sae']:.1%})"],
    ]
    marks = [[one.latent, one.label, one.notes, one.starred] for one in index.labels.all()]
    return {
        "title": visible(f"Features of {name} at {index.hook_point}"),
        "facts": facts + (_scores(evaluation) if evaluation is not None else []),
        "rule": rule,
        "tokens": index.n_tokens,
        "top": min(plan["settings"]["n_top"], index.n_tokens),
        "sampled": len(index.token_sample.rows),
        "positions": index.token_positions,
        "bos": index.tokens.plan["bos_id"] is not None,
        "edges": bin_edges(),
        "invisible": invisible_in_js(),
        "labels": {"format": FORMAT, "version": VERSION, "sae": sae["sha256"]},
        "marks": marks,
        "wide": texts.wide,
        "before": before,
        "before_near": before // 2,
    }


def _scores(evaluation: Mapping[str, Any]) -> list[list[str]]:
    """fvu and ΔCE, beside those of the frozen decoder where it was given."""
    rows = {row["name"]: row for row in evaluation["rows"] if row["given"]}
    of = "held-out " if evaluation["held_out"] else ""
    facts = []
    for name, key, unit, n in (
        ("fvu", "fvu", "", evaluation["n_tokens"]),
        ("ΔCE", "delta_ce", " nats", evaluation["n_ce_tokens"]),
    ):
        value, frozen = (rows.get(row, {}).get(key) for row in (TRAINED, BASELINE))
        if value is not None:
            beside = "" if frozen is None else f", {frozen:.4f} with a frozen decoder"
            facts.append([name, f"{value:.4f}{unit}{beside} ({n:,} {of}tokens)"])
    return facts
