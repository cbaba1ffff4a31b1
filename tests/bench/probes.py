"""Sparse probes on the labelled sets of ../shared/data; a JSON line for each set and pool, and one for the
time taken.

    .venv/bin/python tests/bench/probes.py --sae trained=FOLDER frozen=FOLDER [--sets subjectivity …] [--pools
    mean max last]

The SAEs read one hook point of stories3m-llama, a model of children's stories: it has never seen films,
questions of general knowledge or Wikidata, so the figures compare probes with each other and say nothing
about a model's knowledge.

The sets: sentence_polarity (praise or blame), subjectivity (review or plot), triviaqa_question and
triviaqa_answer (was gemma-2b's answer wrong, from the question or the answer alone), truthfulqa (question and
answer: is the answer right; answers of one question are a group), entities (name alone: city, movie, player,
    song or book).
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import saelens_lite as sl
from saelens_lite.analyze.probing.pooling import _padded, _token_ids
from saelens_lite.lm.hooks import run_to

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
Example = tuple[str, Any, Any]
"""text, label, group (None: none)"""


def rows(name: str) -> Iterator[dict[str, Any]]:
    with gzip.open(DATA / f"corpora/{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def triviaqa(field: str) -> Iterator[Example]:
    """Groups are accepted answers: two questions for one answer are about one thing."""
    for row in rows("triviaqa_gemma2b/answers"):
        if row["label"] != "refusal":
            yield row[field], row["label"], row["answers"][0].casefold()


def truthfulqa() -> Iterator[Example]:
    with gzip.open(DATA / "corpora/truthfulqa/mc_task.json.gz", "rt", encoding="utf-8") as file:
        for row in json.load(file):
            for answer, right in row["mc2_targets"].items():
                yield f"{row['question']} {answer}", "right" if right else "wrong", row["question"]


SETS: dict[str, Callable[[], Iterator[Example]]] = {
    "sentence_polarity": lambda: (
        (row["text"], row["label"], None) for row in rows("sentence_polarity/data")
    ),
    "subjectivity": lambda: ((row["text"], row["label"], None) for row in rows("subjectivity/data")),
    "triviaqa_question": lambda: triviaqa("question"),
    "triviaqa_answer": lambda: triviaqa("completion"),
    "truthfulqa": truthfulqa,
    "entities": lambda: ((row["entity"], row["type"], None) for row in rows("entities/entities")),
}


def bare_forward_s(model: torch.nn.Module, tokenizer: Any, texts: list[str], point: str, batch: int) -> float:
    """Seconds of tokenising and of the forward passes to the hook point, with nothing done to what they
    give."""
    began = time.perf_counter()
    ids = sorted(_token_ids(tokenizer, texts), key=len, reverse=True)
    with torch.no_grad():
        for start in range(0, len(ids), batch):
            input_ids, attended = _padded(ids[start : start + batch])
            run_to(model, [point], input_ids=input_ids, attention_mask=attended)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sae", nargs="+", required=True, help="NAME=FOLDER, at one hook point")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--pools", nargs="*", default=["mean", "max", "last"])
    parser.add_argument("--select-by", default="mean_difference")
    parser.add_argument("--texts", type=int, default=5000)
    parser.add_argument("--splits", type=int, default=1)
    parser.add_argument(
        "--time", type=int, default=0, help="rounds of timing features beside the bare forward"
    )
    args = parser.parse_args()
    folder = DATA / "models/stories3m-llama"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    saes = {name: sl.SparseAutoencoder.load(path) for name, path in (one.split("=", 1) for one in args.sae)}
    point = next(iter(saes.values())).config.hook_point
    for name in args.sets:
        examples = list(SETS[name]())
        examples = random.Random(0).sample(examples, min(args.texts, len(examples)))
        texts, labels, groups = (list(column) for column in zip(*examples))
        for pool in args.pools:
            began = time.perf_counter()
            features = sl.probing.pooled_latents(model, tokenizer, texts, saes, pool=pool, max_tokens=256)
            features_s = time.perf_counter() - began
            began = time.perf_counter()
            report = sl.probing.sparse_probes(
                features, labels, groups, select_by=args.select_by, n_splits=args.splits
            )
            probes_s = time.perf_counter() - began
            facts = {"set": name, "pool": pool, "features_s": features_s, "probes_s": probes_s}
            print(
                json.dumps(
                    facts | {key: value for key, value in report.to_dict().items() if key != "definitions"}
                ),
                flush=True,
            )
        if args.time:
            first = {"sae": next(iter(saes.values()))}
            bare, ours = [], []
            for _ in range(args.time):
                bare.append(bare_forward_s(model, tokenizer, texts, point, 32))
                began = time.perf_counter()
                n_tokens = int(sl.probing.pooled_latents(model, tokenizer, texts, first).n_tokens.sum())
                ours.append(time.perf_counter() - began)
            ratio = statistics.median(b / a for a, b in zip(bare, ours))
            print(
                json.dumps(
                    {"set": name, "tokens": n_tokens, "bare_s": bare, "features_s": ours, "ratio": ratio}
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
