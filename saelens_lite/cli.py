"""The command line: `saelens-lite COMMAND`, one of COMMANDS.

Commands are the configuration dataclasses (commands.py and those of the rooms), turned into flags by tyro, and what they
print: what was made, where, and what to type next. Rooms load when their command runs, so that --help costs nothing. What
the user can put right is one line on stderr and exit code 2; --traceback or SAELENS_LITE_TRACEBACK=1 shows where it came
from.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelens_lite.arguments import configured
from saelens_lite.commands import (
    AddHookPointsConfig,
    AnalyzeConfig,
    EvaluateConfig,
    ProbeConfig,
    ReportConfig,
    StudyConfig,
    VerifyConfig,
)
from saelens_lite.config import from_mapping, to_mapping
from saelens_lite.errors import SaelensLiteError, nearest

if TYPE_CHECKING:
    from torch import nn

    from saelens_lite.analyze import FeatureIndex, Split
    from saelens_lite.harvest import HarvestConfig
    from saelens_lite.sae import SparseAutoencoder
    from saelens_lite.store import ActivationStore
    from saelens_lite.train import TrainConfig

HARVEST_AGAIN = "give the harvest call of this store again: it makes what is missing"

EMBEDDED = "demo"
"""As a --model the embedded language model, as a --dataset the source of Python's standard library."""


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
    result = _carry_out(config, dry_run)
    if not _is_first_process():
        return 0
    if dry_run:
        print(f"{config.store}: would take {result}")
        if not result.fits:
            print("that is more than there is room for: a harvest of this size is refused")
            return 1
        _print_next("the same command without --dry-run")
        return 0
    store = result
    widths = ", ".join(f"{name} (width {store.d_model(name)})" for name in store.hook_points)
    print(f"{config.store}: {store.n_rows:,} rows of {widths} in {store.n_shards} shards")
    choice = f" --hook-point {store.hook_points[0]}" if len(store.hook_points) > 1 else ""
    _print_next(f"saelens-lite train --store {config.store}{choice} --output runs/topk")
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
        model = _load_model(config.model, _device(config.device), store, compute_dtype, config.trust_remote_code)
    store = add_hook_points(
        store,
        config.hook_points,
        model=model,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
        progress=config.progress,
    )
    if _is_first_process():
        print(f"{config.store}: {store.n_rows:,} rows each of {', '.join(store.hook_points)}")
        _print_next(f"saelens-lite train --store {config.store} --hook-point {config.hook_points[0]} --output runs/topk")


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
            _print_next(HARVEST_AGAIN)
        return 0
    print(f"{folder}: {len(problems)} problem{'s' if len(problems) > 1 else ''}")
    if not config.repair:
        _print_next(f"saelens-lite verify {config.store} --repair")
        return 1
    moved = repair_store(folder, problems)
    print(f"moved to {folder}/damaged: {', '.join(moved) or 'nothing, all of it is missing'}")
    if before is None:
        print("the store is unfinished")
        _print_next(HARVEST_AGAIN)
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
        model, dataset = _embedded(name, text.pop("dataset"))
        fields = {
            key: value for key, value in to_mapping(config).items() if key not in ("store", "store_weights", "baseline")
        }
        _tell_trained(train_streaming(model, dataset, fields.pop("hook_point"), **fields, **text), config, "STORE", name)
        return
    if text["dataset"]:
        raise ValueError("train --dataset needs --model, on whose activations of it to train in place of --store")
    if not config.store:
        raise ValueError(
            "train needs --store, the folder of an activation store (`saelens-lite harvest` makes one), or --model, whose "
            "activations are trained on as they are made"
        )
    stores = [ActivationStore(store) for store in ([config.store] if isinstance(config.store, str) else config.store)]
    model = _load_model(eval_model, _device(config.device), stores[0])
    if grid:
        _train_grid(stores, grid, config, model)
        return
    path = str(stores[0].path)
    _tell_trained(train_sae(stores, config, model=model), config, path, _model_of(path))


