"""Commands that look at SAEs: evaluate, analyze, search, probe, report, study. See cli.py."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saelens_lite.arguments import configured
from saelens_lite.clishared import (
    carry_out,
    device_named,
    is_first_process,
    model_and_tokenizer,
    model_for,
    model_of,
    print_next,
    with_short_names,
)
from saelens_lite.commands import AnalyzeConfig, EvaluateConfig, ProbeConfig, ReportConfig, StudyConfig

if TYPE_CHECKING:
    from saelens_lite.analyze import Split
    from saelens_lite.sae import SparseAutoencoder
    from saelens_lite.store import ActivationStore


def evaluate(argv: Sequence[str]) -> None:
    """fvu, l0, dead latents and the cost in cross-entropy, with their controls"""
    config = configured(EvaluateConfig, "evaluate", argv, leading=("store", "sae"))
    from saelens_lite import ActivationStore, SparseAutoencoder, evaluate_sae

    if config.output is not None and (Path(config.output).is_dir() or not Path(config.output).parent.is_dir()):
        raise ValueError(f"--output expected a file in a folder that is there, got {config.output}")
    store, device = ActivationStore(config.store), device_named(config.device)
    result = evaluate_sae(
        SparseAutoencoder.load(config.sae, device=device),
        store,
        model_for(config.model, device, store),
        SparseAutoencoder.load(config.baseline, device=device) if config.baseline else None,
        [SparseAutoencoder.load(seed, device=device) for seed in config.seeds],
        held_out=config.held_out,
        held_out_fraction=config.held_out_fraction,
        max_tokens=config.max_tokens,
        windows_tokens=config.windows_tokens,
        hook_point=config.hook_point,
    )
    print(with_short_names(result.table(config.all)))
    if config.output is not None:
        Path(config.output).write_text(json.dumps(result.to_dict(), indent=1) + "\n", encoding="utf-8")
        print(f"numbers: {config.output}")
    if config.model is None:
        print(f"for the cost in cross-entropy: --model {model_of(config.store)}")
    model = config.model or model_of(config.store)
    print_next(f"saelens-lite analyze --sae {config.sae} --store {config.store} --model {model}")


def analyze(argv: Sequence[str]) -> None:
    """Every latent in one pass: an index to search, and the strongest firings as one HTML page"""
    config = configured(AnalyzeConfig, "analyze", argv, leading=("store", "sae"))
    from saelens_lite import ActivationStore, SparseAutoencoder
    from saelens_lite.distributed import several_processes

    if config.store is None and (config.model is None or not config.dataset):
        raise ValueError("analyze needs --store, or --model and --dataset to harvest one for the time of the analysis")
    if config.store is None and several_processes():
        raise ValueError("analyze under torchrun needs --store: harvest one first, under torchrun as well")
    sae = SparseAutoencoder.load(config.sae, device=device_named(config.device))
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
        model_for(config.model, str(sae.device), store),
        IndexConfig(n_top=config.n_top, sample_tokens=config.sample_tokens),
        hook_point=config.hook_point,
        output_score=config.output_score,
    )
    if not is_first_process():
        return
    page = feature_page(sae, store, config.output, n_latents=config.n_latents, hook_point=config.hook_point, index=index)
    print(index.density)
    if index.tokens.has_tokens:
        print(index.unigram)
    print(f"page: {page}")
    print(f"index: {folder}")
    print_next(f"saelens-lite search {folder} --by max")


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
    return carry_out(store, dry_run=False)


def search(argv: Sequence[str]) -> None:
    """Latents of an index by token, text, regex, direction, number or label"""
    from saelens_lite import FeatureIndex, SparseAutoencoder
    from saelens_lite.analyze.query import SearchConfig, answer

    config = configured(SearchConfig, "search", argv, positional=True)
    kind = config.kind
    index = FeatureIndex.open(config.index)
    sae = model = None
    if kind in ("text", "direction") and config.sae is not None:
        device = device_named(config.device)
        sae = SparseAutoencoder.load(config.sae, device=device)
        model = model_for(config.model, device, index)
    lines = answer(config, index, sae, model)
    if not lines:
        sample = f"{len(index.token_sample.rows):,} sampled tokens of {index.n_tokens:,}"
        print(f"no latent of {config.index} fits" + f", of {sample}" * (kind in ("token", "regex", "text")))
        return
    print("\n".join(lines))
    if kind == "import_labels":
        print_next(f'saelens-lite search {config.index} --labelled ""')
    elif kind != "latent" and (first := re.search(r"\blatent +(\d+)", "\n".join(lines))):
        print_next(f"saelens-lite search {config.index} --latent {first[1]}")


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
    device = device_named(config.device)
    saes = {"sae": SparseAutoencoder.load(config.sae, device=device)}
    if config.baseline is not None:
        saes["baseline"] = SparseAutoencoder.load(config.baseline, device=device)
    model, tokenizer = model_and_tokenizer(config.model, device)
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
    print(with_short_names(str(result)))
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
    print("evaluations are in it where `saelens-lite evaluate --output RUN/evaluation.json` left them in the runs")


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

    given = [config.model, config.sae, config.records]
    if None in given and any([*given, config.baseline]):
        raise ValueError("study --model needs --sae and --records too; without all three it makes a small world of its own")
    folder, split = Path(config.output), Split(seed=config.seed)
    folder.mkdir(parents=True, exist_ok=True)
    if config.model is None:
        config = _in_a_small_world(config, split)
    device = device_named(config.device)
    of_model = HallucinationStudy(
        *model_and_tokenizer(config.model, device),
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
    print_next(
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
