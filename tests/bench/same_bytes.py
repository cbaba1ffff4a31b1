"""Whether a restructuring changed a byte: two checkouts do the same work, and all that they make is compared.

    python tests/bench/same_bytes.py --before ../old --after . --work ../same_bytes
    python tests/bench/same_bytes.py … --only saes pages       # some parts; what they read is made first

It prints a JSON line for each comparison, {"what", "same", "n_files", "differs": [where, …], "aside": [keys
that may differ, and do]}, and one for all. The exit code is 1 if anything differs, and 2 if the old checkout
cannot do its own work. Run the same command again: what is done stays. --work keeps what both sides made by
their commits; a checkout with changes that are not committed counts as a commit of its own. Both sides work
from copies of their source, so files may be edited meanwhile, and with the same model, texts, seeds and
threads. Each part of the new side reads the stores, SAEs and indexes that the old side made, so that one
difference does not spread.

    flags      the flags of every command
    stores     every codec, separators, token ids, mixtures, arrays, added hook points
    saes       every kind and preset, end to end, streamed, a grid: metrics.jsonl, and the folder beside it
    index      feature indexes, with everything on and without a model, with labels, and their pages
    pages      the report, a page with an evaluation, what a notebook shows: trees of tags and text
    calls      what public functions return: edits, attributions, controls, probes, statistics
    commands   what evaluate, search, probe and study say and write
    demo       what `saelens-lite demo` says, and its files
    processes  a harvest, two trainings and an index, each by two processes
    resumed    work that the old side began until SIGKILL, finished by the new side, beside whole runs of both

The work goes through command lines and public names. A name that was renamed needs a line in ALIASES. fvu may
differ by 1e-6, all else is exact; not compared are ASIDE_FILES, ASIDE_KEYS, seconds in what commands say, and
stderr. Paths within a package must stay where a file records them, as the demo's store does with its model.
Nothing here runs on an accelerator or asks the network.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import fnmatch
import hashlib
import importlib
import inspect
import io
import json
import operator
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import tomllib
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

_MOVED = {
    "analyze": "fit_anomaly",
    "attribution": "direct_logit_attribution edge_ablation edge_attribution gradient_attribution",
    "edits": "Fires NeutralText ablate_direction diff_mean dose_response matched_latents probe_direction"
    " random_directions scale steer_direction",
    "ground_truth": "planted_absorption",
    "latents": "latent_density",
    "lm": "span_mask",
    "probing": "feature_splitting label_absorption",
    "recipes": "meta_sae",
    "stats": "Split auroc benjamini_hochberg cluster_bootstrap rank_p select_latents",
    "synthetic": "SyntheticActivations SyntheticConfig",
}
ALIASES: dict[str, list[str]] = {
    "from_saelens": ["ActivationStore.from_saelens", "store.read_saelens_activations"],
    "to_saelens": ["ActivationStore.to_saelens", "store.write_saelens_activations"],
    "max_statistic_p": ["max_statistic_p", "stats.westfall_young_p"],
    "one_direction": ["one_direction", "edits.direction_control"],
    "score_recovery": ["score_recovery", "ground_truth.evaluate_recovery"],
    "splice_sae": ["splice_sae", "replace_with_reconstruction"],
    "text_features": ["text_features", "probing.pooled_latents"],
} | {name: [name, f"{folder}.{name}"] for folder, names in _MOVED.items() for name in names.split()}
"""Names of functions, attributes and arguments that were renamed, with all they had; the first that is there
is used. Dots lead into a module of the package, or on from what was found."""

ASIDE_FILES = ("log.jsonl", "log.*.jsonl", "*.lock", ".lock")
"""The clock and the circumstances of a harvest, and locks."""

ASIDE_KEYS = ("tokens_per_s", "version")
"""Keys of JSON that hold a speed or, where they are text, the version of a package. The number of a format is
compared."""

NEARLY = {"held_out_fvu": 1e-6, "baseline_fvu": 1e-6, "fvu": 1e-6}
"""Keys of JSON whose numbers may differ by this share."""

SECONDS = re.compile(r"\d+(\.\d+)? s\b")

POINT = "blocks.2.hook_resid_post"
POINTS = f"blocks.0.hook_resid_pre blocks.1.hook_attn_out blocks.1.hook_mlp_out {POINT}"
MODEL, TEXTS, LABELLED = "inputs/model", "inputs/texts.jsonl", "inputs/labelled.jsonl"
STORE = "given/stores/bfloat16"
KINDS = ("topk", "batchtopk", "matryoshka", "relu", "gated", "jumprelu")
PRESETS = (
    "default",
    "openai-topk",
    "batchtopk",
    "matryoshka",
    "gemma-jumprelu",
    "anthropic-jumprelu",
    "anthropic-l1",
)
TIMEOUT_S = 900


# The work of each part --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A command line, or one of CALLS, in a folder with `inputs`, and as `given` what the side before made.

    follows: a task that goes before, as this one reads what it makes
    """

    name: str
    line: str = ""
    call: str = ""
    processes: int = 1
    follows: str = ""


def harvest(
    store: str, rows: int, flags: str = "", points: str = POINT, text: str = TEXTS, **how: Any
) -> Task:
    where = f"--model {MODEL} --dataset {text} --hook-points {points} --store {store} --max-tokens {rows}"
    shape = "--no-progress --context-length 64"
    shape += " --documents-per-shard 16" * ("documents-per-shard" not in flags)
    return Task(name=Path(store).name, line=f"harvest {where} {shape} {flags}", **how)


def train(
    output: str,
    flags: str,
    store: str = STORE,
    point: str = POINT,
    steps: int = 200,
    width: int | None = 384,
    **how: Any,
) -> Task:
    length = f"--n-steps {steps} --batch-size-rows 128 --buffer-rows 8192 --no-progress --seed 3"
    for every in ("--eval-every-steps", "--checkpoint-every-steps"):
        length += f" {every} {steps // 2}" * (every not in flags)
    where = f"--store {store}" * bool(store) + f" --hook-point {point} --output {output}"
    where += f" --d-sae {width}" * bool(width)
    return Task(name=Path(output).name, line=f"train {where} {length} {flags}", **how)


