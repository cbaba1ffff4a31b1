"""Random calls of the public functions and methods with wrong types, shapes and values.

    python tests/bench/fuzz_calls.py [--calls 1000] [--seed 0] [--output fuzz.jsonl] [--only TEXT]

Each call starts from arguments that are right, by the names of parameters, and replaces one or two of them.
It may succeed, or be refused: by a ValueError, TypeError or error of the package that a line of the package
raises on purpose, by Python for arguments that do not bind, or by the system for a path. An error from within
a callable that stands for a function is the caller's. Anything else (an
error from within torch or numpy, an AttributeError, a signal, a minute without end) is internal. Prints the
internal ones and exits with 1 where there are any. The calls are made in a process of their own; one line a
call goes to the output, and the same command leaves out the calls that are in it.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import inspect
import json
import linecache
import math
import multiprocessing as mp
import os
import random
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
HANG_S = 60
OF_FACES = "lm store recipes synthetic analyze train autoencoders sae".split()
OF_ANALYZE = (
    "answers attribution corpora edits evaluation exchange ground_truth index latents model_diffing pages "
    "probing stats study"
).split()
CLASSES = (
    "IndexConfig HarvestConfig SAEConfig SyntheticConfig SyntheticActivations SparseAutoencoder "
    "ActivationStore "
    "SparseLatents Split Fires NextToken Question NeutralText HallucinationStudy Labels TrainConfig "
    "AutoencoderConfig Relative Autoencoder Crosscoder Transcoder Side Target"
).split()
"""Classes that a caller makes; the others are results."""
HOW_MUCH = (
    "n_",
    "max_",
    "k",
    "d_",
    "expansion",
    "_tokens",
    "_steps",
    "_rows",
    "_seqs",
    "_every",
    "branching",
    "depth",
)
"""Parts of names of parameters of which a huge number is a long computation, and no mistake."""

ALWAYS = ("progress", "n_steps", "n_resamples", "n_rows", "batch_size_rows", "d_sae", "highest", "code_size")
"""Parameters that are given although they have defaults, for calls that are short and reach the end."""

Call = tuple[str, Callable[..., Any]]


def bad_values(rng: random.Random, world: dict[str, Any]) -> Any:
    """One value that is seldom right."""
    make: list[Callable[[], Any]] = [
        lambda: rng.choice([None, True, False, 0, -1, 1, 3, 2**70, -(2**70), 0.5, 1e308, -0.0]),
        lambda: rng.choice([math.nan, math.inf, -math.inf]),
        lambda: rng.choice(
            ["", "x", "7", "é\x00", b"x", Path("nowhere"), Path("."), "blocks.1.hook_resid_post"]
        ),
        lambda: rng.choice(
            [[], [None], ["x"], [0.5], [-1], [10**6], [2**70], [[1], [2, 3]], (), (1, 2), [True]]
        ),
        lambda: rng.choice(
            [{}, {"a": 1}, {"x": None}, {1: 2}, set(), {3}, range(3), slice(2), ..., iter([1])]
        ),
        lambda: rng.choice([object(), int, len, lambda: None, lambda *a, **k: None, lambda x: x, 1j]),
        lambda: rng.choice(
            [np.zeros(0), np.array("a"), np.array([1j]), np.array([None]), np.int64(3), np.ones(32)]
        ),
        lambda: rng.choice(
            [np.float32(0.5), torch.float16, torch.device("meta"), "cuda:9", "greater", "mean"]
        ),
        lambda: rng.choice([torch.zeros(0), torch.tensor(3.0), torch.ones(5, 7), torch.ones(60, 32).bool()]),
        lambda: rng.choice([torch.full((60, 32), math.nan), torch.ones(60, 32, dtype=torch.complex64)]),
        lambda: rng.choice(
            [torch.ones(60, 32).half(), torch.ones(60, 32, device="meta"), torch.ones(1, 6).long()]
        ),
        lambda: rng.choice(
            [torch.ones(60, 32).to_sparse(), torch.ones(60, 32, requires_grad=True), torch.ones(48)]
        ),
        lambda: rng.choice(
            [torch.ones(60).long(), -torch.ones(6).long(), torch.tensor([10**12]), torch.ones(0, 32)]
        ),
        lambda: rng.choice([world[name] for name in ("model", "sae", "store", "tokenizer", "index")]),
    ]
    return rng.choice(make)()


def made_world(folder: Path) -> dict[str, Any]:
    """Right arguments by the names of parameters; a folder that is new, which becomes the working folder."""
    os.chdir(folder)
    import saelens_lite as sl
    from saelens_lite.analyze import model_diffing
    from saelens_lite.analyze.exchange import export_index, export_labels
    from saelens_lite.demo.embedded import load_model
    from saelens_lite.sae import Target
    from saelens_lite.train import train_autoencoder, train_crosscoder

    torch.manual_seed(0)
    model, tokenizer = load_model()
    point = "blocks.0.hook_resid_post"
    texts = [f"The cat {i} sat on a mat and saw {'a dog ' * (i % 5)}." for i in range(40)]
    settings = {"tokenizer": tokenizer, "context_length": 32, "batch_size_seqs": 8, "progress": False}
    store = sl.harvest_activations(model, texts, [point], "store", max_tokens=600, **settings)
    d = store.d_model(point)
    config = sl.SAEConfig(d_model=d, d_sae=48, kind="topk", k=4, hook_point=point, model_name="")
    sae = sl.SparseAutoencoder(config)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    sae.save("sae")
    index = sl.index_features(sae, store, "index", model)
    acts = torch.randn(60, d)
    labels, documents = torch.arange(60) % 2 == 0, torch.arange(60)
    ids = torch.tensor([[1, 7, 8, 9, 10, 11]])
    pair = sl.store.paired_store([store, store])
    few = {"k": 4, "n_steps": 2, "d_sae": 48, "batch_size_rows": 64, "progress": False}
    crosscoder = train_crosscoder([store, store], output="crosscoder", **few)
    relative = train_autoencoder(
        store, code_size=8, n_steps=2, batch_size_rows=64, output="relative", progress=False
    )
    rows_compared = model_diffing.compare_rows(store, store)
    divergence = model_diffing.token_divergence(model, model, store, max_tokens=200)
    scaling = model_diffing.latent_scaling(crosscoder, pair, [0, 1])
    synthetic = sl.synthetic.SyntheticActivations(
        sl.synthetic.SyntheticConfig(d_model=d, n_features=40, l0=3)
    )
    Path("texts.jsonl").write_text(
        "".join(json.dumps({"text": t, "label": i % 2}) + "\n" for i, t in enumerate(texts))
    )
    named = dict(  # noqa: C408
        model=model, tokenizer=tokenizer, store=store, sae=sae, index=index, acts=acts, labels=labels,
        documents=documents, groups=documents, clusters=documents, input_ids=ids, hook_point=point,
        hook_points=[point], latents=[3, 5], latent=3, value=1.0, strength=1.0, factor=2.0, doses=[0.0, 1.0],
        direction=acts[0], directions=acts[:5], others=acts[:6], similarity=torch.rand(4, 5), batches=store,
        score=lambda model: model(ids).logits[0, 1:, 5].detach(), metric=lambda logits: logits[:, -1].mean(),
        target=5, against=6, upstream=sae, downstream=sae, targets=[(0, 5, 3)], edges=torch.tensor([[0, 3]]),
        names=[point], name=point, fn=lambda x: x, clean_logits=torch.randn(2, 9), logits=torch.randn(2, 9),
        word="cat", token="cat", text="the cat", texts=texts, pattern="c.t", path="new", folder="new2",
        runs="sae",
        output="run", rates=torch.rand(48), max_act=torch.ones(48), features={"acts": acts}, normal=acts,
        observed=torch.rand(3), controls=torch.rand(3, 9), values=torch.rand(60), p=torch.rand(5),
        a=torch.rand(9),
        b=torch.rand(9), odd=torch.rand(9), dataset=texts, max_tokens=200, context_length=32, bos_id=1, k=4,
        n_steps=2, n_rows=500, grid={"k": [2, 4]}, d_sae=48, d_model=d, n_features=40, l0=3, kind="topk",
        synthetic=synthetic, source=store, rows=torch.arange(5), progress=False, batch_size_rows=64, by="max",
        n_resamples=20, n_draws=5, indices=torch.arange(8).reshape(2, 4), m=3, config=None, overwrite=True,
        prompt="Is it", entity="it", answer="yes", n_shuffles=2, saes=sae, x=acts, device="cpu",
        windows_tokens=(100,), base=store, tuned=store, stores=[store, store], crosscoder=crosscoder,
        tuned_model=model, in_a=labels, rivals={"odd": ~labels}, file="labels.json", format="neuronpedia",
        highest=8, code_size=8,
    )  # fmt: skip
    named["by_class"] = {
        "Split": sl.stats.Split(), "Fires": sl.edits.Fires(3), "SyntheticActivations": synthetic,
        "SAEConfig": config,
        "SparseLatents": sae.encode_sparse(acts) if hasattr(sae, "encode_sparse") else None,
    }  # fmt: skip
    export_index(index, "exported", "neuronpedia", sae, store, model)
    export_labels(index, "labels.json")
    pooled = sl.probing.pooled_latents(model, tokenizer, texts, sae, pool="max")
    target = {"target": Target(d_model=d), "apply_b_dec_to_input": False}
    of_two_places = sl.SAEConfig(d_model=d, d_sae=48, kind="relu", **target)
    named["by_function"] = {
        "compare_corpora": {
            "features": pooled, "in_a": torch.arange(40) % 2 == 0, "rivals": {"odd": torch.rand(40)}
        },
        "pair_page": {"rows": rows_compared},
        "token_divergence": {"base": model, "tuned": model},
        "geometric_median": {"rows": acts},
        "import_index": {"source": "exported"},
        "Crosscoder": {"config": crosscoder.config},
        "Transcoder": {"config": of_two_places},
    }
    of_pairs = "exclusive_latents side_agreement side_sae latent_scaling".split()
    named["by_function"] |= {name: {"store": pair} for name in of_pairs}
    named["objects"] = [
        pair, crosscoder, relative, rows_compared, divergence, scaling,
        sae, store, index, index[3], sl.latents.latent_density(sae, store), sl.latent_stats(sae, store),
        sl.dead_latents(sae, store, [100]), sl.max_activating_tokens(sae, store), synthetic,
        sl.evaluate_sae(sae, store, held_out=False, max_tokens=200), sl.stats.Split(),
        sl.logit_lens(sae, model),
        sl.analyze.fit_anomaly(sae, acts), config, relative.config, pooled,
    ]  # fmt: skip
    return named


def targets(world: dict[str, Any]) -> list[Call]:
    """Public functions, classes that callers make, and methods of the objects, by name."""
    found: dict[str, Callable[..., Any]] = {}
    faces = ["", *(f".{n}" for n in OF_FACES), *(f".analyze.{n}" for n in OF_ANALYZE)]
    for face in faces:
        module = importlib.import_module(f"saelens_lite{face}")
        for name in getattr(module, "__all__", []):
            value = getattr(module, name)
            if inspect.isfunction(value) or (inspect.isclass(value) and name in CLASSES):
                found[name] = value
    classes = [importlib.import_module("saelens_lite").SparseAutoencoder]
    for holder in [*world["objects"], *classes]:
        of = holder if inspect.isclass(holder) else type(holder)
        for name in dir(of):
            public = not name.startswith("_") or name in ("__getitem__", "__call__")
            home = next((c for c in of.__mro__ if name in vars(c)), None)
            if public and home and home.__module__.startswith("saelens_lite"):
                value = getattr(holder, name, None)
                kind = type(vars(home)[name])
                bound = kind in (staticmethod, classmethod) or (kind is type(main) and holder is not of)
                if bound and inspect.signature(value).parameters:
                    found[f"{of.__name__}.{name}"] = value
    return sorted(found.items())


def arguments(
    function: Callable[..., Any], rng: random.Random, world: dict[str, Any]
) -> tuple[dict, list[str]]:
    """Arguments by name, of which one or two are bad, and the names of these."""
    parameters = [
        p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_POSITIONAL
    ]
    given = {
        p.name: world[p.name]
        for p in parameters
        if p.name in world
        and (p.default is p.empty or p.name in ALWAYS)
    }
    names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    if (
        any(p.kind is p.VAR_KEYWORD for p in parameters)
        and {"metric", "target", "targets", "names"} & given.keys()
    ):
        given["input_ids"] = world["input_ids"]
        names.append("input_ids")
    if function.__name__ in ("harvest_activations", "estimate_harvest"):
        given["store"] = "new-store"
    if function.__name__ == "read_saelens_activations":
        given["source"] = "texts.jsonl"
    given |= world["by_function"].get(function.__name__, {})
    bad = rng.sample(names, min(len(names), rng.choice([1, 1, 2])))
    for name in bad:
        value = bad_values(rng, world)
        much = name in HOW_MUCH or any(
            part in name for part in HOW_MUCH if len(part) > 2 or part in ("n_", "d_")
        )
        if much and isinstance(value, int | float) and abs(value) > 1e6:
            value = -3
        given[name] = value
    return given, bad


def is_refusal(error: Exception) -> bool:
    """Whether an error is one that the package, Python's binding of arguments or a path's system means."""
    from saelens_lite.errors import SaelensLiteError

    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SaelensLiteError | OSError | ImportError) or is_of_wandb(error):
        return True
    last = frames[-1]
    if "embedded null byte" in str(error) or "bad_values.<locals>" in str(
        error
    ):  # of a path; of what we gave
        return True
    bound = (
        "missing",
        "unexpected keyword",
        "positional argument",
        "got multiple values",
        "keyword argument",
    )
    if isinstance(error, TypeError) and any(words in str(error) for words in bound) and len(frames) <= 5:
        return True
    own = Path(last.filename).resolve().is_relative_to(ROOT) and "/tests/" not in last.filename
    said = linecache.getline(last.filename, last.lineno or 0).strip().startswith("raise")
    return own and said and isinstance(error, ValueError | TypeError | LookupError) and len(str(error)) > 12


def is_of_wandb(error: Exception) -> bool:
    """Whether it is one of wandb's own errors, such as that there is no API key."""
    return type(error).__module__.startswith("wandb.errors")


