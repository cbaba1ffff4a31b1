"""The dashboards of an index: windows with their activations, histograms, tables and lens, for all latents at
once."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.store.reader import ActivationStore

from ..attribution.lens import lens_logits
from ..browse.known_firings import KnownFirings, encoded_firings
from ..browse.latent_details import INTERVAL_EXAMPLES, latent_details
from ..index.feature_index import FeatureIndex
from ..index.folder import INDEX
from ..index.intervals import N_INTERVALS
from ..index.tally import bin_edges
from ..latents.store_pass import BLOCK_ROWS
from ..latents.text_windows import token_text
from ..matching import correlations
from .dashboards import LISTS, NUMBERS, Dashboards, Ragged

N_BARS, N_TABLE = 50, 3
_CHUNK_LATENTS = 4096


def dashboards_of(
    index: FeatureIndex,
    latents: Tensor,
    sae: SparseAutoencoder | None = None,
    store: ActivationStore | None = None,
    model: nn.Module | None = None,
    *,
    n_top: int = 20,
    context_tokens: int = 10,
) -> Dashboards:
    """Dashboards of latents int64[n] of an index.

    sae, store: those of the index, for activations around firings, and for the tables of neurons
    model: the one that was harvested, for histograms of the lens and the logit of each token
    n_top: strongest firings; context_tokens: tokens on either side of them, half as many around the examples
        of intervals
    raises: ValueError where the index does not know all firings, and SAE or store are missing
    """
    firings = _firings(index, sae, store)
    counts, largest = index.column("counts")[latents], index.column("top_values")[latents, 0].double()
    parts = [
        _windows(index, chunk, firings, n_top, context_tokens) for chunk in latents.split(_CHUNK_LATENTS)
    ]
    bins, prompt, position, at, sizes, ids, acts, lengths = (torch.cat(of).numpy() for of in zip(*parts))
    lists = {name: Ragged.empty(len(latents), float if name in NUMBERS else int) for name in LISTS}
    if (lens := index.lens(latents)) is not None:
        for ours, end_ids, end_logits in (
            ("pos", lens.top_ids, lens.top_logits),
            ("neg", lens.bottom_ids, lens.bottom_logits),
        ):
            lists[f"{ours}_str"] = Ragged.of_rows(end_ids.long().numpy())
            lists[f"{ours}_values"] = Ragged.of_rows(end_logits.double().numpy())
    lists |= _activation_bars(index.column("histogram")[latents], counts, largest)
    lists |= _correlated_latents(index, latents)
    if sae is not None:
        lists |= _aligned_neurons(sae, latents)
    if sae is not None and store is not None:
        lists |= _correlated_neurons(index, latents, store)
    windows, tokens = _ends(sizes), Ragged(ids, _ends(lengths))
    logits = np.zeros(0)
    if model is not None and sae is not None and lens is not None:
        bars, logits = _lens_bars(sae, model, latents, windows, tokens)
        lists |= bars
    used = np.unique(np.concatenate([ids, lists["pos_str"].values, lists["neg_str"].values]))
    tokenizer = index.contexts.tokenizer
    return Dashboards(
        facts=_facts(index, store),
        latents=latents.numpy(),
        d_sae=len(index),
        frac_nonzero=(counts.double() / index.n_tokens).numpy(),
        largest=largest.numpy(),
        lists=lists,
        windows=windows,
        bins=np.stack([bins[:, 0].round(3), bins[:, 1].round(3), bins[:, 2].round(5)], axis=1),
        prompt=prompt,
        position=position,
        at=at,
        tokens=tokens,
        acts=acts,
        logits=logits,
        texts={int(i): token_text(tokenizer, int(i)) for i in used},
    )


def _ends(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], sizes.cumsum()]).astype(np.int64)


def _firings(
    index: FeatureIndex, sae: SparseAutoencoder | None, store: ActivationStore | None
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """What tells when latents fire on rows: the index where it has sampled every row, else SAE and store."""
    if sae is not None:
        index.check(sae, store)
    if len(index.token_sample.rows) == index.n_tokens:
        return KnownFirings(index)
    if sae is None or store is None:
        raise ValueError(
            f"{index.path} knows all firings on {len(index.token_sample.rows):,} of {index.n_tokens:,} "
            "tokens: give the SAE and the store for the others, or index with that many sample_tokens"
        )
    return lambda latents, rows: encoded_firings(sae, store, index.hook_point, latents, rows)


def _windows(
    index: FeatureIndex,
    latents: Tensor,
    firings: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    n_top: int,
    context_tokens: int,
) -> tuple[Tensor, ...]:
    """Of the windows of some latents: bins, prompt, position, at; how many each latent has; token ids and
    activations of all; how many each window has."""
    around = {"before": context_tokens, "after": context_tokens}
    of = latent_details(index, latents, firings, n_examples=n_top, **around)
    n, share = len(latents), index.column("counts")[latents].double() / index.n_tokens / N_INTERVALS
    low, high = of["low"].double(), of["high"].double()  # strongest interval first
    strongest = index.column("top_values")[latents, :1].double()
    n_far, n_near = (
        of["far_row"].shape[1],
        N_INTERVALS * INTERVAL_EXAMPLES,
    )  # behind those: rows it is silent on
    none = torch.full((n, 1), -1.0, dtype=torch.float64)
    far_bins = torch.stack([none, strongest, none], 2).expand(n, n_far, 3)
    near_bins = torch.stack([low, high, share[:, None].expand_as(low)], 2)
    bins = torch.cat([far_bins, near_bins.repeat_interleave(INTERVAL_EXAMPLES, 1)], 1)
    width = of["far_tokens"].shape[2]
    ids, acts = [], []
    for kind, n_shown in (("far", n_far), ("near", n_near)):
        tokens = of[f"{kind}_tokens"].long()
        dense = torch.zeros(tokens.numel() // tokens.shape[2], tokens.shape[2], dtype=torch.float64)
        window = torch.arange(len(dense)).repeat_interleave(of[f"{kind}_firings"].flatten().long())
        dense[window, of[f"{kind}_place"].long()] = of[f"{kind}_act"].double().nan_to_num(0)
        margin = [(width - tokens.shape[2]) // 2] * 2
        ids.append(torch.nn.functional.pad(tokens[:, :n_shown], margin, value=-1))
        acts.append(torch.nn.functional.pad(dense.view(tokens.shape)[:, :n_shown], margin))
    rows, document, position = (
        torch.cat([of[f"far_{name}"].long(), of[f"near_{name}"][:, :n_near].long()], 1)
        for name in ("row", "document", "position")
    )
    there, tokens = rows >= 0, torch.cat(ids, 1)
    inside = (tokens >= 0) & there[..., None]
    at = inside[..., : width // 2].sum(2)
    of_window = (bins[there], document[there], position[there], at[there])
    return *of_window, there.sum(1), tokens[inside], torch.cat(acts, 1)[inside], inside.sum(2)[there]


def _activation_bars(histogram: Tensor, counts: Tensor, largest: Tensor) -> dict[str, Ragged]:
    """Firings in N_BARS equal steps of activation, from the index's exact bins, of which one that a step cuts
    is taken as uniform. The heights of a latent add up to its firings; one that never fired has none.

    histogram: int[n 96], counts: int64[n], largest: float64[n]
    """
    edges = torch.tensor(bin_edges(), dtype=torch.float64)
    filled = histogram > 0
    first = filled.int().argmax(1)
    last = histogram.shape[1] - 1 - filled.flip(1).int().argmax(1)
    low = edges[first]
    steps = low[:, None] + (largest - low)[:, None] * torch.linspace(0, 1, N_BARS + 1, dtype=torch.float64)
    at = (torch.searchsorted(edges, steps, right=True) - 1).clamp(0, histogram.shape[1] - 1)
    at = torch.minimum(at, last[:, None])
    end = torch.where(at == last[:, None], largest[:, None], edges[at + 1])  # the last bin ends there
    share = ((steps - edges[at]) / (end - edges[at]).clamp_min(1e-300)).clamp(0, 1)
    below = histogram.double().cumsum(1).gather(1, at) - histogram.double().gather(1, at) * (1 - share)
    below[:, -1] = counts.double()
    heights = below.round().diff(dim=1)
    fired = (counts > 0).numpy()[:, None].repeat(N_BARS, 1)
    return {
        "freq_hist_data_bar_values": Ragged.of_rows(((steps[:, 1:] + steps[:, :-1]) / 2).numpy(), fired),
        "freq_hist_data_bar_heights": Ragged.of_rows(heights.numpy(), fired),
    }


def _table(name: str, ids: Tensor, columns: dict[str, Tensor]) -> dict[str, Ragged]:
    """A table of N_TABLE rows a latent; rows whose id is below 0 are left out."""
    there = (ids >= 0).numpy()
    table = {f"{name}_indices": Ragged.of_rows(ids.numpy(), there)}
    return table | {
        f"{name}_{of}": Ragged.of_rows(part.double().numpy(), there) for of, part in columns.items()
    }


def _correlated_latents(index: FeatureIndex, latents: Tensor) -> dict[str, Ragged]:
    """The latents of largest correlation with each, over the sampled rows."""
    d_sae, sample = len(index), index.token_sample
    m = min(N_TABLE, d_sae - 1)
    ids, pearson, cosine = torch.full((d_sae, m), -1), torch.zeros(d_sae, m), torch.zeros(d_sae, m)
    for first, correlation, cosines in correlations(sample, sample, d_sae, d_sae):
        here = torch.arange(len(correlation))
        correlation[here, here + first] = torch.nan
        best = correlation.nan_to_num(-torch.inf).topk(m, dim=1)
        span = slice(first, first + len(correlation))
        known = best.values > -torch.inf
        ids[span] = best.indices.masked_fill(~known, -1)
        pearson[span] = best.values.masked_fill(~known, 0)
        cosine[span] = cosines.gather(1, best.indices).nan_to_num(0)
    return _table("correlated_features", ids[latents], {"pearson": pearson[latents], "l1": cosine[latents]})


def _aligned_neurons(sae: SparseAutoencoder, latents: Tensor) -> dict[str, Ragged]:
    """The largest entries of each decoder row, and their share of its l1 norm."""
    rows = sae.W_dec.detach()[latents.to(sae.device)].float().cpu()
    best = rows.topk(min(N_TABLE, rows.shape[1]), dim=1)
    share = best.values.abs() / rows.abs().sum(1, keepdim=True).clamp_min(1e-30)
    return _table("neuron_alignment", best.indices, {"values": best.values, "l1": share})


def _correlated_neurons(index: FeatureIndex, latents: Tensor, store: ActivationStore) -> dict[str, Ragged]:
    """The entries of the activations of largest correlation with each latent, over the sampled rows."""
    sample, d_sae, point = index.token_sample, len(index), index.hook_point
    n, width = max(len(sample.rows), 1), store.d_model(point)
    dot, total = torch.zeros(d_sae, width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    square = torch.zeros_like(total)
    for places in torch.arange(len(sample.rows)).split(BLOCK_ROWS):
        acts = store.gather(sample.rows[places], point).float()
        offsets = sample.offsets[int(places[0]) : int(places[-1]) + 2]
        pairs = slice(int(offsets[0]), int(offsets[-1]))
        by_latent = sample.latents[pairs].argsort(stable=True)
        row = torch.arange(len(places)).repeat_interleave(offsets.diff())[by_latent]
        starts = torch.bincount(sample.latents[pairs], minlength=d_sae).cumsum(0)
        starts = torch.cat([starts.new_zeros(1), starts[:-1]])
        weights = sample.values[pairs][by_latent]
        dot += torch.nn.functional.embedding_bag(row, acts, starts, mode="sum", per_sample_weights=weights)
        total += acts.double().sum(0)
        square += acts.double().square().sum(0)
    values = sample.values.double()
    mean, norm = (
        torch.bincount(sample.latents, weights=of, minlength=d_sae)[:, None] for of in (values, values**2)
    )
    spread = (norm - mean**2 / n).clamp_min(0).sqrt() * (square - total**2 / n).clamp_min(0).sqrt()
    pearson = ((dot - mean * total / n) / spread).nan_to_num(0, 0, 0)[latents]
    cosine = (dot / (norm.sqrt() * square.sqrt())).nan_to_num(0, 0, 0)[latents]
    best = pearson.topk(min(N_TABLE, width), dim=1)
    ids = best.indices.masked_fill(sample.counts(d_sae)[latents][:, None] == 0, -1)
    return _table("correlated_neurons", ids, {"pearson": best.values, "l1": cosine.gather(1, best.indices)})


def _lens_bars(
    sae: SparseAutoencoder, model: nn.Module, latents: Tensor, windows: np.ndarray, tokens: Ragged
) -> tuple[dict[str, Ragged], np.ndarray]:
    """The lens of each latent in N_BARS equal steps, and its logit for the tokens of its windows."""
    logits_of = np.zeros(len(tokens.values))
    heights, middles = (torch.zeros(len(latents), N_BARS, dtype=torch.float64) for _ in range(2))
    spans = tokens.offsets[windows]
    for places, logits in lens_logits(sae, model, latents):
        logits = logits.cpu()
        low, high = logits.amin(1, keepdim=True), logits.amax(1, keepdim=True)
        bar = ((logits - low) / (high - low).clamp_min(1e-30) * N_BARS).long().clamp_max(N_BARS - 1)
        cells = bar + torch.arange(len(places))[:, None] * N_BARS
        heights[places] = (
            torch.bincount(cells.flatten(), minlength=len(places) * N_BARS).view(-1, N_BARS).double()
        )
        middles[places] = (low + (high - low) * (torch.arange(N_BARS) + 0.5) / N_BARS).double()
        first, last = int(spans[places[0]]), int(spans[places[-1] + 1])
        sizes = torch.from_numpy(spans[int(places[0]) : int(places[-1]) + 2]).diff()
        rows = torch.arange(len(places)).repeat_interleave(sizes)
        logits_of[first:last] = logits[rows, torch.from_numpy(tokens.values[first:last])].double().numpy()
    bars = {
        "logits_hist_data_bar_values": Ragged.of_rows(middles.numpy()),
        "logits_hist_data_bar_heights": Ragged.of_rows(heights.numpy()),
    }
    return bars, logits_of


def _facts(index: FeatureIndex, store: ActivationStore | None) -> dict[str, Any]:
    """Where the dashboards come from, as far as index and store tell."""
    layer = re.search(r"\d+", index.hook_point)
    plan = store.plan if store is not None else {}
    sources = plan.get("dataset", {}).get("sources", [])
    made = datetime.datetime.fromtimestamp((index.path / INDEX).stat().st_mtime, datetime.UTC)
    name = index.plan.get("model", {}).get("name") or index.sae["model"] or "model"
    return {
        "model_id": os.path.basename(name),
        "layer": int(layer[0]) if layer else 0,
        "sae_set": f"{index.sae['kind']}-{len(index)}",
        "sae_id_suffix": None,
        "hook_name": index.hook_point,
        "dataset": " + ".join(str(source.get("name", source["kind"])) for source in sources),
        "n_prompts_total": index.tokens.n_seqs,
        "n_tokens_in_prompt": index.tokens.context_length,
        "created_at": made.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
