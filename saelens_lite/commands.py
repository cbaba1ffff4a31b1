"""What each command of cli.py takes, as far as no room has a configuration of its own for it."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AddHookPointsConfig:
    """Harvest further hook points for a finished store, from the tokens that it holds."""

    store: str
    """Folder or URL of the activation store."""

    hook_points: tuple[str, ...]
    """Such as blocks.3.hook_mlp_out; those that are there already cost nothing."""

    model: str | None = None
    """The model that was harvested, where it is no longer found under the name that the store records; "demo" is the
    embedded one."""

    device: str | None = None
    """cuda, mps or cpu; None: the best there is."""

    trust_remote_code: bool = False
    """Allow the model's repository to run its own Python code on this machine."""

    progress: bool = True
    """Show a progress bar with tokens per second."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class VerifyConfig:
    """Read every byte of a store, finished or not, and list what is altered, short or missing (exit code 1)."""

    store: str
    """Folder or URL of the activation store."""

    repair: bool = False
    """Move damaged files to damaged/ inside the store, and make exactly those shards anew."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """Score an SAE on the held-out documents of a store, beside what gives the numbers their meaning. STORE SAE in front of
    the flags are --store and --sae."""

    sae: str
    """Folder of the SAE, ours or SAELens', or a hub repository."""

    store: str
    """Folder of the activation store."""

    baseline: str | None = None
    """Folder of an SAE to compare with: the one of the same run with --freeze-decoder."""

    seeds: tuple[str, ...] = ()
    """Folders of runs that differ from the SAE in their seed only: they give every number its seed noise, and whether the
    seeds found the same directions."""

    model: str | None = None
    """The model that was harvested, for what the reconstruction costs in cross-entropy; "demo" is the embedded one."""

    hook_point: str | None = None
    """Hook point of the store; None takes the one that the SAE was trained on."""

    held_out: bool = True
    """Score documents that training held out. Without it rows are scored that training has seen."""

    held_out_fraction: float | None = None
    """The share of documents that training held out; None takes what the SAE records."""

    max_tokens: int | None = 100_000
    """Rows to score, and as many predicted tokens; None for all."""

    windows_tokens: tuple[int, ...] = (10_000, 100_000, 1_000_000, 10_000_000)
    """A latent is dead that was silent during so many last tokens of the store: one column for each window, up to the first
    that is longer than the store."""

    all: bool = False
    """Print every number, those that other libraries call explained variance included; the JSON has them always."""

    device: str | None = None
    """cuda, mps or cpu; None: the best there is."""

    output: str | None = None
    """File that receives the numbers as JSON, with definitions; in the SAE's folder, `saelens-lite report` shows it."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AnalyzeConfig:
    """Index every latent of an SAE in one pass over a store, and write the strongest as one HTML page. STORE SAE in front of
    the flags are --store and --sae."""

    sae: str
    """Folder of the SAE, ours or SAELens', or a hub repository."""

    store: str | None = None
    """Folder of the activation store. None harvests one for the time of the analysis, from --model and --dataset."""

    output: str = "features.html"
    """The page to write, which needs no network."""

    index: str | None = None
    """Folder of the index, new or of this SAE; its labels stay. None takes the page's name with .index for .html."""

    model: str | None = None
    """The model that was harvested, for the tokens that a latent argues for and against; "demo" is the embedded one."""

    dataset: tuple[str, ...] = ()
    """Without a store: hub ids or files of text, as `harvest` takes them; "demo" is Python's standard library."""

    max_tokens: int = 1_000_000
    """Without a store: rows to harvest."""

    n_top: int = 20
    """Strongest firings that the index keeps of each latent."""

    sample_tokens: int = 100_000
    """Tokens whose latents are kept together, for co-firing and search; memory takes 12 bytes for each of their firings."""

    output_score: bool = False
    """Also measure what each latent does to the model's next token: a forward pass a latent."""

    n_latents: int = 200
    """Latents on the page."""

    hook_point: str | None = None
    """Hook point of the store; None takes the one that the SAE was trained on."""

    device: str | None = None
    """cuda, mps or cpu; None: the best there is."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """Tables, curves and histograms of training runs and evaluations as one HTML page that needs no network, for one SAE or
    several."""

    runs: tuple[str, ...]
    """Folders of runs, finished or still going, of SAEs of SAELens, folders of such folders; or JSON of `evaluate --output`,
    which is found in the folders too."""

    output: str = "report.html"
    """The page to write."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    """How well the latents of an SAE tell labelled texts apart: probes of few latents, of all, and of the activations."""

    sae: str
    """Folder of the SAE, ours or SAELens', or a hub repository."""

    model: str
    """The model that it was trained on, a hub id or a folder; "demo" is the embedded one."""

    texts: str
    """A jsonl, json, csv or parquet file, compressed or not, or a dataset of the hub."""

    text_field: str = "text"
    """Its field with the text."""

    label_field: str = "label"
    """Its field with the class."""

    group_field: str | None = None
    """Its field with what texts share (author, entity, source): texts of one group are never on both sides of the split."""

    labels: tuple[str, ...] = ()
    """Keep only these classes. Of two the last in order is the positive one; of more each is probed against the rest."""

    split: str = "train"
    """Split of a dataset of the hub."""

    max_texts: int | None = 5000
    """Of more texts so many are drawn at random; None for all."""

    baseline: str | None = None
    """Folder of an SAE to compare with: the one of the same run with --freeze-decoder."""

    k: tuple[int, ...] = (1, 2, 5, 16)
    """Numbers of latents that a probe sees."""

    select_by: Literal["mean_difference", "standardised"] = "mean_difference"
    """Latents by the difference of their means in the training texts, as it is or over their standard deviation."""

    pool: Literal["mean", "max", "last"] = "mean"
    """How the tokens of a text become one row: their mean, their maximum (activations: the mean), or the last token."""

    hook_point: str | None = None
    """None takes the one that the SAE was trained on."""

    max_tokens: int | None = None
    """Tokens of a text that are read; None is the model's longest context, with a warning where a text is longer."""

    test_fraction: float = 0.3
    """Share of the texts, or groups, that test."""

    seed: int = 0
    """Of the split, the draw of texts and the shuffled labels."""

    n_splits: int = 1
    """Splits of further seeds: their mean and spread."""

    batch_size_texts: int = 32
    """Texts in a forward pass."""

    device: str | None = None
    """cuda, mps or cpu; None: the best there is."""

    output: str | None = None
    """File that receives the numbers as JSON, with definitions."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig:
    """Find latents that tell entities the model knows from those it does not, edit them, and see what it then answers,
    beside controls. Without --model, on a small world and a model trained on it from nothing, in a few minutes."""

    output: str = "study"
    """Folder for study.json, and without --model for the world: model, SAE with its baseline, records."""

    model: str | None = None
    """A hub id or folder, or demo; with --sae and --records."""

    sae: str | None = None
    """Folder of an SAE of that model, ours or SAELens', or a hub repository."""

    baseline: str | None = None
    """Folder of the SAE of the same run with a frozen decoder; what a trained one has over it is what training found."""

    records: str | None = None
    """JSON lines, each a question: prompt, entity and answer; if wanted relation, group, type, known and span."""

    refusal: tuple[str, ...] = ("unknown",)
    """Words that say that an answer is not known; of each the first token counts."""

    options: tuple[str, ...] = ()
    """Words of answers: refusal and these alone are then compared, as in --refusal No --options Yes. Without them a refusal
    has to be the likeliest of all tokens."""

    n_latents: int = 3
    """Latents of known and of unknown entities that are clamped."""

    n_ablated: int = 50
    """Up to how many are removed together; controls need as many others that fire, and n_controls of them."""

    by: Literal["separation", "welch_t", "causal"] = "separation"
    """What chooses latents: the difference of firing rates, of means over its standard error, or each one's own effect."""

    store: str | None = None
    """An activation store of text at large: latents that fire on more than max_base_rate of its rows are not chosen."""

    max_base_rate: float = 0.02
    """With --store."""

    doses: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Of clamps, in units of the 95 % quantile of a latent's positive activations."""

    n_controls: int = 100
    """Matched random sets of latents for each edit: no p is below 1 / (n + 1)."""

    score: Literal["rates", "logits"] = "rates"
    """What is tested: rates of answers and refusals, or how far the logits of the two are apart, which tells more where
    rates are all or nothing."""

    position: Literal["last", "all"] = "last"
    """Tokens of the entity that are edited: last or all."""

    hook_point: str | None = None
    """Where to edit; None takes the place that the SAE was trained on."""

    batch_size_seqs: int = 256
    """Prompts in a forward pass."""

    seed: int = 0
    """Of the world, the split of entities, the controls and the intervals."""

    device: str | None = None
    """cuda, mps or cpu; None: the best there is, and a CPU for the small world."""
