"""`saelens-lite import`: an index made of dashboards of another tool."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from saelens_lite.cli.flags import configured
from saelens_lite.cli.shared import print_next


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ImportConfig:
    """Make an index of dashboards of SAEDashboard or Neuronpedia, to be searched and browsed."""

    source: str
    """A JSON file of SAEDashboard, a folder of its batch-N.json, or a folder of Neuronpedia's export, whose
    explanations become labels."""

    index: str = "imported.index"
    """New folder for the index."""

    tokenizer: str | None = None
    """Name or folder of the model's tokenizer, for the texts of SaeVisData, which holds token ids only."""


def run(argv: Sequence[str]) -> None:
    """An index to search and browse from dashboards of SAEDashboard or Neuronpedia"""
    config = configured(ImportConfig, "import", argv)
    from saelens_lite.analyze.exchange.whole_index import import_index

    index = import_index(config.source, config.index, config.tokenizer)
    print(f"dashboards of {int(index.column('counts').count_nonzero()):,} latents from {config.source}")
    print(f"index: {config.index}")
    print_next("search", config.index, by="max")
