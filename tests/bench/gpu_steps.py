"""What gpu.py runs, one step a process: `python gpu_steps.py STEP FOLDER [--dry-run]` prints JSON lines.

A line's "wrong" says what is not as it should be; an exception ends the step. With --dry-run everything is
tiny and on a CPU, Triton's kernels in its interpreter and gloo in place of nccl.
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from train_step import Start, build, superposed_batches, topk_start

import saelens_lite as sl
from saelens_lite.kernels import dispatch, self_check, torch_ops
from saelens_lite.sae.config import SAEConfig
from saelens_lite.train.config import TrainConfig
from saelens_lite.train.kinds.choice import kind_class
from saelens_lite.train.optimise.initial import initial_sae
from saelens_lite.train.optimise.trainer import Trainer

DRY = "--dry-run" in sys.argv
DEVICE = "cpu" if DRY else "cuda"
PRECISIONS = {"float32": "highest", "tf32": "high", "bf16": "medium", "autocast": "high"}
TOPK_KINDS = ("topk", "batchtopk", "matryoshka")
KINDS = (*TOPK_KINDS, "relu", "gated", "jumprelu")


def say(**result: object) -> None:
    print(json.dumps(result), flush=True)


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def on_device(device: str | None = None) -> torch.Generator:
    torch.set_default_device(device or DEVICE)
    return torch.Generator(device or DEVICE).manual_seed(0)


def environment(_: Path) -> None:
    """What is there: device, versions, and what Triton's launcher needs, a C compiler and Python.h."""
    import transformers
    import triton

    python_h = Path(sysconfig.get_paths()["include"], "Python.h")
    facts = {
        "torch": torch.__version__,
        "triton": triton.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "compiler": shutil.which("gcc") or shutil.which("cc") or shutil.which("clang"),
        "python_h": python_h.exists(),
        "matmul_precision": torch.get_float32_matmul_precision(),
    }
    if DEVICE == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "gpu": properties.name,
            "gpus": torch.cuda.device_count(),
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gib": properties.total_memory / 2**30,
            "cuda": torch.version.cuda,
        }
    facts["compiler"] = bool(facts["compiler"])
    say(**facts)
    if not (facts["compiler"] and facts["python_h"]):
        say(note="Triton cannot compile its launcher here: stock torch will be used, and a warning says so")