def _tell_trained(sae: SparseAutoencoder, config: TrainConfig, store: str, model: str) -> None:
    """Print what a training made. store, model: what to type for them next."""
    if not _is_first_process():
        return
    facts = sae.config.metadata["saelens_lite"]
    print(f"{config.output}: {sae.kind} SAE of {sae.d_sae:,} latents on {sae.config.hook_point}")
    print(f"  {facts['steps']:,} steps, {facts['tokens']:,} rows, peak lr {facts['lr']:.2g}")
    if facts["held_out_fvu"] is not None:
        cost = f", ΔCE {facts['held_out_delta_ce']:.4f} nats" if "held_out_delta_ce" in facts else ""
        baseline = f"; fvu of the baseline {facts['baseline_fvu']:.4f}" if facts.get("baseline_fvu") is not None else ""
        print(f"  held-out documents: fvu {facts['held_out_fvu']:.4f}, l0 {facts['held_out_l0']:.1f}{cost}{baseline}")
    print(f"  opens with SparseAutoencoder.load({config.output!r}) and sae_lens.SAE.load_from_disk({config.output!r})")
    if config.freeze_decoder:
        which = f"--sae TRAINED --baseline {config.output}"
    elif config.baseline:
        which = f"--sae {config.output} --baseline {config.output}/frozen"
    else:
        which = f"--sae {config.output}"
        print("  its baseline: the same command with --baseline, or with --freeze-decoder and another --output")
    _print_next(f"saelens-lite evaluate {which} --store {store} --model {model}")


def evaluate(argv: Sequence[str]) -> None:
    """fvu, l0, dead latents and the cost in cross-entropy, with their controls"""
    config = configured(EvaluateConfig, "evaluate", argv, leading=("store", "sae"))
    from saelens_lite import ActivationStore, SparseAutoencoder, evaluate_sae

    if config.output is not None and (Path(config.output).is_dir() or not Path(config.output).parent.is_dir()):
        raise ValueError(f"--output expected a file in a folder that is there, got {config.output}")
    store, device = ActivationStore(config.store), _device(config.device)
    result = evaluate_sae(
        SparseAutoencoder.load(config.sae, device=device),
        store,
        _load_model(config.model, device, store),
        SparseAutoencoder.load(config.baseline, device=device) if config.baseline else None,
        [SparseAutoencoder.load(seed, device=device) for seed in config.seeds],
        held_out=config.held_out,
        held_out_fraction=config.held_out_fraction,
        max_tokens=config.max_tokens,
        windows_tokens=config.windows_tokens,
        hook_point=config.hook_point,
    )
    print(_with_short_names(result.table(config.all)))
    if config.output is not None:
        Path(config.output).write_text(json.dumps(result.to_dict(), indent=1) + "\n", encoding="utf-8")
        print(f"numbers: {config.output}")
    if config.model is None:
        print(f"for the cost in cross-entropy: --model {_model_of(config.store)}")
    model = config.model or _model_of(config.store)
    _print_next(f"saelens-lite analyze --sae {config.sae} --store {config.store} --model {model}")


def analyze(argv: Sequence[str]) -> None:
    """Every latent in one pass: an index to search, and the strongest firings as one HTML page"""
    config = configured(AnalyzeConfig, "analyze", argv, leading=("store", "sae"))
    from saelens_lite import ActivationStore, SparseAutoencoder
    from saelens_lite.distributed import several_processes

    if config.store is None and (config.model is None or not config.dataset):
        raise ValueError("analyze needs --store, or --model and --dataset to harvest one for the time of the analysis")
    if config.store is None and several_processes():
        raise ValueError("analyze under torchrun needs --store: harvest one first, under torchrun as well")
    sae = SparseAutoencoder.load(config.sae, device=_device(config.device))
    if config.store is not None:
        _analyze(config, sae, ActivationStore(config.store))
        return
    with tempfile.TemporaryDirectory() as folder:
        _analyze(config, sae, _harvest_for(sae, config, folder))


def _analyze(config: AnalyzeConfig, sae: SparseAutoencoder, store: ActivationStore) -> None:
    from saelens_lite import IndexConfig, feature_page, index_features

    folder = config.index or str(Path(config.output).with_suffix(".index"))
    index = index_features(
        sae,
        store,
        folder,
        _load_model(config.model, str(sae.device), store),
        IndexConfig(n_top=config.n_top, sample_tokens=config.sample_tokens),
        hook_point=config.hook_point,
        output_score=config.output_score,
    )
    if not _is_first_process():
        return
    page = feature_page(sae, store, config.output, n_latents=config.n_latents, hook_point=config.hook_point, index=index)
    print(index.density)
    if index.tokens.has_tokens:
        print(index.unigram)
    print(f"page: {page}")
    print(f"index: {folder}")
    _print_next(f"saelens-lite search {folder} --token TOKEN")


