"""An index out to other tools and in from them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from saelens_lite.arguments import takes_folders
from saelens_lite.atomic import check_output
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.store.reader import ActivationStore

from ..index.build import check_is_harvested
from ..index.feature_index import FeatureIndex
from ..latents.text_windows import token_text
from .dashboards import Dashboards
from .imported_index import write_imported
from .index_dashboards import dashboards_of
from .label_files import labels_of_folder
from .neuronpedia import read_source, source_folder, write_source
from .saedashboard_batch import batch_paths, read_batch, write_batch
from .saedashboard_vis import read_vis, write_vis

FORMATS = ("saedashboard-vis", "saedashboard-batch", "neuronpedia")


@takes_folders
@names_misfits
def export_index(
    index: FeatureIndex | str | os.PathLike[str],
    path: str | os.PathLike[str],
    format: str,
    sae: SparseAutoencoder | None = None,
    store: ActivationStore | None = None,
    model: nn.Module | None = None,
    *,
    n_top: int = 20,
    context_tokens: int = 10,
    sae_set: str | None = None,
) -> Path:
    """Write all latents of an index that fired as dashboards of another tool; returns what was written.

    path: a .json file; for "neuronpedia" a folder, which receives {model}/{layer}-{set}
    format: "saedashboard-vis", which feeds SAEDashboard's HTML viewer, "saedashboard-batch", which goes to
        Neuronpedia, or "neuronpedia", the export of a source as neuronpedia.org publishes them
    sae, store: of the index; where the index has not sampled every row, for the activations around firings,
        and for the tables of neurons
    model: the one that was harvested, for histograms of the logit lens and the logit of each token
    n_top: strongest firings of each latent; context_tokens: on either side of them, half as many around the
        examples of intervals
    sae_set: name of the SAE among those of the model; None makes one of kind and size
    An index that was imported is written as it came.
    raises: ValueError for another format, SAE, store or model that are not the index's, or where SAE and
        store are needed and missing
    """
    if format not in FORMATS:
        raise ValueError(f"expected a format of {', '.join(FORMATS)}, got {format!r}")
    path = Path(path)
    check_output(path, folder=format == "neuronpedia")
    index = FeatureIndex.open(index) if isinstance(index, str | os.PathLike) else index
    kept = index.further("dashboards")
    if kept is not None:
        dashboards = Dashboards.from_tensors(kept)
    else:
        check_model(index, sae, store, model)
        fired = index.column("counts").nonzero().flatten()
        dashboards = dashboards_of(
            index, fired, sae, store, model, n_top=n_top, context_tokens=context_tokens
        )
    if sae_set is not None:
        dashboards.facts["sae_set"] = sae_set
    if format == "neuronpedia":
        return write_source(dashboards, path, index.labels.all())
    (write_vis if format == "saedashboard-vis" else write_batch)(dashboards, path)
    return path


def check_model(
    index: FeatureIndex, sae: SparseAutoencoder | None, store: ActivationStore | None, model: nn.Module | None
) -> None:
    """raises: ValueError for a model without its SAE, or one that was not harvested"""
    if model is not None and sae is None:
        raise ValueError("export_index expected the SAE beside the model: a lens is of its decoder")
    if model is not None and store is not None:
        check_is_harvested(model, store, index.hook_point)


@names_misfits
def import_index(
    source: str | os.PathLike[str], path: str | os.PathLike[str], tokenizer: str | None = None
) -> FeatureIndex:
    """Make an index of dashboards of another tool, to be searched, browsed and exported again.

    source: a file of SAEDashboard, a folder of its batch-N.json, or a folder of Neuronpedia's export, whose
        explanations become labels; what it is shows
    path: new folder for the index
    tokenizer: name or folder of the model's tokenizer, for the texts of SaeVisData, which holds ids only
    raises: ValueError for a source of another kind, or a folder that holds an index
    """
    source, path = Path(source), Path(path)
    if not source.exists():
        raise ValueError(f"expected a file or folder of dashboards, {source} does not exist")
    check_output(path, folder=True)
    explanations = None
    if source.is_file():
        with open(source, "rb") as file:
            is_vis = b'"feature_data_dict"' in file.read(4096)
        dashboards = read_vis(source) if is_vis else read_batch([source])
    elif batches := batch_paths(source):
        dashboards = read_batch(batches)
    else:
        dashboards, explanations = read_source(source_folder(source))
    if tokenizer is not None:
        loaded = _tokenizer(tokenizer)
        for i in dashboards.texts:
            dashboards.texts[i] = token_text(loaded, i)
    index = write_imported(dashboards, path, tokenizer)
    if explanations is not None:
        index.labels.set_all(labels_of_folder(explanations))
    return index


def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