def kernels(_: Path) -> None:
    """Every kernel, by dtype and precision, against stock torch on the whole call; each passed its own check
    on a slice in float64 before. Odd sizes, ragged and nested pairs among them."""
    gen = on_device()
    os.environ["SAELENS_LITE_KERNELS"] = "triton"
    shapes = [(5, 128, 24, 1)] if DRY else [(4096, 32_768, 768, 32), (333, 4128, 100, 7)]
    for (B, n, d, k), dtype in itertools.product(shapes, (torch.float32, torch.bfloat16)):
        x, b = (torch.randn(*shape, generator=gen).to(dtype) for shape in ((B, d), (d,)))
        W = torch.nn.functional.normalize(torch.randn(n, d, generator=gen), dim=1).to(dtype)
        values = torch.rand(B, k, generator=gen).to(dtype)
        first, step = torch.randint(n, (B, 1), generator=gen), torch.arange(k) * (n // k)
        uniform = values, (first + step) % n
        for form, nested in (("uniform", 1), ("ragged", 1), ("nested", 2)):
            v, i = uniform if form == "uniform" else (part.reshape(-1) for part in uniform)
            offsets = None
            if form != "uniform":
                cuts = torch.randint(B * k + 1, (B * nested - 1,), generator=gen).sort().values
                offsets = torch.cat([cuts.new_zeros(1), cuts, cuts.new_full((1,), B * k)])
                i = torch.arange(B * k) % n  # no bag holds a latent twice
            got = dispatch.token_pass(x, v, i, W, b, 0.5, None, offsets)
            want = torch_ops.token_pass(x.float(), v.float(), i, W.float(), b.float(), 0.5, None, offsets)
            compare("token_pass", form, dtype, (B, n, d), got, want)
            grads = got.recons_grad, x, v.reshape(-1), got.pair_grads, i.reshape(-1), W
            got = dispatch.latent_pass(*grads, None, offsets)
            wide = [t.float() if t.is_floating_point() else t for t in grads]
            compare(
                "latent_pass",
                form,
                dtype,
                (B, n, d),
                got[:3],
                torch_ops.latent_pass(*wide, None, offsets)[:3],
            )
        bias = torch.zeros(n, dtype=dtype)
        precisions = PRECISIONS if dtype == torch.float32 else {"bf16": "medium"}
        for name, precision in precisions.items():
            if name == "autocast":
                continue
            torch.set_float32_matmul_precision(precision)
            few = dispatch.screened_topk(x, W, bias, k), dispatch.screened_batch_topk(x, W, bias, B * k, 0.0)
            torch.set_float32_matmul_precision("highest")
            exact = (x.float() @ W.float().T).double()
            for kernel, found, right in (
                ("screened_topk", few[0], exact.topk(k).values.sort().values),
                ("screened_batch_topk", few[1], exact.relu().view(-1).topk(B * k).values.sort().values),
            ):
                if found is not None:
                    compare(kernel, name, dtype, (B, n, d), [found[0].sort().values], [right], name)
        torch.set_float32_matmul_precision("highest")


def compare(
    kernel: str, form: str, dtype: torch.dtype, shape: tuple[int, ...], got, want, precision: str = "float32"
) -> None:
    off = max(
        float((g.double() - w.double()).abs().max() / w.double().abs().max())
        for g, w in zip(got, want, strict=True)
    )
    allowed = {"float32": 1e-4, "tf32": 5e-3, "bf16": 4e-2}[precision if dtype == torch.float32 else "bf16"]
    wrong = None if off <= allowed else f"{kernel} {form} {dtype} {shape}: off by {off:.2g} of the largest"
    say(kernel=kernel, form=form, dtype=str(dtype)[6:], shape=str(shape), off=off, wrong=wrong)


def trained_fvu(kind: str, device: str, n_steps: int, shape: tuple[int, int, int, int]) -> float:
    """fvu on other rows after n_steps from one seed. shape: rows, latents, d, k"""
    B, n, d, k = shape
    torch.set_default_device("cpu")
    batches = superposed_batches(9, B, d, torch.Generator().manual_seed(0))
    batches, held_out = [batch.to(device) for batch in batches[:8]], batches[8].to(device)
    fields = (
        {"k": k}
        if kind in TOPK_KINDS
        else {"l1_coeff": 1.0}
        if kind != "jumprelu"
        else {"target_l0": float(k)}
    )
    config = TrainConfig(kind=kind, batch_size_rows=B, lr=1e-3, **fields)
    sae_kind = kind_class(kind).sae_kind
    sae = initial_sae(
        SAEConfig(d_model=d, d_sae=n, kind=sae_kind, k=k if sae_kind == "topk" else None), batches[0].cpu(), 0
    )
    trainer = Trainer(sae.to(device), config, n_steps=n_steps)
    for step in range(n_steps):
        trainer.update(batches[step % 8])
    with torch.no_grad():
        error = (trainer.sae(held_out).recons - held_out).square().sum()
    return float(error / (held_out - held_out.mean(0)).square().sum())


def kinds(_: Path) -> None:
    """Every kind trained from one seed, here and on the CPU: the same fvu."""
    shape, n_steps = ((8, 128, 16, 1), 3) if DRY else ((2048, 4096, 256, 16), 200)
    for kind in KINDS:
        begun = time.perf_counter()
        here = trained_fvu(kind, DEVICE, n_steps, shape)
        seconds = time.perf_counter() - begun
        os.environ["SAELENS_LITE_KERNELS"] = "torch" if DRY else "cpu"
        on_cpu = trained_fvu(kind, "cpu", n_steps, shape)
        del os.environ["SAELENS_LITE_KERNELS"]
        off = abs(here - on_cpu) / on_cpu
        wrong = None if off < 0.02 else f"{kind}: fvu {here:.4f}, on the CPU {on_cpu:.4f}"
        wrong = wrong or (self_check.failure and f"{kind}: {self_check.failure}")
        say(kind=kind, fvu=here, fvu_on_cpu=on_cpu, seconds=seconds, wrong=wrong)


SETTINGS = [(16, 128, 1)] if DRY else [(768, 32_768, 32), (4096, 131_072, 64)]
ROWS = (8,) if DRY else (16_384, 65_536)


def median_ms(step: Callable[[Tensor], object], batches: list[Tensor], n_steps: int, warm_up: int) -> float:
    """Milliseconds of a step on the device; the host runs ahead of it where the step lets it."""
    if DEVICE == "cpu":
        begun = time.perf_counter()
        for i in range(n_steps):
            step(batches[i % len(batches)])
        return 1e3 * (time.perf_counter() - begun) / n_steps
    for i in range(warm_up):
        step(batches[i % len(batches)])
    events = [torch.cuda.Event(enable_timing=True) for _ in range(n_steps + 1)]
    events[0].record()
    for i in range(n_steps):
        step(batches[i % len(batches)])
        events[i + 1].record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(events))