def _harvest_for(sae: SparseAutoencoder, config: AnalyzeConfig, folder: str) -> ActivationStore:
    """A store of what the SAE reads, of the text that the command names."""
    from saelens_lite.harvest import HarvestConfig

    point = config.hook_point or sae.config.hook_point
    if not point:
        raise ValueError(f"{config.sae} does not say which activations it reads: pass --hook-point")
    store = HarvestConfig(
        model=config.model or "",
        dataset=config.dataset,
        hook_points=(point,),
        store=f"{folder}/store",
        max_tokens=config.max_tokens,
        device=config.device,
        dtype="float32",
    )
    return _carry_out(store, dry_run=False)


def search(argv: Sequence[str]) -> None:
    """Latents of an index by token, text, regex, direction, number or label"""
    from saelens_lite import FeatureIndex, SparseAutoencoder
    from saelens_lite.analyze.query import SearchConfig, answer

    config = configured(SearchConfig, "search", argv, positional=True)
    kind = config.kind
    index = FeatureIndex.open(config.index)
    sae = model = None
    if kind in ("text", "direction") and config.sae is not None:
        device = _device(config.device)
        sae = SparseAutoencoder.load(config.sae, device=device)
        model = _load_model(config.model, device, index)
    lines = answer(config, index, sae, model)
    if not lines:
        sample = f"{len(index.token_sample.rows):,} sampled tokens of {index.n_tokens:,}"
        print(f"no latent of {config.index} fits" + f", of {sample}" * (kind in ("token", "regex", "text")))
        return
    print("\n".join(lines))
    if kind == "import_labels":
        _print_next(f'saelens-lite search {config.index} --labelled ""')
    elif kind != "latent":
        _print_next(f"saelens-lite search {config.index} --latent I")


def probe(argv: Sequence[str]) -> None:
    """How well few latents tell labelled texts apart, beside the activations themselves"""
    config = configured(ProbeConfig, "probe", argv)
    from saelens_lite import SparseAutoencoder, sparse_probes, text_features
    from saelens_lite.analyze import Split
    from saelens_lite.analyze.labelled import read_labelled

    data = read_labelled(
        config.texts,
        text_field=config.text_field,
        label_field=config.label_field,
        group_field=config.group_field,
        labels=config.labels,
        split=config.split,
        max_texts=config.max_texts,
        seed=config.seed,
    )
    device = _device(config.device)
    saes = {"sae": SparseAutoencoder.load(config.sae, device=device)}
    if config.baseline is not None:
        saes["baseline"] = SparseAutoencoder.load(config.baseline, device=device)
    model, tokenizer = _load_model_and_tokenizer(config.model, device)
    features = text_features(
        model,
        tokenizer,
        data.texts,
        saes,
        hook_point=config.hook_point,
        pool=config.pool,
        max_tokens=config.max_tokens,
        batch_size_texts=config.batch_size_texts,
    )
    result = sparse_probes(
        features,
        data.labels,
        data.groups,
        k=config.k,
        select_by=config.select_by,
        split=Split(test_fraction=config.test_fraction, seed=config.seed),
        n_splits=config.n_splits,
    )
    print(_with_short_names(str(result)))
    if config.output is not None:
        Path(config.output).write_text(json.dumps(result.to_dict(), indent=1) + "\n", encoding="utf-8")
        print(f"numbers: {config.output}")
    if config.baseline is None:
        print("for what a dictionary of random directions reaches: --baseline, the run with --freeze-decoder")


def report(argv: Sequence[str]) -> None:
    """What training runs did, beside each other, as one HTML page"""
    config = configured(ReportConfig, "report", argv, positional=True)
    from saelens_lite import report_page

    print(f"page: {report_page(config.runs, config.output)}")
    _print_next("saelens-lite evaluate --sae RUN --store STORE --output RUN/evaluation.json gives the page its table")


