"""What SAELens, sparsify and dictionary_learning call what is here, and what is not here.

The tables are the one home of these names: AttributeErrors, errors of configurations and the page
COMING_FROM.md say what they say.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from saelens_lite.errors import nearest

_MODEL = "a Hugging Face model as it is, under `sl.capture`, `sl.replace_with_reconstruction` or `sl.ablate`"
_TRANSCODERS = "`saelens_lite.sae.Transcoder`"
_RUNNER = "`sl.harvest_activations`, then `sl.train_sae`; or `sl.train_streaming`"
_CROSSCODERS = "`saelens_lite.sae.Crosscoder`"

NAMES: dict[str, str] = {
    "SAE": "`sl.SparseAutoencoder`",
    "StandardSAE": "`sl.SparseAutoencoder`, kind relu",
    "TopKSAE": "`sl.SparseAutoencoder`, kind topk",
    "JumpReLUSAE": "`sl.SparseAutoencoder`, kind jumprelu",
    "GatedSAE": "`sl.SparseAutoencoder`, kind gated",
    "TrainingSAE": "`sl.train_sae` trains an `sl.SparseAutoencoder`; there is no class for training",
    "TrainingSAEConfig": "`sl.TrainConfig`",
    "StandardTrainingSAEConfig": "`sl.TrainConfig` with kind relu",
    "TopKTrainingSAEConfig": "`sl.TrainConfig` with kind topk",
    "BatchTopKTrainingSAEConfig": "`sl.TrainConfig` with kind batchtopk",
    "MatryoshkaBatchTopKTrainingSAEConfig": "`sl.TrainConfig` with kind matryoshka",
    "JumpReLUTrainingSAEConfig": "`sl.TrainConfig` with kind jumprelu",
    "GatedTrainingSAEConfig": "`sl.TrainConfig` with kind gated",
    "load_sae": "`sl.SparseAutoencoder.load`, a folder, a release, or a repository of the hub",
    "from_pretrained": "`sl.SparseAutoencoder.load(release, sae_id)`",
    "from_saelens": "`sl.SparseAutoencoder.load`: SAELens' folders open as they are",
    "get_pretrained_saes_directory": "`saelens-lite saes`",
    "HookedSAETransformer": _MODEL,
    "SAETransformerBridge": _MODEL,
    "HookedTransformer": _MODEL,
    "run_with_cache": "`sl.capture`, or `sl.lm.run_to`, which stops at the deepest hook point",
    "run_with_hooks": "`sl.lm.edit`",
    "run_with_saes": "`sl.replace_with_reconstruction`",
    "LanguageModelSAERunnerConfig": "`sl.HarvestConfig` for the activations, `sl.TrainConfig` for the SAE",
    "LanguageModelSAETrainingRunner": _RUNNER,
    "SAETrainingRunner": _RUNNER,
    "SAETrainer": "`sl.train_sae`",
    "MultiSAETrainingRunner": "`sl.train_grid`",
    "LoggingConfig": "`sl.TrainConfig` with wandb_project",
    "ActivationsStore": "`sl.ActivationStore`, which `sl.harvest_activations` makes",
    "CacheActivationsRunner": "`sl.harvest_activations`",
    "CacheActivationsRunnerConfig": "`sl.HarvestConfig`",
    "PretokenizeRunner": "`sl.harvest_activations`, which packs documents itself and takes token ids too",
    "ghost_grads": "not here: dead latents are revived by AuxK (k_aux) or resampled (resample_every_steps)",
    "run_evals": "`sl.evaluate_sae`",
    "EvalConfig": "`sl.evaluate_sae`'s arguments",
    "upload_saes_to_huggingface": "`saelens-lite push`",
    "Sae": "`sl.SparseAutoencoder`",
    "SparseCoder": "`sl.SparseAutoencoder`",
    "SaeConfig": "`sl.TrainConfig`",
    "SparseCoderConfig": "`sl.TrainConfig`",
    "SaeTrainer": "`sl.train_sae`",
    "Trainer": "`sl.train_sae`",
    "AutoEncoder": "`sl.SparseAutoencoder`, kind relu",
    "AutoEncoderTopK": "`sl.SparseAutoencoder`, kind topk",
    "BatchTopKSAE": "`sl.SparseAutoencoder`, kind jumprelu, with the threshold that training found",
    "JumpReluAutoEncoder": "`sl.SparseAutoencoder`, kind jumprelu",
    "GatedAutoEncoder": "`sl.SparseAutoencoder`, kind gated",
    "ActivationBuffer": "`sl.ActivationStore` holds rows on disk; `sl.train_streaming` trains from a model",
    "trainSAE": "`sl.train_sae`",
    "load_dictionary": "`sl.SparseAutoencoder.load`",
    "evaluate": "`sl.evaluate_sae`",
    "Transcoder": _TRANSCODERS,
    "SkipTranscoder": _TRANSCODERS,
    "JumpReLUTranscoder": _TRANSCODERS,
    "CrossCoder": _CROSSCODERS,
    "Crosscoder": _CROSSCODERS,
}
"""Names at the top of the other libraries → what to use here, in the order of the page."""

SAE_ATTRIBUTES: dict[str, str] = {
    "cfg": "`config`",
    "from_pretrained": "`SparseAutoencoder.load(release, sae_id)`",
    "from_pretrained_with_cfg_and_sparsity": "`SparseAutoencoder.load(release, sae_id)`",
    "load_from_disk": "`SparseAutoencoder.load(folder)`",
    "load_from_pretrained": "`SparseAutoencoder.load(folder)`",
    "load_from_hub": "`SparseAutoencoder.load(repository)`",
    "load_many": "`SparseAutoencoder.load`, once for each folder",
    "save_model": "`save(folder)`, which SAELens opens",
    "save_inference_model": "`save(folder)`, which SAELens opens",
    "save_to_disk": "`save(folder)`",
    "fold_W_dec_norm": "not needed: rows trained here have norm 1; edits and measures weigh others",
    "get_W_dec_norm": "`W_dec.norm(dim=1)`",
    "fold_activation_norm_scaling_factor": "not needed: the scale of training is folded when an SAE is saved",
    "set_decoder_norm_to_unit_norm": "not needed: training keeps rows at norm 1 (`TrainConfig.unit_decoder`)",
    "use_error_term": "not needed: `sl.ablate` and the other edits never touch what the SAE leaves out",
    "run_with_cache": "`forward(acts)` gives latents and reconstruction by name",
    "process_sae_in": "`normalize(acts)`",
    "initialize_weights": "`sl.train_sae` does it; init_from starts from another SAE",
    "encoder": "`W_enc`, `b_enc`",
    "decoder": "`W_dec`, `b_dec`",
    "d_in": "`d_model`",
    "dict_size": "`d_sae`",
    "activation_dim": "`d_model`",
    "num_latents": "`d_sae`",
    "hook_name": "`config.hook_point`",
}
"""Attributes and methods of the other libraries' SAEs → what to use on ours."""

