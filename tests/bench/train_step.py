"""Seconds of one training step: ours, SAELens 6.54.12, sparsify 1.3.3, the bare encoder GEMM.

    .venv-peers/bin/python tests/bench/train_step.py      # d 512, d_sae 8192, k 32, batch 4096, 2 threads
    .venv-peers/bin/python tests/bench/train_step.py --d 192 --d-sae 3072 --batch 2048 \\
        --contestants ours-topk saelens-topk

All interleaved in one process of the peers' venv (`make peers`), our package imported from this checkout.
Prints one JSON line a contestant, then a summary line.
Every contestant's step holds its loss, AuxK (the TopK kinds), dead tracking,
decoder constraint, gradient clipping where its trainer clips, and Adam.
Contestants of a kind start from
equal weights on equal batches; their first reconstruction losses, brought to one definition (fvu = Σ‖x − x̂‖²
/ Σ‖x − x̄‖² of the batch), must agree to 1e-4 or nothing is timed.
In each round every contestant takes a few
steps, the order turning by one each round. A round's figure is the median of its steps, a contestant's the
median of its rounds, with their least and greatest beside it.
Not a test: nothing asserts a speed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the checkout is not installed in the peers' venv

LR = 1e-5
"""Small, so that what the start sets up (who is dead, how sparse L1 is) still holds after the last round."""
L1_COEFF = 5.0
THRESHOLD, BANDWIDTH = 0.01, 0.05
"""SAELens' defaults for jumprelu, given to both sides."""
LONG_SILENT_TOKENS = 10_000_000
FIRST_LOSS_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Start:
    """What all contestants of a kind begin with. W_enc is the decoder's transpose."""

    W_dec: Tensor
    """float32[d_sae d_model], unit rows."""

    b_enc: Tensor
    """float32[d_sae]; lowered on the latents meant to be dead."""

    b_dec: Tensor
    """float32[d_model], the mean of the first batch."""

    dead: Tensor
    """bool[d_sae]: latents that are long silent at the start and fire on none of the batches."""


@dataclass(frozen=True)
class Contestant:
    """One step under the clock, and how its loss and its dead latents are read outside it."""

    name: str
    step: Callable[[Tensor], Tensor]
    """acts float32[batch d_model] -> its own reconstruction loss, a scalar tensor."""

    fvu: Callable[[Tensor, Tensor], float] | None
    """(that loss, acts) -> fvu of the batch; None for the bare GEMM."""

    n_dead: Callable[[], int] | None = None


# ---- data and start ------------------------------------------------------------------------------


def superposed_batches(
    n_batches: int, batch_size_rows: int, d_model: int, generator: torch.Generator
) -> list[Tensor]:
    """Batches of sparse Zipf-distributed sums of 16,384 random directions, mean squared norm d_model."""
    n_directions, n_active = 16_384, 24
    directions = torch.nn.functional.normalize(torch.randn(n_directions, d_model, generator=generator), dim=1)
    frequency = 1 / (torch.arange(n_directions) + 10.0) ** 0.8
    offset = 0.5 * torch.nn.functional.normalize(torch.randn(d_model, generator=generator), dim=0)
    batches = []
    for _ in range(n_batches):
        chosen = torch.multinomial(
            frequency, batch_size_rows * n_active, replacement=True, generator=generator
        ).view(batch_size_rows, n_active)
        strength = -torch.rand(batch_size_rows, n_active, generator=generator).clamp(min=1e-6).log()
        acts = torch.nn.functional.embedding_bag(chosen, directions, per_sample_weights=strength, mode="sum")
        batches.append(acts + offset + 0.05 * torch.randn(batch_size_rows, d_model, generator=generator))
    scale = (d_model / torch.stack([acts.square().sum(1).mean() for acts in batches]).mean()).sqrt()
    return [acts * scale for acts in batches]


def topk_start(W_dec: Tensor, batches: list[Tensor], k: int, dead_share: float) -> Start:
    """The first `dead_share` of the latents get a bias that keeps them just below every token's k-th."""
    d_sae = W_dec.shape[0]
    b_dec = batches[0].mean(0)
    n_dead = round(dead_share * d_sae)
    if k > d_sae - n_dead:
        raise SystemExit(f"expected at least k={k} living latents, got {d_sae - n_dead}: lower --dead-share")
    b_enc = torch.zeros(d_sae)
    dead = torch.arange(d_sae) < n_dead
    if n_dead:
        greatest_dead, least_kth = -torch.inf, torch.inf
        for acts in batches:
            pre_acts = (acts - b_dec) @ W_dec.T
            greatest_dead = max(greatest_dead, pre_acts[:, dead].max().item())
            least_kth = min(least_kth, pre_acts[:, ~dead].topk(k, dim=1).values[:, -1].min().item())
        b_enc[dead] = least_kth - greatest_dead - 0.5
    return Start(W_dec=W_dec, b_enc=b_enc, b_dec=b_dec, dead=dead)


