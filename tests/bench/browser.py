"""The feature page at full size: writing it from a ready index, and how fast a browser shows it.

    python tests/bench/browser.py [--latents 131072] [--tokens 1000000] [--folder DIR] [--clicks 50]

An index of synthetic latents is written in the format of analyze/index/folder.py: token ids of a Zipf law in
contexts of 128, 20 strongest and 40 sampled firings a latent, histograms, lens and neighbours at random.
Then its page is written, 20 firings a latent with 10 tokens before and after, and opened in headless Chromium
with a cold profile. Prints JSON lines; with --folder, a second call starts from the index that is there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from saelens_lite.analyze.browse.head import page_head  # noqa: E402
from saelens_lite.analyze.browse.static_files import write_page  # noqa: E402
from saelens_lite.analyze.browse.token_texts import TokenTexts  # noqa: E402
from saelens_lite.analyze.index.build import IndexConfig  # noqa: E402
from saelens_lite.analyze.index.feature_index import FeatureIndex  # noqa: E402
from saelens_lite.analyze.index.folder import index_folder, write_index, write_tensors  # noqa: E402
from saelens_lite.demo.embedded import MODEL_DIR  # noqa: E402
from tests.analyze.chromium import Browser, Tab  # noqa: E402

CONTEXT, N_TOP, N_SAMPLE, L0, VOCABULARY = 128, 20, 40, 32, 4096


def synthetic_index(folder: Path, d_sae: int, n_tokens: int) -> FeatureIndex:
    """An index that no pass made, of latents that fire as if by chance."""
    import dataclasses

    g = torch.Generator().manual_seed(0)
    n_seqs = n_tokens // CONTEXT
    n_rows = n_seqs * CONTEXT

    def rows(*shape: int) -> Tensor:
        return torch.randint(n_rows, shape, generator=g)

    def ids(n: int, high: int) -> Tensor:
        return torch.randint(high, (d_sae, n), generator=g, dtype=torch.int32)

    counts = torch.exp(torch.randn(d_sae, generator=g) * 1.5 + 5).long().clamp(N_SAMPLE + 1, n_rows)
    counts[::40] = 0  # dead ones
    alive = (counts > 0)[:, None]
    top = (torch.rand(d_sae, N_TOP, generator=g) * 3 + 5).sort(1, descending=True).values
    sample = torch.rand(d_sae, N_SAMPLE, generator=g) * 4 + 1
    histogram = torch.zeros(d_sae, 96, dtype=torch.int32)
    shares = torch.rand(d_sae, 16, generator=g)
    histogram[:, 32:44] = (counts[:, None] * shares[:, :12] / shares[:, :12].sum(1, keepdim=True)).int() + 1
    positions = torch.zeros(d_sae, 16, dtype=torch.int32)
    positions[:, :8] = (counts[:, None] * shares[:, :8] / shares[:, :8].sum(1, keepdim=True)).int()
    score = torch.rand(d_sae, 10, generator=g).sort(1, descending=True).values
    latents: dict[str, Tensor] = {
        "counts": counts,
        "first_fired": torch.where(alive[:, 0], rows(d_sae), -1),
        "last_fired": torch.where(alive[:, 0], rows(d_sae), -1),
        "top_values": top * alive,
        "top_rows": torch.where(alive, rows(d_sae, N_TOP), -1),
        "sample_values": sample * alive,
        "sample_rows": torch.where(alive, rows(d_sae, N_SAMPLE), -1),
        "histogram": histogram * alive,
        "positions": positions * alive,
        "contrast_rows": rows(d_sae, 5),
        "token_entropy": torch.where(alive[:, 0], shares[:, 0] * 3, torch.nan),
        **{name: torch.where(alive[:, 0], shares[:, i], torch.nan)
           for i, name in enumerate(("token_share", "top_token_share", "pair_share"), 1)},
        "common_token": ids(1, VOCABULARY)[:, 0].clone(),
        **{f"{name}_ids": ids(10, d_sae) for name in ("jaccard", "pmi", "cosine")},
        **{name: score.clone() for name in ("jaccard", "pmi", "cosine")},
        **{f"{end}_ids": ids(10, VOCABULARY) for end in ("promoted", "demoted")},
        **{f"{end}_logits": score.clone() for end in ("promoted", "demoted")},
    }  # fmt: skip
    zipf = (1.0 / torch.arange(3, VOCABULARY + 3, dtype=torch.float64)).cumsum(0)
    drawn = torch.searchsorted(zipf / zipf[-1], torch.rand(n_rows, generator=g, dtype=torch.float64))
    sampled = torch.randperm(n_rows, generator=g)[:100_000].sort().values
    pairs = torch.randint(d_sae, (len(sampled), L0), generator=g, dtype=torch.int32).sort(1).values
    tokens = {
        "input_ids": drawn.clamp_max(VOCABULARY - 1).int().view(n_seqs, CONTEXT),
        "attended": torch.ones(n_seqs, CONTEXT, dtype=torch.uint8),
        "kept": torch.ones(n_seqs, CONTEXT, dtype=torch.uint8),
        "doc_id": (torch.arange(n_seqs, dtype=torch.int32) // 8)[:, None].expand(-1, CONTEXT).contiguous(),
        "shard_seqs": torch.tensor([n_seqs]),
        "shard_rows": torch.tensor([n_rows]),
        "first_docs": torch.tensor([0]),
        "token_sample_rows": sampled,
        "token_sample_offsets": torch.arange(len(sampled) + 1) * L0,
        "token_sample_latents": pairs.flatten(),
        "token_sample_values": torch.rand(pairs.numel(), generator=g) * 4 + 1,
    }
    place = index_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    contents = {"latents": latents, "tokens": tokens}
    files = {
        name: {
            "file": f"{name}-{'0' * 12}.safetensors",
            **write_tensors(place, f"{name}-{'0' * 12}.safetensors", of),
        }
        for name, of in contents.items()
    }
    sae = {
        "kind": "topk",
        "d_model": 768,
        "d_sae": d_sae,
        "k": L0,
        "model": "",
        "hook_point": "x",
        "sha256": "0" * 64,
    }
    plan = {
        "sae": sae,
        "store": {"sha256": "0" * 64, "tokenizer": str(MODEL_DIR)},
        "model": {"name": "synthetic", "revision": None},
        "hook_point": "x",
        "rows": n_rows,
        "settings": dataclasses.asdict(IndexConfig(n_top=N_TOP, n_sample=N_SAMPLE)),
    }
    has = {"lens": True, "output_score": False}
    write_index(
        place,
        {"plan": plan, "has": has, "files": files, "token_positions": [n_seqs] * 8 + [0] * 8, "bos_id": None},
    )
    return FeatureIndex.open(folder)


def said(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def shown(page: Path, d_sae: int, clicks: int, profile: Path) -> None:
    """Seconds from opening to the first rows, to the scatter plot, and milliseconds of clicks."""
    browser = Browser(profile)
    began = time.perf_counter()
    tab = Tab(browser, page)
    tab.wait("document.querySelectorAll('#rows button').length >= 20", timeout_s=120)
    said(what="first 20 rows, s", value=round(time.perf_counter() - began, 2))
    tab.wait("document.querySelector('h2') !== null", timeout_s=120)
    drawn = """(async (latent) => { location.hash = latent; const began = performance.now();
        while (document.querySelector('h2').textContent !== `Latent ${latent}`)
            await new Promise((done) => setTimeout(done, 1));
        await new Promise((done) => requestAnimationFrame(() => done()));
        return performance.now() - began; })"""
    times = sorted(
        tab.js(f"{drawn}({1 + (i * 7919) % (d_sae - 2) // 40 * 40})") for i in range(1, clicks + 1)
    )
    said(
        what="click to drawn feature, ms",
        median=round(times[clicks // 2]),
        p95=round(times[int(clicks * 0.95) - 1]),
    )
    plot = """(async () => { const began = performance.now();
        document.querySelector('[data-view="scatter"]').click();
        await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
        return performance.now() - began; })()"""
    said(what="scatter of all, ms", value=round(tab.js(plot)))
    said(what="complaints", value=tab.complaints)
    browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latents", type=int, default=131_072)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--clicks", type=int, default=50)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        folder = args.folder or Path(tmp)
        place = folder / f"index-{args.latents}-{args.tokens}"
        index = FeatureIndex.open(place) if (place / "index.json").exists() else None
        index = index or synthetic_index(place, args.latents, args.tokens)
        texts, page = TokenTexts(index.contexts.tokenizer), folder / "page.html"
        began, cpu = time.perf_counter(), time.process_time()
        head = page_head(index, texts, 10, 10)
        write_page(page, index, head, texts, torch.arange(len(index)), n_examples=N_TOP, after=10)
        files = [page, *page.with_suffix(".data").glob("*.js")]
        said(
            what="page written",
            latents=len(index),
            seconds=round(time.perf_counter() - began, 1),
            cpu_seconds=round(time.process_time() - cpu, 1),
            megabytes=round(sum(file.stat().st_size for file in files) / 1e6, 1),
            threads=torch.get_num_threads(),
        )
        shown(page, len(index), args.clicks, Path(tmp) / "profile")


if __name__ == "__main__":
    main()
