"""How good an SAE is, beside what gives the numbers their meaning: a baseline, zero and mean ablation.

Reconstruction is scored on rows of held-out documents, cross-entropy on their tokens. Only positions that
have rows in the store are replaced: BOS, special tokens and padding stay, in every row of the table. A
transcoder is scored where it writes: on the rows of its target, and in the place of what the model has there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saelens_lite.arguments import takes_folders
from saelens_lite.lm.store_losses import ByDocument, DocumentSums, Losses, cross_entropies
from saelens_lite.misfits import names_misfits
from saelens_lite.progress import bar
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.metrics import FiringSums, ReconstructionSums, ce_score, kl_score
from saelens_lite.store.document_sample import sampled_rows
from saelens_lite.store.reader import ActivationStore

from ..latents.compatibility import places_in_store, recorded_fraction, training_record
from ..latents.density import WINDOWS_TOKENS
from ..latents.geometry import decoder_norms, encoder_decoder_cosine
from ..latents.store_pass import BLOCK_ROWS, latent_blocks, to_cpu
from ..stats.bootstrap import Interval, bootstrap_statistic
from .library_variants import LibraryVariants
from .result import BASELINE, MEAN, TRAINED, ZERO, Densities, Evaluation, EvaluationRow
from .seed_noise import SeedNoise, check_seeds, seed_noise, stability

log = logging.getLogger(__name__)

_NORM_SHARDS = 64
"""The median norm is taken over this many shards at most, evenly spread over the store."""
_DENSE = {"dense_1pct": 0.01, "dense_10pct": 0.1}
_WITHIN = ("fvu_within_10x", "share_within_10x")
_FROM_SUMS = ("fvu", *_WITHIN, "explained_variance", "mse", "cosine", "norm_ratio", "relative_bias")


@takes_folders
@names_misfits
def evaluate_sae(
    sae: SparseAutoencoder,
    store: ActivationStore,
    model: nn.Module | None = None,
    baseline: SparseAutoencoder | None = None,
    seeds: Sequence[SparseAutoencoder] = (),
    *,
    held_out: bool = True,
    held_out_fraction: float | None = None,
    max_tokens: int | None = 100_000,
    windows_tokens: Sequence[int] = WINDOWS_TOKENS,
    hook_point: str | None = None,
    batch_size_seqs: int = 8,
) -> Evaluation:
    """Reconstruction, sparsity, dead share and, with a model, what the reconstruction costs in cross-entropy.

    model: the one that was harvested; without it there are no CE columns
    sae: an SAE or a transcoder, of which the store has both places
    baseline: an SAE to compare with, usually the frozen-decoder one (train_sae(freeze_decoder=True)); of a
        transcoder another, or an SAE of its target
    seeds: SAEs that differ from `sae` in their seed only, for the noise of every number
    held_out: score held-out documents only (saelens_lite.hashing.is_held_out)
    held_out_fraction: the share of documents that training held out; None: as the SAEs record, else 0.05
    max_tokens: score this many rows, and their tokens, of documents drawn by hash; None for all
    windows_tokens: for the dead share, over the last tokens of the store, held out or not
    raises: ValueError when SAEs, model and store do not belong together, no document is held out, or a number
        of them is not finite
    """
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens expected 1 or more, or None for all, got {max_tokens}")
    _, point = places_in_store(sae, store, hook_point)
    reads = {}
    saes = {TRAINED: sae} | ({} if baseline is None else {BASELINE: baseline})
    others = {f"seed {i}": one for i, one in enumerate(seeds, 1)}
    for name, one in (saes | others).items():
        reads[name], point_there = places_in_store(one, store, hook_point)
        if point_there != point:
            raise ValueError(
                f"the {name} is of {point_there} and the SAE of {point}: compare SAEs of one hook point"
            )
    check_seeds({TRAINED: sae} | others)
    saes |= others
    if held_out_fraction is None:
        held_out_fraction = recorded_fraction(saes.values())
    fraction = held_out_fraction if held_out else None

    sums, variants, firing, documents = _reconstruction(saes, reads, store, point, fraction, max_tokens)
    dead = {name: _dead_shares(one, store, reads[name], windows_tokens) for name, one in saes.items()}
    losses = None
    if model is not None:
        replacements: dict[str, dict[str, Any] | None] = {"clean": None}
        replacements |= {name: {"sae": one} for name, one in saes.items()}
        mean = {"sae": None, "mode": "mean", "mean": store.mean(point)}
        replacements |= {ZERO: {"sae": None, "mode": "zero"}, MEAN: mean}
        some = {"fraction": fraction, "max_tokens": max_tokens, "batch_size_seqs": batch_size_seqs}
        losses = cross_entropies(model, store, point, replacements, kl=True, progress=True, **some)

    def row(name: str) -> EvaluationRow:
        if name not in sums:
            return EvaluationRow(name=name, given=False)
        numbers: dict[str, Any] = {key: getattr(sums[name], key) for key in _FROM_SUMS}
        numbers |= {"l0": 0.0} if name not in firing else _of_latents(saes[name], firing[name], dead[name])
        if losses is not None:
            ce, kl = losses.ce, losses.kl
            numbers |= {"ce": ce[name], "delta_ce": ce[name] - ce["clean"], "kl": kl[name]}
            for against, ablation in (("mean", MEAN), ("zero", ZERO)):
                numbers[f"ce_score_{against}"] = ce_score(ce["clean"], ce[name], ce[ablation])
                numbers[f"kl_score_{against}"] = kl_score(kl[name], kl[ablation])
        return EvaluationRow(name=name, variants=variants[name].values(), **numbers)

    seed_rows = tuple(row(name) for name in others)
    return Evaluation(
        hook_point=point,
        store=store.model_name or str(store.path),
        held_out=held_out,
        same_store=_same_store(store, saes.values()),
        n_tokens=sums[TRAINED].n_tokens,
        n_documents=len(documents.n_tokens),
        sampled=max_tokens is not None and sums[TRAINED].n_tokens >= max_tokens,
        intervals=_intervals(sums, documents, losses),
        n_ce_tokens=losses.n_tokens if losses is not None else 0,
        n_contexts=losses.n_contexts if losses is not None else 0,
        ce_clean=losses.ce["clean"] if losses is not None else None,
        rows=tuple(row(name) for name in (TRAINED, BASELINE, ZERO, MEAN)),
        seeds=seed_rows,
        seed_noise=_noise([row(TRAINED), *seed_rows]) if others else {},
        stability=stability([sae, *others.values()]) if others else None,
        densities={
            name: Densities.of(firing[name].density) for name in (TRAINED, BASELINE) if name in firing
        },
    )


def _of_latents(sae: SparseAutoencoder, firing: FiringSums, dead: dict[int, float | None]) -> dict[str, Any]:
    quantiles = firing.density.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)).tolist()
    density = dict(zip(("density_q05", "density_q50", "density_q95"), quantiles, strict=True))
    density |= {name: (firing.density > over).double().mean().item() for name, over in _DENSE.items()}
    cosine = None  # of a transcoder, which reads and writes in two spaces
    if sae.config.target is None:
        cosine = encoder_decoder_cosine(sae).double().mean().item()
    numbers = {name: getattr(firing, name) for name in ("l0", "l1", "l1_weighted")}
    return numbers | {"dead": dead, "density": density, "encoder_decoder_cosine": cosine}


def _noise(rows: Sequence[EvaluationRow]) -> dict[str, SeedNoise]:
    columns = [row.numbers() for row in rows]
    values = {name: [column[name] for column in columns] for name in columns[0]}
    return {name: seed_noise(some) for name, some in values.items() if None not in some}


def _same_store(store: ActivationStore, saes: Iterable[SparseAutoencoder]) -> bool | None:
    """Whether all record this store; None where one records none and no one another."""
    recorded = [_stores(sae) for sae in saes]
    if any(of and store.fingerprint not in of for of in recorded):
        return False
    return True if all(recorded) else None


def _stores(sae: SparseAutoencoder) -> set[str]:
    """Fingerprints of the stores that an SAE was trained on, by its record; none without one."""
    record = training_record(sae)
    mixed = {of.get("store", "") for of in record.get("stores", ())}
    return ({record.get("store", "")} | mixed) - {""}


def _reconstruction(
    saes: dict[str, SparseAutoencoder],
    reads: dict[str, str],
    store: ActivationStore,
    point: str,
    fraction: float | None,
    max_tokens: int | None,
) -> tuple[dict[str, ReconstructionSums], dict[str, LibraryVariants], dict[str, FiringSums], DocumentSums]:
    """Of rows at `point`, which each SAE makes of those at its own place. The last: by document Σ‖x − mean‖²
    over the store's mean as "", and Σ‖x − x̂‖² of each SAE."""
    some = range(0, store.n_shards, -(-store.n_shards // _NORM_SHARDS))
    median_norm = float(torch.cat([store.norms(shard, point) for shard in some]).median())
    sums = {name: ReconstructionSums(store.d_model(point), median_norm) for name in (*saes, ZERO, MEAN)}
    variants = {name: LibraryVariants() for name in sums}
    firing = {
        name: FiringSums(one.d_sae, decoder_norms=decoder_norms(one).cpu()) for name, one in saes.items()
    }
    mean, documents = store.mean(point), ByDocument()
    blocks = scored_rows(store, fraction, max_tokens)
    for rows, docs in bar(blocks, "reconstruction", f"× {BLOCK_ROWS:,} rows"):
        found = {place: finite_rows(store, place, rows) for place in {point, *reads.values()}}
        acts = found[point]
        of_rows = [torch.ones(len(acts), dtype=torch.float64), (acts - mean).square().sum(1)]
        recons = {ZERO: torch.zeros_like(acts), MEAN: mean.expand_as(acts)}
        for name, one in saes.items():
            with torch.no_grad():
                out = one(found[reads[name]].to(one.device))
            recons[name] = out.recons.to(acts.device, torch.float32)
            firing[name].update(to_cpu(out.latents))
            if not recons[name].isfinite().all():
                raise ValueError(
                    f"the {name} SAE reconstructs finite rows as nan or infinity: load a whole copy, in "
                    "float32"
                )
            of_rows.append((acts - recons[name]).double().square().sum(1))
        documents.add(docs, torch.stack(of_rows, dim=1))
        for name in sums:
            sums[name].update(acts, recons[name])
            variants[name].update(acts, recons[name])
    if (told := sums[TRAINED].massive_rows_in_words) is not None:
        log.warning(told)
    tokens, *of_documents = documents.total().unbind(1)
    return sums, variants, firing, DocumentSums(tokens, dict(zip(["", *saes], of_documents, strict=True)))


def _intervals(
    sums: dict[str, ReconstructionSums], rows: DocumentSums, losses: Losses | None
) -> dict[str, dict[str, tuple[float, float]]]:
    """95 % intervals of fvu, CE and ΔCE of each SAE, from drawing documents again; empty for fewer than 2."""
    if len(rows.n_tokens) < 2:
        return {}
    names = [name for name in rows.sums if name]
    total = rows.sums[""].sum() / torch.tensor([sums[name].squared_deviation for name in names])
    ratios = {"fvu": _ratios([rows.sums[name] for name in names], rows.sums[""], total)}
    if losses is not None and len(losses.by_document.n_tokens) > 1:
        tokens, ce = losses.by_document.n_tokens, losses.by_document.sums
        ratios["ce"] = _ratios([ce[name] for name in names], tokens)
        ratios["delta_ce"] = _ratios([ce[name] - ce["clean"] for name in names], tokens)
    return {
        name: {key: (float(found.low[i]), float(found.high[i])) for key, found in ratios.items() if found}
        for i, name in enumerate(names)
    }


def _ratios(numerators: list[Tensor], denominator: Tensor, factors: Tensor | float = 1.0) -> Interval | None:
    """None for ratios without a value, as of rows that do not vary."""
    table = torch.stack(numerators, dim=1)

    def ratios(weights: Tensor) -> Tensor:
        return weights @ table / (weights @ denominator)[:, None] * factors

    try:
        return bootstrap_statistic(ratios, torch.arange(len(table)))
    except ValueError:
        return None


def scored_rows(
    store: ActivationStore, fraction: float | None, max_tokens: int | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows to score, at most max_tokens of them: blocks int64[BLOCK_ROWS], the last shorter, and the
    document of each row. raises: ValueError, at the end, where there are none"""
    first_row, n_scored, waiting = 0, 0, torch.empty(2, 0, dtype=torch.int64)
    for shard, scored in enumerate(sampled_rows(store, fraction, max_tokens)):
        rows = first_row + scored.nonzero().flatten()
        first_row, n_scored = first_row + len(scored), n_scored + len(rows)
        if len(rows):
            waiting = torch.cat([waiting, torch.stack([rows, store.row_docs(shard)[scored]])], dim=1)
        while waiting.shape[1] >= BLOCK_ROWS:
            yield waiting[0, :BLOCK_ROWS], waiting[1, :BLOCK_ROWS]
            waiting = waiting[:, BLOCK_ROWS:]
    if waiting.shape[1]:
        yield waiting[0], waiting[1]
    if not n_scored:
        raise ValueError(
            f"{store.path} has no rows of held-out documents (share {fraction}); "
            "harvest more documents, or pass held_out=False to score rows that training has seen"
        )


def finite_rows(store: ActivationStore, point: str, rows: Tensor) -> Tensor:
    """Rows of the store. raises: ValueError when one holds nan or infinity, naming it"""
    acts = store.gather(rows, point)
    if not acts.isfinite().all():
        row = int(rows[~acts.isfinite().all(1)][0])
        raise ValueError(f"{store.path} {point}: row {row} holds nan or infinity; harvest that store again")
    return acts


def _dead_shares(
    sae: SparseAutoencoder, store: ActivationStore, point: str, windows_tokens: Sequence[int]
) -> dict[int, float | None]:
    """Dead share by window over the last rows of the store: the longest window that fits."""
    windows = sorted(windows_tokens)
    n_rows = max((window for window in windows if window <= store.n_rows), default=0)
    firing = FiringSums(sae.d_sae)
    if n_rows:
        for _, latents in latent_blocks(sae, store, point, start_row=store.n_rows - n_rows):
            firing.update(latents)
    return firing.dead_shares(windows)