def relu_start(W_dec: Tensor, batches: list[Tensor], start_l0: float | None) -> Start:
    """No bias (about half of the latents fire), or one bias for all that gives an l0 of about `start_l0`."""
    d_sae = W_dec.shape[0]
    b_dec = batches[0].mean(0)
    b_enc = torch.zeros(d_sae)
    if start_l0 is not None:
        pre_acts = (batches[0][:512] - b_dec) @ W_dec.T
        b_enc -= pre_acts.flatten().topk(round(start_l0 * len(pre_acts))).values[-1]
    return Start(W_dec=W_dec, b_enc=b_enc, b_dec=b_dec, dead=torch.zeros(d_sae, dtype=torch.bool))


def total_variance(acts: Tensor) -> float:
    """Mean over tokens of ‖x − x̄‖²."""
    return (acts - acts.mean(0)).square().sum(1).mean().item()


# ---- contestants ---------------------------------------------------------------------------------


def saelens(kind: str, start: Start, args: argparse.Namespace, *, autocast: bool = False) -> Contestant:
    """SAELens' own SAETrainer.step: forward with auxiliary loss, dead tracking, clipping, Adam, schedulers.

    Its TopK has no unit-norm constraint: by default latents are selected by pre-activations times decoder
    norm, and that is part of the forward.
    """
    from sae_lens import StandardTrainingSAEConfig, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.saes.standard_sae import StandardTrainingSAE
    from sae_lens.saes.topk_sae import TopKTrainingSAE
    from sae_lens.training.sae_trainer import SAETrainer

    common = {"d_in": args.d, "d_sae": args.d_sae, "dtype": "float32", "device": start.W_dec.device.type}
    if kind == "topk":
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(k=args.k, **common))
    elif kind == "jumprelu":
        sae = JumpReLUTrainingSAE(
            JumpReLUTrainingSAEConfig(
                jumprelu_init_threshold=THRESHOLD, jumprelu_bandwidth=BANDWIDTH, **common
            )
        )
    else:
        sae = StandardTrainingSAE(StandardTrainingSAEConfig(l1_coefficient=L1_COEFF, **common))
    with torch.no_grad():
        sae.W_dec.copy_(start.W_dec)
        sae.W_enc.copy_(start.W_dec.T)  # stays contiguous [d_model d_sae], as SAELens keeps it
        sae.b_enc.copy_(start.b_enc)
        sae.b_dec.copy_(start.b_dec)
    config = SAETrainerConfig(
        total_training_samples=10**9, train_batch_size_samples=args.batch, lr=LR, lr_end=LR / 10,
        device=start.W_dec.device.type, autocast=autocast,
    )  # fmt: skip
    trainer = SAETrainer(config, sae, data_provider=iter(()))
    trainer.n_forward_passes_since_fired[start.dead] = config.dead_feature_window + 1

    def step(acts: Tensor) -> Tensor:
        output = trainer.step(acts)
        trainer.n_training_steps += 1
        return output.losses["mse_loss"].detach()

    return Contestant(
        f"saelens-{kind}",
        step,
        lambda loss, acts: loss.item() / total_variance(acts),
        lambda: int(trainer.dead_neurons.sum()),
    )


def sparsify(start: Start, args: argparse.Namespace) -> Contestant:
    """sparsify's SparseCoder with the statements of its Trainer.fit around it (loss "fvu", Adam, AuxK).

    Left out, in its favour: the copy of the activations, the token mask, and logging. On a CPU its
    decoder kernel is the fallback (embedding_bag). fit() also calls
    torch.set_float32_matmul_precision("high"), which is global to the process and would change every
    contestant.
    """
    with contextlib.redirect_stdout(sys.stderr):  # it prints on import
        from sparsify import SparseCoder, SparseCoderConfig
    from transformers import get_linear_schedule_with_warmup

    sae = SparseCoder(args.d, SparseCoderConfig(num_latents=args.d_sae, k=args.k))
    with torch.no_grad():
        sae.W_dec.copy_(start.W_dec)
        sae.encoder.weight.copy_(start.W_dec)
        sae.encoder.bias.copy_(start.b_enc)
        sae.b_dec.copy_(start.b_dec)
    adam = torch.optim.Adam([{"params": sae.parameters(), "lr": LR}])
    scheduler = get_linear_schedule_with_warmup(adam, 0, 10**6)
    tokens_since_fired = torch.where(start.dead, LONG_SILENT_TOKENS + 1, 0)
    did_fire = torch.zeros(args.d_sae, dtype=torch.bool)
    auxk_alpha = 1 / 32

    def step(acts: Tensor) -> Tensor:
        sae.set_decoder_norm_to_unit_norm()
        dead_mask = tokens_since_fired > LONG_SILENT_TOKENS
        batch_variance = (acts - acts.mean(0)).pow(2).sum()
        out = sae(x=acts, y=acts, dead_mask=dead_mask, total_variance=batch_variance)
        did_fire[out.latent_indices.flatten()] = True
        loss = out.fvu + auxk_alpha * out.auxk_loss + out.multi_topk_fvu / 8
        loss.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()
        scheduler.step()
        with torch.no_grad():
            tokens_since_fired.add_(acts.shape[0])
            tokens_since_fired[did_fire] = 0
            did_fire.zero_()
        return out.fvu.detach()

    return Contestant(
        "sparsify-topk",
        step,
        lambda loss, acts: loss.item(),
        lambda: int((tokens_since_fired > LONG_SILENT_TOKENS).sum()),
    )


