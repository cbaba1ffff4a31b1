"""Tokens a second of one training step on a GPU: ours, SAELens 6.54.12, sparsify 1.3.3, the bare bf16 encoder
GEMM.

    .venv-peers/bin/python tests/bench/gpu_step.py                      # both settings below
    .venv/bin/python tests/bench/gpu_step.py --settings 768,32768,32    # ours alone where there are no peers

Settings are d_model,d_sae,k. Contestants are those of train_step.py, built on the GPU, one after another so
that each has the memory to itself; its steps are timed by CUDA events, untimed ones first, and the median
counts. What follows the @ sets torch.set_float32_matmul_precision: float32, tf32, bf16 (of our encoder;
torch's own products stay tf32). SAELens in autocast multiplies in bf16, as sparsify does by itself. First
losses must agree to 2 %, as far as precisions may take them apart. Prints one JSON line a contestant; one
that does not fit or cannot be imported has a line that says so. Not a test.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import platform
import statistics
from collections.abc import Callable

import torch
from torch import Tensor
from train_step import Contestant, Start, build, superposed_batches, topk_start

DEVICE = "cuda"
PRECISIONS = {"float32": "highest", "tf32": "high", "bf16": "medium", "autocast": "high"}
CONTESTANTS = (
    "ours-topk@bf16",
    "ours-topk@tf32",
    "ours-topk@float32",
    "ours-batchtopk@bf16",
    "ours-matryoshka@bf16",
    "sparsify-topk@tf32",
    "saelens-topk@autocast",
    "saelens-topk@float32",
)
FIRST_LOSS_TOLERANCE = 0.02


def gemm(layout: str, start: Start, batch_size_rows: int) -> Callable[[Tensor], Tensor]:
    """acts @ W_enc in bf16 into a ready buffer."""
    weight = start.W_dec.bfloat16().T if layout == "latent-major" else start.W_dec.bfloat16().T.contiguous()
    pre_acts = weight.new_empty(batch_size_rows, weight.shape[1])
    return lambda acts: torch.mm(acts, weight, out=pre_acts)


def median_ms(
    step: Callable[[Tensor], Tensor], batches: list[Tensor], n_steps: int, warm_up_steps: int
) -> float:
    """Milliseconds of a step on the device; the host runs ahead of it where the step lets it."""
    for i in range(warm_up_steps):
        step(batches[i % len(batches)])
    events = [torch.cuda.Event(enable_timing=True) for _ in range(n_steps + 1)]
    events[0].record()
    for i in range(n_steps):
        step(batches[i % len(batches)])
        events[i + 1].record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(events))


def time_contestant(
    name: str, start: Start, batches: list[Tensor], args: argparse.Namespace
) -> dict[str, float | None]:
    """first_fvu, step_ms and tokens_per_s of train_step.py's contestant `side-kind`, at the precision behind
    its @."""
    side, _, precision = name.partition("@")
    torch.set_float32_matmul_precision(PRECISIONS[precision])
    contestant: Contestant = build(side, {"topk": start}, args, autocast=precision == "autocast")
    assert contestant.fvu is not None
    first_fvu = contestant.fvu(contestant.step(batches[0]), batches[0])
    step_ms = median_ms(contestant.step, batches, args.steps, args.warm_up_steps)
    return {"first_fvu": first_fvu, "step_ms": step_ms, "tokens_per_s": 1e3 * args.batch / step_ms}


def run_setting(args: argparse.Namespace) -> None:
    """Print a line a contestant. args: those of the command line, and d, d_sae and k of the setting."""
    generator = torch.Generator(DEVICE).manual_seed(args.seed)
    batches = superposed_batches(4, args.batch, args.d, generator)
    W_dec = torch.nn.functional.normalize(torch.randn(args.d_sae, args.d, generator=generator), dim=1)
    start = topk_start(W_dec, batches, args.k, args.dead_share)
    setting = {
        "d": args.d,
        "d_sae": args.d_sae,
        "k": args.k,
        "batch": args.batch,
        "dead_share": args.dead_share,
    }

    low, layouts = [acts.bfloat16() for acts in batches], ("latent-major", "d_model-major")
    gemm_ms = min(
        median_ms(gemm(layout, start, args.batch), low, args.steps, args.warm_up_steps) for layout in layouts
    )
    print(json.dumps({"contestant": "gemm@bf16", **setting, "step_ms": gemm_ms}), flush=True)
    first_fvu = {}
    for name in args.contestants:
        try:
            found = time_contestant(name, start, batches, args)
        except (ImportError, torch.OutOfMemoryError) as error:
            found = {"not_timed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
        else:
            found["share_of_bf16_gemm_limit"] = gemm_ms / found["step_ms"]
            if "-topk@" in name:
                first_fvu[name] = found["first_fvu"]
        print(json.dumps({"contestant": name, **setting, **found}), flush=True)
        gc.collect()
        torch.cuda.empty_cache()
    if first_fvu and max(first_fvu.values()) > (1 + FIRST_LOSS_TOLERANCE) * min(first_fvu.values()):
        raise SystemExit(
            f"expected first losses equal to {FIRST_LOSS_TOLERANCE:g}, got fvu {first_fvu}: "
            "the contestants do not do the same work"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--settings", nargs="+", default=["768,32768,32", "4096,131072,64"], help="d_model,d_sae,k each"
    )
    parser.add_argument("--batch", type=int, default=16_384, help="rows a step")
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each contestant")
    parser.add_argument("--warm-up-steps", type=int, default=5, help="untimed ones before them")
    parser.add_argument(
        "--dead-share",
        type=float,
        default=0.0,
        help="share of latents dead at the start, AuxK working on them",
    )
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("gpu_step expected a CUDA GPU, found none: run it where torch.cuda.is_available()")
    torch.set_default_device(DEVICE)
    for setting in args.settings:
        d, d_sae, k = map(int, setting.split(","))
        run_setting(argparse.Namespace(**vars(args), d=d, d_sae=d_sae, k=k))
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()}
    print(json.dumps({"summary": "gpu_step", "gpu": torch.cuda.get_device_name(), **versions}), flush=True)


if __name__ == "__main__":
    main()
