"""`saelens-lite train`: an SAE, or a grid of them, from the rows of stores, or straight from a model."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from typing import Annotated, get_args

from saelens_lite.cli import train_relative, transcoders
from saelens_lite.cli.flags import configured
from saelens_lite.cli.grouped_help import grouped_help
from saelens_lite.cli.shared import (
    common_mean,
    device_named,
    embedded,
    is_first_process,
    model_for,
    model_of,
    print_next,
)
from saelens_lite.config import AtLeast, to_mapping
from saelens_lite.recipes.streaming import train_streaming
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.store.reader import ActivationStore
from saelens_lite.train.config import KindName, TrainConfig
from saelens_lite.train.grid import grid_members, grid_table, parsed_grid, train_grid
from saelens_lite.train.kinds.choice import kind_class
from saelens_lite.train.l0_choice import choose_l0, l0_field
from saelens_lite.train.presets import with_preset
from saelens_lite.train.single import train_sae


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainCommand(TrainConfig):
    """Train one SAE on a hook point of an activation store. With --grid, train many in one pass over the
    store. With --model in place of --store, train on activations as they are made. A relative of the SAE,
    such as --kind pca or --kind dense, has flags of its own: see --kind pca --help. With --target-hook-point,
    train a transcoder: see --target-hook-point --help."""

    grid: tuple[str, ...] = ()
    """Flags and values whose every combination is trained, such as k=16,32,64 seed=0,1. Each gets a folder
    below output that is named after them. Run the same command again to finish those that were
    interrupted."""

    eval_model: str | None = None
    """The language model that was harvested, a hub id, a folder or demo. Evaluations then tell what the
    reconstruction costs it in cross-entropy."""

    model: str | None = None
    """In place of --store: train on this model's activations as they are made. Needs --dataset, --hook-point
    and --n-steps. A hub id, a folder or demo."""

    dataset: tuple[str, ...] = ()
    """With --model: hub ids, local files or folders, or demo, as for `saelens-lite harvest`."""

    text_column: str = "text"
    """With --model: column that holds a document."""

    split: str = "train"
    """With --model: split of the dataset."""

    context_length: Annotated[int, AtLeast(2)] = 256
    """With --model: tokens in a context, BOS included."""

    batch_size_seqs: Annotated[int, AtLeast(1)] = 32
    """With --model: contexts in a forward pass."""

    dtype: str | None = None
    """With --model: type to which rows are rounded, as in a store; None: bfloat16. Mixed precision is
    --matmul-precision medium."""

    @property
    def training(self) -> TrainConfig:
        """The fields of training alone."""
        return TrainConfig(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(TrainConfig)}
        )


GROUPS = {
    "data": ("store", "store_weights", "hook_point", "held_out_fraction", "max_norm_ratio", "scale_input"),
    "data, straight from a model": (
        "model", "dataset", "text_column", "split", "context_length", "batch_size_seqs", "dtype",
    ),
    "the SAE": ("kind", "expansion", "d_sae", "preset", "init_from", "freeze_decoder", "grid"),
    "sparsity and dead latents": ("dead_after_tokens",),
    "loss": ("end_to_end", "input_noise", "contractive_coeff"),
    "optimisation": (
        "lr", "warm_up_steps", "decay_fraction", "batch_size_rows", "n_steps", "n_epochs", "adam_beta1",
        "adam_beta2", "clip_norm", "seed", "order_seed",
    ),
    "output and scores": (
        "output", "overwrite", "baseline", "eval_model", "eval_every_steps", "eval_rows", "eval_ce_tokens",
        "log_every_steps", "checkpoint_every_steps", "keep_checkpoints", "wandb_project", "progress",
    ),
    "machine": ("device", "matmul_precision", "latent_shards", "buffer_rows", "prefetch"),
}  # fmt: skip
"""Fields of all kinds by what they are for; those of kinds stand with sparsity."""


def help_text(kind: str | None) -> str:
    """The help of train; kind: of which the own flags stand first, and without those of others."""
    every = {name: kind_class(name).fields for name in get_args(KindName)}
    of_kinds = [
        f.name for f in dataclasses.fields(TrainCommand) if any(f.name in of for of in every.values())
    ]
    groups, left_out = dict(GROUPS), {}
    if kind in every:
        own = [name for name in of_kinds if name in every[kind]]
        groups = {f"of {kind}": own, **groups}
        left_out = {"Left out, since they are of other kinds": [n for n in of_kinds if n not in own]}
    else:
        sparsity = "sparsity and dead latents"
        groups[sparsity] = (*of_kinds, *groups[sparsity])
    return grouped_help(TrainCommand, "train", groups, left_out)


OF_TEXT = ("text_column", "split", "context_length", "batch_size_seqs", "dtype")


def run(argv: Sequence[str]) -> None:
    """A sparse autoencoder, or a grid of them, from the rows of a store, or straight from a model"""
    if (relative := train_relative.named(argv)) is not None:
        return train_relative.run(argv, relative)
    if transcoders.wanted(argv):
        return transcoders.run(argv)
    if {"-h", "--help"} & {*argv} and "--preset" not in argv and "--config" not in argv:
        given = " ".join(argv).replace("=", " ").split()
        print(help_text(given[given.index("--kind") + 1] if "--kind" in given[:-1] else None))
        raise SystemExit(0)  # as the other commands leave their help
    argv, automatic = without_auto(argv)
    command = configured(TrainCommand, "train", argv, with_preset)
    if automatic:
        command = with_chosen_l0(command, automatic)
    if command.model is not None:
        from_model(command)
    elif command.dataset:
        raise ValueError("train --dataset needs --model, whose activations on it take the place of --store")
    elif command.store:
        from_stores(command)
    else:
        raise ValueError(
            "train needs --store, the folder of an activation store (`saelens-lite harvest` makes one), or "
            "--model, whose activations are trained on as they are made"
        )


def without_auto(argv: Sequence[str]) -> tuple[list[str], str]:
    """The words without `--k auto` or `--target-l0 auto`, and which of the two it was; "" for neither."""
    words = [part for word in argv for part in (word.split("=", 1) if word.endswith("=auto") else [word])]
    for flag in ("--k", "--target-l0", "--target_l0"):
        for place in range(len(words) - 1):
            if words[place] == flag and words[place + 1].lower() == "auto":
                return words[:place] + words[place + 2 :], flag
    return list(argv), ""


def with_chosen_l0(command: TrainCommand, flag: str) -> TrainCommand:
    """The command with the l0 that choose_l0 found, its runs beside the output, in OUTPUT-l0.

    raises: ValueError where none stands out, or with --grid or --model
    """
    if command.grid or command.model is not None or not command.store:
        raise ValueError(
            f"train {flag} auto looks for one l0 in the rows of --store: leave out --grid and --model"
        )
    config, field = command.training, flag.removeprefix("--").replace("-", "_")
    if (of_kind := l0_field(config)) != field:
        raise ValueError(f"train {flag} auto expected --{of_kind.replace('_', '-')} auto with this kind")
    chosen = choose_l0(
        config.store, dataclasses.replace(config, output=f"{config.output}-l0", baseline=False)
    )
    if is_first_process():
        print(chosen)
    if chosen.chosen is None:
        raise ValueError(f"{chosen.why} Then give {flag} a number")
    return dataclasses.replace(command, **{field: chosen.chosen})


def from_model(command: TrainCommand) -> None:
    """One SAE from activations as they are made."""
    of_stores = (command.store, command.store_weights, command.grid, command.eval_model, command.baseline)
    if any(of_stores) or not command.dataset or command.hook_point is None:
        raise ValueError(
            "train --model needs --dataset and --hook-point, and excludes --store, --store-weights, --grid, "
            "--eval-model and --baseline"
        )
    config = command.training
    fields = to_mapping(config) | {name: getattr(command, name) for name in OF_TEXT}
    for name in ("store", "store_weights", "baseline", "hook_point"):
        del fields[name]
    if command.dtype is None:
        del fields["dtype"]
    model, dataset = embedded(command.model, command.dataset)
    print_trained(train_streaming(model, dataset, command.hook_point, **fields), config)
    print_next("analyze", sae=config.output, model=command.model, dataset=command.dataset)


def from_stores(command: TrainCommand) -> None:
    """One SAE, or a grid, from the rows of stores."""
    if command.dtype is not None:
        raise ValueError(
            f"train --dtype expected --model, whose rows it rounds; a store has a type of its own. Got "
            f"{command.dtype} with --store: weights and moments are float32, and --matmul-precision medium "
            "multiplies in bf16 (mixed precision)"
        )
    folders = [command.store] if isinstance(command.store, str) else command.store
    stores = [ActivationStore(folder) for folder in folders]
    if command.grid:
        return grid(command, stores)
    config = command.training
    model = model_for(command.eval_model, device_named(config.device), stores[0])
    print_trained(train_sae(stores, config, model=model), config)
    if config.freeze_decoder:
        print(f"to compare with it: saelens-lite evaluate STORE SAE --baseline {shlex.quote(config.output)}")
    else:
        print_evaluate(config.output, f"{config.output}/frozen" if config.baseline else None, stores[0])


def grid(command: TrainCommand, stores: list[ActivationStore]) -> None:
    """A grid of SAEs, and its table. raises: FloatingPointError after the table if a member broke"""
    config, members_of = command.training, parsed_grid(command.grid)
    model = model_for(command.eval_model, device_named(config.device), stores[0])
    members = grid_members(stores, members_of, config)
    broken = None
    try:
        train_grid(stores, members_of, config, model=model)
    except FloatingPointError as error:
        broken = error
    if is_first_process():
        print(f"{config.output}: {len(members)} SAEs")
        print(grid_table(members))
    if broken is not None:
        raise broken
    sae = f"{config.output}/{next(iter(members))}"
    print_evaluate(sae, f"{sae}/frozen" if config.baseline else None, stores[0])


def print_trained(sae: SparseAutoencoder, config: TrainConfig) -> None:
    """What a training made."""
    if not is_first_process():
        return
    facts = sae.config.metadata["saelens_lite"]
    print(f"{config.output}: {sae.kind} SAE of {sae.d_sae:,} latents on {sae.config.hook_point}")
    print(f"  {facts['steps']:,} steps, {facts['tokens']:,} rows, peak lr {facts['lr']:.2g}")
    if facts.get("mean_to_spread") is not None:
        print(f"  {common_mean(facts['mean_to_spread'])}")
    if facts["held_out_fvu"] is not None:
        scores = f"fvu {facts['held_out_fvu']:.4f}, l0 {facts['held_out_l0']:.1f}"
        if (share := facts.get("held_out_share_within_10x") or 1.0) < 1:
            within = facts["held_out_fvu_within_10x"]
            scores += f"; fvu of the {share:.2%} of rows within 10 times the median norm {within:.4f}"
        if "held_out_delta_ce" in facts:
            scores += f", ΔCE {facts['held_out_delta_ce']:.4f} nats"
        if facts.get("baseline_fvu") is not None:
            scores += f"; fvu of the baseline {facts['baseline_fvu']:.4f}"
        print(f"  held-out documents: {scores}")
    load = f"SparseAutoencoder.load({config.output!r})"
    print(f"  opens with {load} and sae_lens.SAE.load_from_disk({config.output!r})")
    if not config.freeze_decoder and not config.baseline:
        with_it = "with --baseline, or " if config.store else ""
        print(f"  its baseline: the same command {with_it}with --freeze-decoder and another --output")


def print_evaluate(sae: str, baseline: str | None, store: ActivationStore) -> None:
    """The command that scores an SAE, with its baseline where there is one."""
    if is_first_process():
        path = str(store.path)
        print_next("evaluate", sae=sae, baseline=baseline, store=path, model=model_of(path))