def gemm(layout: str, start: Start, args: argparse.Namespace) -> Contestant:
    """The one matrix product no SAE can avoid: acts @ W_enc into a ready buffer."""
    weight = start.W_dec.clone().T if layout == "latent-major" else start.W_dec.T.contiguous()
    pre_acts = torch.empty(args.batch, args.d_sae)

    def step(acts: Tensor) -> Tensor:
        torch.mm(acts, weight, out=pre_acts)
        return pre_acts

    return Contestant(f"gemm-{layout}", step, None)


def ours(kind: str, start: Start, args: argparse.Namespace) -> Contestant:
    """Our Trainer.update: gradients, clipping, fused Adam, unit-norm rows, dead tracking; schedules flat."""
    from saelens_lite.sae.autoencoder import SparseAutoencoder
    from saelens_lite.sae.config import SAEConfig
    from saelens_lite.train.config import TrainConfig
    from saelens_lite.train.kinds.choice import kind_class
    from saelens_lite.train.optimise.trainer import Trainer

    k = args.k if kind == "topk" else None
    sae = SparseAutoencoder(SAEConfig(d_model=args.d, d_sae=args.d_sae, kind=kind_class(kind).sae_kind, k=k))
    with torch.no_grad():
        sae.W_dec.copy_(start.W_dec)
        sae.W_enc.copy_(start.W_dec.T)  # keeps its latent-major storage
        sae.b_enc.copy_(start.b_enc)
        sae.b_dec.copy_(start.b_dec)
    config = TrainConfig(
        kind=kind,
        k=args.k,
        l1_coeff=L1_COEFF,
        initial_threshold=THRESHOLD,
        bandwidth=BANDWIDTH,
        lr=LR,
        clip_norm=1.0,
        batch_size_rows=args.batch,
        dead_after_tokens=LONG_SILENT_TOKENS,
        warm_up_steps=0,
        l1_warm_up_steps=0,
        decay_fraction=0.0,
        gather_dtype=getattr(args, "gather_dtype", "float32"),
    )
    trainer = Trainer(sae, config, n_steps=10**6)
    trainer.dead_tracker.tokens_since_fired[start.dead] = LONG_SILENT_TOKENS

    def step(acts: Tensor) -> Tensor:
        return trainer.update(acts).reconstruction

    return Contestant(
        f"ours-{kind}",
        step,
        lambda loss, acts: loss.item() / total_variance(acts),
        lambda: len(trainer.dead_tracker.dead()),
    )


def build(
    name: str, starts: dict[str, Start], args: argparse.Namespace, *, autocast: bool = False
) -> Contestant:
    if name.startswith("gemm-"):
        return gemm(name.removeprefix("gemm-"), starts["topk"], args)
    if name == "sparsify-topk":
        return sparsify(starts["topk"], args)
    side, kind = name.split("-")
    start = starts["l1" if kind in ("relu", "standard", "jumprelu") else "topk"]
    return ours(kind, start, args) if side == "ours" else saelens(kind, start, args, autocast=autocast)


CONTESTANTS = (
    "ours-topk",
    "ours-batchtopk",
    "ours-matryoshka",
    "saelens-topk",
    "sparsify-topk",
    "ours-relu",
    "saelens-standard",
    "ours-jumprelu",
    "saelens-jumprelu",
)
GEMMS = ("gemm-latent-major", "gemm-d_model-major")


# ---- timing --------------------------------------------------------------------------------------