def stores_part() -> list[Task]:
    two = f"blocks.1.hook_mlp_out {POINT}"
    return [
        harvest("stores/bfloat16", 30_000, points=POINTS),
        Task(name="verify", line="verify stores/bfloat16", follows="bfloat16"),
        harvest("stores/float16", 5_000, "--dtype float16", two),
        harvest("stores/float32", 5_000, "--dtype float32", two),
        harvest("stores/int8", 12_000, "--dtype int8", two),
        harvest("stores/added", 8_000),
        Task(name="add", line=f"add-hook-points stores/added {POINTS} --no-progress", follows="added"),
        harvest("stores/eos", 3_000, "--separator eos --keep-special-tokens", "model.layers.1.mlp"),
        harvest("stores/none", 3_000, "--separator none --compute-dtype bfloat16"),
        harvest("stores/ids", 3_000, "--text-column input_ids", text="inputs/ids.jsonl"),
        harvest("stores/paragraphs", 3_000, "--text-unit paragraph", text="inputs/texts.txt"),
        harvest("stores/mixture", 6_000, "--dataset-weights 0.3 0.7 --seed 5", text=f"{TEXTS} {LABELLED}"),
        Task(name="arrays", call="arrays"),
    ]


def saes_part() -> list[Task]:
    ce = f"--eval-model {MODEL} --eval-ce-tokens 512"
    kinds = {
        "topk": f"--kind topk --k 16 --baseline {ce}",
        "topk_seed4": "--kind topk --k 16 --order-seed 4",
        "topk_options": "--kind topk --k 16 --multi-topk-coeff 0.125 --k-anneal-fraction 0.3"
        " --input-noise 0.05 --contractive-coeff 0.001 --clip-norm 1",
        "topk_medium": "--kind topk --k 16 --matmul-precision medium --dead-after-tokens 5000",
        "frozen": "--kind topk --k 16 --freeze-decoder",
        "batchtopk": "--kind batchtopk --k 16",
        "matryoshka": "--kind matryoshka --k 16",
        "relu": "--kind relu --max-norm-ratio 1.1",
        "relu_resampled": "--kind relu --no-unit-decoder --resample-every-steps 50 --dead-after-tokens 2000",
        "gated": "--kind gated",
        "jumprelu": "--kind jumprelu",
        "jumprelu_target": "--kind jumprelu --target-l0 20 --prefetch True",
        "jumprelu_tanh": "--kind jumprelu --jumprelu-penalty tanh --no-unit-decoder",
        **{f"preset_{preset}": f"--preset {preset}" for preset in PRESETS},
    }
    end_to_end = {"topk": "kl --k 16", "batchtopk": "ce --k 16", "relu": "kl", "jumprelu": "ce"}
    streamed = f"--k 16 --model {MODEL} --dataset {TEXTS} --context-length 64"
    mixed = "--k 16 --store-weights 0.7 0.3"

    def going_on(name: str, of: str, flags: str) -> Task:
        flags = f"--kind {of} --init-from given/saes/{of} {flags}"
        return train(f"saes/{name}", flags, steps=40, width=None, follows=of)

    evaluate = f"evaluate {STORE} given/saes/topk --baseline given/saes/topk/frozen --model {MODEL}"
    return [
        *(train(f"saes/{name}", flags) for name, flags in kinds.items()),
        train("saes/early", "--kind topk --k 16", point=POINTS.split()[0], steps=100),
        train("saes/two_stores", mixed, store=f"{STORE} given/stores/int8"),
        train("saes/synthetic", "--kind topk --k 8", store="given/stores/synthetic", point="synthetic"),
        train("saes/grid", "--grid k=8,24 seed=0,1", steps=100),
        train("saes/streamed", streamed, store="", steps=100),
        going_on("finetuned_topk", "topk", "--k 16"),
        *(going_on(f"end_to_end_{of}", of, f"{ce} --end-to-end {how}") for of, how in end_to_end.items()),
        Task(
            name="evaluation",
            line=f"{evaluate} --max-tokens 1500 --output saes/topk/evaluation.json",
            follows="topk",
        ),
    ]


def index_part() -> list[Task]:
    def analyze(name: str, line: str) -> Task:
        return Task(name=name, line=f"analyze {line} --output index/{name}/page.html")

    labels = """--label "what it stands for" --notes "with 'quotes', <tags> & more" """
    return [
        analyze("topk", f"{STORE} given/saes/topk --model {MODEL} --output-score --sample-tokens 20000"),
        Task(name="label", line=f"search index/topk/page.index --latent 17 {labels}", follows="topk"),
        analyze("jumprelu", f"{STORE} given/saes/jumprelu"),
        analyze("relu", f"{STORE} given/saes/relu --model {MODEL} --n-top 5 --n-latents 20"),
        analyze(
            "harvested", f"given/saes/topk --model {MODEL} --dataset {TEXTS} --max-tokens 3000 --n-latents 5"
        ),
        Task(name="vectors", call="vectors"),
    ]


def pages_part() -> list[Task]:
    runs = "given/saes/topk given/saes/batchtopk given/saes/jumprelu_tanh given/saes/grid"
    return [
        Task(name="report", line=f"report {runs} --output pages/report.html"),
        Task(name="report_of_one", line="report given/saes/relu --output pages/report_of_one.html"),
        Task(name="views", call="views"),
    ]


def commands_part() -> list[Task]:
    sae, baseline = "given/saes/topk", "--baseline given/saes/topk/frozen"
    search = {
        "token": '--token " return"',
        "regex": r'--regex "def \w+\("',
        "text": '--text "import "',
        "text_encoded": f'--text "def f(x):" --sae {sae} --model {MODEL}',
        "like": "--like 17",
        "promotes": '--promotes " self"',
        "demotes": '--demotes " self"',
        "latent": "--latent 17",
        "unigram": '--unigram ""',
        "labelled": "--labelled stands",
        **{
            name: f"--by {name}"
            for name in ("density", "max", "token_entropy", "token_share", "output_score")
        },
    }
    seeds = (
        f"--seeds given/saes/topk_seed4 --model {MODEL} --all --max-tokens 1500 --windows-tokens 1000 10000"
    )
    probe = f"--texts {LABELLED} --group-field group --k 1 5 --test-fraction 0.5 --output commands/probe.json"
    study = "--records inputs/records.jsonl --score logits --n-controls 8 --n-ablated 8 --doses 1"
    lines = {
        **{
            f"search_{name}": f"search given/index/topk/page.index {flags} --n 8"
            for name, flags in search.items()
        },
        "evaluate": f"evaluate {STORE} {sae} {baseline} {seeds} --output commands/evaluation.json",
        **{f"evaluate_{kind}": f"evaluate {STORE} given/saes/{kind} --max-tokens 1000" for kind in KINDS},
        "probe": f"probe --sae {sae} {baseline} --model {MODEL} {probe}",
        "study": f"study --sae {sae} {baseline} --model {MODEL} {study} --output commands/study",
        "error": "train --store commands/nowhere --k 16",
    }
    return [Task(name=name, line=line) for name, line in lines.items()]