def study(argv: Sequence[str]) -> None:
    """Latents of what the model knows, edited: does it then hallucinate, or refuse?"""
    config = configured(StudyConfig, "study", argv)
    from saelens_lite import (
        ActivationStore,
        HallucinationStudy,
        NextToken,
        SparseAutoencoder,
        Split,
        latent_density,
        read_records,
    )
    from saelens_lite.harvest.model import load_model, load_tokenizer

    given = [config.model, config.sae, config.records]
    if None in given and any([*given, config.baseline]):
        raise ValueError("study --model needs --sae and --records too; without all three it makes a small world of its own")
    folder, split = Path(config.output), Split(seed=config.seed)
    folder.mkdir(parents=True, exist_ok=True)
    if config.model is None:
        config = _in_a_small_world(config, split)
    name, device = _embedded(config.model, ())[0], _device(config.device)
    of_model = HallucinationStudy(
        load_model(name, device=device),
        load_tokenizer(name),
        SparseAutoencoder.load(config.sae, device=device),
        read_records(config.records),
        NextToken(config.refusal, config.options or None),
        baseline=SparseAutoencoder.load(config.baseline, device=device) if config.baseline else None,
        hook_point=config.hook_point,
        split=split,
        position=config.position,
        batch_size_seqs=config.batch_size_seqs,
    )
    store = None if config.store is None else ActivationStore(config.store)
    chosen, baseline = (
        None
        if of is None
        else of_model.select(
            config.n_latents,
            config.by,
            n_ablated=config.n_ablated,
            base_rates=None if store is None else latent_density(of, store).density,
            max_base_rate=config.max_base_rate,
            sae=of,
        )
        for of in (of_model.sae, of_model.baseline)
    )
    found = of_model.run(
        chosen,
        baseline=baseline,
        doses=config.doses,
        n_controls=config.n_controls,
        score=config.score,
        seed=config.seed,
    )
    print(found)
    print()
    print("\n".join(textwrap.fill(line, 120, break_on_hyphens=False) for line in found.summary()))
    found.save(folder / "study.json")
    print(f"numbers: {folder / 'study.json'}")
    _print_next(
        f"saelens-lite study --model {config.model} --sae {config.sae} --records {config.records} with other --doses, --by "
        "or --n-latents"
    )


def _in_a_small_world(config: StudyConfig, split: Split) -> StudyConfig:
    """The configuration with a model, SAEs and records that are made for it."""
    from saelens_lite.demo.run import quiet_loading
    from saelens_lite.demo.world import WorldConfig, make_world

    quiet_loading()
    print(
        "a small world: people of whom a model is taught some, told not to know some, and never shown the others", flush=True
    )
    world = make_world(config.output, WorldConfig(seed=config.seed), split)
    print(f"  {len(world.known)} known people, {len(world.refused)} to refuse, {len(world.unseen)} never seen", flush=True)
    folder = config.output
    made = {"model": f"{folder}/model", "sae": f"{folder}/sae", "baseline": f"{folder}/sae/frozen"}
    return dataclasses.replace(config, **made, records=f"{folder}/records.jsonl", device=config.device or "cpu")


COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "demo": demo,
    "harvest": harvest,
    "add-hook-points": add_hook_points,
    "verify": verify,
    "train": train,
    "evaluate": evaluate,
    "analyze": analyze,
    "search": search,
    "probe": probe,
    "report": report,
    "study": study,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for a store with problems or without room, 2 for what the user can put
    right, 130 after Ctrl-C."""
    args = list(sys.argv[1:] if argv is None else argv)
    traceback = "--traceback" in args or os.environ.get("SAELENS_LITE_TRACEBACK", "0") not in ("", "0")
    args = [arg for arg in args if arg != "--traceback"]
    if not args or args[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if args[0] == "--version":
        from saelens_lite import __version__

        print(f"saelens-lite {__version__}")
        return 0
    _share_the_cores()
    try:
        if args[0] not in COMMANDS:
            raise ValueError(f"no command {args[0]!r}{nearest(args[0], COMMANDS)}; there are {', '.join(COMMANDS)}")
        with _logging():
            return COMMANDS[args[0]](args[1:]) or 0
    except KeyboardInterrupt:
        print("saelens-lite: interrupted", file=sys.stderr)
        if traceback:
            raise
        return 130
    except (SaelensLiteError, ValueError, OSError, FloatingPointError, ImportError) as error:
        if traceback:
            raise
        print(f"saelens-lite: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2


def _share_the_cores() -> None:
    """Let OpenMP's threads sleep while they wait for each other; has an effect until torch is loaded.

    By default they spin. Where other programs want the cores too, that made training 8 times slower on a machine with two
    cores; without them it gains little, since the products between two waits are long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: saelens-lite COMMAND [flags]      saelens-lite COMMAND --help lists the flags",
            "",
            "Sparse autoencoders for any Hugging Face language model: from text to activations to features.",
            "",
            *lines,
            "",
            "  --config FILE  defaults from a JSON file, such as the train_config.json of a run; flags come on top",
            "  --preset NAME  (train) defaults from a published recipe; with --help after it, the recipe's values",
            "  --traceback    show where an error came from (or SAELENS_LITE_TRACEBACK=1)",
            "  --model demo   the embedded language model;  --dataset demo  the source of Python's standard library",
        ]
    )


