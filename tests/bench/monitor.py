"""What a monitor costs: generate with and without one, turn by turn, on the embedded model.

    OMP_NUM_THREADS=1 .venv/bin/python tests/bench/monitor.py

Prints a JSON line for each kind of monitor: medians of CPU seconds over the turns, and the median of the
ratios of neighbours.
"""

import json
import statistics
import time

import torch

from saelens_lite.analyze.study.monitor import Monitor
from saelens_lite.demo.embedded import load_model
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig

TURNS, BATCH, NEW = 9, 4, 24
POINT = "blocks.3.hook_resid_post"


def main() -> None:
    model, tokenizer = load_model()
    tokenizer.padding_side = "left"
    texts = [
        "def add(a, b):\n    return",
        "import os\n\n",
        "class Node:\n    def",
        "for i in range(10):\n",
    ] * 2
    inputs = tokenizer(texts[:BATCH], padding=True, return_tensors="pt")
    width = model.config.hidden_size
    torch.manual_seed(0)
    fields = {"d_model": width, "d_sae": 16 * width, "hook_point": POINT, "model_name": "demo"}
    relu = SparseAutoencoder(SAEConfig(kind="relu", **fields))
    topk = SparseAutoencoder(SAEConfig(kind="topk", k=32, **fields))
    # most latents of a trained SAE are below 0 on most rows
    seldom = SparseAutoencoder(SAEConfig(kind="topk", k=32, **fields))
    with torch.no_grad():
        seldom.b_enc.fill_(-1e4)
    monitors = {
        "probe": Monitor(model, None, torch.randn(width), hook_point=POINT),
        "3 latents of relu": Monitor(model, relu, [1, 2, 3], hook_point=POINT),
        "3 latents of topk": Monitor(model, topk, [1, 2, 3], hook_point=POINT),
        "3 latents of topk, below 0": Monitor(model, seldom, [1, 2, 3], hook_point=POINT),
    }

    def written() -> float:
        start = time.process_time()
        model.generate(**inputs, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
        return time.process_time() - start

    written()
    for name, monitor in monitors.items():
        plain, read = [], []
        for _ in range(TURNS):
            plain.append(written())
            with monitor.reading():
                read.append(written())
        ratios = [two / one for one, two in zip(plain, read)]
        line = {"monitor": name, "plain_s": statistics.median(plain), "read_s": statistics.median(read)}
        print(json.dumps(line | {"ratio": statistics.median(ratios), "turns": TURNS}), flush=True)


if __name__ == "__main__":
    main()
