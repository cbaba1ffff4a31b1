"""The script that made the embedded language model: `python tests/bench/train_lm.py --out FOLDER`.

It trains a byte-level BPE tokenizer and a small Llama on the standard library's source (`corpus.py`), on one
CPU, and writes a Hugging Face folder with a model card. The batch of a step is a function of (seed, step)
alone and the optimizer is saved with the weights. After an interruption, run the same command again: it
resumes at the last checkpoint.
"""

import json
import math
import os
import platform
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from saelens_lite.config import Above, AtLeast, AtMost, check_fields
from saelens_lite.demo.corpus import HELD_OUT_PERCENT, Document, stdlib_documents

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"  # ids 0, 1, 2
SCORED_PER_WINDOW = 255
"""Held-out text is scored in windows of this many tokens, each after a BOS: the contexts of 256 that harvests
use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LMConfig:
    """What the embedded model is and how it is trained; the defaults are the command on its model card."""

    out: Path
    """Folder of the finished model; checkpoints lie in `<out>.checkpoint/` beside it."""
    n_steps: Annotated[int, AtLeast(1)] = 2000
    """Optimizer steps; the learning rate falls to zero at the last one."""
    batch_tokens: Annotated[int, AtLeast(1)] = 4096
    """Tokens per step, a multiple of 512."""
    lr: Annotated[float, Above(0)] = 3e-3
    """Peak learning rate of AdamW."""
    warmup_steps: Annotated[int, AtLeast(0)] = 100
    """Steps over which the learning rate rises from zero."""
    long_share: Annotated[float, AtLeast(0), AtMost(1)] = 0.15
    """Share of the steps, the last ones, on contexts of 512 instead of 256 tokens, so that all 512 positions
    are trained."""
    seed: int = 0
    """Seeds the weights and the order of the rows."""
    checkpoint_every_steps: Annotated[int, AtLeast(1)] = 200
    """Steps between checkpoints, each with a held-out loss on a fixed sample of windows."""
    n_threads: Annotated[int, AtLeast(1)] = 2
    """CPU threads."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.batch_tokens % 512:
            raise ValueError(f"batch_tokens expected a multiple of 512, got {self.batch_tokens}")
        if self.warmup_steps >= self.n_steps:
            raise ValueError(
                f"warmup_steps expected less than n_steps={self.n_steps}, got {self.warmup_steps}"
            )

    def context(self, step: int) -> int:
        """Tokens of one row at this step."""
        return 512 if step >= round((1 - self.long_share) * self.n_steps) else 256

    def lr_at(self, step: int) -> float:
        """Learning rate of this step: linear up, then linear down to zero."""
        return self.lr * min(
            (step + 1) / (self.warmup_steps + 1), (self.n_steps - step) / (self.n_steps - self.warmup_steps)
        )


def train_tokenizer(documents: list[Document]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 4096 tokens that puts BOS before a text and gives every text back
    unchanged."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((document["text"] for document in documents), trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def new_model(seed: int) -> LlamaForCausalLM:
    """An untrained Llama of 2.4 million parameters: width 192, 4 layers, 6 heads over 2 key-value heads, tied
    embeddings."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        intermediate_size=512,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        initializer_range=0.02,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


class Stream:
    """Rows for training: documents shuffled anew each epoch, joined, cut into blocks, blocks shuffled.

    Every row starts with BOS, as the packed contexts of a harvest do, and so does every document within a
    row.
    """

    def __init__(self, documents: list[list[int]], bos: int, seed: int) -> None:
        self._documents = [torch.tensor(document, dtype=torch.int64) for document in documents]
        self._bos = bos
        self._seed = seed
        self._epoch: int | None = None
        self._n_tokens = sum(map(len, documents))

    def rows(self, step: int, batch_tokens: int, context: int) -> Tensor:
        """The batch of one step.

        returns: int64[batch_tokens/context, context + 1]; the first token of a row is BOS, the others are to
            be predicted
        """
        per_step = batch_tokens // 512
        steps_per_epoch = (self._n_tokens // 512 - 1) // per_step
        epoch, place = divmod(step, steps_per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed((self._seed << 20) + epoch)
            order = torch.randperm(len(self._documents), generator=generator).tolist()
            joined = torch.cat([self._documents[i] for i in order])
            self._joined = joined.roll(int(torch.randint(512, (), generator=generator)))
            self._blocks = torch.randperm(steps_per_epoch * per_step, generator=generator)
            self._epoch = epoch
        starts = self._blocks[place * per_step : (place + 1) * per_step] * 512
        starts = (starts[:, None] + torch.arange(0, 512, context)).flatten()
        rows = self._joined[starts[:, None] + torch.arange(context + 1)]
        rows[:, 0] = self._bos
        return rows


def held_out_windows(documents: list[list[int]], bos: int) -> Tensor:
    """Held-out documents cut into windows that never cross a document's end.

    documents: token ids without BOS
    returns: int64[n_windows, 256], BOS first, filled up with -100 (not scored)
    """
    pieces = [
        document[start : start + SCORED_PER_WINDOW]
        for document in documents
        for start in range(0, len(document), SCORED_PER_WINDOW)
    ]
    windows = torch.full((len(pieces), SCORED_PER_WINDOW + 1), -100)
    windows[:, 0] = bos
    for row, piece in enumerate(pieces):
        windows[row, 1 : len(piece) + 1] = torch.tensor(piece)
    return windows


@torch.inference_mode()
def nats_and_tokens(model: LlamaForCausalLM, windows: Tensor) -> tuple[float, int]:
    """Sum of the cross-entropy over the scored tokens of some windows, in nats, and their number.

    windows: int64[n_windows, 256] of `held_out_windows`
    """
    nats, n_tokens = 0.0, 0
    for rows in windows.split(32):
        logits = model(input_ids=rows.clamp_min(0)).logits
        nats += float(F.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten(), reduction="sum"))
        n_tokens += int((rows[:, 1:] >= 0).sum())
    return nats, n_tokens


def save_checkpoint(
    folder: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Weights and optimizer state before `step`, in one safetensors file that replaces the last one in one
    stroke."""
    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{key}.{name}"] = value
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "state.tmp", metadata={"step": str(step)})
    os.replace(folder / "state.tmp", folder / "state.safetensors")


