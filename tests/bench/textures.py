"""Defects painted on textures, found by what autoencoders leave unexplained: which one sees them, and where.

    python tests/bench/textures.py --output DIR      # about 10 minutes, one thread; pip install '.[pictures]'

brick, grass and gravel of the scikit-image wheel, 512 × 512 in [0, 1]. Patches of 16 × 16 of the upper half
train; from the lower half come 32 tiles of 64 × 64, each as it is and with one defect at a random place:

    scratch  a bright line, 3 wide and 24 long
    grain    white noise on a disc of radius 8
    foreign  another texture on a disc of radius 8, about the disc's mean

How strong a defect is (height of the line, deviation of the noise, contrast of the other texture) is set on
seed 0, for each texture and defect, so that PCA's image AUROC is nearest to 0.75 among a grid. A patch's
error, (x − x̂)² at each pixel, is averaged over the patches on the pixel; the error of an image is the largest
of that map. Rival: the squared Mahalanobis distance of a patch's mean and log variance, put on the map alike.

Prints a JSON line a texture, defect and method, kept in DIR/results.jsonl: image AUROC, pixel AUROC, and the
per-region overlap at false-positive rates up to 0.3 (Bergmann et al. 2020), means of three seeds (of weights
and places); with 95 % intervals of the first and last from drawing tiles again, and the range of the second
over seeds. What is there is not run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

import saelens_lite as sl
from saelens_lite.train import train_autoencoder

PATCH, STEP, TILE, CODE = 16, 4, 64, 32
TEXTURES = ("brick", "grass", "gravel")
DEFECTS = {
    "scratch": np.geomspace(0.05, 1.0, 13),
    "grain": np.geomspace(0.03, 0.6, 13),
    "foreign": np.geomspace(0.2, 4.0, 13),
}
"""Strengths to choose from."""
RUN = {"batch_size_rows": 256, "held_out_fraction": 0.0, "device": "cpu", "progress": False, "n_epochs": 12}
RELATIVES = {
    "pca": {"kind": "pca", "n_epochs": 1},
    "dense": {"kind": "dense"},
    "multilayer": {"kind": "multilayer", "hidden": (256, 128)},
    "convolutional": {"kind": "convolutional"},
    "denoising": {"kind": "denoising"},
    "variational": {"kind": "variational", "beta": 0.1},
}
SAE = {"kind": "topk", "k": 16, "d_sae": 1024}
Scores = Callable[[Tensor], Tensor]
"""Patches float[n 1 16 16] to a score of every pixel of them, of the same shape."""


def patches(pictures: Tensor) -> Tensor:
    """Pictures float[n h w] to all patches float[n·places 1 16 16], places in reading order."""
    columns = F.unfold(pictures[:, None], PATCH, stride=STEP)
    return columns.transpose(1, 2).reshape(-1, 1, PATCH, PATCH)


def maps(pictures: Tensor, scores: Scores) -> Tensor:
    """float[n h w], each pixel's mean score over the patches on it."""
    size = pictures.shape[1:]
    columns = scores(patches(pictures)).reshape(len(pictures), -1, PATCH**2).transpose(1, 2)
    total, count = (F.fold(c, size, PATCH, stride=STEP) for c in (columns, torch.ones_like(columns)))
    return (total / count)[:, 0]


