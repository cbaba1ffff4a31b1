"""`saelens-lite analyze`: the index of an SAE over a store, and its page."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from saelens_lite.atomic import check_output, temporary_folder
from saelens_lite.cli.flags import configured
from saelens_lite.cli.shared import (
    carry_out,
    device_named,
    evaluation_to_show,
    is_first_process,
    model_for,
    print_next,
)
from saelens_lite.config import AtLeast

if TYPE_CHECKING:
    from saelens_lite.sae.autoencoder import SparseAutoencoder
    from saelens_lite.store.reader import ActivationStore


def run(argv: Sequence[str]) -> None:
    """Every latent in one pass: an index to search, and the strongest firings as one HTML page"""
    config = configured(AnalyzeConfig, "analyze", argv)
    from saelens_lite.distributed import several_processes
    from saelens_lite.sae.any_kind import load_reader
    from saelens_lite.store.reader import ActivationStore

    if config.store is None and (config.model is None or not config.dataset):
        raise ValueError(
            "analyze needs --store, or --model and --dataset to harvest one for the time of the analysis"
        )
    if config.store is None and several_processes():
        raise ValueError("analyze under torchrun needs --store: harvest one first, under torchrun as well")
    _check_output(config)
    sae = load_reader(config.sae, device=device_named(config.device))
    if config.store is not None:
        _analyze(config, sae, ActivationStore(config.store))
        return
    with temporary_folder() as folder:
        _analyze(config, sae, _harvest_for(sae, config, folder))


def _check_output(config: AnalyzeConfig) -> None:
    """raises: ValueError where page and index cannot both be written"""
    check_output(config.output)
    check_output(_index(config), folder=True)
    if Path(config.output).absolute() == Path(_index(config)).absolute():
        raise ValueError(
            f"--output and --index expected two names, got {config.output} for both: the page is a file, the "
            "index a folder"
        )


def _index(config: AnalyzeConfig) -> str:
    return config.index or str(Path(config.output).with_suffix(".index"))


def _analyze(config: AnalyzeConfig, sae: SparseAutoencoder, store: ActivationStore) -> None:
    from saelens_lite.analyze.index.build import IndexConfig, index_features
    from saelens_lite.analyze.latents.compatibility import checked_latents, fits, output_place
    from saelens_lite.analyze.pages.page_of_features import feature_page

    folder = _index(config)
    # before the pass
    checked_latents(sae, config.latents)
    point = fits(sae, store, config.hook_point)
    evaluation = evaluation_to_show(config.evaluation, config.sae, output_place(sae, point))
    index = index_features(
        sae,
        store,
        folder,
        model_for(config.model, str(sae.device), store),
        IndexConfig(n_top=config.n_top, sample_tokens=config.sample_tokens),
        hook_point=config.hook_point,
        output_score=config.output_score,
    )
    if not is_first_process():
        return
    page = feature_page(
        sae,
        store,
        config.output,
        n_latents=config.n_latents,
        latents=config.latents or None,
        hook_point=config.hook_point,
        index=index,
        evaluation=evaluation,
    )
    print(index.density)
    if index.tokens.has_tokens:
        print(index.unigram)
    print(f"page: {page}")
    print(f"index: {folder}")
    print_next("search", folder, by="max")


def _harvest_for(sae: SparseAutoencoder, config: AnalyzeConfig, folder: Path) -> ActivationStore:
    """A store of what the SAE reads, of the text that the command names."""
    from saelens_lite.harvest.config import HarvestConfig

    point = config.hook_point or sae.config.trained_at
    if not point:
        raise ValueError(f"{config.sae} does not say which activations it reads: pass --hook-point")
    store = HarvestConfig(
        model=config.model or "",
        dataset=config.dataset,
        hook_points=(point,),
        store=f"{folder}/store",
        max_tokens=config.max_tokens,
        device=config.device,
        dtype="float32",
    )
    return carry_out(store, dry_run=False)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AnalyzeConfig:
    """Index every latent of an SAE in one pass over a store, and write the strongest as one HTML
    page."""

    sae: str
    """Folder of the SAE, ours or SAELens', or a hub repository."""

    store: str | None = None
    """Folder of the activation store. None harvests one for the time of the analysis, from --model and
    --dataset."""

    output: str = "features.html"
    """The page to write, which needs no network."""

    evaluation: str | None = None
    """What `evaluate --output` wrote of the SAE, for the head of the page; None takes evaluation.json in the
    SAE's folder where there is one."""

    index: str | None = None
    """Folder of the index, new or of this SAE; its labels stay. None takes the page's name with .index for
    .html."""

    model: str | None = None
    """The model that was harvested, for the tokens that a latent argues for and against; "demo" is the
    embedded one."""

    dataset: tuple[str, ...] = ()
    """Without a store: hub ids or files of text, as `harvest` takes them; "demo" is Python's standard
    library."""

    max_tokens: Annotated[int, AtLeast(1)] = 1_000_000
    """Without a store: rows to harvest."""

    n_top: Annotated[int, AtLeast(1)] = 20
    """Strongest firings that the index keeps of each latent."""

    sample_tokens: Annotated[int, AtLeast(0)] = 100_000
    """Tokens whose latents are kept together, for co-firing and search; memory takes 12 bytes for each of
    their firings."""

    output_score: bool = False
    """Also measure what each latent does to the model's next token: a forward pass a latent."""

    n_latents: Annotated[int, AtLeast(1)] = 200
    """Latents on the page."""

    latents: tuple[int, ...] = ()
    """These latents on the page instead, in this order, as --latents 1125 993."""

    hook_point: str | None = None
    """Hook point of the store; None takes the one that the SAE was trained on."""

    device: str | None = None
    """cuda, mps or cpu; None takes the best one here."""
