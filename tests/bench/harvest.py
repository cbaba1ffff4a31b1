"""Tokens per second of a harvest: ours, the bare truncated forward, SAELens 6.54.12's CacheActivationsRunner.

    .venv-peers/bin/python tests/bench/harvest.py                          # stories3m-llama,
    stories260k-llama, 2 threads .venv-peers/bin/python tests/bench/harvest.py --compute-dtype bfloat16 #
    beside all that: forward and ours in bf16 .venv-peers/bin/python tests/bench/harvest.py --compile
    # beside all that: forward and ours compiled .venv-peers/bin/python tests/bench/harvest.py --memory
    # instead: peak memory at N and 10 N tokens

All interleaved in one process of the peers' venv (`make peers`), our package imported from this checkout and
the process held to as many cores as threads. Prints one JSON line a contestant, one for what a variant
changes in the rows, then a summary line. The text is TinyStories' train_v1, begun again where more is asked
for. Contestants, by block b:

    forward     the limit: contexts of 256 in memory as int64 batches, the model without its layers above b,
                without head and final norm, no mask, no cache, no hook; nothing is kept
    ours        harvest_activations of blocks.b.hook_resid_post from the .jsonl.gz file: reading, tokenising,
                packing, forward, bf16 rows with norms, sums and sha256, every file synced to disk
    ours-4      the same with the four hook points of block b in one pass
    saelens     CacheActivationsRunner.run of model.layers.b, from the documents as a `datasets.Dataset` in
                memory: tokenising, packing, forward stopped at the hook, Arrow files (not synced) in its
                float32, for `datasets` has no bfloat16; not shuffled, in one buffer where 2 GB allow it
    saelens-4   the sum of its runs of the four modules that give the same activations, in every other round

Loading the model and the tokenizer is outside everyone's clock. Tokens are the positions of the contexts,
special ones included, the same number for all; ours stores no rows for special tokens and forwards a few
positions more, for each of its shards ends in a padded context (`positions` of its line). Before anything is
timed the contexts and a batch of activations of ours and SAELens' must agree. Then in each round every
contestant works once through the whole text, the order turning by one each round; a first round warms up. A
contestant's figure is the median of its rounds, a ratio the median of the rounds' ratios, with their least
and greatest beside it. Peak memory is that of a fresh process which loads the model by name, as the command
line does.
Not a test: nothing asserts a speed.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import importlib.metadata
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"  # SAELens draws a bar for each run

import torch
from torch import Tensor, nn
from train_step import ROOT, cpu_name  # puts the checkout on the path: it is not installed in the peers' venv

import saelens_lite as sl
from saelens_lite.store.packing import pack

DATA = ROOT.parent / "shared" / "data"
TEXT = DATA / "corpora" / "tinystories" / "train_v1.jsonl.gz"
TOKENS = {"stories3m-llama": 125_000, "stories260k-llama": 500_000}
"""Rounded down to whole batches."""
SAELENS_BUFFER_BYTES = 2e9
"""Its own default and advice: at most this for one file."""
SAME_ACTIVATIONS = 1e-4
"""Relative L2 error between SAELens' float32 rows and the forward's; rounding of the forward alone."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all contestants of one model share."""

    folder: Path
    """The model."""

    block: int

    text: Path
    """The documents, a .jsonl.gz file."""

    documents: list[str]

    input_ids: Tensor
    """int64[n_seqs context], all whole contexts of the documents, in whole batches."""

    n_rows: int
    """Tokens of those contexts that are not special."""

    batch_size_seqs: int

    @property
    def n_tokens(self) -> int:
        return self.input_ids.numel()

    @property
    def hook_points(self) -> list[str]:
        """The four of the block; the deepest is the last."""
        kinds = ("resid_pre", "attn_out", "mlp_out", "resid_post")
        return [f"blocks.{self.block}.hook_{kind}" for kind in kinds]

    @property
    def modules(self) -> list[str]:
        """Those that SAELens takes the same activations from; its hooks see a module's output only."""
        layer = f"model.layers.{self.block}"
        return [f"model.layers.{self.block - 1}", f"{layer}.self_attn", f"{layer}.mlp", layer]

    @property
    def harvest_options(self) -> dict[str, Any]:
        return {
            "max_tokens": self.n_rows,
            "context_length": self.input_ids.shape[1],
            "batch_size_seqs": self.batch_size_seqs,
            "progress": False,
        }