def defective(
    tile: np.ndarray, other: np.ndarray, kind: str, strength: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The tile with a defect, and where it is: float[64 64], bool[64 64]."""
    centre, (y, x) = rng.uniform(14, TILE - 14, 2), np.mgrid[:TILE, :TILE]
    offset = y - centre[0], x - centre[1]
    if kind == "scratch":
        angle = rng.uniform(0, np.pi)
        along = offset[0] * np.sin(angle) + offset[1] * np.cos(angle)
        across = offset[0] * np.cos(angle) - offset[1] * np.sin(angle)
        where = (abs(along) <= 12) & (abs(across) <= 1.5)
        return np.where(where, np.clip(tile + strength, 0, 1), tile), where
    where = np.hypot(*offset) <= 8
    if kind == "grain":
        there = tile + strength * rng.standard_normal(tile.shape)
    else:
        there = tile[where].mean() + strength * (other - other[where].mean())
    return np.where(where, np.clip(there, 0, 1), tile), where


def tests_of(texture: str, kind: str, strength: float, seed: int) -> tuple[Tensor, np.ndarray]:
    """32 tiles of the lower half, then the same with defects, float[64 64 64]; and where they are."""
    lower = picture(texture)[256:]
    other = picture(TEXTURES[(TEXTURES.index(texture) + 1) % len(TEXTURES)])[256:]
    rng = np.random.default_rng([seed, TEXTURES.index(texture), list(DEFECTS).index(kind)])
    clean, others = (tiles(of) for of in (lower, other))
    spoilt = [defective(*pair, kind, strength, rng) for pair in zip(clean, others, strict=True)]
    where = np.stack([np.zeros((TILE, TILE), bool)] * len(clean) + [at for _, at in spoilt])
    return torch.from_numpy(np.stack(clean + [tile for tile, _ in spoilt])).float(), where


def tiles(of: np.ndarray) -> list[np.ndarray]:
    return [of[i : i + TILE, j : j + TILE] for i in range(0, 256, TILE) for j in range(0, 512, TILE)]


def picture(texture: str) -> np.ndarray:
    from skimage import data

    return getattr(data, texture)() / 255.0


RATES = np.linspace(0, 0.3, 61)


def found_shares(scored: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The share of each defect that is found at each false-positive rate: float[defects rates]."""
    thresholds = np.quantile(scored[~where], 1 - RATES)
    regions = [scored[i][where[i]] for i in range(len(scored)) if where[i].any()]
    return np.array([[(region > threshold).mean() for threshold in thresholds] for region in regions])


def image_wins(scored: np.ndarray) -> np.ndarray:
    """Whether a defective image scores above a clean one, ½ where alike, of maps with the clean ones first:
    float[clean defective], whose mean is the image AUROC."""
    clean, spoilt = np.split(scored.reshape(len(scored), -1).max(1), 2)
    return (spoilt > clean[:, None]) + 0.5 * (spoilt == clean[:, None])


def measured(each: list[tuple[np.ndarray, np.ndarray]], draws: int = 1000) -> dict[str, object]:
    """Scores of maps and places of defects, a pair a seed; a tile is drawn again with its defective copy."""
    wins = [image_wins(scored) for scored, _ in each]
    shares = [found_shares(*one) for one in each]
    pixel = [float(roc_auc_score(where.ravel(), scored.ravel())) for scored, where in each]

    def scores(drawn: np.ndarray) -> tuple[float, float]:
        curve = np.mean([of[drawn] for of in shares], axis=(0, 1))
        return (
            float(np.mean([of[np.ix_(drawn, drawn)].mean() for of in wins])),
            float(np.trapezoid(curve, RATES) / RATES[-1]),
        )

    n, rng = len(wins[0]), np.random.default_rng(0)
    image, overlap = scores(np.arange(n))
    drawn = [scores(rng.integers(0, n, n)) for _ in range(draws)]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0).round(4).tolist()
    return {
        "image_auroc": round(image, 4), "image_auroc_95": [low[0], high[0]],
        "pixel_auroc": round(float(np.mean(pixel)), 4), "pixel_auroc_range": [min(pixel), max(pixel)],
        "overlap": round(overlap, 4), "overlap_95": [low[1], high[1]],
    }  # fmt: skip


def by_error(autoencoder: torch.nn.Module) -> Scores:
    @torch.no_grad()
    def scores(of: Tensor) -> Tensor:
        rows = of.flatten(1)
        return (rows - autoencoder(rows).recons).square().view_as(of)

    return scores


def by_moments(train: Tensor) -> Scores:
    """Squared Mahalanobis distance of mean and log variance, the same on all pixels of a patch."""

    def moments(of: Tensor) -> Tensor:
        rows = of.flatten(1)
        return torch.stack([rows.mean(1), rows.var(1).clamp_min(1e-8).log()], dim=1)

    normal = moments(train)
    inverse, mean = torch.linalg.inv(torch.cov(normal.T)), normal.mean(0)

    def scores(of: Tensor) -> Tensor:
        away = moments(of) - mean
        return ((away @ inverse) * away).sum(1)[:, None, None, None].expand_as(of)

    return scores


def trained(texture: str, output: Path, seeds: range) -> dict[str, list[Scores]]:
    """What each method scores by, a function a seed."""
    train = patches(torch.from_numpy(picture(texture)[None, :256]).float())
    folder = output / texture
    made = (folder / "manifest.json").exists()
    store = sl.ActivationStore(folder) if made else sl.ActivationStore.from_arrays(folder, train)

    def run(name: str, seed: int) -> dict[str, object]:
        return RUN | {"seed": seed, "output": str(output / f"{texture}-{name}-{seed}")}

    methods = {"mean and variance": [by_moments(train)] * len(seeds)}
    for name, fields in RELATIVES.items():
        ours = [train_autoencoder(store, code_size=CODE, **run(name, seed) | fields) for seed in seeds]
        methods[name] = [by_error(one) for one in ours]
    methods["topk SAE"] = [by_error(sl.train_sae(store, **run("topk", seed) | SAE)) for seed in seeds]
    return methods


def strength_of(texture: str, defect: str, scores: Scores) -> float:
    """At which the image AUROC on seed 0 is nearest to 0.75."""

    def away(strength: float) -> float:
        scored = maps(tests_of(texture, defect, strength, 0)[0], scores).numpy()
        return abs(image_wins(scored).mean() - 0.75)

    return float(min(DEFECTS[defect], key=away))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--textures", nargs="+", choices=TEXTURES, default=TEXTURES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    results, seeds = options.output / "results.jsonl", range(options.seeds)
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {(one["texture"], one["defect"], one["method"]) for one in lines}
    for texture in options.textures:
        methods = trained(texture, options.output, seeds)
        for defect in DEFECTS:
            strength = strength_of(texture, defect, methods["pca"][0])
            tests = [tests_of(texture, defect, strength, seed) for seed in seeds]
            for method in [one for one in methods if (texture, defect, one) not in done]:
                pairs = zip(tests, methods[method], strict=True)
                each = [(maps(given, scores).numpy(), where) for (given, where), scores in pairs]
                line = {"texture": texture, "defect": defect, "strength": strength, "method": method}
                told = json.dumps(line | measured(each))
                with results.open("a") as file:
                    file.write(told + "\n")
                print(told, flush=True)


if __name__ == "__main__":
    main()