def _carry_out(config: HarvestConfig, dry_run: bool) -> Any:
    """The harvest, or its estimate. The word "demo" stands for the embedded model, its corpus, or both."""
    from saelens_lite.harvest import estimate_harvest, estimate_run, harvest_activations, run_harvest

    if EMBEDDED not in (config.model, *config.dataset):
        return estimate_run(config) if dry_run else run_harvest(config)
    options = to_mapping(config)
    model, dataset = _embedded(options.pop("model"), options.pop("dataset"))
    return (estimate_harvest if dry_run else harvest_activations)(model, dataset, **options)


def _embedded(model: str, dataset: tuple[str, ...]) -> tuple[str, Any]:
    """The folder of the embedded model and the documents of its corpus, where "demo" stands for them."""
    from saelens_lite.demo import MODEL_DIR
    from saelens_lite.demo.run import documents, quiet_loading

    if EMBEDDED in dataset and len(dataset) > 1:
        raise ValueError(f"--dataset {EMBEDDED} stands alone, got {' '.join(dataset)}")
    if model == EMBEDDED:
        quiet_loading()
        model = str(MODEL_DIR)
    return model, documents() if dataset == (EMBEDDED,) else list(dataset)


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
    if _is_first_process():
        print(f"{config.output}: {len(members)} SAEs")
        print(grid_table(members))
    if broken is not None:
        raise broken
    if _is_first_process():
        sae = f"{config.output}/{next(iter(members))}"
        which = f"--sae {sae}" + (f" --baseline {sae}/frozen" if config.baseline else "")
        store = stores[0].path
        _print_next(f"saelens-lite evaluate {which} --store {store} --model {_model_of(str(store))}")


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
        _print_next(f"{HARVEST_AGAIN}; its hook points are {' '.join(hook_points) or 'those of the first call'}")
        return False
    hook_points = hook_points or settings["hook_points"]
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    run_harvest(
        from_mapping(HarvestConfig, given | {"store": store, "hook_points": tuple(hook_points)}, f"{store}/log.jsonl")
    )
    return True


def _load_model(
    name: str | None,
    device: str,
    store: ActivationStore | FeatureIndex,
    compute_dtype: str | None = None,
    trust_remote_code: bool = False,
) -> nn.Module | None:
    """The model of that name, in the revision that was harvested where store or index record one."""
    from saelens_lite.harvest.model import load_model

    if name is None:
        return None
    if name == EMBEDDED:
        from saelens_lite.demo import MODEL_DIR
        from saelens_lite.demo.run import quiet_loading

        quiet_loading()
        name = str(MODEL_DIR)
    revision = store.plan.get("model", {}).get("revision")
    return load_model(
        name, compute_dtype=compute_dtype, device=device, revision=revision, trust_remote_code=trust_remote_code
    )


def _load_model_and_tokenizer(name: str, device: str) -> tuple[nn.Module, Any]:
    """The model of that name, ready for inference, and its tokenizer."""
    from saelens_lite.demo import MODEL_DIR
    from saelens_lite.harvest.model import load_model, load_tokenizer

    if name == EMBEDDED:
        from saelens_lite.demo.run import quiet_loading

        quiet_loading()
        name = str(MODEL_DIR)
    return load_model(name, device=device), load_tokenizer(name)


def _is_first_process() -> bool:
    """Whether this process speaks: of several that torchrun started, the first."""
    from saelens_lite.distributed import rank

    return rank() == 0


def _device(name: str | None) -> str:
    from saelens_lite.device import chosen_device

    return chosen_device(name)


def _model_of(store: str) -> str:
    """What to type as --model for the model of a store."""
    from saelens_lite import ActivationStore
    from saelens_lite.demo import MODEL_DIR

    name = ActivationStore(store).model_name
    return EMBEDDED if name == str(MODEL_DIR) else name


def _with_short_names(text: str) -> str:
    from saelens_lite.demo import MODEL_DIR

    return text.replace(str(MODEL_DIR), "the embedded model")


@contextmanager
def _logging() -> Iterator[None]:
    """What the library says goes to stderr, one line each; other libraries keep their own way."""
    logger, handler = logging.getLogger("saelens_lite"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _print_next(command: str) -> None:
    print(f"next: {command}")


if __name__ == "__main__":
    sys.exit(main())