def check_first_losses(first_fvu: dict[str, float]) -> None:
    """Contestants of a kind must have computed the same thing."""
    for kinds in (("topk",), ("relu", "standard"), ("jumprelu",)):
        of_kind = {name: fvu for name, fvu in first_fvu.items() if name.rpartition("-")[2] in kinds}
        if of_kind and max(of_kind.values()) - min(of_kind.values()) > FIRST_LOSS_TOLERANCE * min(
            of_kind.values()
        ):
            raise SystemExit(
                f"expected first losses equal to {FIRST_LOSS_TOLERANCE:g}, got fvu {of_kind}: "
                "the contestants do not do the same work"
            )


def time_rounds(
    contestants: list[Contestant], batches: Iterator[list[Tensor]], rounds: int
) -> dict[str, list[float]]:
    """Seconds a step of each contestant, by round: the median of the steps it takes in that round."""
    seconds: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for round_ in range(rounds):
        turn = round_ % len(contestants)
        visit = next(batches)
        for contestant in contestants[turn:] + contestants[:turn]:
            steps = []
            for acts in visit:
                started_s = time.perf_counter()
                contestant.step(acts)
                steps.append(time.perf_counter() - started_s)
            seconds[contestant.name].append(statistics.median(steps))
    return seconds


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--d", type=int, default=512, help="d_model")
    parser.add_argument("--d-sae", type=int, default=8192)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4096, help="rows a step")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps-per-round", type=int, default=5)
    parser.add_argument(
        "--warm-up-steps",
        type=int,
        default=2,
        help="untimed steps of each contestant before the first round (one at least: the first loss)",
    )
    parser.add_argument(
        "--dead-share",
        type=float,
        default=0.1,
        help="share of latents dead at the start of the TopK kinds, AuxK working on them",
    )
    parser.add_argument(
        "--start-l0",
        type=float,
        help="l0 at which the L1 kinds and jumprelu start; default: no bias, about half of the latents fire",
    )
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS[:-2]))
    parser.add_argument(
        "--gemm",
        choices=["both", "latent-major", "d_model-major", "none"],
        default="both",
        help="layouts of W_enc tried for the limit",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    batches = superposed_batches(8, args.batch, args.d, generator)
    W_dec = torch.nn.functional.normalize(torch.randn(args.d_sae, args.d, generator=generator), dim=1)
    starts = {
        "topk": topk_start(W_dec, batches, args.k, args.dead_share),
        "l1": relu_start(W_dec, batches, args.start_l0),
    }

    gemms = {"both": GEMMS, "none": ()}.get(args.gemm, (f"gemm-{args.gemm}",))
    contestants = [build(name, starts, args) for name in (*args.contestants, *gemms)]
    first_fvu = {}
    for contestant in contestants:
        loss = contestant.step(batches[0])
        if contestant.fvu is not None:
            first_fvu[contestant.name] = contestant.fvu(loss, batches[0])
        for index in range(1, args.warm_up_steps):
            contestant.step(batches[index % len(batches)])
    check_first_losses(first_fvu)

    def visits() -> Iterator[list[Tensor]]:
        position = args.warm_up_steps
        while True:
            yield [batches[(position + i) % len(batches)] for i in range(args.steps_per_round)]
            position += args.steps_per_round

    gc.collect()
    seconds = time_rounds(contestants, visits(), args.rounds)

    median_s = {name: statistics.median(values) for name, values in seconds.items()}
    for contestant in contestants:
        values = seconds[contestant.name]
        line = {
            "contestant": contestant.name,
            "step_ms": 1e3 * median_s[contestant.name],
            "step_ms_min": 1e3 * min(values),
            "step_ms_max": 1e3 * max(values),
            "tokens_per_s": args.batch / median_s[contestant.name],
            "first_fvu": first_fvu.get(contestant.name),
            "n_dead_at_end": contestant.n_dead() if contestant.n_dead else None,
        }
        print(json.dumps(line), flush=True)
    gemm_s = min((median_s[name] for name in gemms), default=None)
    summary = {
        "summary": "train_step",
        "setting": vars(args),
        "n_dead_at_start": int(starts["topk"].dead.sum()),
        "gemm_ms": None if gemm_s is None else 1e3 * gemm_s,
        "share_of_gemm_limit": None
        if gemm_s is None
        else {name: gemm_s / median_s[name] for name in args.contestants},
        "speedup_of_ours_topk": speedups(median_s, "ours-topk", ("saelens-topk", "sparsify-topk")),
        "speedup_of_ours_relu": speedups(median_s, "ours-relu", ("saelens-standard",)),
        "speedup_of_ours_jumprelu": speedups(median_s, "ours-jumprelu", ("saelens-jumprelu",)),
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(json.dumps(summary), flush=True)


def speedups(median_s: dict[str, float], ours_name: str, peers: tuple[str, ...]) -> dict[str, float]:
    if ours_name not in median_s:
        return {}
    return {peer: median_s[peer] / median_s[ours_name] for peer in peers if peer in median_s}


if __name__ == "__main__":
    main()
