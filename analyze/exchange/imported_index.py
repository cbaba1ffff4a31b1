"""An index made of dashboards, to be searched and browsed like one of ours.

It knows what the dashboards say. Every window is a context of its own, and its tokens are the rows. Counts
are those of the histogram, or the share of tokens times their number. What dashboards do not tell is empty:
neighbours, positions, rows on which a latent is silent. The dashboards stay beside it, so that the index can
be exported again as it came.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelens_lite.store.folder import LocalFolder

from ..index.feature_index import FeatureIndex
from ..index.folder import index_folder, only_writer, read_index, write_index, write_tensors
from ..index.tally import N_BINS, N_POSITION_BINS, activation_bins
from .dashboards import Dashboards, Ragged

TOKENIZER = "./tokenizer"


def write_imported(dashboards: Dashboards, path: Path, tokenizer: str | None = None) -> FeatureIndex:
    """Write the index of dashboards into a new folder.

    tokenizer: name of the one that the ids are of; None keeps the texts of the dashboards
    raises: ValueError where the folder holds an index already
    """
    folder = index_folder(path)
    with only_writer(folder, 0):
        if read_index(folder) is not None:
            raise ValueError(f"{folder} holds an index already: choose another folder for the import")
        kept = dashboards.tensors()
        tensors, settings = _latents(dashboards)
        contents = {"latents": tensors, "tokens": _tokens(dashboards), "dashboards": kept}
        described = {}
        for name, content in contents.items():
            file = f"{name}.safetensors"
            described[name] = {"file": file, **write_tensors(folder, file, content)}
        if tokenizer is None:
            _write_tokenizer(dashboards.texts, folder)
        facts = dashboards.facts
        digest = str(described["dashboards"]["sha256"])
        sae = {"sha256": digest, "d_sae": dashboards.d_sae, "d_model": 0, "kind": "imported", "k": None}
        plan = {
            "sae": sae | {"model": facts["model_id"], "hook_point": facts["hook_name"]},
            "store": {
                "sha256": hashlib.sha256(digest.encode()).hexdigest(),
                "tokenizer": tokenizer or TOKENIZER,
            },
            "model": {"name": facts["model_id"], "revision": None},
            "hook_point": facts["hook_name"],
            "rows": _n_tokens(dashboards),
            "settings": settings,
        }
        has = {"lens": "promoted_ids" in tensors, "output_score": False}
        write_index(
            folder,
            {"plan": plan, "has": has, "files": described, "token_positions": [0] * N_POSITION_BINS},
        )
    return FeatureIndex.open(path)


def _n_tokens(of: Dashboards) -> int:
    """Tokens that the dashboards rest on. SaeVisData does not say how many: there firings over share of
    tokens tell, of most latents alike; their histograms leave out tokens that were ignored."""
    if stated := of.facts["n_prompts_total"] * of.facts["n_tokens_in_prompt"]:
        return stated
    bars = of.lists["freq_hist_data_bar_heights"]
    fired = np.add.reduceat(np.append(bars.values, 0.0), bars.offsets[:-1]) * (np.diff(bars.offsets) > 0)
    told = (fired > 0) & (of.frac_nonzero > 0)
    if not told.any():
        return len(of.tokens.values)
    return round(float(np.median(fired[told] / of.frac_nonzero[told])))


def _latents(of: Dashboards) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The columns of an index, and the settings that they follow from."""
    d_sae = of.d_sae
    window_latent = np.repeat(of.latents, np.diff(of.windows))
    rows = of.tokens.offsets[:-1] + of.at
    values, strongest = of.acts[rows], of.bins[:, 0] == -1
    columns: dict[str, Tensor] = {}
    for name, chosen in (("top", strongest), ("sample", ~strongest)):
        chosen = chosen & (values > 0)
        columns |= _by_latent(name, window_latent[chosen], values[chosen], rows[chosen], d_sae)
    heights, middles = (of.lists[f"freq_hist_data_bar_{part}"] for part in ("heights", "values"))
    bar_latent = torch.from_numpy(np.repeat(of.latents, np.diff(heights.offsets)))
    fired = torch.from_numpy(heights.values).double()
    bars = activation_bins(torch.from_numpy(middles.values).clamp_min(1e-12))
    histogram = torch.zeros(d_sae * N_BINS, dtype=torch.float64).index_add_(
        0, bar_latent * N_BINS + bars, fired
    )
    counts = torch.zeros(d_sae, dtype=torch.float64).index_add_(0, bar_latent, fired).round().long()
    latents = torch.from_numpy(of.latents)
    stated = torch.from_numpy(of.frac_nonzero * _n_tokens(of)).round().long()
    counts[latents] = torch.where(counts[latents] > 0, counts[latents], stated)
    never = torch.full((d_sae,), torch.iinfo(torch.int64).max)
    seen, at = torch.from_numpy(window_latent), torch.from_numpy(rows)
    first = never.scatter_reduce(0, seen, at, reduce="amin")
    columns |= {
        "counts": counts,
        "first_fired": first.masked_fill(first == never, -1),
        "last_fired": torch.full((d_sae,), -1).scatter_reduce(0, seen, at, reduce="amax"),
        "histogram": histogram.view(d_sae, N_BINS).round().int(),
        "positions": torch.zeros(d_sae, N_POSITION_BINS, dtype=torch.int32),
        "contrast_rows": torch.zeros(d_sae, 0, dtype=torch.int64),
        "common_token": torch.full((d_sae,), -1, dtype=torch.int32),
    }
    for name in ("token_entropy", "token_share", "top_token_share", "pair_share"):
        columns[name] = torch.full((d_sae,), torch.nan)
    for name in ("jaccard", "pmi", "cosine"):
        columns |= {f"{name}_ids": torch.zeros(d_sae, 0, dtype=torch.int32), name: torch.zeros(d_sae, 0)}
    n_logits = 0
    if len(of.lists["pos_values"].values):
        for ours, theirs in (("promoted", "pos"), ("demoted", "neg")):
            ids, logits = of.lists[f"{theirs}_str"], of.lists[f"{theirs}_values"]
            columns[f"{ours}_ids"] = _padded(ids, of.latents, d_sae, -1).int()
            columns[f"{ours}_logits"] = _padded(logits, of.latents, d_sae, 0).float()
            n_logits = columns[f"{ours}_ids"].shape[1]
    settings = {name: columns[f"{name}_rows"].shape[1] for name in ("top", "sample")}
    settings = {f"n_{name}": n for name, n in settings.items()}
    return columns, settings | {
        "n_logits": n_logits,
        "n_contrast": 0,
        "n_neighbors": 0,
        "sample_tokens": 0,
        "seed": 0,
    }


