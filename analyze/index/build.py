"""Making a feature index: one pass over a store, then what follows from its tally, the SAE and the model."""

from __future__ import annotations

import dataclasses
import os
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from saelens_lite.arguments import takes_folders
from saelens_lite.claims import Processes
from saelens_lite.config import AtLeast, check_fields
from saelens_lite.lm.hooks import enters_stream
from saelens_lite.lm.store_losses import check_model, scored_contexts
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.store.folder import LocalFolder
from saelens_lite.store.reader import ActivationStore

from ..attribution.lens import logit_lens
from ..latents.compatibility import fits, written_at
from ..latents.geometry import decoder_neighbors
from ..latents.text_windows import Contexts
from .cofiring import cofiring
from .feature_index import FeatureIndex
from .folder import (
    PARTS,
    check_ours,
    check_same_sae,
    decoder_identity,
    identity,
    index_folder,
    key_of,
    only_writer,
    outdated,
    read_index,
    write_index,
    write_tensors,
)
from .output_score import output_scores
from .store_tally import remove_parts, tally_store
from .tally import Tally
from .token_sample import TokenSample
from .token_table import table_of, token_ids
from .unigram import token_shares

_ENTROPY_PAIRS, _LENS_LATENTS = 2**24, 2**16


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """How much an index keeps of each latent; memory and disk take about 12 bytes for each kept firing of
    each latent."""

    n_top: Annotated[int, AtLeast(1)] = 20
    """Strongest firings."""

    n_sample: Annotated[int, AtLeast(0)] = 40
    """Firings of a uniform sample, from which quantile intervals take their examples."""

    n_contrast: Annotated[int, AtLeast(0)] = 5
    """Random rows on which the latent does not fire."""

    n_neighbors: Annotated[int, AtLeast(0)] = 10
    """Nearest latents by Jaccard, by PMI and by the cosine of decoder rows; 0 for none, which saves a product
    of the decoder with itself."""

    n_logits: Annotated[int, AtLeast(1)] = 10
    """Tokens of either end of the logit lens."""

    sample_tokens: Annotated[int, AtLeast(0)] = 100_000
    """Rows whose firings are kept together, at most, for co-firing, contrasts and search by token; 12 bytes a
    firing."""

    seed: Annotated[int, AtLeast(0)] = 0
    """Another seed samples other firings and rows."""

    def __post_init__(self) -> None:
        check_fields(self)


@takes_folders
@names_misfits
def index_features(
    sae: SparseAutoencoder,
    store: ActivationStore,
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    config: IndexConfig | None = None,
    *,
    hook_point: str | None = None,
    tokenizer: Any = None,
    output_score: bool = False,
    commit_every_s: float = 60.0,
) -> FeatureIndex:
    """Index every latent of an SAE over a store, in one pass, into a folder; each row is encoded once.

        index = index_features(sae, store, "index/", model)
        index[1234]

    path: new folder, or that of an index of this SAE, which is replaced when the new one is whole; its labels
        stay. An index that is there as asked for is opened; one that lacks only what a model gives gets that
        without a pass
    model: the one that was harvested, for the logit lens; None leaves that out
    output_score: also the effect of each latent on the model's next token, which costs a forward pass a
        latent
    tokenizer: None loads the store's own; output_score and the reader show text with it
    commit_every_s: seconds between commits of a pass; after a kill the same call resumes at the last one.
        Under torchrun, processes share the shards of the store
    raises: ValueError when SAE, store and model do not belong together, when the folder holds the index of
        another SAE, or when weights or activations are not finite; FeatureIndexError when the folder's index
        is damaged
    """
    config, folder = config or IndexConfig(), index_folder(path)
    point = fits(sae, store, hook_point)
    check_is_harvested(model, store, point)
    if output_score and model is None:
        raise ValueError(
            "output_score expected a model, got None: the score is an effect on a model's next token"
        )
    plan = {
        "sae": identity(sae),
        "store": {"sha256": store.fingerprint, "tokenizer": store.tokenizer_name},
        "model": {"name": store.model_name, "revision": store.plan.get("model", {}).get("revision")},
        "hook_point": point,
        "rows": store.n_rows,
        "settings": dataclasses.asdict(config),
    }
    # what never enters the stream has no lens
    written = point if model is None else written_at(sae, model, point)
    asked = {"lens": model is not None and enters_stream(model, written), "output_score": output_score}
    check_ours(folder)
    processes = Processes(f"index {folder}")
    found = processes.agreed("found", lambda: read_index(folder))
    if found is not None:
        check_same_sae(folder, found["plan"]["sae"], plan["sae"], "choose another folder, or remove that one")
        if found["plan"] == plan and all(found["has"][name] for name in asked if asked[name]):
            if processes.rank == 0 and (folder.root / PARTS).exists():
                with folder.locked() as ours:
                    if ours:  # left by a kill after the index was written
                        remove_parts(folder)
            return FeatureIndex.open(folder.root, tokenizer)
    with only_writer(folder, processes.rank):
        if found is not None and found["plan"] == plan:
            there = FeatureIndex.open(folder.root)
            tallied = (there.tally, there.token_sample) if processes.rank == 0 else None
        else:
            tallied = tally_store(sae, store, point, folder, plan, processes, commit_every_s)
        if tallied is not None:
            _write(sae, store, point, folder, plan, asked, tallied, model, tokenizer)
        processes.agreed("written", lambda: True)
    return FeatureIndex.open(folder.root, tokenizer)