def is_of(functions: list[Callable[..., Any]], error: Exception) -> bool:
    """Whether an error arose in one of the functions."""
    codes = {getattr(function, "__code__", None) for function in functions}
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))


def one_call(number: int, seed: int, found: list[Call], world: dict[str, Any]) -> dict[str, Any]:
    rng = random.Random(f"{seed}-{number}")
    name, function = rng.choice(found)
    torch.manual_seed(0)
    given, bad = arguments(function, rng, world)
    told = {n: repr(given[n])[:80].replace("\n", " ") for n in bad}
    record: dict[str, Any] = {"call": number, "seed": seed, "function": name, "bad": told, "outcome": "fine"}
    try:
        result = function(**given) if "__getitem__" not in name else function(*given.values())
        if hasattr(result, "__enter__"):
            with result, torch.no_grad():
                world["model"](world["input_ids"])
        elif inspect.isgenerator(result):
            next(result, None)
    except Exception as error:
        theirs = [
            type(given[n]).__call__ for n in bad if inspect.isfunction(world.get(n)) and callable(given[n])
        ]
        record["outcome"] = "refused" if is_refusal(error) or is_of(theirs, error) else "internal"
        record["error"] = f"{type(error).__name__}: {str(error)[:300]}"
        frames = traceback.extract_tb(error.__traceback__)
        record["at"] = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames[-5:]]
    return record


