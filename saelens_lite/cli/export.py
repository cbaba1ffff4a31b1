"""`saelens-lite export`: the latents of an index as dashboards of another tool."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

from saelens_lite.cli.flags import configured
from saelens_lite.cli.shared import device_named, model_for
from saelens_lite.config import AtLeast


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """Write the latents of an index for SAEDashboard's viewer or for Neuronpedia."""

    index: str
    """Folder of the index that `analyze` or `import` made."""

    format: Literal["saedashboard-vis", "saedashboard-batch", "neuronpedia"] = "saedashboard-batch"
    """saedashboard-vis feeds SAEDashboard's HTML viewer, saedashboard-batch goes to Neuronpedia, neuronpedia
    is the export of a source as neuronpedia.org publishes them."""

    output: str | None = None
    """File to write, or for neuronpedia the folder that receives it. None takes dashboards.json, or the
    folder dashboards."""

    sae: str | None = None
    """Folder of the index's SAE: for the activations around firings and the tables of neurons."""

    store: str | None = None
    """The store that was indexed."""

    model: str | None = None
    """With --sae: the model that was harvested, for histograms of the logit lens; "demo" is the embedded
    one."""

    n_top: Annotated[int, AtLeast(1)] = 20
    """Strongest firings of each latent."""

    context_tokens: Annotated[int, AtLeast(2)] = 10
    """Tokens on either side of them; half as many around the examples of intervals."""

    sae_set: str | None = None
    """Name of the SAE among those of the model. None makes one of kind and size."""

    device: str | None = None
    """cuda, mps or cpu; None takes the best one here."""


def run(argv: Sequence[str]) -> None:
    """Dashboards for SAEDashboard or Neuronpedia from an index"""
    config = configured(ExportConfig, "export", argv)
    from saelens_lite.analyze.exchange.whole_index import export_index
    from saelens_lite.analyze.index.feature_index import FeatureIndex
    from saelens_lite.sae.autoencoder import SparseAutoencoder
    from saelens_lite.store.reader import ActivationStore

    index = FeatureIndex.open(config.index)
    device = device_named(config.device)
    written = export_index(
        index,
        config.output or ("dashboards" if config.format == "neuronpedia" else "dashboards.json"),
        config.format,
        SparseAutoencoder.load(config.sae, device=device) if config.sae else None,
        ActivationStore(config.store) if config.store else None,
        model_for(config.model, device, index),
        n_top=config.n_top,
        context_tokens=config.context_tokens,
        sae_set=config.sae_set,
    )
    print(f"{config.format}: {written}")
