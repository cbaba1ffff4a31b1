"""Commands that make stores and SAEs: demo, harvest, add-hook-points, verify, train. See cli.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from saelens_lite.arguments import configured
from saelens_lite.clishared import carry_out, device_named, embedded, is_first_process, model_for, model_of, print_next
from saelens_lite.commands import AddHookPointsConfig, VerifyConfig
from saelens_lite.config import from_mapping, to_mapping

if TYPE_CHECKING:
    from torch import nn

    from saelens_lite.sae import SparseAutoencoder
    from saelens_lite.store import ActivationStore
    from saelens_lite.train import TrainConfig

HARVEST_AGAIN = "give the harvest call of this store again: it makes what is missing"


def demo(argv: Sequence[str]) -> None:
    """The whole way on a small embedded model, in three minutes"""
    from saelens_lite.demo.run import DemoConfig, run_demo

    run_demo(configured(DemoConfig, "demo", argv))


def harvest(argv: Sequence[str]) -> int:
    """Text through a language model: its activations into a store"""
    from saelens_lite.harvest import HarvestConfig

    @dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
    class Harvest(HarvestConfig):
        """Run text through a model and keep the activations of some hook points in a store."""

        dry_run: bool = False
        """Look at everything that can be wrong, time the forward pass, and print rows, bytes, free space and duration;
        nothing is written."""

    given = to_mapping(configured(Harvest, "harvest", argv))
    dry_run = given.pop("dry_run")
    config = HarvestConfig(**given)
    result = carry_out(config, dry_run)
    if not is_first_process():
        return 0
    if dry_run:
        print(f"{config.store}: would take {result}")
        if not result.fits:
            print("that is more than there is room for: a harvest of this size is refused")
            return 1
        print_next("the same command without --dry-run")
        return 0
    store = result
    widths = ", ".join(f"{name} (width {store.d_model(name)})" for name in store.hook_points)
    print(f"{config.store}: {store.n_rows:,} rows of {widths} in {store.n_shards} shards")
    choice = f" --hook-point {store.hook_points[0]}" if len(store.hook_points) > 1 else ""
    print_next(f"saelens-lite train --store {config.store}{choice} --output runs/topk")
    return 0


def add_hook_points(argv: Sequence[str]) -> None:
    """Further hook points for a store, from its stored tokens"""
    from saelens_lite import ActivationStore
    from saelens_lite.harvest import add_hook_points

    config = configured(AddHookPointsConfig, "add-hook-points", argv, positional=True)
    store = ActivationStore(config.store)
    model = None
    if config.model is not None:
        compute_dtype = store.plan.get("model", {}).get("compute_dtype")
        model = model_for(config.model, device_named(config.device), store, compute_dtype, config.trust_remote_code)
    store = add_hook_points(
        store,
        config.hook_points,
        model=model,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
        progress=config.progress,
    )
    if is_first_process():
        print(f"{config.store}: {store.n_rows:,} rows each of {', '.join(store.hook_points)}")
        point = config.hook_points[0]
        print_next(f"saelens-lite train --store {config.store} --hook-point {point} --output runs/{point}")


def verify(argv: Sequence[str]) -> int:
    """Whether every bit of a store is as it was written; mends what is not"""
    config = configured(VerifyConfig, "verify", argv, positional=True)
    from saelens_lite.files import open_folder
    from saelens_lite.verify import repair_store, verify_store

    folder = open_folder(config.store)
    before = folder.read("manifest.json") if folder.size("manifest.json") is not None else None
    problems = verify_store(folder)
    for problem in problems:
        print(problem)
    if not problems:
        print(f"{folder}: every file is as it was written")
        if before is None:
            print("the store is unfinished")
            print_next(HARVEST_AGAIN)
        return 0
    print(f"{folder}: {len(problems)} problem{'s' if len(problems) > 1 else ''}")
    if not config.repair:
        print_next(f"saelens-lite verify {config.store} --repair")
        return 1
    moved = repair_store(folder, problems)
    print(f"moved to {folder}/damaged: {', '.join(moved) or 'nothing, all of it is missing'}")
    if before is None:
        print("the store is unfinished")
        print_next(HARVEST_AGAIN)
        return 0
    if folder.size("plan.json") is None or folder.size("manifest.json") is None:
        if not _harvest_again(config.store):
            return 1
        if "manifest.json" not in {problem.file for problem in problems} and folder.read("manifest.json") != before:
            print("rows made anew differ from those before: another machine, number of threads, or version")
    problems = verify_store(folder)
    for problem in problems:
        print(f"still: {problem}")
    if not problems:
        print(f"{folder}: every file is as it was written")
    return 1 if problems else 0


def train(argv: Sequence[str]) -> None:
    """A sparse autoencoder, or a grid of them, from the rows of a store, or straight from a model"""
    from saelens_lite import ActivationStore, train_streaming
    from saelens_lite.train import TrainConfig, train_sae
    from saelens_lite.train.presets import with_preset

    @dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
    class Train(TrainConfig):
        """One SAE trained on one hook point of an activation store, or with --grid many from one pass over it; or, with
        --model in place of --store, one trained on activations as they are made."""

        grid: tuple[str, ...] = ()
        """Flags and values whose every combination is trained, such as k=16,32,64 seed=0,1: each in a folder of its own
        below output, named by them. The same command goes on with those that are unfinished."""

        eval_model: str | None = None
        """The language model that was harvested, a hub id, a folder or demo: evaluations then tell what the reconstruction
        costs it in cross-entropy."""

        model: str | None = None
        """In place of --store: train on this model's activations as they are made, with --dataset, --hook-point and
        --n-steps; a hub id, a folder or demo."""

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
                "train --model needs --dataset and --hook-point, and stands without --store, --store-weights, --grid, "
                "--eval-model and --baseline"
            )
        source = " ".join(text["dataset"])
        model, dataset = embedded(name, text.pop("dataset"))
        fields = {
            key: value for key, value in to_mapping(config).items() if key not in ("store", "store_weights", "baseline")
        }
        _tell_trained(train_streaming(model, dataset, fields.pop("hook_point"), **fields, **text), config)
        print_next(f"saelens-lite analyze --sae {config.output} --model {name} --dataset {source}")
        return
    if text["dataset"]:
        raise ValueError("train --dataset needs --model, on whose activations of it to train in place of --store")
    if not config.store:
        raise ValueError(
            "train needs --store, the folder of an activation store (`saelens-lite harvest` makes one), or --model, whose "
            "activations are trained on as they are made"
        )
    stores = [ActivationStore(store) for store in ([config.store] if isinstance(config.store, str) else config.store)]
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
        baseline = f"; fvu of the baseline {facts['baseline_fvu']:.4f}" if facts.get("baseline_fvu") is not None else ""
        print(f"  held-out documents: fvu {facts['held_out_fvu']:.4f}, l0 {facts['held_out_l0']:.1f}{cost}{baseline}")
    print(f"  opens with SparseAutoencoder.load({config.output!r}) and sae_lens.SAE.load_from_disk({config.output!r})")
    if not config.freeze_decoder and not config.baseline:
        with_it = "with --baseline, or " if config.store else ""
        print(f"  its baseline: the same command {with_it}with --freeze-decoder and another --output")


def _train_grid(stores: list[ActivationStore], words: Sequence[str], config: TrainConfig, model: nn.Module | None) -> None:
    """A grid, as a table; raises: FloatingPointError after it if a member broke"""
    from saelens_lite.train import train_grid
    from saelens_lite.train.grid import grid_members, grid_table, parsed_grid

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


def _harvest_again(store: str) -> bool:
    """Make what a repair moved aside, with the settings in the store's log; says why if they are not there."""
    from saelens_lite.files import open_folder
    from saelens_lite.harvest import HarvestConfig, run_harvest
    from saelens_lite.log import events
    from saelens_lite.shards import read_json
    from saelens_lite.verify import intact_manifests

    folder = open_folder(store)
    starts = list(events(folder, "start"))
    settings = next((event["settings"] for event in reversed(starts) if event.get("settings")), None)
    plan = None if folder.size("plan.json") is None else read_json(folder, "plan.json")
    if plan is not None and "source" in plan:
        print("this store was made from arrays or another format, which cannot be harvested: write it anew")
        return False
    if plan is None:
        manifests = intact_manifests(folder)
        hook_points = list(manifests[0]["shards"][0]["hook_points"]) if manifests else []
    else:
        hook_points = list(plan["hook_points"])
    if settings is None:
        print("the log does not say how this store was harvested, or not by names alone")
        print_next(f"{HARVEST_AGAIN}; its hook points are {' '.join(hook_points) or 'those of the first call'}")
        return False
    hook_points = hook_points or settings["hook_points"]
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    run_harvest(
        from_mapping(HarvestConfig, given | {"store": store, "hook_points": tuple(hook_points)}, f"{store}/log.jsonl")
    )
    return True
