"""How much of a difference is the seed's: spread and agreement of runs that differ in their seed only.

Two SAEs that differ by less than the smallest detectable difference may differ in their seed alone.
source: Chanin 2026, arXiv:2605.18229, which asks for both beside every comparison
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from saelens_lite.config import differing_fields
from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..latents.direction_pairing import mcc, mmcs
from ..stats.bootstrap import student_t

CONFIDENCE = 0.95
MAY_DIFFER = {
    "seed", "order_seed", "store", "output", "overwrite", "device", "progress", "wandb_project", "preset",
    "log_every_steps", "eval_every_steps", "eval_rows", "eval_ce_tokens", "checkpoint_every_steps",
    "keep_checkpoints", "prefetch", "baseline", "latent_shards",
}  # fmt: skip
"""Fields of a training that may differ between seeds, as TrainConfig marks them (a test holds the two
together); the store is compared by its content."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SeedNoise:
    """A number over the seeds.

    sd: standard deviation of one SAE's number, from n SAEs (n − 1 in the denominator)
    detectable: the smallest difference between two single SAEs that is not seed noise with 95 % confidence,
        t(n − 1) · √2 · sd, where t is 12.7 for two SAEs, 4.3 for three and 2.8 for five
    """

    mean: float
    sd: float
    detectable: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stability:
    """Whether the seeds found the same directions: means over all pairs of SAEs, both ways round for mmcs.

    random_mmcs, random_mcc: of two sets of random directions, what no agreement gives
    """

    mmcs: float
    mcc: float
    random_mmcs: float
    random_mcc: float


def seed_noise(values: Sequence[float]) -> SeedNoise:
    """Spread of one number over SAEs that differ in their seed. raises: ValueError for fewer than two."""
    if len(values) < 2:
        raise ValueError(f"noise over seeds expected two SAEs or more, got {len(values)}")
    numbers = torch.tensor(values, dtype=torch.float64)
    sd = numbers.std().item()
    detectable = student_t(0.5 + CONFIDENCE / 2, len(values) - 1) * math.sqrt(2) * sd
    return SeedNoise(mean=numbers.mean().item(), sd=sd, detectable=detectable)


def stability(saes: Sequence[SparseAutoencoder]) -> Stability:
    """Agreement of the decoders of two SAEs or more of one size, with that of random directions."""
    decoders = [sae.W_dec.detach().float().cpu() for sae in saes]
    pairs = list(itertools.combinations(decoders, 2))
    generator = torch.Generator().manual_seed(0)
    random = [torch.randn(decoders[0].shape, generator=generator) for _ in range(2)]
    return Stability(
        mmcs=sum((mmcs(a, b) + mmcs(b, a)) / 2 for a, b in pairs) / len(pairs),
        mcc=sum(mcc(a, b) for a, b in pairs) / len(pairs),
        random_mmcs=mmcs(*random),
        random_mcc=mcc(*random),
    )


def check_seeds(saes: Mapping[str, SparseAutoencoder]) -> None:
    """raises: ValueError naming what differs unless the SAEs can be seeds of one configuration."""
    (first_name, first), *others = saes.items()
    for name, sae in others:
        ours, theirs = _facts(first), _facts(sae)
        shared = ours.keys() & theirs.keys()
        differing = differing_fields(*({key: facts[key] for key in shared} for facts in (ours, theirs)))
        if differing:
            raise ValueError(
                f"noise over seeds expected SAEs that differ in their seed only, but {name} is not as "
                f"{first_name}: {'; '.join(differing)}. Give runs of one configuration"
            )
    for (name, sae), (other_name, other) in itertools.combinations(saes.items(), 2):
        if _same(sae.W_dec, other.W_dec) and _same(sae.W_enc, other.W_enc):
            raise ValueError(f"{name} and {other_name} have the same weights: give runs of different seeds")


def _facts(sae: SparseAutoencoder) -> dict[str, Any]:
    record = sae.config.metadata.get("saelens_lite", {})
    fields = {key: value for key, value in record.get("train", {}).items() if key not in MAY_DIFFER}
    stores = [of["store"] for of in record.get("stores", [record]) if "store" in of]
    facts = fields | {"kind": sae.kind, "k": sae.config.k, "d_sae": sae.d_sae, "d_model": sae.d_model}
    return facts | {"hook_point": sae.config.hook_point} | ({"store": stores} if stores else {})


def _same(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and torch.equal(ours.detach().cpu(), theirs.detach().cpu())
