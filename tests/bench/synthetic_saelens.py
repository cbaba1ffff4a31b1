"""Train one SAELens SAE on the rows of a synthetic store and save it; prints one JSON line.

Everything that trains is SAELens' own, as in quality_saelens.py. Runs in the peers' venv (`make peers`),
started by synthetic.py, which scores the saved folder like ours.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path

import sae_lens
import torch
from quality_saelens import shuffled_batches
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.matryoshka_batchtopk_sae import (
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)
from sae_lens.saes.topk_sae import TopKTrainingSAE
from sae_lens.training.sae_trainer import SAETrainer

from saelens_lite.store.reader import ActivationStore

KINDS = {
    "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
    "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
    "matryoshka": (MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder for the saved SAE")
    parser.add_argument("--kind", choices=list(KINDS), required=True)
    parser.add_argument(
        "--widths", type=int, nargs="+", required=True, help="of the nested prefixes, matryoshka only"
    )
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True, help="rows a step")
    parser.add_argument("--k", type=int, required=True)
    parser.add_argument("--warm-up-steps", type=int, required=True)
    parser.add_argument("--held-out-fraction", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(args.threads)

    store = ActivationStore(args.store)
    acts = torch.cat([store.acts(shard) for shard in range(store.n_shards)])
    acts = acts[~torch.as_tensor(store.held_out_rows(args.held_out_fraction))]
    torch.manual_seed(args.seed)
    sae_class, config_class = KINDS[args.kind]
    sae = sae_class(
        config_class(
            d_in=acts.shape[1],
            d_sae=args.widths[-1],
            k=args.k,
            dtype="float32",
            device="cpu",
            normalize_activations="expected_average_only_in",
            **({"matryoshka_widths": args.widths} if args.kind == "matryoshka" else {}),
        )
    )
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=args.steps * args.batch,
            train_batch_size_samples=args.batch,
            lr=args.lr,
            lr_end=args.lr
            / 10,  # its runner's default; the constant scheduler decays from lr to 0 all the same
            lr_warm_up_steps=args.warm_up_steps,
            lr_decay_steps=args.steps // 3,
            dead_feature_window=max(
                1, args.steps // 10
            ),  # as ours; its default of 1,000 steps may outlast a short run
        ),
        sae,
        shuffled_batches(acts, args.batch, args.seed),
    )
    started_s = time.perf_counter()
    trainer.fit()  # folds the input scale into the weights at its end
    train_s = time.perf_counter() - started_s
    sae.save_inference_model(args.output)
    print(
        json.dumps(
            {"train_s": train_s, "versions": {"sae-lens": sae_lens.__version__, "torch": torch.__version__}}
        )
    )


if __name__ == "__main__":
    main()