def work(numbers: list[int], seed: int, only: str, connection: Any) -> None:
    """Make the calls; each record goes through the connection, after the number that is about to be tried."""
    with open(os.devnull, "w") as nowhere, tempfile.TemporaryDirectory() as tmp:
        sys.stdout = sys.stderr = nowhere
        warnings.simplefilter("ignore")
        world = made_world(Path(tmp))
        found = [target for target in targets(world) if only in target[0]]
        for number in numbers:
            connection.send(number)
            connection.send(one_call(number, seed, found, world))
        os.chdir("/")
    connection.send(None)


def tried(numbers: list[int], seed: int, only: str, write: Callable[[dict[str, Any]], None]) -> list[int]:
    """Records of as many of the calls as one process makes; returns the calls that are left."""
    ours, theirs = mp.get_context("spawn").Pipe()
    process = mp.get_context("spawn").Process(target=work, args=(numbers, seed, only, theirs), daemon=True)
    process.start()
    theirs.close()
    current: int | None = None
    while True:
        try:
            outcome = None if ours.poll(HANG_S if current is not None else 600) else "hang"
            message = ours.recv() if outcome is None else None
        except EOFError:
            process.join()
            outcome, message = f"ended with {process.exitcode}", None
        if isinstance(message, int):
            current = message
        elif isinstance(message, dict):
            write(message)
            numbers = [n for n in numbers if n != message["call"]]
            current = None
        else:
            if outcome is not None:
                if current is None:
                    raise RuntimeError(f"the process {outcome} before a call")
                write(
                    {"call": current, "seed": seed, "function": "?", "outcome": "internal", "error": outcome}
                )
                numbers = [n for n in numbers if n != current]
            process.kill()
            return numbers


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("fuzz.jsonl"))
    parser.add_argument("--only", default="", help="of the functions whose names have this text")
    args = parser.parse_args()
    lines = args.output.read_text().splitlines() if args.output.exists() else []
    records = [r for r in map(json.loads, lines) if r["seed"] == args.seed]
    done = {record["call"] for record in records}
    numbers = [number for number in range(args.calls) if number not in done]
    with args.output.open("a") as file:

        def write(record: dict[str, Any]) -> None:
            file.write(json.dumps(record) + "\n")
            file.flush()
            records.append(record)

        while numbers:
            numbers = tried(numbers, args.seed, args.only, write)
    internal = [record for record in records if record["outcome"] == "internal"]
    for record in internal:
        print(json.dumps(record))
    print(dict(collections.Counter(record["outcome"] for record in records)))
    return int(bool(internal))


if __name__ == "__main__":
    sys.exit(main())