def timed(contestants: list[str], d: int, d_sae: int, k: int, rows: int) -> None:
    """Milliseconds of a step of each `side-kind@precision`, beside the bf16 encoder product.

    `+gathers` gathers in bf16, `+levels` selects on two levels.
    """
    from saelens_lite.kernels import triton_select

    gen = on_device()
    args = argparse.Namespace(d=d, d_sae=d_sae, k=k, batch=rows)
    batches = superposed_batches(2, rows, d, gen)
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, d, generator=gen), dim=1)
    start = topk_start(W_dec, batches, k, 0.0)
    low = [batch.bfloat16() for batch in batches]
    limit = min(_gemm_ms(start, low, layout) for layout in ("latent-major", "d_model-major"))
    setting = {"d": d, "d_sae": d_sae, "k": k, "rows": rows}
    say(
        **setting,
        contestant="encoder product, bf16",
        step_ms=limit,
        tokens_per_s=1e3 * rows / limit,
        share=1.0,
    )
    steps = 2 if DRY else 10 if d_sae > 100_000 else 20
    for contestant in contestants:
        side, _, how = contestant.partition("@")
        precision, *more = how.split("+")
        args.gather_dtype = "bfloat16" if "gathers" in more else "float32"
        triton_select._TWO_LEVELS = "levels" in more
        torch.set_float32_matmul_precision(PRECISIONS[precision])
        try:
            starts = {"topk": start, "l1": start}
            built = build(side, starts, args, autocast=precision == "autocast")
            ms = median_ms(built.step, batches, steps, 3)
        except (ImportError, torch.OutOfMemoryError) as error:
            say(
                **setting, contestant=contestant, note=f"not timed: {type(error).__name__}: {str(error)[:80]}"
            )
        else:
            say(**setting, contestant=contestant, step_ms=ms, tokens_per_s=1e3 * rows / ms, share=limit / ms)
        built, triton_select._TWO_LEVELS = None, False
        gc.collect()
        torch.cuda.empty_cache()
    if self_check.failure:
        say(wrong=self_check.failure)


def _gemm_ms(start: Start, batches: list[Tensor], layout: str) -> float:
    weight = start.W_dec.bfloat16().T if layout == "latent-major" else start.W_dec.bfloat16().T.contiguous()
    pre_acts = weight.new_empty(len(batches[0]), weight.shape[1])
    return median_ms(functools.partial(torch.mm, mat2=weight, out=pre_acts), batches, 2 if DRY else 10, 2)


def step_times(_: Path) -> None:
    """Ours at both settings: bf16 of four kinds at 16k and 65k rows, topk with bf16 gathers and selection on
    two levels too; tf32 and float32 of topk at 16k."""
    for (d, d_sae, k), rows in itertools.product(SETTINGS, ROWS):
        contestants = [f"ours-topk@bf16{more}" for more in ("", "+gathers", "+gathers+levels")]
        contestants += [f"ours-{kind}@bf16" for kind in (*TOPK_KINDS[1:], "relu")]
        if rows == ROWS[0]:
            contestants += ["ours-topk@tf32", "ours-topk@float32"]
        timed(contestants[2:4] if DRY else contestants, d, d_sae, k, rows)


def peers(_: Path) -> None:
    """SAELens and sparsify at 16k rows, where they can be imported."""
    there = {
        "saelens-topk@autocast": "sae_lens",
        "saelens-topk@float32": "sae_lens",
        "sparsify-topk@tf32": "sparsify",
    }
    found = []
    for contestant, module in there.items():
        try:
            __import__(module)
        except ImportError:
            say(contestant=contestant, note=f"skipped: {module} is not installed")
        else:
            found.append(contestant)
    for d, d_sae, k in SETTINGS if found else ():
        timed(["ours-topk@bf16", *found], d, d_sae, k, ROWS[0])