def load_checkpoint(folder: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer) -> int:
    """Put back what `save_checkpoint` wrote; returns the step to resume at, 0 without a
    checkpoint."""
    file = folder / "state.safetensors"
    if not file.exists():
        return 0
    tensors = load_file(file)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
            optimizer.state[parameter] = {
                key: tensors[f"optimizer.{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")
            }
    with safe_open(file, "pt") as opened:
        return int(opened.metadata()["step"])


def save_model(out: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write the Hugging Face folder: weights in bfloat16, which is also what the held-out loss is measured
    on."""
    tokenizer.save_pretrained(out)
    bf16 = LlamaForCausalLM(model.config).to(torch.bfloat16)
    bf16.load_state_dict(model.state_dict())
    # A document is followed by the BOS of the next one, so BOS is what ends a text.
    bf16.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[1, 2], pad_token_id=0)
    bf16.save_pretrained(out)


def new_optimizer(model: LlamaForCausalLM) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only; the learning rate is set anew at every step."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    gains = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def fit(model: LlamaForCausalLM, stream: Stream, sample: Tensor, config: LMConfig, checkpoint: Path) -> None:
    """Train the model in place, from the checkpoint if there is one; progress goes to its log.jsonl and is
    printed.

    sample: int64[n_windows, 256], the held-out windows that are scored at each checkpoint
    """
    optimizer = new_optimizer(model)
    first_step = load_checkpoint(checkpoint, model, optimizer)
    losses, started = [], time.perf_counter()
    for step in range(first_step, config.n_steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr_at(step)
        rows = stream.rows(step, config.batch_tokens, config.context(step))
        logits = model(input_ids=rows[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if (step + 1) % 20 == 0:
            speed = (step + 1 - first_step) * config.batch_tokens / (time.perf_counter() - started)
            print(
                f"step {step + 1}  loss {sum(losses[-20:]) / len(losses[-20:]):.4f}  {speed:,.0f} tokens/s",
                flush=True,
            )
        if (step + 1) % config.checkpoint_every_steps == 0 or step + 1 == config.n_steps:
            save_checkpoint(checkpoint, model, optimizer, step + 1)
            nats, n_tokens = nats_and_tokens(model, sample)
            record = {
                "step": step + 1,
                "train_loss": sum(losses) / len(losses),
                "held_out_sample_loss": nats / n_tokens,
                "elapsed_s": round(time.perf_counter() - started, 1),
            }
            losses.clear()
            print(record, flush=True)
            with (checkpoint / "log.jsonl").open("a") as log:
                log.write(json.dumps(record) + "\n")


def train(config: LMConfig) -> None:
    """Train the tokenizer and the model, write their folder, and score what was written on all held-out
    modules."""
    torch.set_num_threads(config.n_threads)
    checkpoint = config.out.with_name(config.out.name + ".checkpoint")
    checkpoint.mkdir(parents=True, exist_ok=True)
    documents = {split: list(stdlib_documents(split)) for split in ("train", "held_out")}
    tokenizer = train_tokenizer(documents["train"])
    bos = tokenizer.bos_token_id
    encoded = {
        split: tokenizer([d["text"] for d in docs], verbose=False)["input_ids"]
        for split, docs in documents.items()
    }
    windows = held_out_windows([ids[1:] for ids in encoded["held_out"]], bos)
    sample = windows[torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))[:64]]
    model = new_model(config.seed)
    fit(model, Stream(encoded["train"], bos, config.seed), sample, config, checkpoint)

    save_model(config.out, model, tokenizer)
    shipped = LlamaForCausalLM.from_pretrained(config.out, dtype=torch.float32).eval()
    nats, n_tokens = nats_and_tokens(shipped, windows)
    n_characters = sum(len(document["text"]) for document in documents["held_out"])
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_modules": len(documents["train"]),
        "train_tokens": sum(map(len, encoded["train"])),
        "held_out_modules": len(documents["held_out"]),
        "held_out_tokens": n_tokens,
        "held_out_characters": n_characters,
        "held_out_nats_per_token": round(nats / n_tokens, 4),
        "held_out_bits_per_character": round(nats / math.log(2) / n_characters, 4),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    log = [json.loads(line) for line in (checkpoint / "log.jsonl").read_text().splitlines()]
    (config.out / "README.md").write_text(model_card(config, facts, log))
    print(json.dumps(facts, indent=1))


def model_card(config: LMConfig, facts: dict[str, Any], log: list[dict[str, float]]) -> str:
    """The README.md of the model's folder.

    facts: what `train` counted and measured
    log: the records of log.jsonl, one a checkpoint
    """
    command = f"python tests/bench/train_lm.py --out {config.out.name}" + "".join(
        f" --{field.name.replace('_', '-')} {getattr(config, field.name)}"
        for field in fields(config)
        if field.name != "out" and getattr(config, field.name) != field.default
    )
    curve = "\n".join(
        f"| {row['step']:.0f} | {row['train_loss']:.4f} | {row['held_out_sample_loss']:.4f} |" for row in log
    )
    seen = config.n_steps * config.batch_tokens
    return f"""---
language: code
license: apache-2.0
---
# A small language model of Python's standard library

A Llama of {facts["parameters"]:,} parameters (width 192, 4 layers, 6 heads over 2 key-value heads, MLP \
512, tied
embeddings, 512 positions) with a byte-level BPE tokenizer of 4096 tokens of its own, made so that a \
project about the
insides of language models has a real one at hand without a download. It continues Python source and knows \
nothing
else: do not use it to write code.

## Data
The source of the standard library of CPython {facts["python"]} as `saelens_lite/demo/corpus.py` reads it, \
without tests
and generated tables: {facts["train_modules"]} modules, {facts["train_tokens"]:,} tokens. Training read \
{seen:,} of them
({seen / facts["train_tokens"]:.1f} epochs). Documents are joined, each begins with `<|bos|>`, and so does \
every row.
Whole modules are held out, about {HELD_OUT_PERCENT} % by a hash of their names: \
{facts["held_out_modules"]} modules,
{facts["held_out_characters"]:,} characters. The library repeats itself between modules, so some held-out text
resembles training text.

## Held-out loss
**{facts["held_out_nats_per_token"]} nats per token, {facts["held_out_bits_per_character"]} bits per \
character**, on all
{facts["held_out_tokens"]:,} held-out tokens, with these bfloat16 weights computed in float32. Each module \
is cut into
windows of {SCORED_PER_WINDOW} tokens, each after a `<|bos|>`; every token but that one is scored.

While training (mean training loss since the last row; loss on a fixed sample of 64 held-out windows), nats \
per token:

| step | training | held out |
| ---: | ---: | ---: |
{curve}

## How it was made
```
{command}
```
with torch {facts["torch"]} on CPU ({config.n_threads} threads), {log[-1]["elapsed_s"] / 60:.0f} minutes. \
AdamW, peak
learning rate {config.lr:g}, {config.warmup_steps} steps of warm-up, then linearly to zero; \
{config.n_steps} steps of
{config.batch_tokens} tokens, in contexts of 256 and, for the last {config.long_share:.0%} of the steps, of \
512 tokens.

## Licence
The weights are under the Apache License 2.0. The corpus is part of CPython, under the PSF License Version \
2, and is not
contained here.
"""


if __name__ == "__main__":
    train(tyro.cli(LMConfig, description=__doc__))
