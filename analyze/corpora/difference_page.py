"""What differs between two corpora as one page, which runs nothing."""

from __future__ import annotations

from pathlib import PurePath

from ..render.report_blocks import Paragraph, Section, Table, document
from .differing_latents import CorpusDifference


def difference_page(found: CorpusDifference, name_a: str, name_b: str) -> str:
    """HTML; name_a, name_b: what the corpora are called, paths cut to their last part."""
    a, b = (PurePath(name).name or name for name in (name_a, name_b))
    ((_, (heads, *lines)),) = found._tables()
    examples = [[row.latent, text] for row in found.rows for text in row.examples]
    blocks: list[Paragraph | Table] = [
        Paragraph(note) for note in found._notes() if not note.startswith("  ")
    ]
    blocks += [Table(heads, lines, [""] * len(lines))] if lines else []
    if examples:
        head = ["latent", "where it fires most strongly"]
        blocks.append(Table(head, examples, [""] * len(examples), title="Examples"))
    title = f"What differs between {a} (A) and {b} (B)"
    return document(title, [Section("Latents that fire in more documents of one corpus", blocks)], [])
