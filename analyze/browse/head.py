"""What a page says of an index as a whole, as values for JSON."""

from __future__ import annotations

import os
from typing import Any

from ..evaluation.result import TRAINED, Evaluation
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
    evaluation: Evaluation | None = None,
) -> dict[str, Any]:
    """The head without what depends on the host: see start() in app.js for the rest."""
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


def _scores(evaluation: Evaluation) -> list[list[str]]:
    row = evaluation.row(TRAINED)
    of = "held-out " if evaluation.held_out else ""
    facts = [["fvu", f"{row.fvu:.4f} ({evaluation.n_tokens:,} {of}tokens)"]]
    if row.delta_ce is not None:
        facts.append(["ΔCE", f"{row.delta_ce:.4f} nats ({evaluation.n_ce_tokens:,} {of}tokens)"])
    return facts
