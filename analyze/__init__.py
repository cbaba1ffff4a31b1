"""What an SAE learnt and what its latents do: features with their tokens, quality with controls, edits of the live model.

Names are imported when they are first used; edits need hooks only, tables need a store only.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .absorption import label_absorption
    from .anomaly import fit_anomaly
    from .answers import Answers, NextToken
    from .attribution import direct_logit_attribution
    from .build import IndexConfig, index_features
    from .controls import diff_mean, matched_latents, one_direction, probe_direction, random_directions
    from .dead import dead_latents, latent_density
    from .directions import ablate_direction, steer_direction
    from .dose import dose_response
    from .edges import edge_ablation, edge_attribution
    from .edits import Fires
    from .evaluate import evaluate_sae
    from .featureindex import FeatureIndex
    from .gradients import gradient_attribution
    from .index import max_activating_tokens
    from .intervene import ablate, clamp, latent_stats, scale, splice_sae, steer
    from .lens import logit_lens
    from .page import feature_page
    from .planted import planted_absorption
    from .probes import sparse_probes
    from .ranks import auroc
    from .records import Record, read_records
    from .recovery import score_recovery
    from .report import report_page
    from .sideeffects import NeutralText
    from .split import Split, select_latents
    from .splitting import feature_splitting
    from .statistics import benjamini_hochberg, cluster_bootstrap, max_statistic_p, rank_p
    from .study import HallucinationStudy
    from .textfeatures import text_features

__all__ = [
    "max_activating_tokens",
    "index_features",
    "IndexConfig",
    "FeatureIndex",
    "dead_latents",
    "latent_density",
    "logit_lens",
    "evaluate_sae",
    "ablate",
    "steer",
    "clamp",
    "scale",
    "splice_sae",
    "ablate_direction",
    "steer_direction",
    "Fires",
    "latent_stats",
    "feature_page",
    "score_recovery",
    "planted_absorption",
    "label_absorption",
    "feature_splitting",
    "direct_logit_attribution",
    "gradient_attribution",
    "edge_attribution",
    "edge_ablation",
    "fit_anomaly",
    "auroc",
    "text_features",
    "sparse_probes",
    "report_page",
    "cluster_bootstrap",
    "rank_p",
    "max_statistic_p",
    "benjamini_hochberg",
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
]

_HOMES = {
    "index": ["max_activating_tokens"],
    "build": ["index_features", "IndexConfig"],
    "featureindex": ["FeatureIndex"],
    "dead": ["dead_latents", "latent_density"],
    "lens": ["logit_lens"],
    "evaluate": ["evaluate_sae"],
    "intervene": ["ablate", "steer", "clamp", "scale", "splice_sae", "latent_stats"],
    "directions": ["ablate_direction", "steer_direction"],
    "edits": ["Fires"],
    "page": ["feature_page"],
    "attribution": ["direct_logit_attribution"],
    "gradients": ["gradient_attribution"],
    "edges": ["edge_attribution", "edge_ablation"],
    "anomaly": ["fit_anomaly"],
    "ranks": ["auroc"],
    "textfeatures": ["text_features"],
    "probes": ["sparse_probes"],
    "recovery": ["score_recovery"],
    "planted": ["planted_absorption"],
    "absorption": ["label_absorption"],
    "splitting": ["feature_splitting"],
    "report": ["report_page"],
    "statistics": ["cluster_bootstrap", "rank_p", "max_statistic_p", "benjamini_hochberg"],
    "controls": ["matched_latents", "random_directions", "one_direction", "diff_mean", "probe_direction"],
    "split": ["Split", "select_latents"],
    "dose": ["dose_response"],
    "sideeffects": ["NeutralText"],
    "study": ["HallucinationStudy"],
    "records": ["Record", "read_records"],
    "answers": ["NextToken", "Answers"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name from the file that defines it (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
