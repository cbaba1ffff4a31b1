"""Absorption, decomposability and unigram latents, in figures.

planted   TopK, BatchTopK and Matryoshka SAEs on one planted hierarchy: absorption counted exactly, and by
          probes on the same kind of rows, with the latents that the exact count chose and with those that the
          probes choose
meta      explained variance of decoder rows under a meta-SAE, for saved SAEs, with random rows as the control
letters   absorption of first letters, by probes, of saved SAEs over words of a store; words are split, not
texts
classes   the same of general classes of tokens, such as names; texts are split
unigram   latents of saved SAEs that fire on one token nearly always, over a store's rows

.venv/bin/python tests/bench/absorption.py planted --output /tmp/absorption
.venv/bin/python tests/bench/absorption.py meta --saes runs/quality/saes/ours-topk-lr_0.01-seed_0-steps_1200 …
.venv/bin/python tests/bench/absorption.py letters --store runs/quality/validation_store --saes …
.venv/bin/python tests/bench/absorption.py unigram --store runs/quality/validation_store --saes …
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from transformers import AutoTokenizer

import saelens_lite as sl
from saelens_lite.analyze.index.token_table import token_ids

KINDS = ("topk", "batchtopk", "matryoshka")
HIERARCHY = sl.synthetic.SyntheticConfig(
    d_model=96, n_features=256, l0=7.0, n_trees=12, branching=6, depth=1, max_child_share=0.7
)


def planted(args: argparse.Namespace) -> None:
    """A line an SAE, then means and ranges over seeds."""
    synthetic = sl.synthetic.SyntheticActivations(HIERARCHY)
    folder = args.output / "store"
    finished = (folder / "manifest.json").exists()
    store = sl.ActivationStore(folder) if finished else synthetic.to_store(folder, args.rows)
    parents = synthetic.parents[synthetic.parents >= 0].unique().tolist()
    rows = synthetic.rows(2**41, args.score_rows)
    on = rows.latents.to_dense() > 0
    labels = {str(parent): on[:, parent] for parent in parents}
    found: dict[str, list[dict[str, float]]] = {}
    for seed in args.seeds:
        for kind in (*KINDS, "topk frozen"):
            if seed != args.seeds[0] and kind not in KINDS:
                continue
            started = time.perf_counter()
            sae = sl.train_sae(
                store, kind=kind.split()[0], k=args.k, d_sae=HIERARCHY.n_features, seed=seed, lr=args.lr,
                batch_size_rows=1024, freeze_decoder="frozen" in kind, device="cpu", progress=False,
                output=str(args.output / f"{kind.replace(' ', '-')}-{seed}"),
            )  # fmt: skip
            seconds = time.perf_counter() - started
            exact = sl.ground_truth.planted_absorption(sae, synthetic, n_rows=args.score_rows)
            given = {str(row.feature): row.latents for row in exact.rows if row.scored}
            same = (
                sl.probing.label_absorption(
                    sae, rows.acts, {name: labels[name] for name in given}, latents=given
                )
                if given
                else None
            )
            own = sl.probing.label_absorption(sae, rows.acts, labels)
            own_one = sl.probing.label_absorption(sae, rows.acts, labels, max_latents=1)
            rates = {str(row.feature): row.rate for row in exact.rows if row.scored}
            line = {
                "absorption": exact.absorption, "fraction": exact.fraction,
                "missed alone": exact.missed_alone,
                "latents": exact.n_latents, "parents": float(len(given)), "rate": exact.rate,
                "rate, probe": same.rate,
                "|difference|": statistics.mean(abs(row.rate - rates[row.name]) for row in same.rows),
                "own latents": own.rate, "n own": own.n_latents, "k=1": own_one.rate,
                "fvu": sl.ground_truth.evaluate_recovery(sae, synthetic, n_rows=20_000).rows[0].fvu,
                "train s": seconds,
            }  # fmt: skip
            found.setdefault(kind, []).append(line)
            print(
                f"{kind} seed {seed}  " + "  ".join(f"{name} {value:.3f}" for name, value in line.items()),
                flush=True,
            )
    for kind, lines in found.items():
        cells = []
        for name in lines[0]:
            values = [line[name] for line in lines]
            cells.append(f"{name} {statistics.mean(values):.3f} ({min(values):.3f} – {max(values):.3f})")
        print(f"{kind}, {len(lines)} seeds: " + "  ".join(cells))


def meta(args: argparse.Namespace) -> None:
    """A table an SAE."""
    for folder in args.saes:
        started = time.perf_counter()
        print(folder.name)
        print(sl.recipes.meta_sae(sl.SparseAutoencoder.load(folder), seeds=args.seeds, device="cpu"))
        print(f"{time.perf_counter() - started:.0f} s", flush=True)


def letters(args: argparse.Namespace) -> None:
    """First letters, as in the paper: at most `--per-word` rows of each word that is one token; words are
    split."""
    store, ids, texts = _tokens(args)
    words = {
        i: text[1:].lower()
        for i, text in texts.items()
        if text[:1] in "▁Ġ" and text[1:].isascii() and text[1:].isalpha()
    }
    seen = dict.fromkeys(words, 0)
    rows = []
    for row, i in enumerate(ids.tolist()):
        if i in seen and seen[i] < args.per_word:
            seen[i] += 1
            rows.append(row)
    tokens = ids[rows]
    n_words = Counter(word[0] for word in words.values())
    often = sorted(letter for letter, n in n_words.items() if n > 9)
    labels = {letter: torch.tensor([words[i][0] == letter for i in tokens.tolist()]) for letter in often}
    print(
        f"{len(rows):,} rows of {len(words):,} words, at most {args.per_word} each; {len(labels)} letters "
        "with 10 words"
    )
    _absorbed(args, store.gather(torch.tensor(rows)), labels, tokens)


def classes(args: argparse.Namespace) -> None:
    """What tokens are in general, and may be absorbed by latents of single tokens; texts are split."""
    store, ids, texts = _tokens(args)
    documents = torch.cat([store.row_docs(shard) for shard in range(store.n_shards)])
    names = {
        "lily",
        "tim",
        "tom",
        "max",
        "sam",
        "ben",
        "mia",
        "sara",
        "jack",
        "sue",
        "anna",
        "timmy",
        "lucy",
        "mom",
        "dad",
    }
    pronouns = {
        "he",
        "she",
        "it",
        "they",
        "you",
        "we",
        "him",
        "her",
        "them",
        "his",
        "their",
        "i",
        "me",
        "my",
        "your",
    }
    tests = {
        "a name": lambda word: word.lower() in names,
        "a pronoun": lambda word: word.lower() in pronouns,
        "a capital": lambda word: word[:1].isupper(),
        "ends in ed": lambda word: word.endswith("ed") and len(word) > 3,
        "punctuation": lambda word: bool(word) and not any(letter.isalnum() for letter in word),
    }
    of_token = {
        name: {i for i, text in texts.items() if test(text.lstrip("▁Ġ"))} for name, test in tests.items()
    }
    kept = slice(args.score_rows)
    labels = {
        name: torch.tensor([i in members for i in ids[kept].tolist()]) for name, members in of_token.items()
    }
    print(
        f"{len(ids[kept]):,} rows; tokens: "
        + ", ".join(f"{len(members)} {name}" for name, members in of_token.items())
    )
    _absorbed(args, store.gather(torch.arange(len(ids[kept]))), labels, documents[kept])


def _tokens(args: argparse.Namespace) -> tuple[sl.ActivationStore, torch.Tensor, dict[int, str]]:
    """The store, the token of each row, and the text of each token as the tokenizer keeps it."""
    store = sl.ActivationStore(args.store)
    ids = token_ids(store, torch.arange(store.n_rows))
    tokenizer = AutoTokenizer.from_pretrained(store.tokenizer_name)
    return store, ids, {i: tokenizer.convert_ids_to_tokens(i) for i in ids.unique().tolist()}


def _absorbed(
    args: argparse.Namespace, acts: torch.Tensor, labels: dict[str, torch.Tensor], documents: torch.Tensor
) -> None:
    """A table an SAE: with the main latents that k-sparse probes choose, and with one alone."""
    for folder in args.saes:
        sae = sl.SparseAutoencoder.load(folder)
        for max_latents in (10, 1):
            found = sl.probing.label_absorption(sae, acts, labels, documents, max_latents=max_latents)
            print(f"{folder.name}, at most {max_latents} main latents\n{found}", flush=True)


def unigram(args: argparse.Namespace) -> None:
    """Flagged latents, beside those that the strongest firings alone would flag."""
    store = sl.ActivationStore(args.store)
    for folder in args.saes:
        with tempfile.TemporaryDirectory() as index_folder:
            index = sl.index_features(sl.SparseAutoencoder.load(folder), store, Path(index_folder) / "index")
            often = index.column("counts") >= 10
            by_top = int(((index.column("top_token_share") >= 0.9) & often).sum())
            entropy_0 = int(((index.column("token_entropy") == 0) & often).sum())
            median = float(index.column("token_share")[often].median())
            print(f"{folder.name}: {index.unigram}, {index.unigram.share:.2%}")
            print(
                f"  of the strongest firings alone 90 %: {by_top}; token entropy 0: {entropy_0}; median "
                f"share {median:.2f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("planted", "meta", "letters", "classes", "unigram"))
    parser.add_argument(
        "--output", type=Path, default=Path("runs/absorption"), help="planted: store and SAEs"
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--score-rows", type=int, default=40_000)
    parser.add_argument("--k", type=int, default=6)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--saes", type=Path, nargs="+", default=[])
    parser.add_argument("--store", type=Path)
    parser.add_argument("--per-word", type=int, default=10, help="letters: rows of a word, at most")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    {"planted": planted, "meta": meta, "letters": letters, "classes": classes, "unigram": unigram}[args.what](
        args
    )


if __name__ == "__main__":
    main()