def demo_part() -> list[Task]:
    small = "--max-tokens 40000 --d-sae 384 --n-steps 100 --no-progress"
    return [Task(name="demo", line=f"demo --output demo/run {small}")]


def processes_part() -> list[Task]:
    page = f"analyze {STORE} given/saes/topk --n-latents 5 --output processes/page.html"
    return [
        harvest("processes/store", 6_000, processes=2),
        train("processes/data", "--kind topk --k 16", steps=60, processes=2),
        train("processes/latents", "--kind topk --k 16 --latent-shards 2", steps=60, processes=2),
        Task(name="page", line=page, processes=2),
    ]


PARTS: dict[str, Callable[[], list[Task]]] = {
    "flags": lambda: [Task(name="flags", call="flags")],
    "stores": stores_part,
    "saes": saes_part,
    "index": index_part,
    "pages": pages_part,
    "calls": lambda: [Task(name="calls", call="calls")],
    "commands": commands_part,
    "demo": demo_part,
    "processes": processes_part,
    "resumed": lambda: [task for case in cases() for task in (case.prepared, case.task) if task is not None],
}
READS = {
    "saes": ["stores"],
    "index": ["stores", "saes"],
    "pages": ["stores", "saes", "index"],
    "calls": ["stores", "saes"],
    "commands": ["stores", "saes", "index"],
    "processes": ["stores", "saes"],
    "resumed": ["stores", "saes"],
}
FAILS = {"error"}
"""Tasks that have to fail, on either side with the same words."""


# Work that is killed ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """A task that is killed midway.

    midway: files, by a pattern, that say that some is done; ended: whether all is; prepared: what goes before
    """

    task: Task
    midway: str
    ended: Callable[[Path], bool]
    prepared: Task | None = None

    def is_midway(self, folder: Path) -> bool:
        return next(folder.glob(self.midway), None) is not None and not self.ended(folder)


def cases() -> list[Case]:
    def training(name: str, flags: str, first: str = "", **how: Any) -> Case:
        state = f"{name}{first}/state"
        flags += " --checkpoint-every-steps 40 --eval-every-steps 60"
        return Case(
            train(name, flags, **how), f"{state}/step_00000080", lambda folder: not (folder / state).exists()
        )

    first, second = POINTS.split()[:2]
    few = "--documents-per-shard 4"
    streamed = f"--kind topk --k 16 --model {MODEL} --dataset {TEXTS} --context-length 64"
    add = Task(name="added", line=f"add-hook-points added {first} {second} --no-progress", follows="prepared")
    return [
        Case(
            harvest("harvest", 8_000, few, POINTS),
            "harvest/shards/00002/*.json",
            lambda folder: (folder / "harvest/manifest.json").exists(),
        ),
        Case(
            add,
            f"added/shards/00002/{second}.json",
            lambda folder: second in (folder / "added/plan.json").read_text(),
            dataclasses.replace(harvest("added", 8_000, few), name="prepared"),
        ),
        training("topk", "--kind topk --k 16 --baseline"),
        training("jumprelu", "--kind jumprelu"),
        training("streamed", streamed, store=""),
        training("grid", "--grid k=8,24 seed=0,1", "/k=8,seed=0"),
        Case(
            Task(name="index", call="index_slowly"),
            "index/parts/*.safetensors",
            lambda folder: (folder / "index/index.json").exists(),
        ),
    ]


# What runs in a checkout: command lines and public names ----------------------------------------------------


def the(owner: Any, name: str) -> Any:
    """owner.name, or what was renamed to."""
    for alias in ALIASES.get(name, [name]):
        with contextlib.suppress(AttributeError):
            return operator.attrgetter(alias)(owner)
    raise AttributeError(
        f"{owner!r:.80} has none of {ALIASES.get(name, [name])}: add its new name to ALIASES"
    )


def use(name: str, *args: Any, **fields: Any) -> Any:
    """A public function of the package, its arguments renamed where ALIASES says so."""
    import saelens_lite as sl

    function = the(sl, name)
    try:
        known = inspect.signature(function).parameters
    except ValueError:
        known = {}
    return function(
        *args,
        **{next((a for a in ALIASES.get(f, []) if a in known), f): value for f, value in fields.items()},
    )


def opened(sae: str = "topk") -> tuple[Any, Any, Any, Any]:
    """Store, an SAE, model and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import saelens_lite as sl

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    store = the(sl, "ActivationStore")(STORE)
    return store, load(sae), model, AutoTokenizer.from_pretrained(MODEL)


def load(sae: str) -> Any:
    import saelens_lite as sl

    return the(the(sl, "SparseAutoencoder"), "load")(f"given/saes/{sae}")


def run_flags(main: Callable[[list[str]], int]) -> None:
    """The commands, and the flags of each."""

    def told(*argv: str) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
            main([*argv, "--help"])
        return text.getvalue()

    commands = re.findall(r"^  ([a-z][a-z-]+)  ", told(), re.MULTILINE)
    print("commands:", *commands)
    for name in commands:
        options = re.findall(r"^[│\s]*(--.*?)(?:\s{2,}|│|$)", told(name), re.MULTILINE)
        print(
            f"{name}:",
            *sorted({flag for option in options for flag in re.findall(r"--[a-z][a-z0-9-]*", option)}),
        )


def run_arrays(_: Any) -> None:
    """Stores of rows that come from elsewhere, and an export."""
    import torch

    import saelens_lite as sl

    stores = the(sl, "ActivationStore")
    rows = torch.randn(3000, 24, generator=torch.Generator().manual_seed(0))
    documents = torch.arange(3000) // 7
    for dtype in ("float32", "int8"):
        the(stores, "from_arrays")(
            f"stores/arrays_{dtype}", rows, dtype=dtype, rows_per_shard=1000, documents=documents
        )
    the(synthetic(), "to_store")("stores/synthetic", 12_000, rows_per_shard=4096)
    use("to_saelens", stores("stores/synthetic"), "stores/saelens", context_size=100)
    use("from_saelens", "stores/saelens", "stores/from_saelens")


def synthetic() -> Any:
    import saelens_lite as sl

    return the(sl, "SyntheticActivations")(
        the(sl, "SyntheticConfig")(d_model=64, n_features=256, l0=8.0, n_trees=2)
    )


def run_vectors(_: Any) -> None:
    """An index over rows without text."""
    import saelens_lite as sl

    store = the(sl, "ActivationStore")("given/stores/synthetic")
    use("index_features", load("synthetic"), store, "index/vectors")