def planted_store(folder: Path, rows: int, d: int) -> sl.ActivationStore:
    path = folder / "store"
    if path.exists():
        return sl.ActivationStore(path)
    torch.set_default_device("cpu")
    acts = torch.cat(superposed_batches(2, rows // 2, d, torch.Generator().manual_seed(0)))
    return sl.ActivationStore.from_arrays(path, acts, rows_per_shard=rows // 4)


def training(folder: Path, output: str, kill_at: int | None = None) -> sl.SparseAutoencoder:
    """A run of the store, killed after that step."""
    from saelens_lite.train.runs.run import Run

    rows, d, n_steps = (512, 16, 3) if DRY else (65_536, 256, 60)
    store = planted_store(folder, rows, d)
    if kill_at is not None:
        after = Run.after_step

        def dying(run: Run, stats) -> None:
            after(run, stats)
            if run.steps_done == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        Run.after_step = dying
    return sl.train_sae(
        store, kind="topk", k=1 if DRY else 16, d_sae=128 if DRY else 4096, lr=1e-3, n_steps=n_steps,
        batch_size_rows=8 if DRY else 2048, buffer_rows=64 if DRY else 16_384, device=DEVICE, progress=False,
        checkpoint_every_steps=1 if DRY else 20, output=str(folder / output),
    )  # fmt: skip


def resume(folder: Path) -> None:
    """A run killed between checkpoints ends with the weights of one that was not, bit for bit."""
    shutil.rmtree(folder / "resume", ignore_errors=True)
    (folder / "resume").mkdir()
    whole = training(folder / "resume", "whole")
    again = [sys.executable, __file__, "killed", str(folder / "resume"), *["--dry-run"] * DRY]
    died = subprocess.run(again, env=os.environ)
    resumed = training(folder / "resume", "killed")
    equal = all(torch.equal(p, resumed.get_parameter(name)) for name, p in whole.named_parameters())
    wrong = (
        None if died.returncode == -signal.SIGKILL else f"expected a killed process, got {died.returncode}"
    )
    say(bit_equal=equal, wrong=wrong or (None if equal else "resumed weights are not those of the whole run"))


def killed(folder: Path) -> None:
    training(folder, "killed", kill_at=2 if DRY else 33)


def big_model(dtype: torch.dtype = torch.bfloat16):
    """Random weights in the shape of Llama 3.2 1B, whose vocabulary is that of the embedded tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from saelens_lite.demo.embedded import load_model

    _, tokenizer = load_model()
    shape = (
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
        if DRY
        else {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
        }
    )
    config = LlamaConfig(**shape, num_key_value_heads=4 if DRY else 8, vocab_size=len(tokenizer))
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = LlamaForCausalLM._from_config(config, dtype=dtype)
    return model.eval(), tokenizer


def documents(n: int) -> list[str]:
    from saelens_lite.demo.corpus import stdlib_documents

    return [document["text"][:20_000] for document in itertools.islice(stdlib_documents(), n)]


def harvest(folder: Path) -> None:
    """A model of Llama 1B's shape in bf16, half of its blocks: rows against float32 on the CPU, and tokens a
    second beside the bare forward of the same blocks."""
    shutil.rmtree(folder / "harvest", ignore_errors=True)
    model, tokenizer = big_model()
    layer, length, batch = model.config.num_hidden_layers // 2 - 1, 32 if DRY else 256, 4 if DRY else 64
    n_tokens, point = (1000, 300_000)[not DRY], f"blocks.{layer}.hook_resid_post"
    options = {"context_length": length, "batch_size_seqs": batch, "progress": False, "tokenizer": tokenizer}
    begun = time.perf_counter()
    store = sl.harvest_activations(
        model, documents(300), point, folder / "harvest", max_tokens=n_tokens, **options
    )
    seconds = time.perf_counter() - begun

    ids = torch.randint(len(tokenizer), (batch, length), device=DEVICE)
    blocks = model.model.layers
    model.model.layers = blocks[: layer + 1]

    @torch.no_grad()
    def forward(_: Tensor) -> None:
        model.model(ids, use_cache=False)

    ms = median_ms(forward, [ids], 2 if DRY else 8, 2)
    bare, ours = 1e3 * batch * length / ms, n_tokens / seconds
    model.model.layers = blocks
    off = rows_off(model, store, point, layer)
    wrong = None if off < 0.05 else f"rows are off by {off:.2g} of their norm"
    say(
        tokens=n_tokens,
        tokens_per_s=ours,
        bare_forward_tokens_per_s=bare,
        share=ours / bare,
        off=off,
        wrong=wrong,
    )


@torch.no_grad()
def rows_off(model, store: sl.ActivationStore, point: str, layer: int) -> float:
    """‖row − row in float32 on the CPU‖ / ‖the latter‖, mean over the store's first context."""
    tokens = store.tokens(0)
    kept = tokens.kept[0].bool()
    torch.set_default_device("cpu")
    hidden = model.float().cpu().model(tokens.input_ids[:1].long(), output_hidden_states=True).hidden_states
    exact = hidden[layer + 1][0][kept]
    rows = store.acts(0, point)[: len(exact)].float()
    return float(((rows - exact).norm(dim=1) / exact.norm(dim=1)).mean())


def analysis(folder: Path) -> None:
    """Index and evaluation of an SAE on the embedded model: the CPU's numbers."""
    from saelens_lite.analyze.index.max_activating import index_latents
    from saelens_lite.demo.embedded import load_model

    shutil.rmtree(folder / "analysis", ignore_errors=True)
    model, tokenizer = load_model()
    n_tokens = 400 if DRY else 60_000
    size = {"k": 1, "d_sae": 128, "n_steps": 3, "batch_size_rows": 8}
    size = size if DRY else {"k": 8, "d_sae": 1024, "n_steps": 60, "batch_size_rows": 2048}
    store = sl.harvest_activations(
        model, documents(60), "blocks.2.hook_resid_post", folder / "analysis" / "store", max_tokens=n_tokens,
        context_length=64, tokenizer=tokenizer, progress=False,
    )  # fmt: skip
    sae = sl.train_sae(
        store, kind="topk", device="cpu", progress=False, output=str(folder / "analysis" / "sae"), **size
    )
    found = []
    for device in ("cpu", DEVICE):
        sae, model = sae.to(device), model.to(device)
        begun = time.perf_counter()
        row = sl.evaluate_sae(sae, store, model, max_tokens=n_tokens // 2, held_out=False).row("trained")
        counts = index_latents(sae, store, 5).counts
        found.append(
            ({"fvu": row.fvu, "l0": row.l0, "ce": row.ce, "delta_ce": row.delta_ce}, counts.double())
        )
        say(device=device, **found[-1][0], firings=int(counts.sum()), seconds=time.perf_counter() - begun)
    (on_cpu, counts), (here, others) = found
    off = {name: abs(here[name] - on_cpu[name]) / max(abs(on_cpu[name]), 1e-2) for name in on_cpu}
    moved = float((counts - others).abs().sum() / counts.sum())
    wrong = [f"{name} is off by {value:.2g}" for name, value in off.items() if value > 1e-3]
    wrong += [f"{moved:.2g} of the firings fall on other latents"] if moved > 1e-3 else []
    say(largest_difference=max(off.values()), firings_elsewhere=moved, wrong="; ".join(wrong) or None)


def generate(_: Path) -> None:
    """Steered beside plain `generate`, tokens a second; an edit that changes nothing changes no token."""
    model, tokenizer = big_model()
    torch.set_default_device("cpu")
    d, layer = model.config.hidden_size, model.config.num_hidden_layers // 2
    gen = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(4 * d, d, generator=gen), dim=1)
    sae = sl.SparseAutoencoder(SAEConfig(d_model=d, d_sae=4 * d, kind="topk", k=4))
    with torch.no_grad():
        sae.W_dec.copy_(rows)
        sae.W_enc.copy_(rows.T)
    sae, point = sae.to(DEVICE), f"blocks.{layer}.hook_resid_post"
    n = 4 if DRY else 64
    ids = torch.randint(len(tokenizer), (2 if DRY else 8, 16), generator=gen).to(DEVICE)
    options = {"max_new_tokens": n, "min_new_tokens": n, "do_sample": False, "pad_token_id": 0}

    def steered(strength: float) -> Tensor:
        with sl.steer(model, sae, 3, strength, hook_point=point):
            return model.generate(ids, **options)

    plain, unmoved = model.generate(ids, **options), steered(0.0)
    wrong = None if torch.equal(plain, unmoved) else "steering by 0 changes tokens"
    times: dict[str, list[float]] = {"plain": [], "steered": []}
    for _ in range(1 if DRY else 3):
        for name, call in (
            ("plain", lambda: model.generate(ids, **options)),
            ("steered", lambda: steered(2.0)),
        ):
            synchronize()
            begun = time.perf_counter()
            call()
            synchronize()
            times[name].append(time.perf_counter() - begun)
    speed = {name: ids.shape[0] * n / min(seconds) for name, seconds in times.items()}
    say(tokens_per_s=speed["plain"], steered_tokens_per_s=speed["steered"],
        share=speed["steered"] / speed["plain"], wrong=wrong)  # fmt: skip


def memory(_: Path) -> None:
    """Peak memory of a step at the large setting, beside 16 bytes a parameter (weights, gradients, Adam)."""
    gen = on_device()
    d, d_sae, k = SETTINGS[-1]
    rows = ROWS[0]
    batches = superposed_batches(1, rows, d, gen)
    start = topk_start(
        torch.nn.functional.normalize(torch.randn(d_sae, d, generator=gen), dim=1), batches, k, 0.0
    )
    built = build("ours-topk", {"topk": start}, argparse.Namespace(d=d, d_sae=d_sae, k=k, batch=rows))
    start = None
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    torch.set_float32_matmul_precision("medium")
    for _ in range(2):
        built.step(batches[0])
    synchronize()
    floor = 16 * (2 * d_sae * d + d_sae + d)
    peak = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else None
    say(d=d, d_sae=d_sae, rows=rows, floor_gib=floor / 2**30, peak_gib=peak and peak / 2**30,
        ratio=peak and peak / floor)  # fmt: skip


def processes(folder: Path) -> None:
    """torchrun with one process, and with two where there are two GPUs: nccl (gloo on a CPU)."""
    shutil.rmtree(folder / "processes", ignore_errors=True)
    (folder / "processes").mkdir()
    training(folder / "processes", "alone")
    alone = sl.SparseAutoencoder.load(folder / "processes" / "alone")
    for n in (1, 2):
        if DEVICE == "cuda" and torch.cuda.device_count() < n:
            say(processes=n, note=f"skipped: {torch.cuda.device_count()} GPU here")
            continue
        name = f"by_{n}"
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={n}", "--standalone"]
        command += [__file__, "one_of_several", str(folder / "processes" / name), *["--dry-run"] * DRY]
        begun = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            say(processes=n, wrong=f"{n} processes: exit {done.returncode}: {done.stderr.strip()[-300:]}")
            continue
        together = sl.SparseAutoencoder.load(folder / "processes" / name)
        off = float((together.W_dec - alone.W_dec).abs().max())
        wrong = None if off < 1e-2 else f"{n} processes: decoder rows differ by {off:.2g}"
        say(processes=n, off=off, seconds=time.perf_counter() - begun, wrong=wrong)


def one_of_several(output: Path) -> None:
    rank = int(os.environ["LOCAL_RANK"])
    if DEVICE == "cuda":
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group("gloo" if DRY else "cpu:gloo,cuda:nccl")
    training(output.parent, output.name)
    torch.distributed.destroy_process_group()


STEPS = (
    environment,
    kernels,
    kinds,
    step_times,
    resume,
    harvest,
    analysis,
    generate,
    memory,
    processes,
    peers,
)
CHILDREN = (killed, one_of_several)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=[step.__name__ for step in (*STEPS, *CHILDREN)])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--break", action="store_true", dest="broken")
    args = parser.parse_args()
    if not DRY and not torch.cuda.is_available():
        raise SystemExit(
            "expected a CUDA GPU, found none: run it where torch.cuda.is_available(), or --dry-run"
        )
    if args.broken:
        raise SystemExit("broken on purpose (--break-step)")
    next(step for step in (*STEPS, *CHILDREN) if step.__name__ == args.step)(args.folder)


if __name__ == "__main__":
    main()