def check_is_harvested(model: nn.Module | None, store: ActivationStore, point: str) -> None:
    """raises: ValueError for a model that does not give the rows of the store, as far as its tokens tell"""
    if model is not None and store.has_tokens:
        batches = scored_contexts(store, fraction=None, max_tokens=None, batch_size_seqs=4)
        check_model(model, store, point, next(batches))


def _write(
    sae: SparseAutoencoder,
    store: ActivationStore,
    hook_point: str,
    folder: LocalFolder,
    plan: dict[str, Any],
    has: dict[str, bool],
    tallied: tuple[Tally, TokenSample],
    model: nn.Module | None,
    tokenizer: Any,
) -> None:
    tally, sample = tallied
    tensors = tally.tensors()
    positions = tensors.pop("token_positions").tolist()
    del tensors["n_tokens"]
    tensors |= derived(sae, store, tally, sample, IndexConfig(**plan["settings"]))
    if model is not None and (has["lens"] or has["output_score"]):
        tokenizer = Contexts(store, tokenizer).tokenizer if has["output_score"] else None
        tensors |= of_model(
            sae,
            model,
            tally,
            written_at(sae, model, hook_point),
            plan["settings"]["n_logits"],
            has["output_score"],
            tokenizer,
        )
    key = key_of(plan, has)
    files = {"latents": f"latents-{key}.safetensors", "tokens": f"tokens-{key}.safetensors"}
    contents = {"latents": tensors, "tokens": table_of(store) | sample.tensors()}
    described = {
        name: {"file": file, **write_tensors(folder, file, contents[name])} for name, file in files.items()
    }
    facts = {"plan": plan, "has": has, "files": described, "token_positions": positions}
    write_index(folder, facts | {"bos_id": store.plan.get("bos_id"), "decoder": decoder_identity(sae)})
    for name in outdated(folder, files.values()):
        folder.remove(name)
    remove_parts(folder)


def derived(
    sae: SparseAutoencoder, store: ActivationStore, tally: Tally, sample: TokenSample, config: IndexConfig
) -> dict[str, Tensor]:
    """What follows from the tally and the SAE's weights, as in folder.py."""
    near = cofiring(sample, tally.d_sae, config.n_neighbors)
    cosine_ids, cosines = decoder_neighbors(sae, config.n_neighbors)
    return {
        "contrast_rows": sample.contrast(tally.d_sae, config.n_contrast, config.seed),
        "token_entropy": token_entropy(store, tally.top.rows),
        **token_shares(store, tally),
        "jaccard_ids": near.jaccard_ids,
        "jaccard": near.jaccard,
        "pmi_ids": near.pmi_ids,
        "pmi": near.pmi,
        "cosine_ids": cosine_ids,
        "cosine": cosines,
    }


def of_model(
    sae: SparseAutoencoder,
    model: nn.Module,
    tally: Tally,
    hook_point: str,
    n: int,
    output_score: bool,
    tokenizer: Any,
) -> dict[str, Tensor]:
    """What only a model tells: the logit lens and, if wanted, the output score.

    hook_point: where the SAE writes
    """
    tensors: dict[str, Tensor] = {}
    for latents in torch.arange(tally.d_sae).split(_LENS_LATENTS):
        lens = logit_lens(sae, model, latents, n=n)
        ids = {"promoted_ids": lens.top_ids.int(), "demoted_ids": lens.bottom_ids.int()}
        for name, part in (
            ids | {"promoted_logits": lens.top_logits, "demoted_logits": lens.bottom_logits}
        ).items():
            if name not in tensors:
                tensors[name] = part.new_empty(tally.d_sae, part.shape[1])
            tensors[name][latents] = part
    if output_score:
        if tokenizer is None:
            raise ValueError(
                "output_score expected a tokenizer for its prompt, and the store's cannot be loaded: pass "
                "tokenizer="
            )
        strongest = tally.top.values[:, 0].float()
        tensors["output_score"] = output_scores(
            sae, model, tokenizer, strongest, tensors["promoted_ids"], hook_point
        )
    return tensors


def token_entropy(store: ActivationStore, rows: Tensor) -> Tensor:
    """Entropy of the tokens of each latent's strongest firings: float32[d_sae], nats; 0 where all are one
    token.

    rows: int64[d_sae n], -1 in empty places; nan for a latent without firings, or for rows without tokens
    """
    if not store.has_tokens:
        return torch.full((len(rows),), torch.nan)
    entropies = []
    for part in rows.split(max(1, _ENTROPY_PAIRS // rows.shape[1] ** 2)):
        ids, there = token_ids(store, part), part >= 0
        same = (ids[:, :, None] == ids[:, None, :]) & there[:, None, :]
        n = there.sum(1, keepdim=True).double()
        surprise = (
            (n / same.sum(2)).log().masked_fill(~there, 0)
        )  # −log of the share of each firing's own token
        entropies.append((surprise.sum(1) / n[:, 0]).float())
    return torch.cat(entropies)
