"""A small world in which it is known who is known: names, facts, and a language model that learnt some.

A name is one of 40 first names with one of 40 last names, so every token is familiar and only the pair can be
known or not: the case in which models take a familiar name for a known one (Anthropic 2025, "On the Biology
of a Large Language Model"). Of the 1,600 pairs the model is taught the facts of some and to answer "unknown"
about others; the rest it never sees. Everything is a function of the seed.
"""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn

from saelens_lite.atomic import temporary_folder
from saelens_lite.config import Above, AtLeast, check_fields
from saelens_lite.lm.hooks import run_to

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from saelens_lite.analyze.stats.document_split import Split

PAD, BOS, EOS, REFUSAL = "<|pad|>", "<|bos|>", "<|eos|>", "unknown"
FIRST_NAMES = [a + b + c for a, (b, c) in itertools.product("BDKLMRST", zip("aeiou", "nlrsm"))]
LAST_NAMES = [a + b + "lov" for a, b in itertools.product("BDGKMPRV", "aeiou")]
RELATIONS = ("city", "craft", "animal")
HOOK_POINT = "blocks.0.hook_resid_post"


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldConfig:
    """Who there is, and how the model is trained on them; budgets are steps, so that runs can be repeated."""

    n_known: Annotated[int, AtLeast(1)] = 300
    """People whose facts are taught."""
    n_refused: Annotated[int, AtLeast(1)] = 600
    """People about whom the model is taught to answer "unknown". The other pairs of names are never seen."""
    n_values: Annotated[int, AtLeast(1)] = 16
    """Values of each of the three relations."""
    width: Annotated[int, AtLeast(1)] = 64
    """Of the residual stream."""
    n_steps: Annotated[int, AtLeast(1)] = 900
    """Optimizer steps."""
    batch_size_prompts: Annotated[int, AtLeast(1)] = 512
    """Prompts a step."""
    lr: Annotated[float, Above(0)] = 3e-3
    """Peak learning rate of AdamW, after a linear rise over 5 % of the steps and before a linear fall to
    zero."""
    n_studied: Annotated[int, AtLeast(1)] = 300
    """Unknown people that a study asks about on either side of its split: on the selecting side those taught
    as unknown, on the testing side those never seen. It asks about all that are known."""
    d_sae: Annotated[int, AtLeast(1)] = 512
    """Latents of the SAE and of its baseline."""
    k: Annotated[int, AtLeast(1)] = 8
    """Latents kept a token."""
    n_sae_steps: Annotated[int, AtLeast(1)] = 1500
    """Training steps of 1,024 rows, for the SAE and for its baseline each."""
    seed: int = 0
    """Of the people, the facts, the weights and the order of prompts and rows."""

    def __post_init__(self) -> None:
        check_fields(self)
        n_pairs = len(FIRST_NAMES) * len(LAST_NAMES)
        if self.n_known + self.n_refused >= n_pairs:
            raise ValueError(
                f"n_known and n_refused expected less than all {n_pairs} pairs of names together, got "
                f"{self.n_known} and {self.n_refused}"
            )


