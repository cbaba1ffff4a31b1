"""`saelens-lite browse`: the features of an index in a live page, with the model behind it."""

from __future__ import annotations

import contextlib
import dataclasses
import webbrowser
from collections.abc import Sequence
from typing import Annotated

from saelens_lite.cli.flags import configured
from saelens_lite.cli.shared import device_named, evaluation_to_show, model_for
from saelens_lite.config import AtLeast, check_fields


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BrowseConfig:
    """Show the features of an index in the browser, from this machine to itself, until Ctrl-C."""

    index: str
    """Folder of the index that `analyze` made."""

    sae: str | None = None
    """Folder of the index's SAE; with --model it reads your own text and steers."""

    model: str | None = None
    """The model that was harvested; "demo" is the embedded one."""

    evaluation: str | None = None
    """What `evaluate --output` wrote of the SAE, for the head of the page; None takes evaluation.json in the
    folder of --sae where there is one."""

    compare: str | None = None
    """Folder of a second index over the same store, shown beside the first."""

    compare_sae: str | None = None
    """Folder of its SAE: with --sae, latents are also matched by their decoder rows."""

    port: Annotated[int, AtLeast(0)] = 0
    """Of 127.0.0.1; 0 takes a free one."""

    open: bool = True
    """Open the page in this machine's browser, where it has one."""

    device: str | None = None
    """cuda, mps or cpu; None takes the best one here."""

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.sae is None) != (self.model is None):
            raise ValueError(
                "browse expected --model and --sae, or neither: it needs both to read text and steer"
            )
        if self.compare_sae is not None and (self.compare is None or self.sae is None):
            raise ValueError("browse --compare-sae expected --compare and --sae too")


def run(argv: Sequence[str]) -> None:
    """The features of an index in a live page: read, label, type, steer, compare"""
    config = configured(BrowseConfig, "browse", argv)
    from saelens_lite.analyze.browse.answers import Answers, Comparison
    from saelens_lite.analyze.browse.server import BrowseServer
    from saelens_lite.analyze.index.feature_index import FeatureIndex
    from saelens_lite.analyze.matching import match_indexes
    from saelens_lite.sae.any_kind import load_reader

    index, device = FeatureIndex.open(config.index), device_named(config.device)
    sae = None if config.sae is None else load_reader(config.sae, device=device)
    model = model_for(config.model, device, index)
    compared = None
    if config.compare is not None:
        other = FeatureIndex.open(config.compare)
        theirs = None if config.compare_sae is None else load_reader(config.compare_sae)
        compared = Comparison(other, match_indexes(index, other, sae if theirs is not None else None, theirs))
    evaluation = evaluation_to_show(config.evaluation, config.sae, index.hook_point)
    answers = Answers(index, model, sae, evaluation=evaluation, compared=compared)
    server = BrowseServer(answers, config.port)
    port = server.server_address[1]
    print(f"page: {server.address}", flush=True)
    print(f"from another machine: ssh -L {port}:127.0.0.1:{port} USER@THIS-MACHINE, then open it there")
    print(
        "without a model: labels are saved, text and steering need --model and --sae; Ctrl-C ends it"
        if model is None
        else "Ctrl-C ends it",
        flush=True,
    )
    if config.open:
        webbrowser.open(server.address)
    with server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
