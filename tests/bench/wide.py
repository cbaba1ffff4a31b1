"""What a wide dictionary takes: trained, saved and read again, or its training step alone.

    .venv/bin/python tests/bench/wide.py                      # d 256, 1,048,576 latents, 20 steps of 1,024
    rows .venv/bin/python tests/bench/wide.py --d-sae 65536        # small
    .venv/bin/python tests/bench/wide.py --only step --d 768 --d-sae 131072 --batch 4096 --steps 5

Prints a JSON line. Peak memory is the resident set of this process and all it loads, buffer of rows included;
that of a step alone is beyond the batch, weights, gradients and Adam's moments. Not a test: it needs up to 16
GiB and some minutes.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import torch

import saelens_lite as sl


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def step_memory(args: argparse.Namespace) -> dict[str, float]:
    """Of Trainer.update on one batch of random rows, a few latents a token."""
    from saelens_lite.train.optimise.initial import initial_sae
    from saelens_lite.train.optimise.trainer import Trainer

    size = {"k": args.k, "d_sae": args.d_sae, "batch_size_rows": args.batch}
    config = sl.TrainConfig(kind="topk", clip_norm=1.0, **size)
    acts = torch.randn(args.batch, args.d)
    before_gib = peak_gib()
    sae = initial_sae(sl.SAEConfig(d_model=args.d, d_sae=args.d_sae, k=args.k), acts[:1024], 0)
    trainer = Trainer(sae, config, n_steps=10_000)
    for _ in range(args.steps):
        trainer.update(acts)
    weights_gib = sum(parameter.numel() * parameter.element_size() for parameter in sae.parameters()) / 2**30
    return {"weights_gib": weights_gib, "beyond_gib": peak_gib() - before_gib - 4 * weights_gib}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--d", type=int, default=256)
    parser.add_argument("--d-sae", type=int, default=2**20)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["step"], help="the training step alone")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.only == "step":
        print(json.dumps({"bench": "wide step", **vars(args), **step_memory(args)}))
        return
    synthetic = sl.synthetic.SyntheticActivations(
        sl.synthetic.SyntheticConfig(d_model=args.d, n_features=4096, l0=20, n_trees=32)
    )
    with tempfile.TemporaryDirectory() as folder:
        store = synthetic.to_store(Path(folder) / "store", (args.steps + 4) * args.batch)
        before_gib, started_s = peak_gib(), time.perf_counter()
        output = Path(folder) / "sae"
        sae = sl.train_sae(
            store, output=output, k=args.k, d_sae=args.d_sae, batch_size_rows=args.batch,
            n_steps=args.steps, lr=1e-3,
            log_every_steps=1, eval_every_steps=args.steps, checkpoint_every_steps=args.steps, eval_rows=1024,
            progress=False,
        )  # fmt: skip
        train_s = time.perf_counter() - started_s
        trained_gib = peak_gib()
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        losses = [line["reconstruction"] for line in lines if "reconstruction" in line]
        rows = store.gather(torch.arange(64))
        with torch.no_grad():
            recons = sae(rows).recons
            del sae
            again = sl.SparseAutoencoder.load(output)
            difference = float((again(rows).recons - recons).abs().max())
        line = {
            "bench": "wide",
            **vars(args),
            "first_loss": losses[0],
            "last_loss": losses[-1],
            "train_s": train_s,
            "rss_before_gib": before_gib,
            "peak_training_and_saving_gib": trained_gib,
            "peak_with_reload_gib": peak_gib(),
            "reload_difference": difference,
            "torch": torch.__version__,
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