def run_index_slowly(_: Any) -> None:
    """An index that is committed after every shard, so that it can be killed on the way."""
    store, sae, model, _ = opened()
    use("index_features", sae, store, "index", model, commit_every_s=0.0)


def run_views(_: Any) -> None:
    """What a notebook shows, and pages with what commands do not put there."""
    import saelens_lite as sl

    store, sae, model, tokenizer = opened()
    index = the(the(sl, "FeatureIndex"), "open")("given/index/topk/page.index")
    Path("pages/views").mkdir(parents=True)

    def show(name: str, thing: Any) -> None:
        if hasattr(thing, "_repr_html_"):
            Path("pages/views", f"{name}.html").write_text(thing._repr_html_(), encoding="utf-8")
        Path("pages/views", f"{name}.txt").write_text(str(thing), encoding="utf-8")

    show("index", index)
    counts = the(index, "column")("counts")
    order = counts.argsort(descending=True, stable=True).tolist()
    for name, latent in {
        "labelled": 17,
        "commonest": order[0],
        "median": order[len(order) // 2],
        "rarest": order[-1],
    }.items():
        show(f"latent_{name}", index[latent])
    show("density", the(index, "density"))
    show("unigram", the(index, "unigram"))
    show("lens", the(index, "lens")())
    show("vectors", the(the(sl, "FeatureIndex"), "open")("given/index/vectors"))
    table = use("max_activating_tokens", sae, store, n=6)
    show("table", table)
    show("firings", the(table, "latent")(17))
    evaluation = use("evaluate_sae", sae, store, model, load("topk/frozen"), max_tokens=1500)
    show("evaluation", evaluation)
    show("dead", use("dead_latents", sae, store, windows_tokens=(1000, 10_000)))
    use("feature_page", sae, store, "pages/features.html", model, 30, evaluation=evaluation, index=index)
    use("feature_page", load("gated"), store, "pages/gated.html", latents=[3, 1, 4], tokenizer=tokenizer)


def run_calls(_: Any) -> None:
    """What public functions return, each in a file; what fails says why."""
    Path("calls/results").mkdir(parents=True)
    failed = []
    for name, function in calls():
        try:
            result = function()
        except Exception as error:
            traceback.print_exc()
            failed.append(name)
            content = {"failed": repr(error)}
        else:
            text = str(result) if has_text(type(result)) else None
            content = {"text": text, "value": as_plain(result)}
        Path("calls/results", f"{name}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    if failed:
        raise RuntimeError(f"failed: {', '.join(failed)}")


def calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Names, and what is called."""
    import torch

    def of(name: str, *args: Any, **fields: Any) -> tuple[str, Callable[[], Any]]:
        return name, lambda: use(name, *args, **fields)

    store, sae, model, tokenizer = opened()
    early, frozen, made = load("early"), load("topk/frozen"), load("synthetic")
    acts = the(store, "gather")(torch.arange(1500), POINT).float()
    documents, labels = torch.arange(1500) // 10, acts @ sae.W_dec[5] > (acts @ sae.W_dec[5]).median()
    stats = use("latent_stats", sae, store)
    chosen = stats.rate.argsort(descending=True, stable=True)[5:8].tolist()
    direction = sae.W_dec[chosen[0]].detach()
    values = torch.randn(60, generator=seeded())

    for name in (*KINDS, "jumprelu_tanh", "synthetic"):
        yield f"encode_{name}", lambda name=name: encoded(load(name), acts[:64])
    yield "latent_stats", lambda: stats
    yield of("dead_latents", sae, store, windows_tokens=(1000, 10_000))
    yield of("latent_density", sae, store)
    yield of("max_activating_tokens", sae, store, n=5, latents=chosen)
    yield of("logit_lens", sae, model, final_norm=True, tokenizer=tokenizer)
    yield of("hook_points", model)
    yield of("Split", seed=1)
    yield of("select_latents", sae, acts, labels, documents, n=2)
    yield of("diff_mean", acts, labels, documents)
    yield of("probe_direction", acts, labels, documents)
    yield of("matched_latents", sae, chosen, stats.rate, n_draws=20)
    yield of("random_directions", sae, chosen, n_draws=5)
    yield of("one_direction", sae, chosen, direction)
    yield of("feature_splitting", sae, acts, labels, documents)
    yield of("label_absorption", sae, acts, {"above": labels, "below": ~labels}, documents)
    yield of("cluster_bootstrap", values, torch.arange(60) // 3)
    yield of("rank_p", values[0], values[1:])
    yield of("max_statistic_p", values[:4], values[4:].reshape(-1, 4))
    yield of("benjamini_hochberg", values.abs().clamp(max=1))
    yield of("auroc", values[:30], values[30:])
    yield "fit_anomaly", lambda: the(use("fit_anomaly", sae, acts[:1000]), "scores")(acts[1000:])
    for name in ("score_recovery", "planted_absorption"):
        yield name, lambda name=name: use(name, made, synthetic(), n_rows=4000)
    yield of("meta_sae", sae, k=2, seeds=(0,), n_steps=40)

    texts = [
        "def f(self, x):\n    return x",
        "class Widget(object):\n    ",
        "import os\nimport sys\n",
        "for i in x:\n",
    ]
    inputs = dict(tokenizer(texts, return_tensors="pt", padding=True, padding_side="left"))
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    token, other = (tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("self", "x"))
    yield of("text_features", model, tokenizer, texts, {"sae": sae, "frozen": frozen}, pool="max")
    yield of("direct_logit_attribution", model, sae, token, other, **inputs)
    yield of("gradient_attribution", model, sae, lambda logits: logits[:, -1, token].sum(), **inputs)
    between = (model, early, sae, torch.tensor([[0, 8, chosen[0]], [1, 8, chosen[1]]]))
    yield of("edge_attribution", *between, **inputs)
    edges = torch.tensor([[0, latent] for latent in range(0, 384, 16)])
    yield of("edge_ablation", *between, edges, **inputs)

    last = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
    last[:, -1] = True
    edits = {
        "ablate": ("ablate", [sae, chosen], {}),
        "ablate_mean": ("ablate", [sae, chosen], {"value": "mean", "mean": stats.mean}),
        "ablate_resample": ("ablate", [sae, chosen], {"value": "resample", "reference": acts[:200]}),
        "clamp": ("clamp", [sae, chosen, 3.0], {}),
        "scale": ("scale", [sae, chosen, 2.0], {}),
        "steer": ("steer", [sae, chosen[:1], 4.0], {"unit": "raw", "where": last}),
        "splice_sae": ("splice_sae", [sae], {}),
        "ablate_direction": ("ablate_direction", [direction], {"hook_point": POINT}),
        "steer_direction": ("steer_direction", [direction, 5.0], {"hook_point": POINT}),
    }
    for name, (edit, args, how) in edits.items():
        yield f"edit_{name}", lambda edit=edit, args=args, how=how: under(model, inputs, edit, *args, **how)
    yield "edit_when", lambda: under(model, inputs, "ablate", sae, chosen, when=use("Fires", chosen[0], 0.1))

    names = [f"name{i}" for i in range(24)]
    prompts = [f"def {name}(self, x):\n    return" for name in names]
    many = tokenizer(
        prompts, return_tensors="pt", padding=True, padding_side="left", return_offsets_mapping=True
    )
    yield of("span_mask", many, [(4, 4 + len(name)) for name in names])
    batch = {name: many[name] for name in ("input_ids", "attention_mask")}
    yield (
        "dose_response",
        lambda: use(
            "dose_response",
            model,
            sae,
            chosen[:1],
            [0.5, 1.0],
            lambda model: model(**batch).logits[:, -1].log_softmax(-1)[:, token],
            unit="max_act",
            max_act=stats.max,
            documents=names,
            n_resamples=200,
            controls=[use("matched_latents", sae, chosen[:1], stats.rate, n_draws=10)],
            neutral=use("NeutralText", **inputs, max_new_tokens=4),
        ),
    )


def encoded(sae: Any, rows: Any) -> list[Any]:
    """Latents and reconstruction of rows, or of random ones where the SAE has another width."""
    import torch

    if sae.d_model != rows.shape[1]:
        rows = torch.randn(len(rows), sae.d_model, generator=seeded())
    with torch.no_grad():
        return [sae.encode(rows).to_dense(), sae(rows).recons]


def under(model: Any, inputs: dict[str, Any], edit: str, *args: Any, **place: Any) -> list[Any]:
    """Logits and greedy continuation under an edit."""
    import torch

    with torch.no_grad(), use(edit, model, *args, **place):
        return [model(**inputs).logits, model.generate(**inputs, max_new_tokens=8, do_sample=False)]


def seeded() -> Any:
    import torch

    return torch.Generator().manual_seed(1)


def has_text(kind: type) -> bool:
    """Whether somebody wrote how it reads: no tensor, and no dataclass with the text that Python gives it."""
    for written in map(inspect.unwrap, (kind.__str__, kind.__repr__)):
        file = getattr(getattr(written, "__code__", None), "co_filename", "<string>")
        if file != "<string>" and getattr(written, "__module__", "").startswith("saelens_lite"):
            return True
    return False


def as_plain(thing: Any) -> Any:
    """Values that JSON can hold, without names of fields; of arrays type, shape, hash and first numbers."""
    if thing is None or isinstance(thing, bool | int | float | str):
        return thing
    if hasattr(thing, "detach"):
        thing = thing.detach().cpu().contiguous().numpy()
    if hasattr(thing, "toarray"):
        thing = thing.toarray()
    if hasattr(thing, "tobytes"):
        digest = hashlib.sha256(thing.tobytes()).hexdigest()[:16]
        return [str(thing.dtype), list(thing.shape), digest, [str(value) for value in thing.reshape(-1)[:4]]]
    if isinstance(thing, dict):
        return {str(key): as_plain(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [as_plain(value) for value in thing]
    if hasattr(thing, "to_dict"):
        return as_plain(thing.to_dict())
    if dataclasses.is_dataclass(thing):
        return [as_plain(getattr(thing, field.name)) for field in dataclasses.fields(thing) if field.compare]
    return "object"


CALLS: dict[str, Callable[[Any], None]] = {
    "flags": run_flags,
    "arrays": run_arrays,
    "vectors": run_vectors,
    "index_slowly": run_index_slowly,
    "views": run_views,
    "calls": run_calls,
}


def worker(path: Path) -> None:
    """The tasks of a job one after another, their words in files, and their exit codes in one at the end."""
    job, codes = json.loads(path.read_text()), {}
    suffix = f".{os.environ['RANK']}" if "RANK" in os.environ else ""
    for task in job["tasks"]:
        said, log = (Path(job["part"], kind, f"{task['name']}{suffix}.txt") for kind in ("said", "log"))
        for file in (said, log):
            file.parent.mkdir(parents=True, exist_ok=True)
        with (
            said.open("w") as out,
            log.open("w") as err,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = _outcome(task, *job["entry"].split(":"))
        if code:
            last = [line for line in log.read_text().splitlines() if re.search(r"\w", line)][-1:]
            with said.open("a") as out:
                print(f"exit code {code}:", *last, file=out)
        codes[task["name"]] = code
    path.with_suffix(f".codes{suffix}").write_text(json.dumps(codes))


def _outcome(task: dict[str, Any], module: str, name: str) -> int:
    """The exit code of a task: that of the command line, 70 for an exception."""
    try:
        main = getattr(importlib.import_module(module), name)
        if task["call"]:
            CALLS[task["call"]](main)
            return 0
        return int(main(shlex.split(task["line"])) or 0)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except Exception:
        traceback.print_exc()
        return 70


# Running it -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the checkouts at work.

    code: a copy of its source; folder: where it works; given: where the old side works
    """

    work: Path
    code: Path
    folder: Path
    given: Path
    jobs: int
    threads: int

    @property
    def is_before(self) -> bool:
        return self.folder == self.given

    def make(self, part: str) -> None:
        """Do a part, unless this very work is done."""
        marker, tasks = self.folder / "done" / f"{part}.json", PARTS[part]()
        wanted = _fingerprint(part, self.threads)
        if marker.exists() and json.loads(marker.read_text()) == wanted:
            return
        began, cpu_began = time.perf_counter(), _cpu_s()
        shutil.rmtree(self.folder / part, ignore_errors=True)
        _link(self.work / "checkout", self.code)
        _furnish(self.folder, self.given, self.work)
        codes = self._resume() if part == "resumed" else self._lanes(self.folder, part, tasks)
        bad = {name: code for name, code in codes.items() if bool(code) != (name in FAILS)}
        if bad and self.is_before:
            raise RuntimeError(
                f"the checkout before fails at {part}: {bad}; see {self.folder / part / 'log'}"
            )
        if not bad:
            marker.parent.mkdir(exist_ok=True)
            marker.write_text(json.dumps(wanted))
        which = "before" if self.is_before else "after"
        took = f"{time.perf_counter() - began:.0f} s, {_cpu_s() - cpu_began:.0f} s of CPU"
        print(f"{part}: {which} took {took}", file=sys.stderr, flush=True)

    def _lanes(self, folder: Path, part: str, tasks: Sequence[Task]) -> dict[str, int]:
        """The tasks in as many processes as there are jobs; exit codes by name."""
        lanes: list[list[Task]] = [[] for _ in range(self.jobs)]
        for task in tasks:
            if task.processes == 1 and not task.follows:
                min(lanes, key=len).extend([task, *(other for other in tasks if other.follows == task.name)])
        codes: dict[str, int] = {}
        with ThreadPoolExecutor(self.jobs) as pool:
            for found in pool.map(lambda lane: self._run(folder, part, lane), lanes):
                codes |= found
        together = [task for task in tasks if task.processes > 1]
        return codes | self._run(folder, part, together)

    def _run(self, folder: Path, part: str, tasks: Sequence[Task]) -> dict[str, int]:
        """The tasks in one process, or in as many as they ask for; the worst exit code of each by name."""
        if not tasks:
            return {}
        job, process = self._started(folder, part, tasks)
        try:
            process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        found = [json.loads(path.read_text()) for path in job.parent.glob(f"{job.stem}.codes*")]
        if len(found) < tasks[0].processes:
            return {task.name: process.returncode or 70 for task in tasks}
        return {task.name: max(codes[task.name] for codes in found) for task in tasks}

    def _started(
        self, folder: Path, part: str, tasks: Sequence[Task]
    ) -> tuple[Path, subprocess.Popen[bytes]]:
        """The job and a process of the checkout at it. Without site (-S) it sees no installation of ours."""
        libraries = dict.fromkeys(sysconfig.get_paths()[name] for name in ("purelib", "platlib"))
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(self.work / "checkout"), *libraries]),
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": str(self.threads),
            "MKL_NUM_THREADS": str(self.threads),
            "OMP_WAIT_POLICY": "PASSIVE",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        project = tomllib.loads((self.code / "pyproject.toml").read_text())["project"]
        job = folder / part / "log" / f"{tasks[0].name}.job"
        job.parent.mkdir(parents=True, exist_ok=True)
        content = {"entry": project["scripts"]["saelens-lite"], "part": part}
        job.write_text(json.dumps(content | {"tasks": [dataclasses.asdict(task) for task in tasks]}))
        python = [sys.executable, "-P", "-S"]
        argv = [*python, str(Path(__file__).resolve()), "--worker", str(job)]
        if (n := tasks[0].processes) > 1:
            run = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n), "--no-python")
            argv = [*python, *run, *argv]
        with job.with_suffix(".process.txt").open("w") as log:
            process = subprocess.Popen(
                argv, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        return job, process

    def _resume(self) -> dict[str, int]:
        """Whole runs of all cases, and either what is left of killed ones, or the same, finished."""
        folder, found = self.folder / "resumed", cases()
        prepared = [case.prepared for case in found if case.prepared]
        _furnish(folder / "whole", self.given, self.work)
        codes = self._lanes(folder / "whole", "words", [*prepared, *(case.task for case in found)])
        if self.is_before:
            _furnish(folder / "killed", self.given, self.work)
            codes |= self._lanes(folder / "killed", "words", prepared)
            with ThreadPoolExecutor(self.jobs) as pool:
                list(pool.map(lambda case: self._kill(folder / "killed", case), found))
            return codes
        leftovers = self.given / "resumed" / "killed"
        shutil.copytree(
            leftovers, folder / "finished", ignore=shutil.ignore_patterns("inputs", "given", "words")
        )
        _furnish(folder / "finished", self.given, self.work)
        alone = [dataclasses.replace(case.task, follows="") for case in found]
        finished = self._lanes(folder / "finished", "words", alone)
        return codes | {f"{name}, killed": code for name, code in finished.items()}

    def _kill(self, folder: Path, case: Case) -> None:
        """Start the task and kill it midway; begin anew where it was over too soon."""
        target, kept = folder / case.task.name, folder / f".{case.task.name}"
        if case.prepared:
            shutil.copytree(target, kept)
        for _ in range(5):
            _, process = self._started(folder, "words", [case.task])
            while process.poll() is None and not case.is_midway(folder):
                time.sleep(0.001)
            time.sleep(
                0 if case.task.call else 0.05
            )  # into the work after it, where that takes longer than this
            process.send_signal(signal.SIGKILL)
            process.wait()
            if case.is_midway(folder):
                shutil.rmtree(kept, ignore_errors=True)
                return
            shutil.rmtree(target, ignore_errors=True)
            if case.prepared:
                shutil.copytree(kept, target)
        raise RuntimeError(f"{case.task.name} could not be killed midway; see {folder / 'words'}")


def _cpu_s() -> float:
    """CPU time of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _fingerprint(part: str, threads: int) -> str:
    """What a part does and reads, with this file's functions at it; what renames and compares is left out."""
    tasks = PARTS[part]()
    functions = [make_inputs, *(CALLS[task.call] for task in tasks if task.call)]
    if part == "calls":
        functions += [calls, encoded, under, as_plain]
    sources = [inspect.getsource(function) for function in functions]
    reads = [_fingerprint(other, threads) for other in READS.get(part, ())]
    told = [platform_of(), threads, [dataclasses.asdict(task) for task in tasks], sources, reads]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def platform_of() -> list[str]:
    """What bytes depend on beside the code: Python and the packages."""
    from importlib.metadata import version

    return [
        sys.version,
        *(f"{name} {version(name)}" for name in ("torch", "transformers", "tokenizers", "safetensors")),
    ]


def _link(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target.resolve())


def _furnish(folder: Path, given: Path, work: Path) -> None:
    """A folder to work in, with what all paths of the tasks begin with."""
    folder.mkdir(parents=True, exist_ok=True)
    _link(folder / "inputs", work / "inputs")
    _link(folder / "given", given)


def snapshot(checkout: Path, work: Path) -> tuple[str, Path]:
    """(commit, or commit and content where it has changes; a copy of the source)."""

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(checkout), *args], check=True, capture_output=True, text=True
        ).stdout

    source = ("--", ".", ":!tests", ":!notebooks")
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", *source).split("\0")
    contents = {
        name: (checkout / name).read_bytes()
        for name in sorted(set(listed))
        if name and (checkout / name).is_file()
    }
    key = git("rev-parse", "HEAD").strip()[:12]
    if git("status", "--porcelain", *source).strip():
        digest = hashlib.sha256()
        for name, content in contents.items():
            digest.update(f"{name} {len(content)} ".encode() + content)
        key += f"-{digest.hexdigest()[:8]}"
    target = work / "code" / key
    if not target.exists():
        staged = target.with_name(f".{key}.tmp")
        shutil.rmtree(staged, ignore_errors=True)
        for name, content in contents.items():
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            (staged / name).write_bytes(content)
        staged.rename(target)
    return key, target


