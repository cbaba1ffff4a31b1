"""Train one SAELens SAE on exported rows, save it, reload it, score it; prints one JSON line.

Everything that trains is SAELens' own: SAETrainer.fit with its ActivationScaler, scheduler, clipping, dead
tracking and auxiliary loss. Ours are only the iterator of shuffled rows and the common scorer. Runs in the
peers' venv (`make peers`), started by quality.py or by hand.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")

import sae_lens
import torch
from sae_lens import (
    SAE,
    BatchTopKTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE
from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAE
from sae_lens.saes.sae import TrainingSAE
from sae_lens.saes.standard_sae import StandardTrainingSAE
from sae_lens.saes.topk_sae import TopKTrainingSAE
from sae_lens.training.sae_trainer import SAETrainer
from score import load_rows, score

DEAD_FEATURE_WINDOW_STEPS = 300
L1_WARM_UP_SHARE = 0.05
"""Share of the run over which `standard` raises its l1 coefficient, as in SAELens' training tutorial."""

MATRYOSHKA_DIVISORS = (16, 4, 1)
"""Of the width, for the prefixes of `matryoshka`; SAELens has no default for them."""


def shuffled_batches(acts: torch.Tensor, batch_size_rows: int, seed: int) -> Iterator[torch.Tensor]:
    """Endless batches float32[batch d_model]; each pass a fresh seeded permutation, its remainder dropped."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(acts.shape[0], generator=generator)
        for rows in order[: len(order) // batch_size_rows * batch_size_rows].split(batch_size_rows):
            yield acts[rows].float()


def build_sae(args: argparse.Namespace, d_in: int) -> TrainingSAE:
    """SAELens' training SAE with its own defaults for everything the comparison does not fix.

    `batchtopk` and `matryoshka` are saved as jumprelu with the running threshold, and so scored.
    """
    common = {
        "d_in": d_in,
        "d_sae": args.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "normalize_activations": "expected_average_only_in",
    }
    if args.kind == "topk":
        return TopKTrainingSAE(TopKTrainingSAEConfig(k=args.k, **common))
    if args.kind == "batchtopk":
        return BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(k=args.k, **common))
    if args.kind == "matryoshka":
        widths = [args.d_sae // divisor for divisor in MATRYOSHKA_DIVISORS]
        config = MatryoshkaBatchTopKTrainingSAEConfig(k=args.k, matryoshka_widths=widths, **common)
        return MatryoshkaBatchTopKTrainingSAE(config)
    l1_warm_up_steps = round(L1_WARM_UP_SHARE * args.steps)
    return StandardTrainingSAE(
        StandardTrainingSAEConfig(l1_coefficient=args.l1, l1_warm_up_steps=l1_warm_up_steps, **common)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder with train.safetensors and validation.safetensors (tensor `acts`)",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the saved SAE")
    parser.add_argument("--kind", choices=["topk", "batchtopk", "matryoshka", "standard"], required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--l1", type=float, default=5.0, help="l1_coefficient of `standard`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=2048, help="rows a step")
    parser.add_argument("--d-sae", type=int, default=3072)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--warm-up-steps", type=int, default=100)
    parser.add_argument("--decay-steps", type=int, help="default: the last third")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(args.threads)

    train = load_rows(args.data / "train.safetensors")
    validation = load_rows(args.data / "validation.safetensors")
    torch.manual_seed(args.seed)
    sae = build_sae(args, d_in=train.shape[1])
    batches = shuffled_batches(train, args.batch, args.seed)
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=args.steps * args.batch,
            train_batch_size_samples=args.batch,
            lr=args.lr,
            lr_end=args.lr
            / 10,  # its runner's default; the constant scheduler decays from lr to 0 all the same
            lr_warm_up_steps=args.warm_up_steps,
            lr_decay_steps=args.steps // 3 if args.decay_steps is None else args.decay_steps,
            dead_feature_window=DEAD_FEATURE_WINDOW_STEPS,
        ),
        sae,
        batches,
    )
    # fit() would estimate the factor itself; done before the clock starts, train_s holds training steps only.
    trainer.activation_scaler.estimate_scaling_factor(
        train.shape[1], batches, trainer.cfg.n_batches_for_norm_estimate
    )
    input_scale = trainer.activation_scaler.scaling_factor
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    trainer.fit()  # folds the factor into the weights at its end
    train_s, train_cpu_s = time.perf_counter() - started_s, time.process_time() - started_cpu_s
    sae.save_inference_model(args.output)

    loaded = SAE.load_from_disk(args.output)
    loaded.eval()

    def reconstruct(acts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        latent_acts = loaded.encode(acts)
        return loaded.decode(latent_acts), latent_acts

    result = score(reconstruct, validation, train, decoder_norms=loaded.W_dec.detach().norm(dim=1))
    line = {
        "contestant": "saelens",
        "kind": args.kind,
        "lr": args.lr,
        "l1_coeff": args.l1 if args.kind == "standard" else None,
        "seed": args.seed,
        "steps": args.steps,
        "batch_size_rows": args.batch,
        "d_sae": args.d_sae,
        "k": None if args.kind == "standard" else args.k,
        "train_s": train_s,
        "train_cpu_s": train_cpu_s,  # of all threads; other programs change train_s, but not this
        "input_scale": input_scale,
        **result.to_dict(),
        "versions": {
            "sae-lens": sae_lens.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "threads": args.threads,
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
