"""`saelens-lite report`: training runs beside each other on one page."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from saelens_lite.cli.flags import configured


def run(argv: Sequence[str]) -> None:
    """What training runs did, beside each other, as one HTML page"""
    config = configured(ReportConfig, "report", argv)
    from saelens_lite.analyze.pages.report import report_page

    print(f"page: {report_page(config.runs, config.output)}")
    print(
        "evaluations are in it where `saelens-lite evaluate --output RUN/evaluation.json` left them in the "
        "runs"
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """Tables, curves and histograms of training runs and evaluations as one HTML page that needs no network,
    for one SAE or several."""

    runs: tuple[str, ...]
    """Folders of runs (finished or not), of SAELens' SAEs, or of such folders; or JSON of `evaluate
    --output`, which is also found in the folders."""

    output: str = "report.html"
    """The page to write."""
