"""SAEs and their relatives on a language model's rows, in one table: what the sparse one is worth there.

    saelens-lite harvest --model stories3m-llama --hook-points blocks.3.hook_resid_post --max-tokens 250000 …
    .venv/bin/python tests/bench/relatives.py --store STORE --model MODEL --output DIR     # about 15 minutes

Each is trained twice (two seeds) for the same number of steps on the same rows: relatives with as many units
as the SAE keeps active (--k), one dense one with as many as the SAE has (--d-sae), SAEs with a trained and
with a frozen decoder. Prints compare_autoencoders' table as JSON lines, kept in DIR/results.json. The probe's
task is whether the next token ends a sentence. A training that is finished in DIR is not repeated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import saelens_lite as sl
from saelens_lite.train.autoencoders.single import train_autoencoder

ENDS = (".", "!", "?", '."', '!"', '?"')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--d-sae", type=int, default=768)
    parser.add_argument("--n-steps", type=int, default=1000)
    parser.add_argument("--max-tokens", type=int, default=12_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    store = sl.ActivationStore(options.store)
    run = {"batch_size_rows": 1024, "n_steps": options.n_steps, "device": "cpu", "progress": False}
    run |= {"eval_every_steps": 10**6, "checkpoint_every_steps": 10**6, "log_every_steps": 100}
    small = {"code_size": options.k}
    relatives = {
        "pca": small | {"kind": "pca"},
        "dense, linear": small | {"kind": "dense", "activation": "linear"},
        "dense, relu": small | {"kind": "dense"},
        "multilayer": small | {"kind": "multilayer"},
        "denoising": small | {"kind": "denoising", "activation": "linear"},
        "contractive": small | {"kind": "contractive", "activation": "sigmoid"},
        "variational, beta 0.1": small | {"kind": "variational", "beta": 0.1},
        "dense, wide": {"kind": "dense", "code_size": options.d_sae},
    }
    saes = {"topk": {}, "topk, frozen decoder": {"freeze_decoder": True}}
    found: list[dict] = [{}, {}]
    for seed in (0, 1):
        for name, fields in relatives.items():
            output = options.output / f"{name}-{seed}".replace(" ", "_").replace(",", "")
            found[seed][name] = train_autoencoder(store, output=str(output), seed=seed, **run | fields)
            print(json.dumps({"trained": name, "seed": seed}), flush=True)
        for name, fields in saes.items():
            output = options.output / f"{name}-{seed}".replace(" ", "_").replace(",", "")
            sparse = {"kind": "topk", "k": options.k, "d_sae": options.d_sae} | fields
            found[seed][name] = sl.train_sae(store, output=str(output), seed=seed, **run | sparse)
            print(json.dumps({"trained": name, "seed": seed}), flush=True)
    model = AutoModelForCausalLM.from_pretrained(options.model).eval()
    labels = ends_next(store, AutoTokenizer.from_pretrained(options.model))
    table = sl.evaluation.compare_autoencoders(
        found[0], store, model, found[1], labels, max_tokens=options.max_tokens
    )
    (options.output / "results.json").write_text(json.dumps(table.to_dict(), indent=1) + "\n")
    (options.output / "results.txt").write_text(f"{table}\n")
    for row in table.to_dict()["rows"]:
        print(json.dumps(row), flush=True)


def ends_next(store: sl.ActivationStore, tokenizer) -> torch.Tensor:
    """Of each row, whether the token after it ends a sentence: int64[n_rows]."""
    ends = {i for i in range(len(tokenizer)) if tokenizer.decode([i]).strip() in ENDS}
    found = []
    for shard in range(store.n_shards):
        of = store.tokens(shard)
        ids = of.input_ids.long()
        ended = torch.isin(ids, torch.tensor(sorted(ends)))
        found.append(torch.nn.functional.pad(ended[:, 1:], (0, 1))[of.kept.bool()])
    return torch.cat(found).long()


if __name__ == "__main__":
    main()
