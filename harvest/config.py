"""What a harvest is asked to do."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from saelens_lite.config import PERMISSION, AtLeast, check_fields

from .text.mixture import check_weights


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class HarvestConfig:
    """Run text through a model and keep the activations of some hook points in a store."""

    model: str
    """Hub id or local folder of a Hugging Face causal language model."""

    dataset: tuple[str, ...]
    """Hub ids or local files (txt, jsonl, json, csv, parquet; .gz too) or folders, read one after the other,
    or mixed by dataset_weights."""

    hook_points: tuple[str, ...]
    """Where to take activations, such as blocks.3.hook_resid_post or a module path; all share one forward
    pass."""

    store: str
    """Folder of the activation store, or a URL that fsspec opens, such as s3://bucket/store. An interrupted
    harvest resumes there."""

    max_tokens: Annotated[int, AtLeast(1)]
    """Rows to harvest: tokens with an activation, special tokens not counted. Fewer only if the dataset
    ends."""

    model_revision: str | None = None
    """Branch, tag or commit of the model on the hub; None is its main branch."""

    dataset_config: str | None = None
    """Configuration (subset) of a hub dataset, such as wikitext-2-raw-v1."""

    dataset_revision: str | None = None
    """Branch, tag or commit of the dataset on the hub; None is its main branch."""

    split: str = "train"
    """Split of the dataset. Plain local files have only train."""

    text_column: str = "text"
    """Column that holds a document: a text, a chat (messages with role and content, for the tokenizer's chat
    template), or token ids, such as messages or input_ids. Plain text files have text."""

    text_unit: Literal["line", "paragraph", "document"] = "line"
    """What one document is in a .txt file: a line, a paragraph (up to a blank line), or the whole file."""

    dataset_weights: tuple[float, ...] | None = None
    """A weight for each dataset: about this share of the documents comes from it, mixed throughout, until it
    ends. None reads one dataset after the other."""

    seed: int = 0
    """Draws which dataset of a mixture gives which document; without dataset_weights it changes nothing."""

    tokenizer: str | None = None
    """Hub id or local folder of the tokenizer; None takes the model's own."""

    context_length: Annotated[int, AtLeast(2)] = 256
    """Tokens a context, BOS included. Longer contexts show the model more; attention costs grow with it."""

    separator: Literal["bos", "eos", "none"] = "bos"
    """Token before a document that starts inside a context. A tokenizer without a BOS uses its EOS for
    "bos"."""

    documents_apart: bool = False
    """Give every document contexts of its own. Otherwise documents share contexts and see those before them:
    on a small model, rows of a second document moved by 8 %. Short documents then cost more passes."""

    keep_special_tokens: bool = False
    """Give BOS, separators and other special tokens rows too. Their activations are often extreme and distort
    training."""

    batch_size_seqs: Annotated[int, AtLeast(1)] = 32
    """Contexts a forward pass. Raising it fills an accelerator better and takes more memory."""

    dtype: Literal["bfloat16", "float16", "float32", "int8"] = "bfloat16"
    """Type of the stored rows. float32 takes twice the space; float16 is finer than bfloat16 but overflows at
    65504; int8 takes half the space and leaves out about 5e-5 of the variance."""

    compute_dtype: Literal["bfloat16", "float16", "float32"] | None = None
    """Type the model is loaded in. None: float32 on a CPU, elsewhere the type that its checkpoint states."""

    documents_per_shard: Annotated[int | None, AtLeast(1)] = None
    """Documents in a shard, the unit that an interruption costs. None: a power of two that gives about
    max_tokens / 32 rows, at most 262,144, by the mean of the first 64 documents."""

    device: str | None = None
    """Where to load the model: cuda, mps or cpu. None takes the first of these that exists. Under torchrun
    each process takes a GPU of its own."""

    compile: bool = False
    """Compile the model's blocks with torch.compile: faster in a long run, after a start of a minute or more.
    Rows differ in their last bits from uncompiled ones, so it is part of the plan."""

    check_space: Annotated[bool, PERMISSION] = True
    """Refuse to start where the disk has less room than the rows will take."""

    trust_remote_code: Annotated[bool, PERMISSION] = False
    """Allow the model's and tokenizer's repositories to run their own Python code on this machine."""

    progress: bool = True
    """Show a progress bar with tokens per second."""

    def __post_init__(self) -> None:
        for name in ("dataset", "hook_points"):
            value = getattr(self, name)
            if not value or isinstance(value, str):
                raise ValueError(f"{name} expected a sequence of at least one name, got {value!r}")
        if len(set(self.hook_points)) < len(self.hook_points):
            raise ValueError(f"hook_points expected each name once, got {', '.join(self.hook_points)}")
        check_fields(self)
        if self.dataset_weights is not None:
            check_weights(self.dataset_weights, len(self.dataset))
