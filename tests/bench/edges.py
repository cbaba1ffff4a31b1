"""How well edge attribution ranks latent-to-latent effects, beside exact ablation; a JSON line.

    .venv/bin/python tests/bench/edges.py                             the embedded model and Python's standard
    library .venv/bin/python tests/bench/edges.py --model stories260k-llama   a model of ../shared/data on
    TinyStories

Two TopK SAEs are trained at adjacent hook points, the stream after block b and after block b + 1. Targets are
downstream latents that fire, drawn at random from texts that neither SAE saw, at tokens after the tenth. Of
all edges into them, from upstream latents that fire in the target's text, the 200 of largest attribution are
taken, and 200 of the others at random. Each is then measured by ablating the upstream latent at every token.
With Spearman's correlation of attribution and ablation, signed and of sizes, go the shares whose sign is
right, and the ratio of sizes (median of exact / estimate).
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

import saelens_lite as sl
from saelens_lite.analyze.stats.ranks import spearman
from saelens_lite.demo.corpus import stdlib_documents
from saelens_lite.demo.embedded import load_model
from saelens_lite.lm.hooks import run_to

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
N_EXAMPLES, CONTEXT, FIRST_POSITION = 8, 64, 10
SKIPPED_CHARACTERS = 400
"""Modules begin with a docstring, stories with a greeting: the texts start behind that."""


def stories(name: str) -> Iterator[str]:
    with gzip.open(DATA / f"corpora/tinystories/{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        yield from (json.loads(line)["text"] for line in file)


def model_and_texts(name: str):
    """Model, tokenizer, documents to train on and texts that are none of them."""
    if name == "demo":
        return (
            *load_model(),
            stdlib_documents(),
            (document["text"] for document in stdlib_documents("held_out")),
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = DATA / "models" / name
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return (
        model,
        AutoTokenizer.from_pretrained(folder),
        ({"text": t} for t in stories("train_v1")),
        stories("validation_v1"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--block", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--expansion", type=int, default=8)
    parser.add_argument("--targets", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model, tokenizer, documents, texts = model_and_texts(args.model)
    points = [f"blocks.{block}.hook_resid_post" for block in (args.block, args.block + 1)]
    with tempfile.TemporaryDirectory() as folder:
        store = sl.harvest_activations(
            model, documents, points, f"{folder}/store", max_tokens=args.tokens, tokenizer=tokenizer,
            context_length=128,
            progress=False,
        )  # fmt: skip
        upstream, downstream = (
            sl.train_sae(
                store, hook_point=point, kind="topk", k=args.k, expansion=args.expansion,
                batch_size_rows=1024,
                n_steps=args.steps, seed=args.seed, output=f"{folder}/{point}", progress=False,
            )
            for point in points
        )  # fmt: skip
        held_out = store.held_out_rows().nonzero()[:4096, 0]
        fvu = [
            float(_fvu(sae, store.gather(held_out, point)))
            for sae, point in zip((upstream, downstream), points, strict=True)
        ]

    starts = (tokenizer(text[SKIPPED_CHARACTERS:4000]).input_ids[:CONTEXT] for text in texts)
    ids = torch.tensor(list(itertools.islice((row for row in starts if len(row) == CONTEXT), N_EXAMPLES)))
    generator = torch.Generator().manual_seed(args.seed)
    with torch.no_grad():
        fires = downstream.encode_dense(run_to(model, [points[1]], input_ids=ids)[points[1]]) > 0
    fires[:, :FIRST_POSITION] = False
    places = fires.nonzero()
    targets = places[torch.randperm(len(places), generator=generator)[: args.targets]]

    started_s = time.perf_counter()
    found = sl.attribution.edge_attribution(model, upstream, downstream, targets, input_ids=ids)
    attribution_s = time.perf_counter() - started_s
    strongest, _ = found.strongest(200)
    others = found.effects != 0
    others[strongest[:, 0], strongest[:, 1]] = False
    others = others.nonzero()
    random = others[torch.randperm(len(others), generator=generator)[:200]]
    edges = torch.cat([strongest, random])
    started_s = time.perf_counter()
    exact = sl.attribution.edge_ablation(model, upstream, downstream, targets, edges, input_ids=ids)
    ablation_s = time.perf_counter() - started_s
    estimate = found.effects[edges[:, 0], edges[:, 1]]
    top, rest = slice(None, 200), slice(200, None)
    result = {
        "model": args.model, "points": points, "d_sae": upstream.d_sae, "k": args.k, "steps": args.steps,
        "seed": args.seed,
        "fvu": fvu, "edges": int((found.effects != 0).sum()),
        "spearman": spearman(estimate, exact),
        "spearman_sizes": spearman(estimate.abs(), exact.abs()),
        "spearman_sizes_strongest": spearman(estimate[top].abs(), exact[top].abs()),
        "spearman_strongest": spearman(estimate[top], exact[top]),
        "spearman_random": spearman(estimate[rest], exact[rest]),
        "sign_strongest": float(((estimate > 0) == (exact > 0))[top].float().mean()),
        "sign_random": float(((estimate > 0) == (exact > 0))[rest].float().mean()),
        "median_ratio_strongest": float((exact / estimate)[top].median()),
        "median_size": [float(estimate[part].abs().median()) for part in (top, rest)],
        "attribution_s": attribution_s, "ablation_s": ablation_s,
        "ablation_forwards": len(edges[:, 1].unique()) + 1,
    }  # fmt: skip
    print(json.dumps(result))


@torch.no_grad()
def _fvu(sae: sl.SparseAutoencoder, rows: torch.Tensor) -> torch.Tensor:
    return (rows - sae(rows).recons).square().sum() / (rows - rows.mean(0)).square().sum()


if __name__ == "__main__":
    main()
