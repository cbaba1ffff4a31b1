"""Relatives of the SAE on scikit-learn's digits: held-out fvu by code size, and digits told apart by codes.

    .venv/bin/python tests/bench/autoencoders.py --output DIR             # about 12 minutes, one thread

1,797 pictures of 8 × 8 in [0, 1], a fifth held out by hash, three seeds (of weights and order; what is held
out stays). Prints a JSON line a cell, kept in DIR/results.jsonl: a cell that is there is not run again.
cell fvu: Σ‖x − x̂‖² / Σ‖x − x̄‖² of held-out pictures at code sizes 2 to 16. cell digits: accuracy of a
linear classifier (multinomial logistic regression, C = 1, codes standardised) on held-out pictures, fitted to
codes of the others, for what regularises one sigmoid layer of 64 units. The last line says at which sizes a
kind is below PCA in every seed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import saelens_lite as sl
from saelens_lite.autoencoders.autoencoder import Autoencoder
from saelens_lite.hashing import is_held_out
from saelens_lite.train.autoencoders.single import train_autoencoder

SHARE = 0.2
BELIEF = {"activation": "sigmoid", "output_activation": "sigmoid", "error": "cross_entropy"}
KINDS = {
    "pca": {"kind": "pca", "n_epochs": 1},
    "dense": {"kind": "dense", "n_epochs": 60},
    "dense, sigmoid output": {"kind": "dense", "n_epochs": 60, "output_activation": "sigmoid"},
    "multilayer": {"kind": "multilayer", "n_epochs": 100},
    "convolutional": {"kind": "convolutional", "n_epochs": 100},
    "deep_belief": {"kind": "deep_belief", "n_epochs": 300, **BELIEF},
    "variational, beta 0.1": {"kind": "variational", "n_epochs": 100, "beta": 0.1},
}
LAYER = {"code_size": 64, "activation": "sigmoid", "tied": True, "n_epochs": 60}
REGULARISED = {
    "plain": {"kind": "dense"},
    "weight decay 1e-3": {"kind": "dense", "weight_decay": 1e-3},
    "weight decay 1e-2": {"kind": "dense", "weight_decay": 1e-2},
    "denoising 0.3": {"kind": "denoising", "noise_level": 0.3},
    "denoising 1": {"kind": "denoising", "noise_level": 1.0},
    "contractive 0.1": {"kind": "contractive", "contractive_coeff": 0.1},
    "contractive 1": {"kind": "contractive", "contractive_coeff": 1.0},
    "sparse codes": {"kind": "dense", "sparsity_coeff": 1.0, "sparsity_target": 0.1},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="*", default=[2, 4, 8, 12, 16])
    options = parser.parse_args()
    torch.set_num_threads(1)
    digits = load_digits()
    pictures = torch.from_numpy(digits.images[:, None] / 16).float()
    folder = options.output / "store"
    made = (folder / "manifest.json").exists()
    store = sl.ActivationStore(folder) if made else sl.ActivationStore.from_arrays(folder, pictures)
    results = options.output / "results.jsonl"
    found = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {(one["cell"], one["name"], one["size"], one["seed"]) for one in found}

    def trained(name: str, size: int, seed: int, fields: dict) -> Autoencoder:
        path = options.output / f"{name}-{size}-{seed}".replace(" ", "_")
        run = {"batch_size_rows": 64, "held_out_fraction": SHARE, "device": "cpu", "progress": False}
        steps = {"eval_every_steps": 10**6, "checkpoint_every_steps": 10**6, "log_every_steps": 100}
        return train_autoencoder(
            store, **{"code_size": size, "seed": seed, "output": str(path)} | run | steps | fields
        )

    cells = [
        ("fvu", name, size, seed, fields)
        for size in options.sizes
        for seed in range(options.seeds)
        for name, fields in KINDS.items()
    ] + [
        ("digits", name, 64, seed, LAYER | fields)
        for seed in range(options.seeds)
        for name, fields in REGULARISED.items()
    ]
    for cell, name, size, seed, fields in cells:
        if (cell, name, size, seed) in done:
            continue
        autoencoder = trained(name, size, seed, fields)
        line = {"cell": cell, "name": name, "size": size, "seed": seed}
        line["fvu"] = autoencoder.metadata["held_out_fvu"]
        if cell == "digits":
            line["accuracy"] = accuracy(autoencoder, pictures.flatten(1), torch.from_numpy(digits.target))
        with results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
        found.append(line)
    fvu = {(one["name"], one["size"], one["seed"]): one["fvu"] for one in found if one["cell"] == "fvu"}
    below = {
        name: [
            size
            for size in options.sizes
            if all(fvu[name, size, s] < fvu["pca", size, s] for s in range(options.seeds))
        ]
        for name in KINDS
    }
    print(json.dumps({"below pca in every seed at": below}))


@torch.no_grad()
def accuracy(autoencoder: Autoencoder, rows: torch.Tensor, digits: torch.Tensor) -> float:
    """Of held-out rows."""
    codes = autoencoder.encode(rows).numpy()
    held_out = torch.as_tensor(is_held_out(torch.arange(len(rows)), SHARE)).bool().numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(codes[~held_out], digits.numpy()[~held_out])
    return float(model.score(codes[held_out], digits.numpy()[held_out]))


if __name__ == "__main__":
    main()