_NO_FIELD = {
    "training_tokens": "`harvest` --max-tokens and `train` --n-epochs, or --n-steps",
    "dead_feature_window": "dead_after_tokens, which counts tokens",
    "dead_feature_threshold": "dead_after_tokens",
    "lr_scheduler_name": "decay_fraction: linear to 0 at the end, after a constant lr",
    "lr_end": "decay_fraction: the lr ends at 0",
    "lr_decay_steps": "decay_fraction, a share of the run",
    "n_batches_in_buffer": "buffer_rows",
    "n_checkpoints": "checkpoint_every_steps",
    "n_eval_batches": "eval_rows",
    "use_ghost_grads": "k_aux, or resample_every_steps",
    "normalize_activations": "scale_input",
    "log_to_wandb": "wandb_project",
    "prepend_bos": "separator",
    "d_in": "nothing: the width is that of the store",
    "architecture": "kind",
    "micro_acc_steps": "nothing: the sparse step needs no such chunks",
}
_SAME: dict[str, tuple[str, str]] = {
    "model_name": ("harvest", "model"),
    "dataset_path": ("harvest", "dataset"),
    "hook_name": ("harvest", "hook_points"),
    "context_size": ("harvest", "context_length"),
    "store_batch_size_prompts": ("harvest", "batch_size_seqs"),
    "training_tokens": ("harvest", "max_tokens"),
    "train_batch_size_tokens": ("train", "batch_size_rows"),
    "batch_size": ("train", "batch_size_rows"),
    "expansion_factor": ("train", "expansion"),
    "l1_coefficient": ("train", "l1_coeff"),
    "l0_coefficient": ("train", "l0_coeff"),
    "aux_loss_coefficient": ("train", "aux_coeff"),
    "auxk_alpha": ("train", "aux_coeff"),
    "jumprelu_bandwidth": ("train", "bandwidth"),
    "jumprelu_init_threshold": ("train", "initial_threshold"),
    "lr_warm_up_steps": ("train", "warm_up_steps"),
    "lr_warmup_steps": ("train", "warm_up_steps"),
    "l1_warm_up_steps": ("train", "l1_warm_up_steps"),
    "checkpoint_path": ("train", "output"),
    "output_path": ("train", "output"),
    "save_dir": ("train", "output"),
    "from_pretrained_path": ("train", "init_from"),
    "finetune": ("train", "init_from"),
    "wandb_project": ("train", "wandb_project"),
    "num_latents": ("train", "d_sae"),
    "hookpoints": ("harvest", "hook_points"),
}
"""Fields of SAELens' and sparsify's configurations → the command and its field."""

