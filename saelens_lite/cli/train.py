"""TODO clause of saelens_lite/cli/train.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from saelens_lite.cli.flags import configured
from saelens_lite.cli.shared import device_named, embedded, is_first_process, model_for, model_of, print_next
from saelens_lite.config import to_mapping

if TYPE_CHECKING:
    from torch import nn

    from saelens_lite.sae.autoencoder import SparseAutoencoder
    from saelens_lite.store.reader import ActivationStore
    from saelens_lite.train.config import TrainConfig


def run(argv: Sequence[str]) -> None:
    """A sparse autoencoder, or a grid of them, from the rows of a store, or straight from a model"""
    from saelens_lite import ActivationStore, train_streaming
    from saelens_lite.train.config import TrainConfig
    from saelens_lite.train.presets import with_preset
    from saelens_lite.train.single import train_sae

    @dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
    class Train(TrainConfig):
        """One SAE trained on one hook point of an activation store, or with --grid many from one pass over
        it; or, with --model in place of --store, one trained on activations as they are made."""

        grid: tuple[str, ...] = ()
        """Flags and values whose every combination is trained, such as k=16,32,64 seed=0,1: each in a folder
        of its own below output, named by them. The same command goes on with those that are unfinished."""

        eval_model: str | None = None
        """The language model that was harvested, a hub id, a folder or demo: evaluations then tell what the
        reconstruction costs it in cross-entropy."""

        model: str | None = None
        """In place of --store: train on this model's activations as they are made, with --dataset,
        --hook-point and --n-steps; a hub id, a folder or demo."""

        dataset: tuple[str, ...] = ()
        """With --model: hub ids, local files or folders, or demo, as for `saelens-lite harvest`."""

        text_column: str = "text"
        """With --model: column that holds a document."""

        split: str = "train"
        """With --model: split of the dataset."""

        context_length: int = 256
        """With --model: tokens a context, BOS included."""

        batch_size_seqs: int = 32
        """With --model: contexts a forward pass."""

        dtype: str = "bfloat16"
        """With --model: type to which rows are rounded, as those of a store."""

    given = to_mapping(configured(Train, "train", argv, with_preset))
    grid, eval_model, name = given.pop("grid"), given.pop("eval_model"), given.pop("model")
    text = {
        field: given.pop(field)
        for field in ("dataset", "text_column", "split", "context_length", "batch_size_seqs", "dtype")
    }
    config = TrainConfig(**given)
    if name is not None:
        of_stores = config.store or config.store_weights or grid or eval_model or config.baseline
        if of_stores or not text["dataset"] or config.hook_point is None:
            raise ValueError(
                "train --model needs --dataset and --hook-point, and stands without --store, "
                "--store-weights, --grid, "
                "--eval-model and --baseline"
            )
        source = " ".join(text["dataset"])
        model, dataset = embedded(name, text.pop("dataset"))
        fields = {
            key: value
            for key, value in to_mapping(config).items()
            if key not in ("store", "store_weights", "baseline")
        }
        _tell_trained(train_streaming(model, dataset, fields.pop("hook_point"), **fields, **text), config)
        print_next(f"saelens-lite analyze --sae {config.output} --model {name} --dataset {source}")
        return
    if text["dataset"]:
        raise ValueError(
            "train --dataset needs --model, on whose activations of it to train in place of --store"
        )
    if not config.store:
        raise ValueError(
            "train needs --store, the folder of an activation store (`saelens-lite harvest` makes one), or "
            "--model, whose "
            "activations are trained on as they are made"
        )
    stores = [
        ActivationStore(store)
        for store in ([config.store] if isinstance(config.store, str) else config.store)
    ]
    model = model_for(eval_model, device_named(config.device), stores[0])
    if grid:
        _train_grid(stores, grid, config, model)
        return
    _tell_trained(train_sae(stores, config, model=model), config)
    if is_first_process():
        path = str(stores[0].path)
        if config.freeze_decoder:
            which = f"--sae TRAINED --baseline {config.output}"
        else:
            which = f"--sae {config.output}" + f" --baseline {config.output}/frozen" * config.baseline
        print_next(f"saelens-lite evaluate {which} --store {path} --model {model_of(path)}")


def _tell_trained(sae: SparseAutoencoder, config: TrainConfig) -> None:
    """Print what a training made."""
    if not is_first_process():
        return
    facts = sae.config.metadata["saelens_lite"]
    print(f"{config.output}: {sae.kind} SAE of {sae.d_sae:,} latents on {sae.config.hook_point}")
    print(f"  {facts['steps']:,} steps, {facts['tokens']:,} rows, peak lr {facts['lr']:.2g}")
    if facts["held_out_fvu"] is not None:
        cost = f", ΔCE {facts['held_out_delta_ce']:.4f} nats" if "held_out_delta_ce" in facts else ""
        baseline = (
            f"; fvu of the baseline {facts['baseline_fvu']:.4f}"
            if facts.get("baseline_fvu") is not None
            else ""
        )
        print(
            f"  held-out documents: fvu {facts['held_out_fvu']:.4f}, l0 "
            f"{facts['held_out_l0']:.1f}{cost}{baseline}"
        )
    print(
        f"  opens with SparseAutoencoder.load({config.output!r}) and "
        f"sae_lens.SAE.load_from_disk({config.output!r})"
    )
    if not config.freeze_decoder and not config.baseline:
        with_it = "with --baseline, or " if config.store else ""
        print(f"  its baseline: the same command {with_it}with --freeze-decoder and another --output")


def _train_grid(
    stores: list[ActivationStore], words: Sequence[str], config: TrainConfig, model: nn.Module | None
) -> None:
    """A grid, as a table; raises: FloatingPointError after it if a member broke"""
    from saelens_lite.train.grid import grid_members, grid_table, parsed_grid, train_grid

    grid = parsed_grid(words)
    members = grid_members(stores, grid, config)
    broken = None
    try:
        train_grid(stores, grid, config, model=model)
    except FloatingPointError as error:
        broken = error
    if is_first_process():
        print(f"{config.output}: {len(members)} SAEs")
        print(grid_table(members))
    if broken is not None:
        raise broken
    if is_first_process():
        sae = f"{config.output}/{next(iter(members))}"
        which = f"--sae {sae}" + (f" --baseline {sae}/frozen" if config.baseline else "")
        store = stores[0].path
        print_next(f"saelens-lite evaluate {which} --store {store} --model {model_of(str(store))}")