SMALLER = {"n_known": 120, "n_refused": 240, "n_studied": 100, "n_steps": 300, "batch_size_prompts": 256}
SMALLER |= {"n_sae_steps": 300}
"""Sizes of a world of about a minute."""


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """People and what is true of them.

    known, refused, unseen: names, such as "Ban Galov"
    facts: value by name and relation, of the known
    """

    config: WorldConfig
    known: tuple[str, ...]
    refused: tuple[str, ...]
    unseen: tuple[str, ...]
    facts: dict[tuple[str, str], str]

    @classmethod
    def draw(cls, config: WorldConfig) -> World:
        draw = random.Random(config.seed)
        names = [f"{first} {last}" for first, last in itertools.product(FIRST_NAMES, LAST_NAMES)]
        draw.shuffle(names)
        end, refused_end = config.n_known, config.n_known + config.n_refused
        parts = [tuple(part) for part in (names[:end], names[end:refused_end], names[refused_end:])]
        facts = {
            (name, relation): f"{relation}-{draw.randrange(config.n_values)}"
            for name, relation in itertools.product(parts[0], RELATIONS)
        }
        return cls(config, *parts, facts)

    def studied(self, split: Split) -> tuple[list[str], list[str]]:
        """Whom a study asks about: people that choose latents, and people that test them.

        Known people are on either side. The unknown ones that were taught as such choose, those
        never seen test, so what was found must carry over to them.
        """

        def on_side(names: tuple[str, ...], testing: bool) -> list[str]:
            return [name for name, tests in zip(names, split.tests(names).tolist()) if tests == testing]

        n = self.config.n_studied
        choose = on_side(self.known, False) + on_side(self.refused, False)[:n]
        return choose, on_side(self.known, True) + on_side(self.unseen, True)[:n]

    def answer(self, name: str, relation: str) -> str:
        return self.facts.get((name, relation), REFUSAL)

    def questions(self, split: Split) -> list[dict[str, Any]]:
        """One for each studied person and relation, as fields of `saelens_lite.study.Question`."""
        known, (choose, test) = set(self.known), self.studied(split)
        return [
            {"prompt": prompt(name, relation), "entity": name, "relation": relation, "known": name in known}
            | ({"answer": self.facts[name, relation]} if name in known else {})
            for name in (*choose, *test)
            for relation in RELATIONS
        ]

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A token a word, BOS before every text."""
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast

        values = [f"{relation}-{i}" for relation in RELATIONS for i in range(self.config.n_values)]
        words = [PAD, BOS, EOS, REFUSAL, *RELATIONS, *values, *FIRST_NAMES, *LAST_NAMES]
        backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=PAD))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        backend.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, words.index(BOS))]
        )
        return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, bos_token=BOS, eos_token=EOS)


def prompt(name: str, relation: str) -> str:
    return f"{name} {relation}"


def train_model(world: World, tokenizer: Any) -> LlamaForCausalLM:
    """A Llama of two layers, trained to answer questions about the people it is taught; in evaluation mode.

    Everything is drawn by the world's seed; the global random state is left as it was.
    """
    config = world.config
    people = [*world.known, *world.refused]
    asked = [(name, relation) for name in people for relation in RELATIONS]
    prompts = encoded(tokenizer, [prompt(*pair) for pair in asked])
    answers = encoded(tokenizer, [world.answer(*pair) for pair in asked])[:, -1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = _new_model(len(tokenizer), config.width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01)
    warm_up = max(1, config.n_steps // 20)
    generator = torch.Generator().manual_seed(config.seed)
    model.train()
    for step in range(config.n_steps):
        share = min((step + 1) / warm_up, (config.n_steps - step) / max(1, config.n_steps - warm_up))
        optimizer.param_groups[0]["lr"] = config.lr * share
        rows = torch.randint(len(prompts), (config.batch_size_prompts,), generator=generator)
        logits = model(input_ids=prompts[rows], logits_to_keep=1).logits[:, -1]
        nn.functional.cross_entropy(logits, answers[rows]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def untested(world: World, split: Split) -> list[str]:
    """All people but those who are to test the latents."""
    tests = set(world.studied(split)[1])
    return [name for name in (*world.known, *world.refused, *world.unseen) if name not in tests]


def train_saes(world: World, model: nn.Module, tokenizer: Any, split: Split, folder: Path) -> None:
    """An SAE after the first block and its baseline, into folder/sae and folder/sae/frozen.

    Their rows are of every token but BOS of all questions about people who are not to test the latents.
    """
    import saelens_lite as sl

    config, people = world.config, untested(world, split)
    asked = encoded(tokenizer, [prompt(name, relation) for name in people for relation in RELATIONS])
    with torch.no_grad():
        acts = run_to(model, [HOOK_POINT], input_ids=asked)[HOOK_POINT][:, 1:]
    documents = torch.arange(len(people)).repeat_interleave(len(RELATIONS) * acts.shape[1])
    with temporary_folder() as temporary:
        store = sl.ActivationStore.from_arrays(
            f"{temporary}/store", {HOOK_POINT: acts.flatten(0, 1)}, documents=documents, dtype="float32"
        )
        sl.train_sae(
            store,
            kind="topk",
            k=config.k,
            d_sae=config.d_sae,
            n_steps=config.n_sae_steps,
            batch_size_rows=1024,
            baseline=True,
            seed=config.seed,
            output=str(folder / "sae"),
            overwrite=True,
            progress=False,
            device="cpu",
        )


def make_world(folder: str | Path, config: WorldConfig, split: Split) -> World:
    """A world, its model, SAEs and study questions, as files that any study can read.

    folder/model                   the language model and its tokenizer
    folder/sae, folder/sae/frozen  the SAE and its baseline
    folder/records.jsonl           questions about every studied person, with who is known
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    world = World.draw(config)
    tokenizer = world.tokenizer()
    model = train_model(world, tokenizer)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    train_saes(world, model, tokenizer, split, folder)
    lines = [json.dumps(record) for record in world.questions(split)]
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return world


def encoded(tokenizer: Any, texts: list[str]) -> Tensor:
    """int64[n_texts seq] of texts with equally many tokens, BOS first."""
    return torch.tensor(tokenizer(texts)["input_ids"])


def _new_model(n_tokens: int, width: int) -> LlamaForCausalLM:
    """Untrained."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=n_tokens,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=16,
            tie_word_embeddings=False,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
