"""What differs between two models as one page, which runs nothing: cheap baselines, then a crosscoder."""

from __future__ import annotations

import torch

from saelens_lite.misfits import names_misfits
from saelens_lite.text_table import Tabular

from ..render.plot import Axis, Series, curves
from ..render.report_blocks import Block, Figure, Figures, Paragraph, Section, Table, document
from .exclusive import ExclusiveLatents
from .mean_difference import DifferenceLens
from .predictions import TokenDivergence
from .row_differences import RowDifferences

_BINS = 40


@names_misfits
def pair_page(
    rows: RowDifferences,
    divergence: TokenDivergence | None = None,
    lens: DifferenceLens | None = None,
    latents: ExclusiveLatents | None = None,
) -> str:
    """HTML of what `compare_rows`, `token_divergence`, `difference_lens` and `exclusive_latents` found; None
    leaves a section out."""
    sections = [Section(f"How far rows are apart at {rows.hook_point}", [*tables(rows), _shares(rows)])]
    if divergence is not None:
        sections.append(Section("How far predictions are apart", tables(divergence)))
    if lens is not None:
        words = "Tokens that the mean of tuned − base raises and lowers, read by the unembedding."
        sections.append(Section("The mean difference in words", [Paragraph(words), *tables(lens)]))
    if latents is not None:
        blocks = [*tables(latents), Figures([_leans(latents)])]
        examples = [[latent, text] for latent, texts in latents.examples.items() for text in texts]
        if examples:
            head = ["latent", "where it fires hardest"]
            blocks.append(Table(head, examples, [""] * len(examples), title="Examples"))
        sections.append(Section("Latents of one model alone", blocks))
    return document("Two models of one text", sections, [])


def tables(found: Tabular) -> list[Block]:
    """A result's notes and tables."""
    blocks: list[Block] = [Paragraph(note) for note in found._notes()]
    for title, (head, *lines) in found._tables():
        if lines:
            blocks.append(Table(head, lines, [""] * len(lines), title=title))
    return blocks


def _shares(rows: RowDifferences) -> Figures:
    shares = rows.shares.tolist()
    points = list(enumerate(shares, start=1))
    about = (
        "Share of the variance of tuned − base along each principal component. A steep fall is a low rank."
    )
    plot = curves("shares", "Components", Axis("component"), Axis("share"), [Series("shares", points)])
    return Figures([Figure("Principal components of the difference", about, plot)])


def _leans(latents: ExclusiveLatents) -> Figure:
    """Of latents that fire, how many lean to either model."""
    lean = latents.lean[(latents.n_fired > 0) & latents.lean.isfinite()].double()
    counts = torch.histc(lean, _BINS, 0, 1).tolist()
    outline: list[tuple[float, float]] = [(0.0, 0.0)]
    for i, count in enumerate(counts):
        outline += [(i / _BINS, count), ((i + 1) / _BINS, count)]
    plot = curves(
        "leans", "Lean", Axis("lean: 0 base alone, 1 tuned alone"), Axis("latents"),
        [Series("latents", [*outline, (1.0, 0.0)])],
    )  # fmt: skip
    about = (
        "Relative decoder norms of latents that fire: ½ ((tuned − base) / the larger + 1). Those at the ends "
        "seem to be of one model alone."
    )
    base, tuned = (len(latents.scaling[side].latents) for side in ("base", "tuned"))
    lines = [["base alone", base], ["shared", len(lean) - base - tuned], ["tuned alone", tuned]]
    return Figure("Whose latents they are", about, plot, Table(["lean", "latents"], lines, [""] * 3))
