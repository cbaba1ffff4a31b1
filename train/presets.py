"""Presets: published recipes, and our own, as fields of TrainConfig, named by their source.

    train_sae(store, preset="openai-topk", k=64)          saelens-lite train --preset openai-topk --k 64

What a source fixes is written down even where it is our default, so that a recipe stays when a default
changes. No recipe names a width, a seed or a length: sources trained on 0.5 to 8 billion tokens, and the
learning rates are for such lengths.

Common to all here, whatever a source does: inputs scaled by one number to mean squared norm d_model, the
decoder drawn at random with unit rows, the bias at the geometric median, warm-up and decay of the learning
rate linear, Adam's eps 1e-8, AuxK in the scale of the reconstruction loss instead of relative to the error's
variance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from saelens_lite.errors import nearest

PresetName = Literal[
    "default", "openai-topk", "batchtopk", "matryoshka", "gemma-jumprelu", "anthropic-jumprelu",
    "anthropic-l1",
]  # fmt: skip

PRESETS: Mapping[PresetName, Mapping[str, Any]] = {
    # TrainConfig's defaults, chosen by the tables under "Quality at equal steps" in tests/bench/RESULTS.md:
    # of one small model and short runs; a kind or setting that does not stand in them was not compared.
    "default": {},
    # Gao et al. 2024, arXiv:2406.04093, sections 2.3 and 2.4, appendix A; numbers from
    # openai/sparse_autoencoder, train.py, which are for 32,768 latents: lr falls as 1/√d_sae.
    # Not expressed: inputs normalised token by token, Adam's eps 6.25e-10, the average of weights, a scaled
    # encoder start.
    "openai-topk": {
        "kind": "topk",
        "k": 32,
        "lr": 1e-4,
        "warm_up_steps": 0,
        "decay_fraction": 0.0,
        "batch_size_rows": 131_072,
        "aux_coeff": 1 / 32,
        "k_aux": 256,
        "dead_after_tokens": 10_000_000,
    },
    # Bussmann et al. 2024, arXiv:2412.06410; numbers from bartbussmann/BatchTopK, main.py and config.py,
    # which are for 12,288 latents; its dead are those silent for 5 batches.
    # Not expressed: inputs normalised token by token; the encoder's start at all of the decoder's transpose,
    # a tenth here; the saved threshold is fitted to held-out rows, theirs a running mean.
    "batchtopk": {
        "kind": "batchtopk",
        "k": 32,
        "lr": 3e-4,
        "adam_beta2": 0.99,
        "warm_up_steps": 0,
        "decay_fraction": 0.0,
        "batch_size_rows": 4096,
        "aux_coeff": 1 / 32,
        "k_aux": 512,
        "dead_after_tokens": 5 * 4096,
    },
    # Bussmann et al. 2025, arXiv:2503.17547, as dictionary_learning has it
    # (trainers/matryoshka_batch_top_k.py; groups and decay from its demo_config.py). Its law for lr,
    # 2e-4 · sqrt(2^14 / d_sae), is what None gives a run of 250k steps; a shorter one gets more, see
    # default_lr: too much for recovery in a run of 4,882 steps, where 3e-3 was best (tests/bench/RESULTS.md,
    # planted features). Not expressed: the mean over prefixes, which is a sum here.
    "matryoshka": {
        "kind": "matryoshka",
        "k": 32,
        "matryoshka_fractions": (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1.0),
        "lr": None,
        "warm_up_steps": 1000,
        "decay_fraction": 0.2,
        "clip_norm": 1.0,
        "batch_size_rows": 2048,
        "aux_coeff": 1 / 32,
        "dead_after_tokens": 10_000_000,
    },
    # Gemma Scope: Lieberum et al. 2024, arXiv:2408.05147, section 3.2. Its inputs have mean squared norm 1:
    # bandwidth and threshold 0.001 there are 0.001 · sqrt(d_model) here, written for the 2,304 of Gemma 2 2B.
    # The coefficient is chosen by the l0 wanted; 1 here is 1 / d_model there. Thresholds settle after about 2
    # billion tokens. Not expressed: the warm-up of lr is a cosine from a tenth there; the encoder starts at
    # 0.3 of the decoder's transpose.
    "gemma-jumprelu": {
        "kind": "jumprelu",
        "jumprelu_penalty": "step",
        "l0_coeff": 1.0,
        "bandwidth": 0.048,
        "initial_threshold": 0.048,
        "unit_decoder": True,
        "lr": 7e-5,
        "adam_beta1": 0.0,
        "warm_up_steps": 1000,
        "decay_fraction": 0.0,
        "l1_warm_up_steps": 10_000,
        "batch_size_rows": 4096,
    },
    # Anthropic, Circuits Updates, January 2025, "Dictionary Learning Optimization Techniques". lr, its decay
    # and clipping were not read at the source; the batch is left to the reader.
    # Not expressed: the encoder starts at d_model / d_sae of the decoder's transpose, the decoder at
    # U(±1/sqrt(d_model)), b_enc so that each latent fires 10,000 / d_sae of the time.
    "anthropic-jumprelu": {
        "kind": "jumprelu",
        "jumprelu_penalty": "tanh",
        "l0_coeff": 10.0,
        "pre_act_coeff": 3e-6,
        "bandwidth": 2.0,
        "initial_threshold": 0.1,
        "unit_decoder": False,
        "lr": 2e-4,
        "warm_up_steps": 0,
        "decay_fraction": 0.2,
        "clip_norm": 1.0,
    },
    # Anthropic, Circuits Updates, April 2024, "Update on how we train SAEs": the penalty weighs latents by
    # their decoder rows and rises over the first 5 % (None; over more in short runs). lr, its decay and
    # clipping were not read there. Not expressed: b_dec is not subtracted from the input there and starts at
    # 0; scaling is by the mean norm.
    "anthropic-l1": {
        "kind": "relu",
        "l1_coeff": 5.0,
        "refit_fraction": 0.0,
        "unit_decoder": False,
        "lr": 5e-5,
        "warm_up_steps": 0,
        "decay_fraction": 0.2,
        "l1_warm_up_steps": None,
        "clip_norm": 1.0,
        "batch_size_rows": 4096,
    },
}
"""Fields of TrainConfig by name of preset."""


def with_preset(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a TrainConfig, above those of the preset that they name. raises: as `check_preset`"""
    name = fields.get("preset")
    if name is None:
        return dict(fields)
    check_preset(name)
    return {**PRESETS[name], **fields}


def check_preset(name: Any) -> None:
    """raises: ValueError for an unknown preset, with the nearest"""
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(
            f"preset expected one of {', '.join(PRESETS)}, got {name!r}{nearest(str(name), PRESETS)}"
        )
