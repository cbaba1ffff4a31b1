"""How often the study finds what is not there: known and unknown permuted over entities, run after run.

    OMP_NUM_THREADS=1 python tests/bench/study_null.py --folder runs/null --n-runs 1000

The model is one linear layer: an embedding a letter, drawn at random, and a head. Each run draws who is
known anew, and goes through select and run: one latent held at one dose, 100 matched sets, no frozen
decoder. A JSON line a run in results.jsonl; runs that are there are not made again. Expected: p <= .05 in
3.5 to 6.5 % of runs for logits, and in at most 6.5 % for rates, where ties make it conservative.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import saelens_lite as sl
from saelens_lite.hashing import hashed_uniform

N_ENTITIES, N_ANSWERS, WIDTH, D_SAE = 160, 8, 32, 320
HOOK_POINT = "blocks.0.hook_resid_post"


def linear_model(tokenizer: Any, seed: int) -> GPT2LMHeadModel:
    """One block that does nothing between a random embedding and a random head."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=8, n_embd=WIDTH, n_layer=1, n_head=1,
        tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.transformer.h.parameters():
            parameter.zero_()
        model.transformer.wpe.weight.zero_()
        model.transformer.wte.weight.normal_()
        model.lm_head.weight.normal_(std=0.3)
    return model


def word_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<bos>", "<eos>", "unknown", *(f"a{i}" for i in range(N_ANSWERS))]
    words += [f"e{i}" for i in range(N_ENTITIES)]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>")


def random_sae(seed: int) -> sl.SparseAutoencoder:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(D_SAE, WIDTH, generator=generator), dim=1)
    sae = sl.SparseAutoencoder(sl.SAEConfig(kind="relu", d_model=WIDTH, d_sae=D_SAE, hook_point=HOOK_POINT))
    with torch.no_grad():
        sae.W_dec.copy_(rows)
        sae.W_enc.copy_(rows.T)
        sae.b_enc.fill_(-1.0)
        sae.b_dec.zero_()
    return sae


def one_run(model: Any, tokenizer: Any, sae: Any, run: int, score: str) -> dict[str, Any]:
    """p of the clamp of the one latent that separates best, in both directions."""
    place = torch.arange(N_ENTITIES).numpy()
    order = torch.from_numpy(hashed_uniform(place, 1, run)).argsort()
    known = set(order[: N_ENTITIES // 2].tolist())
    answers = (hashed_uniform(place, 2) * N_ANSWERS).astype(int)
    records = [
        sl.study.Question(prompt=f"e{i}", entity=f"e{i}", answer=f"a{answers[i]}", known=i in known)
        for i in range(N_ENTITIES)
    ]
    judge = sl.study.NextToken(["unknown"])
    study = sl.HallucinationStudy(model, tokenizer, sae, records, judge, split=sl.stats.Split(seed=run))
    found = study.run(
        study.select(n=1, n_ablated=1), doses=[1.0], n_controls=100, score=score, n_resamples=50, seed=run
    )
    return {"run": run, "score": score} | {
        name: found.row(name, dose=1.0).p for name in ("clamp known", "clamp unknown")
    }


def shares(rows: list[dict[str, Any]], score: str) -> dict[str, Any]:
    """Of runs with p <= .05, by edit."""
    of = [row for row in rows if row["score"] == score]
    names = ("clamp known", "clamp unknown")
    return {"score": score, "n": len(of)} | {
        name: sum(row[name] <= 0.05 for row in of) / max(1, len(of)) for name in names
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/null"))
    parser.add_argument("--n-runs", type=int, default=1000)
    parser.add_argument("--score", choices=("logits", "rates"), nargs="+", default=("logits", "rates"))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    results = given.folder / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {(row["run"], row["score"]) for row in rows}
    tokenizer = word_tokenizer()
    model, sae = linear_model(tokenizer, 0), random_sae(0)
    for run in range(given.n_runs):
        for score in given.score:
            if (run, score) not in done:
                rows.append(one_run(model, tokenizer, sae, run, score))
                with results.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    for score in given.score:
        print(json.dumps(shares(rows, score)))


if __name__ == "__main__":
    main()