def make_inputs(folder: Path, code: Path) -> None:
    """The embedded model, and texts of Python's standard library, for both sides."""
    if folder.exists():
        return
    staged = folder.with_name(".inputs.tmp")
    shutil.rmtree(staged, ignore_errors=True)
    found = [
        path.parent for path in code.rglob("model.safetensors") if (path.parent / "tokenizer.json").exists()
    ]
    shutil.copytree(found[0], staged / "model")
    library = Path(sysconfig.get_paths()["stdlib"])
    first = sorted(library.glob("[a-z]*.py"))[:60]
    modules = [(path.name, path.read_text("utf-8", "replace")) for path in first]

    def pieces(length: int, n: int) -> Iterator[tuple[str, str]]:
        for start in range(0, n * length, length):
            yield from (
                (name, text[start : start + length]) for name, text in modules if len(text) > start + length
            )

    def lines(name: str, objects: Iterator[dict[str, Any]]) -> None:
        (staged / name).write_text("".join(json.dumps(one) + "\n" for one in objects), encoding="utf-8")

    lines("texts.jsonl", ({"text": text, "name": name} for name, text in pieces(900, 4)))
    lines("ids.jsonl", ({"input_ids": [3 + (7 * i + j * j) % 4000 for j in range(90)]} for i in range(60)))
    (staged / "texts.txt").write_text("".join(text for _, text in modules[:8]), encoding="utf-8")
    packages = {
        package: sorted((library / package).glob("*.py"))
        for package in ("asyncio", "email", "multiprocessing")
    }
    lines(
        "labelled.jsonl",
        (
            {
                "text": path.read_text("utf-8", "replace")[start : start + 300],
                "label": package,
                "group": f"{package}/{path.name} {start // 600}",
            }
            for package, paths in packages.items()
            for path in [path for path in paths if path.stat().st_size > 2400][:14]
            for start in range(900, 2100, 300)
        ),
    )
    nouns = "name value path file line text data size index key node list item type mode code user time host"
    lines(
        "records.jsonl",
        (
            {
                "prompt": f"    self.{noun}{end} =",
                "entity": f"{noun}{end}",
                "answer": "None",
                "known": not end,
            }
            for noun in f"{nouns} port".split()
            for end in ("", "qzx")
        ),
    )
    staged.rename(folder)


