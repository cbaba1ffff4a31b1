"""Sparse autoencoders for any Hugging Face language model: from text to activations to features to steering.

    import saelens_lite as sl

    store = sl.harvest_activations(model, dataset, ["blocks.3.hook_resid_post"], "store/",
    max_tokens=2_000_000) sae = sl.train_sae(store, kind="topk", k=32, expansion=16)
    top = sl.max_activating_tokens(sae, store, n=20)
    with sl.ablate(model, sae, latents=[1234]):
        model.generate(...)

Public names are imported when they are first used, so this module costs nothing and a training machine needs
no transformers.

    errors       what can be broken, and the nearest name
    faces        lazy names of packages
    config       dataclasses from mappings, and where two differ
    device       where work goes
    distributed  the processes of torchrun: which one this is, sums over all
    claims       shards shared among processes, each taken once
    progress     a bar on stderr, where that is a terminal
    prefetch     the next made while one is in use
    atomic       files and folders that appear whole or not at all
    hashing      stateless draws: what is held out, what is sampled
    arguments    what public functions are given
    misfits      arguments that are not what annotations say
    json_data    JSON of others, held to a form
    data_files   the kinds of data files, told by their suffixes
    run_log      metrics.jsonl, and wandb when asked
    synthetic    rows of planted features
    text_table   aligned text tables, and numbers in words
"""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

from saelens_lite.faces import face

__version__ = "0.1.0"

_MOVED = {
    "analyze": "fit_anomaly",
    "attribution": "direct_logit_attribution edge_ablation edge_attribution gradient_attribution",
    "edits": "Fires NeutralText ablate_direction diff_mean dose_response matched_latents probe_direction"
    " random_directions scale steer_direction",
    "ground_truth": "planted_absorption",
    "latents": "latent_density",
    "lm": "span_mask",
    "probing": "feature_splitting label_absorption sparse_probes",
    "recipes": "meta_sae",
    "stats": "Split auroc benjamini_hochberg cluster_bootstrap rank_p select_latents",
    "study": "Answers NextToken",
    "synthetic": "SyntheticActivations SyntheticConfig",
}
_RENAMED = {
    "Record": "study.Question",
    "max_statistic_p": "stats.westfall_young_p",
    "one_direction": "edits.direction_control",
    "read_records": "study.read_questions",
    "score_recovery": "ground_truth.evaluate_recovery",
    "splice_sae": "replace_with_reconstruction",
    "text_features": "probing.pooled_latents",
} | {name: f"{folder}.{name}" for folder, names in _MOVED.items() for name in names.split()}
"""The public names of version 0.1.0 that are others today."""


def _of_peers(name: str) -> str | None:
    from saelens_lite.formats.peer_names import of_face

    return of_face(name)


__getattr__, __dir__, __all__ = face(__name__, __file__, _RENAMED, _of_peers)
__all__ += ["__version__"]


class _CheckoutFinder:
    """Finds the three rooms beside this package, where a plain checkout has them; an installation has them
    inside."""

    @staticmethod
    def find_spec(fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        package, _, room = fullname.rpartition(".")
        if package != __name__ or room not in ("harvest", "train", "analyze"):
            return None
        folder = Path(__file__).parent.parent / room
        return spec_from_file_location(
            fullname, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


# pyproject.toml lies beside this package only in a checkout. Last in the list: an installed room is found
# before.
if (Path(__file__).parent.parent / "pyproject.toml").exists():
    sys.meta_path.append(_CheckoutFinder)
