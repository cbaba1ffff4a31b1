"""`saelens-lite labels`: the labels of an index, shown, written to a file or taken from one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from saelens_lite.cli.flags import configured
from saelens_lite.cli.shared import print_next
from saelens_lite.config import check_fields


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LabelsConfig:
    """Show what people wrote about latents, write it to a file, or take it from one."""

    index: str
    """Folder of the index that `analyze` made."""

    export_to: str | None = None
    """Write all labels to this file: its name ends in .json or .csv."""

    import_from: str | None = None
    """Take the labels of this file: .json or .csv as exported here or by the page, or Neuronpedia's
    explanations (.jsonl.gz)."""

    keep: bool = False
    """With --import-from: labels that are there stay, instead of being replaced."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.export_to is not None and self.import_from is not None:
            raise ValueError("labels expected --export-to or --import-from, got both: one after the other")
        if self.keep and self.import_from is None:
            raise ValueError("labels --keep expected --import-from too: it says which labels stay then")


def run(argv: Sequence[str]) -> None:
    """Labels of latents: shown, into a file, from a file"""
    config = configured(LabelsConfig, "labels", argv)
    from saelens_lite.analyze.exchange.label_files import export_labels, import_labels
    from saelens_lite.analyze.index.feature_index import FeatureIndex
    from saelens_lite.analyze.latents.text_windows import visible

    index = FeatureIndex.open(config.index)
    if config.export_to is not None:
        print(f"labels of {export_labels(index, config.export_to):,} latents: {config.export_to}")
    elif config.import_from is not None:
        n = import_labels(index, config.import_from, keep=config.keep)
        print(f"labels of {n:,} latents from {config.import_from}")
        print_next("labels", config.index)
    else:
        lines = [visible(repr(label)) for label in index.labels.all()]
        print("\n".join(lines) or f"no latent of {config.index} has a label")
