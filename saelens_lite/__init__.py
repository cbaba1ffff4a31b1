"""Sparse autoencoders for any Hugging Face language model: from text to activations to features to steering.

    import saelens_lite as sl

    store = sl.harvest_activations(model, dataset, ["blocks.3.hook_resid_post"], "store/", max_tokens=2_000_000)
    sae = sl.train_sae(store, kind="topk", k=32, expansion=16)
    top = sl.max_activating_tokens(sae, store, n=20)
    with sl.ablate(model, sae, latents=[1234]):
        model.generate(...)

Public names are imported when they are first used, so this module costs nothing and a training machine needs no
transformers.
"""

import importlib
import sys
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saelens_lite.analyze import (
        Answers,
        FeatureIndex,
        Fires,
        HallucinationStudy,
        IndexConfig,
        NeutralText,
        NextToken,
        Record,
        Split,
        ablate,
        ablate_direction,
        auroc,
        benjamini_hochberg,
        clamp,
        cluster_bootstrap,
        dead_latents,
        diff_mean,
        direct_logit_attribution,
        dose_response,
        edge_ablation,
        edge_attribution,
        evaluate_sae,
        feature_page,
        feature_splitting,
        fit_anomaly,
        gradient_attribution,
        index_features,
        label_absorption,
        latent_density,
        latent_stats,
        logit_lens,
        matched_latents,
        max_activating_tokens,
        max_statistic_p,
        one_direction,
        planted_absorption,
        probe_direction,
        random_directions,
        rank_p,
        read_records,
        report_page,
        scale,
        score_recovery,
        select_latents,
        sparse_probes,
        splice_sae,
        steer,
        steer_direction,
        text_features,
    )
    from saelens_lite.errors import CheckpointError, FeatureIndexError, HookError, ShardError
    from saelens_lite.harvest import add_hook_points, estimate_harvest, harvest_activations
    from saelens_lite.hooks import hook_points
    from saelens_lite.positions import span_mask
    from saelens_lite.recipes import meta_sae, train_streaming
    from saelens_lite.sae import SAEConfig, SparseAutoencoder
    from saelens_lite.sparse import SparseLatents
    from saelens_lite.store import ActivationStore
    from saelens_lite.synthetic import SyntheticActivations, SyntheticConfig
    from saelens_lite.train import TrainConfig, train_grid, train_sae

__version__ = "0.1.0"

__all__ = [
    "harvest_activations",
    "add_hook_points",
    "estimate_harvest",
    "train_sae",
    "train_grid",
    "train_streaming",
    "max_activating_tokens",
    "index_features",
    "IndexConfig",
    "FeatureIndex",
    "evaluate_sae",
    "dead_latents",
    "latent_density",
    "logit_lens",
    "ablate",
    "steer",
    "clamp",
    "scale",
    "splice_sae",
    "ablate_direction",
    "steer_direction",
    "span_mask",
    "Fires",
    "latent_stats",
    "feature_page",
    "report_page",
    "score_recovery",
    "planted_absorption",
    "label_absorption",
    "feature_splitting",
    "meta_sae",
    "cluster_bootstrap",
    "rank_p",
    "max_statistic_p",
    "benjamini_hochberg",
    "direct_logit_attribution",
    "gradient_attribution",
    "edge_attribution",
    "edge_ablation",
    "fit_anomaly",
    "auroc",
    "text_features",
    "sparse_probes",
    "matched_latents",
    "random_directions",
    "one_direction",
    "diff_mean",
    "probe_direction",
    "Split",
    "select_latents",
    "dose_response",
    "NeutralText",
    "HallucinationStudy",
    "Record",
    "read_records",
    "NextToken",
    "Answers",
    "hook_points",
    "SparseAutoencoder",
    "SAEConfig",
    "TrainConfig",
    "SparseLatents",
    "ActivationStore",
    "SyntheticConfig",
    "SyntheticActivations",
    "ShardError",
    "HookError",
    "CheckpointError",
    "FeatureIndexError",
    "__version__",
]

_HOMES = {
    "harvest": ["harvest_activations", "add_hook_points", "estimate_harvest"],
    "train": ["train_sae", "train_grid", "TrainConfig"],
    "analyze": [
        "max_activating_tokens", "index_features", "IndexConfig", "FeatureIndex",
        "evaluate_sae", "dead_latents", "latent_density", "logit_lens",
        "ablate", "steer", "clamp", "scale", "latent_stats", "feature_page", "report_page", "score_recovery",
        "planted_absorption", "label_absorption", "feature_splitting",
        "splice_sae", "ablate_direction", "steer_direction", "Fires",
        "cluster_bootstrap", "rank_p", "max_statistic_p", "benjamini_hochberg",
        "direct_logit_attribution", "gradient_attribution", "edge_attribution", "edge_ablation",
        "fit_anomaly", "auroc",
        "text_features", "sparse_probes",
        "matched_latents", "random_directions", "one_direction", "diff_mean", "probe_direction",
        "Split", "select_latents",
        "dose_response",
        "NeutralText",
        "HallucinationStudy", "Record", "read_records", "NextToken", "Answers",
    ],
    "hooks": ["hook_points"],
    "positions": ["span_mask"],
    "recipes": ["train_streaming", "meta_sae"],
    "sae": ["SparseAutoencoder", "SAEConfig"],
    "sparse": ["SparseLatents"],
    "store": ["ActivationStore"],
    "synthetic": ["SyntheticConfig", "SyntheticActivations"],
    "errors": ["ShardError", "HookError", "CheckpointError", "FeatureIndexError"],
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it, once (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _CheckoutFinder:
    """Finds the three rooms beside this package, where a plain checkout has them; an installation has them inside."""

    @staticmethod
    def find_spec(fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        package, _, room = fullname.rpartition(".")
        if package != __name__ or room not in ("harvest", "train", "analyze"):
            return None
        folder = Path(__file__).parent.parent / room
        return spec_from_file_location(fullname, folder / "__init__.py", submodule_search_locations=[str(folder)])


# pyproject.toml lies beside this package only in a checkout. Last in the list: an installed room is found before.
if (Path(__file__).parent.parent / "pyproject.toml").exists():
    sys.meta_path.append(_CheckoutFinder)