FIELDS: dict[str, str] = {
    name: f"{field} of `{command}`" for name, (command, field) in _SAME.items()
} | _NO_FIELD
"""Fields of the other libraries' configurations → what to set here."""

_CARRIED = dict.fromkeys(("d_sae", "k", "lr", "seed", "adam_beta1", "adam_beta2"))
_KINDS = {"standard": "relu", "matryoshka_batchtopk": "matryoshka"}
_FROM_PATHS = ("checkpoint_path", "output_path", "save_dir")


def of_face(name: str) -> str | None:
    """What to say of another library's name; None for one that is none."""
    return _here(NAMES, name)


def of_sae(name: str) -> str | None:
    """What to say of an attribute of another library's SAE; None for one that is none."""
    return _here(SAE_ATTRIBUTES, name)


def _here(names: Mapping[str, str], name: str) -> str | None:
    return (
        f"a name of SAELens, sparsify or dictionary_learning; here {names[name]}" if name in names else None
    )


def field_hint(name: str, fields: Iterable[str]) -> str:
    """A hint for a field that is none of these: the one that begins so, what to set in its place, or the
    nearest."""
    known = list(fields)
    if name not in FIELDS or any(field.startswith(name) for field in known):
        return nearest(name, known)
    return f" (here {FIELDS[name]})"


def is_runner_config(mapping: Mapping[str, Any]) -> bool:
    """Whether a JSON object is SAELens' runner_cfg.json."""
    return {"hook_name", "training_tokens"} <= mapping.keys()


def runner_commands(mapping: Mapping[str, Any]) -> str:
    """The commands that do here what a runner_cfg.json of SAELens says, as far as its fields have the same
    meaning; files of before version 6 hold the SAE's own beside the others."""
    of_sae_ = mapping.get("sae")
    given = {**mapping, **(of_sae_ if isinstance(of_sae_, Mapping) else {})}
    words: dict[str, list[str]] = {"harvest": ["saelens-lite", "harvest"], "train": ["saelens-lite", "train"]}
    kind = given.get("architecture", "standard")
    words["train"] += ["--kind", _KINDS.get(str(kind), str(kind))]
    for name, value in given.items():
        command, field = _SAME.get(name, ("train", name) if name in _CARRIED else ("", ""))
        if command and name not in _FROM_PATHS and isinstance(value, str | int | float) and value != "":
            words[command] += [f"--{field.replace('_', '-')}", str(value)]
    words["harvest"] += ["--store", "store"]
    words["train"] += ["--store", "store", "--output", "runs/sae"]
    return f"{shlex.join(words['harvest'])}; then {shlex.join(words['train'])}"