def _by_latent(
    name: str, latents: np.ndarray, values: np.ndarray, rows: np.ndarray, d_sae: int
) -> dict[str, Tensor]:
    """Firings as {name}_values and {name}_rows [d_sae n], strongest first."""
    order = np.lexsort((rows, -values, latents))
    sizes = np.bincount(latents, minlength=d_sae)
    flat = Ragged(values[order], np.concatenate([[0], sizes.cumsum()]))
    of_rows = Ragged(rows[order], flat.offsets)
    every = np.arange(d_sae)
    found = {f"{name}_values": _padded(flat, every, d_sae, 0).float()}
    found[f"{name}_rows"] = _padded(of_rows, every, d_sae, -1).long()
    if found[f"{name}_rows"].shape[1] == 0:  # an index has one place at least
        found = {f"{name}_values": torch.zeros(d_sae, 1), f"{name}_rows": torch.full((d_sae, 1), -1)}
    return found


def _padded(of: Ragged, latents: np.ndarray, d_sae: int, fill: float) -> Tensor:
    """Lists of latents as a tensor [d_sae n], with `fill` where a list is shorter or a latent has none."""
    sizes = torch.from_numpy(np.diff(of.offsets))
    width = int(sizes.max()) if len(sizes) else 0
    table = torch.full((d_sae, width), fill, dtype=torch.float64)
    there = torch.arange(width) < sizes[:, None]
    rows = torch.from_numpy(latents)[:, None].expand_as(there)
    table[rows[there], torch.arange(width).expand_as(there)[there]] = torch.from_numpy(of.values).double()
    return table


def _tokens(of: Dashboards) -> dict[str, Tensor]:
    """The token table, a context a window, and the sampled rows: all of them."""
    sizes = torch.from_numpy(np.diff(of.tokens.offsets))
    width = int(sizes.max()) if len(sizes) else 1
    there = torch.arange(width) < sizes[:, None]
    ids = torch.zeros(there.shape, dtype=torch.int32)
    ids[there] = torch.from_numpy(of.tokens.values).int()
    n_rows = int(sizes.sum())
    fires = torch.from_numpy(of.acts) > 0
    latent = np.repeat(np.repeat(of.latents, np.diff(of.windows)), np.diff(of.tokens.offsets))
    return {
        "shard_rows": torch.tensor([n_rows]),
        "shard_seqs": torch.tensor([len(sizes)]),
        "first_docs": torch.tensor([0]),
        "input_ids": ids,
        "attended": there.to(torch.uint8),
        "kept": there.to(torch.uint8),
        "doc_id": torch.arange(len(sizes), dtype=torch.int32)[:, None].expand_as(ids).contiguous(),
        "token_sample_rows": torch.arange(n_rows),
        "token_sample_offsets": torch.cat([torch.zeros(1, dtype=torch.int64), fires.long().cumsum(0)]),
        "token_sample_latents": torch.from_numpy(latent)[fires].int(),
        "token_sample_values": torch.from_numpy(of.acts)[fires].float(),
    }


def _write_tokenizer(texts: dict[int, str], folder: LocalFolder) -> None:
    """A tokenizer whose tokens are the texts by their ids, so that the index shows them anywhere."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary: dict[str, int] = {}
    for i, text in texts.items():
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        vocabulary[whole if whole not in vocabulary else f"{whole}⟨{i}⟩"] = i
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=next(iter(vocabulary), "")))
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder.root / TOKENIZER)