# ---- model and text ----------------------------------------------------------------------------------------


def load_model(folder: Path | str, dtype: str = "float32") -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


def load_tokenizer(folder: Path | str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def token_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def read_documents() -> list[str]:
    with gzip.open(TEXT, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def write_documents(documents: list[str], path: Path) -> Path:
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=6) as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in documents)
    return path


def make_setting(
    name: str, tokenizer: Any, n_blocks: int, scratch: Path, args: argparse.Namespace
) -> Setting:
    """Documents until they fill the contexts asked for, as a file, as text and packed."""
    batch_tokens = args.batch * args.context
    n_seqs = max(1, (args.tokens or TOKENS[name]) // batch_tokens) * args.batch
    texts = read_documents()
    ids = token_ids(tokenizer, texts)
    documents, packed, length = [], [], 0
    for text, tokens in itertools.cycle(zip(texts, ids)):
        documents.append(text)
        packed.append((len(packed), tokens))
        length += len(tokens)
        if length >= n_seqs * args.context:
            break
    bos_id = tokenizer.bos_token_id
    contexts = pack(packed, args.context, bos_id, separator_id=bos_id, special_ids=tokenizer.all_special_ids)
    return Setting(
        folder=DATA / "models" / name,
        block=n_blocks // 2 if args.block is None else args.block,
        text=write_documents(documents, scratch / f"{name}.jsonl.gz"),
        documents=documents,
        input_ids=torch.from_numpy(contexts.input_ids[:n_seqs]).long(),
        n_rows=int(contexts.kept[:n_seqs].sum()),
        batch_size_seqs=args.batch,
    )


# ---- contestants: each gives the seconds of one pass over the text ----------------------------------


def forward(setting: Setting, compute_dtype: str, compiled: bool) -> Callable[[], float]:
    batches = setting.input_ids.split(setting.batch_size_seqs)
    decoder = truncated_decoder(setting, compute_dtype)
    if compiled:
        decoder = torch.compile(decoder)

    def seconds() -> float:
        with torch.inference_mode():
            started_s = time.perf_counter()
            for input_ids in batches:
                decoder(input_ids=input_ids, use_cache=False)
            return time.perf_counter() - started_s

    return seconds


def truncated_decoder(setting: Setting, compute_dtype: str) -> nn.Module:
    decoder = load_model(setting.folder, compute_dtype).model
    del decoder.layers[setting.block + 1 :]
    decoder.norm = nn.Identity()
    return decoder


def ours(
    setting: Setting, model: nn.Module, tokenizer: Any, hook_points: list[str], scratch: Path, **options: Any
) -> Callable[[], float]:
    def seconds() -> float:
        with tempfile.TemporaryDirectory(dir=scratch) as store:
            started_s = time.perf_counter()
            sl.harvest_activations(
                model,
                setting.text,
                hook_points,
                store,
                tokenizer=tokenizer,
                **setting.harvest_options,
                **options,
            )
            return time.perf_counter() - started_s

    return seconds


def saelens(setting: Setting, module: str, d_model: int, scratch: Path) -> Callable[[], float]:
    def seconds() -> float:
        with tempfile.TemporaryDirectory(dir=scratch) as store:
            runner = saelens_runner(setting, module, d_model, Path(store))
            started_s = time.perf_counter()
            runner.run()
            return time.perf_counter() - started_s

    return seconds


def saelens_runner(setting: Setting, module: str, d_model: int, store: Path) -> Any:
    """Loads the model anew, as it must: hooks are set on the modules for good."""
    from datasets import Dataset
    from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig

    bytes_per_token = 4 * d_model
    n_batches = len(setting.input_ids) // setting.batch_size_seqs
    batch_tokens = setting.batch_size_seqs * setting.input_ids.shape[1]
    fit = max(1, int(SAELENS_BUFFER_BYTES // (batch_tokens * bytes_per_token)))
    batches_in_buffer = next(n for n in range(min(fit, n_batches), 0, -1) if n_batches % n == 0)
    config = CacheActivationsRunnerConfig(
        dataset_path=str(setting.text),  # not read: the documents are given
        model_name=str(setting.folder),
        model_class_name="AutoModelForCausalLM",
        model_batch_size=setting.batch_size_seqs,
        hook_name=module,
        d_in=d_model,
        training_tokens=setting.n_tokens,
        context_size=setting.input_ids.shape[1],
        new_cached_activations_path=str(store / "store"),
        shuffle=False,
        dtype="float32",
        device="cpu",
        buffer_size_gb=(batches_in_buffer * batch_tokens + 0.5) * bytes_per_token / 1e9,
    )
    return CacheActivationsRunner(config, override_dataset=Dataset.from_dict({"text": setting.documents}))


# ---- what they compute ---------------------------------------------------------------------------


def check_saelens(setting: Setting, d_model: int, scratch: Path) -> None:
    """SAELens must make the same contexts, and activations that are those of the forward."""
    decoder = truncated_decoder(setting, "float32")
    with tempfile.TemporaryDirectory(dir=scratch) as store:
        module = setting.modules[-1]
        rows = saelens_runner(setting, module, d_model, Path(store)).run().with_format("torch")
        input_ids = torch.cat([batch["token_ids"] for batch in rows.iter(1024)])
        if not torch.equal(input_ids.long(), setting.input_ids):
            raise SystemExit(
                "expected SAELens' contexts equal to ours, got others: the contestants read different text"
            )
        with torch.inference_mode():
            acts = decoder(
                input_ids=setting.input_ids[: setting.batch_size_seqs], use_cache=False
            ).last_hidden_state
        error = relative_error(rows[: setting.batch_size_seqs][module].float(), acts)
    if not error <= SAME_ACTIVATIONS:
        raise SystemExit(
            f"expected SAELens' activations within {SAME_ACTIVATIONS:g} of the forward's, got {error:g}"
        )


def relative_error(acts: Tensor, reference: Tensor) -> float:
    return ((acts - reference).norm() / reference.norm()).item()


def difference(
    setting: Setting, reference: dict[str, Any], variant: dict[str, Any], scratch: Path
) -> dict[str, float]:
    """Between the rows of two harvests, stored in float32; beside it, what storing the first ones in bf16
    changes."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        stores = [
            sl.harvest_activations(
                dataset=setting.text,
                hook_points=setting.hook_points[-1],
                store=Path(folder, name),
                dtype="float32",
                **setting.harvest_options,
                **arguments,
            )
            for name, arguments in (("reference", reference), ("variant", variant))
        ]
        acts, others = (
            torch.cat([store.acts(shard) for shard in range(store.n_shards)]).double() for store in stores
        )
    variance = (acts - acts.mean(0)).square().sum().item()
    return {
        "rows": len(acts),
        "relative_l2_error": relative_error(others, acts),
        "fvu": (others - acts).square().sum().item() / variance,
        "fvu_of_bfloat16_storage": (acts.bfloat16().double() - acts).square().sum().item() / variance,
    }


def positions_of(setting: Setting, model: nn.Module, tokenizer: Any, scratch: Path) -> dict[str, int]:
    """Shards, and positions forwarded, of our harvest of one hook point."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        store = sl.harvest_activations(
            model,
            setting.text,
            setting.hook_points[-1],
            folder,
            tokenizer=tokenizer,
            **setting.harvest_options,
        )
        positions = sum(store.tokens(shard).input_ids.numel() for shard in range(store.n_shards))
        return {"shards": store.n_shards, "positions": positions, "rows": store.n_rows}


# ---- timing --------------------------------------------------------------------------------------


def time_rounds(
    contestants: dict[str, Callable[[], float]], sparse: set[str], rounds: int
) -> dict[str, dict[int, float]]:
    """Seconds of each contestant, by round; a round before the first is not kept.

    sparse: contestants that take part in every other round only, warmed up by another that does the same work
    """
    seconds: dict[str, dict[int, float]] = {name: {} for name in contestants}
    names = list(contestants)
    for round_ in range(-1, rounds):
        turn = round_ % len(names)
        for name in names[turn:] + names[:turn]:
            if name in sparse and round_ % 2:
                continue
            gc.collect()
            taken_s = contestants[name]()
            if round_ >= 0:
                seconds[name][round_] = taken_s
    return seconds


def ratios(numerator_s: dict[int, float], denominator_s: dict[int, float]) -> dict[str, float]:
    """Of the rounds that both took part in."""
    return spread(
        [numerator_s[round_] / denominator_s[round_] for round_ in numerator_s if round_ in denominator_s]
    )


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def bench(name: str, scratch: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Prints the lines of one model, returns its part of the summary."""
    folder = DATA / "models" / name
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    setting = make_setting(name, tokenizer, model.config.num_hidden_layers, scratch, args)
    d_model, deepest = model.config.hidden_size, setting.hook_points[-1:]
    if not 0 < setting.block < model.config.num_hidden_layers:
        raise SystemExit(
            f"expected a block from 1 to {model.config.num_hidden_layers - 1} of {name}, got "
            f"{setting.block}: SAELens takes "
            "what enters a block from the one before"
        )
    saelens_too, four_too = "saelens" in args.contestants, "four" in args.contestants
    if saelens_too:
        check_saelens(setting, d_model, scratch)

    contestants = {
        "forward": forward(setting, "float32", False),
        "ours": ours(setting, model, tokenizer, deepest, scratch),
    }
    if four_too:
        contestants["ours-4"] = ours(setting, model, tokenizer, setting.hook_points, scratch)
    saelens_runs = {"saelens": setting.modules[-1]} if saelens_too else {}
    if saelens_too and four_too:
        saelens_runs |= {f"saelens {module}": module for module in setting.modules[:-1]}
    contestants |= {run: saelens(setting, module, d_model, scratch) for run, module in saelens_runs.items()}

    facts = {"model": name, "tokens": setting.n_tokens}
    variant = "-".join(part for part in (args.compute_dtype, "compiled" if args.compile else None) if part)
    if variant:
        compute_dtype, options = args.compute_dtype or "float32", {"compile": True} if args.compile else {}
        other = load_model(folder, compute_dtype)
        contestants[f"forward-{variant}"] = forward(setting, compute_dtype, args.compile)
        contestants[f"ours-{variant}"] = ours(setting, other, tokenizer, deepest, scratch, **options)
        changed = difference(
            setting,
            {"model": model, "tokenizer": tokenizer},
            {"model": other, "tokenizer": tokenizer, **options},
            scratch,
        )
        print(json.dumps({"difference": f"ours-{variant} from ours", **facts, **changed}), flush=True)

    of_other_points = {run for run in saelens_runs if run != "saelens"}
    seconds = time_rounds(contestants, of_other_points, args.rounds)
    if of_other_points:
        together = set.intersection(*(set(seconds[run]) for run in saelens_runs))
        seconds["saelens-4"] = {
            round_: sum(seconds[run][round_] for run in saelens_runs) for round_ in sorted(together)
        }
    for contestant, by_round in seconds.items():
        values = list(by_round.values())
        line = {
            "contestant": contestant,
            **facts,
            "tokens_per_s": setting.n_tokens / statistics.median(values),
            "tokens_per_s_min": setting.n_tokens / max(values),
            "tokens_per_s_max": setting.n_tokens / min(values),
            "seconds": values,
        }
        if contestant == "ours":
            line |= positions_of(setting, model, tokenizer, scratch)
        print(json.dumps(line), flush=True)

    compared = {
        "share_of_forward": ("forward", "ours"),
        "speedup_over_saelens": ("saelens", "ours"),
        "four_points_over_deepest": ("ours-4", "ours"),
        "four_points_speedup_over_saelens": ("saelens-4", "ours-4"),
        f"forward_speedup_of_{variant}": ("forward", f"forward-{variant}"),
        f"speedup_of_{variant}": ("ours", f"ours-{variant}"),
        f"share_of_forward_of_{variant}": (f"forward-{variant}", f"ours-{variant}"),
    }
    return {"block": setting.block, "tokens": setting.n_tokens} | {
        ratio: ratios(seconds[a], seconds[b])
        for ratio, (a, b) in compared.items()
        if a in seconds and b in seconds
    }


# ---- memory --------------------------------------------------------------------------------------


def memory(name: str, scratch: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Peak memory at N and 10 N rows: prints a line for each, returns the model's part of the summary."""
    n_rows, texts = args.tokens or TOKENS[name], read_documents()
    tokenizer = load_tokenizer(DATA / "models" / name)
    per_pass = sum(map(len, token_ids(tokenizer, texts)))
    text = write_documents(texts * -(-10 * n_rows // per_pass), scratch / f"{name}.jsonl.gz")
    peaks = []
    for rows in (n_rows, 10 * n_rows):
        worker = [
            sys.executable,
            __file__,
            "--model",
            name,
            "--memory-worker",
            str(text),
            "--tokens",
            str(rows),
        ]
        worker += ["--threads", str(args.threads), "--batch", str(args.batch), "--context", str(args.context)]
        worker += [] if args.block is None else ["--block", str(args.block)]
        line = json.loads(subprocess.run(worker, check=True, stdout=subprocess.PIPE, text=True).stdout)
        print(json.dumps(line), flush=True)
        peaks.append(line["peak_bytes"])
    return {"rows": [n_rows, 10 * n_rows], "peak_bytes": peaks, "peak_growth": peaks[1] / peaks[0] - 1}


def memory_worker(name: str, scratch: Path, args: argparse.Namespace) -> None:
    from transformers import AutoConfig

    folder = DATA / "models" / name
    block = AutoConfig.from_pretrained(folder).num_hidden_layers // 2 if args.block is None else args.block
    before_bytes = peak_bytes()
    store = sl.harvest_activations(
        str(folder),
        args.memory_worker,
        f"blocks.{block}.hook_resid_post",
        scratch / "store",
        max_tokens=args.tokens,
        context_length=args.context,
        batch_size_seqs=args.batch,
        device="cpu",
        progress=False,
    )
    line = {"model": name, "rows": store.n_rows, "shards": store.n_shards, "peak_bytes": peak_bytes()}
    print(json.dumps(line | {"peak_bytes_before": before_bytes}))


def peak_bytes() -> int:
    """Greatest resident set of this process so far.

    On Linux from VmHWM: ru_maxrss of a child counts what its parent held when it started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", choices=list(TOKENS), default=list(TOKENS))
    parser.add_argument("--block", type=int, help="default: the middle one, 3 of 6 and 2 of 5")
    parser.add_argument("--tokens", type=int, help=f"a pass, rounded down to whole batches; default {TOKENS}")
    parser.add_argument("--context", type=int, default=256, help="tokens a context")
    parser.add_argument("--batch", type=int, default=32, help="contexts a forward")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--contestants",
        nargs="*",
        choices=["saelens", "four"],
        default=["saelens", "four"],
        help="beside forward and ours: SAELens; the four hook points of the block",
    )
    parser.add_argument(
        "--compute-dtype", choices=["bfloat16", "float16"], help="adds forward and ours in that type"
    )
    parser.add_argument("--compile", action="store_true", help="adds forward and ours compiled")
    parser.add_argument(
        "--memory", action="store_true", help="peak memory at N and 10 N rows instead of times"
    )
    parser.add_argument(
        "--memory-worker", metavar="TEXT", help="what --memory starts; harvests --tokens rows of a file"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scratch", help="folder for the stores; default: the system's for temporary files")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    if hasattr(os, "sched_setaffinity"):  # tokenizers and background threads count too
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        if args.memory_worker:
            memory_worker(args.model[0], Path(scratch), args)
            return
        measure = memory if args.memory else bench
        models = {name: measure(name, Path(scratch), args) for name in args.model}
    summary = {
        "summary": "harvest memory" if args.memory else "harvest",
        "models": models,
        "setting": vars(args),
        "command": " ".join(sys.argv),
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "versions": {
            name: version(name) for name in ("torch", "transformers", "tokenizers", "datasets", "sae-lens")
        },
    }
    print(json.dumps(summary), flush=True)


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