# Comparing it -----------------------------------------------------------------------------------------------


class Tree(HTMLParser):
    """HTML as places and what stands there: tags with sorted attributes, text, data and code of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, Any]] = []
        self._open: list[str] = []
        self._script = ""
        self._words = ""
        self.feed(text)
        self.close()
        self._end_words()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._end_words()
        hashless = [(name, re.sub(r"sha256-[\w+/=]+", "sha256-…", value or "")) for name, value in attrs]
        self.found.append((f"{'/'.join(self._open)}/<{tag}>", sorted(hashless)))
        if tag not in ("br", "img", "input", "meta", "link", "hr", "circle", "path", "rect", "line", "use"):
            self._open.append(tag)
        if tag == "script":
            self._script = dict(attrs).get("type") or "code"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._end_words()
        self.found.append(
            (f"{'/'.join(self._open)}/<{tag}/>", sorted((name, value or "") for name, value in attrs))
        )

    def handle_endtag(self, tag: str) -> None:
        self._end_words()
        while self._open and self._open.pop() != tag:
            pass
        self.found.append((f"{'/'.join(self._open)}/</{tag}>", None))
        self._script = ""

    def handle_data(self, data: str) -> None:
        self._words += data

    def handle_decl(self, decl: str) -> None:
        self.found.append(("declaration", decl.lower()))

    def _end_words(self) -> None:
        words, self._words = self._words.strip(), ""
        if words and self._script:
            is_data = "json" in self._script
            self.found.append((f"script of {self._script}", json.loads(words) if is_data else words))
        elif words:
            self.found.append((f"{'/'.join(self._open)}: text", " ".join(words.split())))


def html_differences(a: str, b: str) -> Iterator[str]:
    """Where the trees part; after that nothing can be told."""
    left, right = Tree(a).found, Tree(b).found
    for (place, one), (other_place, other) in zip(left, right):
        if place != other_place:
            yield f"{place} became {other_place}"
            return
        if one != other:
            yield from (f"{place}{where}" for where in json_differences(one, other, set()))
    if len(left) != len(right):
        yield f"{len(left)} tags and texts, {len(right)} after"


def json_differences(a: Any, b: Any, aside: set[str], path: str = "") -> Iterator[str]:
    """Where two values of JSON part; keys that may differ, and do, go to `aside`."""
    key = path.rpartition(".")[2]
    if key in ASIDE_KEYS and a != b and (key != "version" or (isinstance(a, str) and isinstance(b, str))):
        aside.add(key)
    elif (
        key in NEARLY and isinstance(a, float) and isinstance(b, float) and abs(a - b) <= NEARLY[key] * abs(a)
    ):
        if a != b:
            aside.add(f"{key} within {NEARLY[key]:g}")
    elif isinstance(a, dict) and isinstance(b, dict):
        for name in sorted(a.keys() | b.keys()):
            if name in a and name in b:
                yield from json_differences(a[name], b[name], aside, f"{path}.{name}")
            else:
                yield f"{path}.{name} is only {'before' if name in a else 'after'}"
        if list(a) != list(b) and a.keys() == b.keys():
            yield f"{path} has its keys in another order"
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (one, other) in enumerate(zip(a, b)):
            yield from json_differences(one, other, aside, f"{path}[{i}]")
    elif not (a == b or (a != a and b != b)) or type(a) is not type(b):
        yield f"{path}: {_around(a, b)}"


def _around(a: Any, b: Any) -> str:
    """Two values, long text from a little before the place where it parts."""
    if isinstance(a, str) and isinstance(b, str):
        start = max(0, next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b))) - 20)
        return f"{a[start : start + 60]!r} became {b[start : start + 60]!r}"
    return f"{json.dumps(a)[:80]} became {json.dumps(b)[:80]}"


def text_differences(a: str, b: str) -> Iterator[str]:
    """Lines that differ but for seconds."""
    left, right = (SECONDS.sub("… s", text).splitlines() for text in (a, b))
    for number, (one, other) in enumerate(zip(left, right), 1):
        if " ".join(one.split()) != " ".join(other.split()) or (one != other and "… s" not in one):
            yield f"line {number}: {_around(one, other)}"
    if len(left) != len(right):
        yield f"{len(left)} lines, {len(right)} after"


def tensor_differences(a: bytes, b: bytes) -> Iterator[str]:
    """Tensors of safetensors files that differ."""
    heads = [json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]) for data in (a, b)]
    yield from json_differences(*heads, set(), "header")
    for name in [
        name for name in heads[0] if name != "__metadata__" and heads[0][name] == heads[1].get(name)
    ]:
        start, end = heads[0][name]["data_offsets"]
        left, right = (data[8 + int.from_bytes(data[:8], "little") :][start:end] for data in (a, b))
        if left != right:
            n = sum(x != y for x, y in zip(left, right))
            yield f"{name}: {n:,} of {end - start:,} bytes, the first at {next(_parted(left, right)):,}"


def _parted(a: bytes, b: bytes) -> Iterator[int]:
    return (i for i, (x, y) in enumerate(zip(a, b)) if x != y)


def file_differences(before: Path, after: Path, aside: set[str]) -> Iterator[str]:
    """Where two files part, by what kind of file it is; nothing for equal bytes."""
    a, b = before.read_bytes(), after.read_bytes()
    if a == b:
        return
    found: Iterator[str] | None = None
    try:
        match before.suffix:
            case ".json":
                found = json_differences(json.loads(a), json.loads(b), aside)
            case ".jsonl":
                lines = [[json.loads(line) for line in data.splitlines()] for data in (a, b)]
                found = json_differences(*lines, aside)
            case ".html":
                found = html_differences(a.decode(), b.decode())
            case ".txt":
                found = text_differences(a.decode(), b.decode())
            case ".safetensors":
                found = tensor_differences(a, b)
        if found is not None:
            yield from found
            return
    except (ValueError, KeyError, AttributeError) as error:
        yield f"it could not be parsed ({error!r:.80})"
    yield f"bytes from {next(_parted(a, b), min(len(a), len(b))):,} on; {len(a):,} and {len(b):,} of them"


def comparison(
    what: str, before: Path, after: Path, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, Any]:
    """Two files, or all files of two folders whose names are wanted."""
    names = sorted({name for folder in (before, after) for name in _files(folder) if wanted(name)})
    aside: set[str] = set()
    differs: list[str] = []
    for name in names:
        a, b = (folder / name if name else folder for folder in (before, after))
        if not a.is_file() or not b.is_file():
            differs.append(f"{name or what} is only {'before' if a.is_file() else 'after'}")
            continue
        differs += [f"{name or what}: {where}" for where in file_differences(a, b, aside)][:20]
    line: dict[str, Any] = {"what": what, "same": bool(names) and not differs, "n_files": len(names)}
    if differs or not names:
        more = [f"and {len(differs) - 5} more"] * (len(differs) > 5)
        line["differs"] = [*differs[:5], *more] if differs else ["there is no file"]
    return line | ({"aside": sorted(aside)} if aside else {})


def _files(folder: Path) -> Iterator[str]:
    """The files of a folder that count, by their names from there; of a file "" """
    if folder.is_file():
        yield ""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        is_aside = any(fnmatch.fnmatch(path.name, pattern) for pattern in ASIDE_FILES)
        if path.is_file() and not is_aside:
            yield name


def compared(part: str, before: Side, after: Side) -> Iterator[dict[str, Any]]:
    """The comparisons of a part."""
    left, right = before.folder / part, after.folder / part
    if part == "resumed":
        for case in cases():
            name = case.task.name
            whole, old, finished = right / "whole" / name, left / "whole" / name, right / "finished" / name
            yield comparison(f"resumed/{name}: uninterrupted, before and after", old, whole)
            yield comparison(
                f"resumed/{name}: killed before, finished after, and uninterrupted after", whole, finished
            )
            yield comparison(
                f"resumed/{name}: killed before, finished after, and uninterrupted before", old, finished
            )
        return
    names = sorted(
        {path.name for folder in (left, right) if folder.is_dir() for path in folder.iterdir()} - {"log"}
    )
    for name in names:
        a, b = left / name, right / name
        if part == "saes" and name != "said":
            yield comparison(f"saes/{name}: metrics.jsonl", a, b, lambda file: file.endswith("metrics.jsonl"))
            yield comparison(
                f"saes/{name}: the folder", a, b, lambda file: not file.endswith("metrics.jsonl")
            )
        else:
            yield comparison(f"{part}: what it says" if name == "said" else f"{part}/{name}", a, b)


def needed(parts: Sequence[str]) -> list[str]:
    """These parts and those that they read."""
    wanted = {part for name in parts for part in (name, *READS.get(name, ()))}
    return [part for part in PARTS if part in wanted]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, required=True, help="checkout of the old commit")
    parser.add_argument("--after", type=Path, required=True, help="checkout of the new one, committed or not")
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps what both made")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument("--threads", type=int, default=1, help="OMP_NUM_THREADS of every process")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    args = parser.parse_args()
    began, work = time.perf_counter(), args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    with (work / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (before_key, before_code), (after_key, after_code) = (
            snapshot(path, work) for path in (args.before, args.after)
        )
        make_inputs(work / "inputs", before_code)
        given = work / "sides" / before_key / "before"
        options = {"given": given, "jobs": args.jobs, "threads": args.threads}
        before = Side(work, before_code, given, **options)
        after = Side(work, after_code, given.with_name(f"after-{after_key}"), **options)
        lines = []
        try:
            for part in needed(args.only):
                before.make(part)
                if part not in args.only:
                    continue
                after.make(part)
                for line in compared(part, before, after):
                    lines.append(line)
                    print(json.dumps(line, ensure_ascii=False), flush=True)
        except RuntimeError as error:
            print(f"same_bytes.py: {error}", file=sys.stderr)
            return 2
    same, n_differ = all(line["same"] for line in lines), sum(not line["same"] for line in lines)
    total = {
        "what": "all",
        "same": same,
        "n": len(lines),
        "n_differ": n_differ,
        "before": before_key,
        "after": after_key,
    }
    print(json.dumps(total | {"s": round(time.perf_counter() - began)}))
    return 0 if same else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(Path(sys.argv[2]))
    else:
        sys.exit(main())
