"""What the feature index costs beside encoding alone, and beside encoding again for every 128 latents.

    .venv/bin/python tests/bench/index.py                  both parts, a few minutes
    .venv/bin/python tests/bench/index.py --d-model 768    the first part at another width

Part 1: 1 M tokens through a TopK SAE of 4,608 latents. Every block of 4,096 rows is encoded, tallied and
sampled, each step timed on its own, so that what else the machine does falls on all of them alike; co-firing
follows at the end. Rows are made
between the timings: sparse Zipf-distributed sums of the SAE's own directions, so that latents fire at very
different rates.

Part 2: 16,384 latents. SAEDashboard 0.8.0 encodes all latents of a TopK SAE again for every batch of 128 and
keeps those 128 (feature_data_generator.py), so a full dictionary is 128 encodings. Such an encoding is timed
as SAELens writes it (dense pre-activations, topk, scatter), alternating with a whole index pass of ours over
the same rows, and multiplied by 128; what the peer does with the 128 columns afterwards is left out, in its
favour.

Part 3: a whole index of a million latents of a narrow SAE, from the pass to the files: the resident memory
that each stage takes at most beyond what was there before it, the SAE's weights among it; then reading a
latent. Decoder neighbours are those of --near latents: of all they are a product of a million by a million,
which takes hours here and no more memory.

    .venv/bin/python tests/bench/index.py --part memory --tokens 102400
"""

import argparse
import logging
import platform
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from saelens_lite.analyze.index import build
from saelens_lite.analyze.index.cofiring import cofiring
from saelens_lite.analyze.index.feature_index import FeatureIndex
from saelens_lite.analyze.index.tally import Tally, position_bins
from saelens_lite.analyze.index.token_sample import TokenSample
from saelens_lite.analyze.latents.geometry import decoder_neighbors
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig
from saelens_lite.store.reader import ActivationStore

BLOCK_ROWS = 4096


def make_sae(d_model: int, d_sae: int, k: int) -> SparseAutoencoder:
    """A TopK SAE of random unit directions, its encoder the transpose of its decoder."""
    sae = SparseAutoencoder(SAEConfig(d_model=d_model, d_sae=d_sae, kind="topk", k=k))
    directions = torch.randn(d_sae, d_model, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.W_dec.copy_(torch.nn.functional.normalize(directions, dim=1))
        sae.W_enc.copy_(sae.W_dec.T)
    return sae


def make_rows(sae: SparseAutoencoder, n_rows: int, seed: int) -> torch.Tensor:
    """float32[n_rows d_model]: sums of k directions, drawn by Zipf's law, and noise."""
    generator = torch.Generator().manual_seed(seed)
    k = sae.config.k
    rates = 1 / torch.arange(1, sae.d_sae + 1).float() ** 0.7
    drawn = torch.multinomial(rates, n_rows * k, replacement=True, generator=generator).view(n_rows, k)
    values = 1 + torch.rand(n_rows, k, generator=generator)
    rows = torch.nn.functional.embedding_bag(drawn, sae.W_dec.detach(), per_sample_weights=values, mode="sum")
    return rows + 0.02 * torch.randn(rows.shape, generator=generator)


def timed(step):
    start = time.perf_counter()
    result = step()
    return result, time.perf_counter() - start


@torch.no_grad()
def one_pass(
    d_model: int, d_sae: int, k: int, n_rows: int, n_top: int, n_sample: int, sample_tokens: int
) -> None:
    sae = make_sae(d_model, d_sae, k)
    bins = position_bins(torch.arange(BLOCK_ROWS) % 128)
    tally, samples = Tally(d_sae, n_top, n_sample), []
    sae.encode(make_rows(sae, BLOCK_ROWS, 0))  # kernels are compiled, buffers are there
    seconds = {"encode": [], "tally": [], "sample": []}
    for block in range(n_rows // BLOCK_ROWS):
        rows = make_rows(sae, BLOCK_ROWS, block)
        latents, took = timed(lambda rows=rows: sae.encode(rows))
        seconds["encode"].append(took)
        _, took = timed(lambda latents=latents, row=block * BLOCK_ROWS: tally.update(latents, row, bins))
        seconds["tally"].append(took)
        sampled = timed(
            lambda latents=latents, row=block * BLOCK_ROWS: _sample(latents, row, sample_tokens / n_rows)
        )
        samples.append(sampled[0])
        seconds["sample"].append(sampled[1])
    (near, together), joined = timed(lambda: _near(samples, d_sae, sample_tokens))
    cosine = timed(lambda: decoder_neighbors(sae, 10))[1]
    encode, core, sample = (sum(seconds[name]) for name in ("encode", "tally", "sample"))
    median = statistics.median((a + b) / a for a, b in zip(seconds["encode"], seconds["tally"], strict=True))
    print(f"{tally.n_tokens:,} tokens, d_model {d_model}, {d_sae:,} latents, k {k}: l0 {tally.l0:.1f}")
    rows = {
        "encoding alone": 0.0,
        "core index": core,
        f"with co-firing of {together:,}": core + sample + joined,
    }
    for name, more in rows.items():
        print(f"  {name:<32} {encode + more:8.2f} s   {1 + more / encode:.3f}")
    print(f"  core index, median of blocks                  {median:.3f}")
    print(f"  decoder neighbours besides        {cosine:8.2f} s")
    assert near.jaccard_ids.shape == (d_sae, 10)


def _sample(latents, first_row, share):
    return TokenSample.of_block(latents, first_row, share)


def _near(samples, d_sae, sample_tokens):
    """Co-firing and contrasts of the sampled rows."""
    sample = TokenSample.cat(samples).smallest(sample_tokens)
    sample.contrast(d_sae, 5)
    return cofiring(sample, d_sae, 10), len(sample.rows)


@torch.no_grad()
def against_encoding_again(d_model: int, d_sae: int, k: int, n_rows: int, rounds: int) -> None:
    sae = make_sae(d_model, d_sae, k)
    rows = make_rows(sae, n_rows, 0)
    W_enc, bias, b_dec = sae.W_enc.detach().contiguous(), sae.b_enc.detach(), sae.b_dec.detach()

    def again(batch: int) -> list[torch.Tensor]:
        """The latents batch·128 to batch·128 + 127 of all rows, by encoding all latents."""
        kept = []
        for part in rows.split(BLOCK_ROWS):
            values, indices = ((part - b_dec) @ W_enc + bias).topk(k, dim=-1, sorted=False)
            dense = torch.zeros(len(part), d_sae).scatter_(-1, indices, values.relu())
            kept.append(dense[:, 128 * batch : 128 * (batch + 1)].clone())
        return kept

    def ours() -> Tally:
        tally, samples = Tally(d_sae, 20, 64), []
        for first_row in range(0, n_rows, BLOCK_ROWS):
            latents = sae.encode(rows[first_row : first_row + BLOCK_ROWS])
            tally.update(latents, first_row)
            samples.append(TokenSample.of_block(latents, first_row, 0.1))
        _near(samples, d_sae, n_rows // 10)
        return tally

    again(0), ours()
    pairs = [(timed(lambda r=r: again(r))[1], timed(ours)[1]) for r in range(rounds)]
    n_batches = d_sae // 128
    ratio = statistics.median(n_batches * theirs / mine for theirs, mine in pairs)
    mine, theirs = (statistics.median(pair[i] for pair in pairs) for i in (1, 0))
    print(f"{n_rows:,} tokens, d_model {d_model}, {d_sae:,} latents, k {k}, {rounds} rounds")
    print(
        f"  one encoding of all latents, dense  {theirs:8.2f} s; {n_batches} of them "
        f"{theirs * n_batches:10.1f} s"
    )
    print(f"  index of all latents, ours          {mine:8.2f} s")
    print(f"  faster by {ratio:.0f} (median of rounds; {min(n_batches * a / b for a, b in pairs):.0f} to "
          f"{max(n_batches * a / b for a, b in pairs):.0f})")  # fmt: skip


class Peak:
    """The largest resident memory of this process, stage by stage, above what it was at the start. Linux
    only."""

    def __init__(self) -> None:
        self._start, self.stages = self._read("VmRSS"), {}

    @staticmethod
    def _read(name: str) -> int:
        """Bytes: VmRSS, resident at present; VmHWM, at most since the last reset."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

    def of(self, name: str, step):
        """step, with its peak and seconds noted under this name."""

        def watched(*args, **kwargs):
            Path("/proc/self/clear_refs").write_text("5")
            result, seconds = timed(lambda: step(*args, **kwargs))
            peak, before = self._read("VmHWM") - self._start, self.stages.get(name, (0, 0.0))
            self.stages[name] = (max(peak, before[0]), before[1] + seconds)
            return result

        return watched


@torch.no_grad()
def million(d_model: int, d_sae: int, k: int, n_rows: int, n_near: int, n_sample: int) -> None:
    """The memory of a whole index of very many latents beyond the SAE's own weights, and reading a latent of
    it."""
    torch.manual_seed(0)
    sae = make_sae(d_model, d_sae, k)
    model = GPT2LMHeadModel(
        GPT2Config(n_embd=d_model, n_layer=1, n_head=1, vocab_size=8192, bos_token_id=0, eos_token_id=0)
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = (make_rows(sae, BLOCK_ROWS, block) for block in range(n_rows // BLOCK_ROWS))
        store = ActivationStore.from_arrays(f"{folder}/store", rows)
        sae.encode(make_rows(sae, 64, 0))

        def of_some(sae: SparseAutoencoder, m: int):
            """Decoder neighbours of some of the latents among all of them: every block of latents takes the
            same memory."""
            found = decoder_neighbors(sae, m, torch.arange(n_near))
            return tuple(torch.cat([part, part.new_zeros(d_sae - n_near, m)]) for part in found)

        peak, config = Peak(), build.IndexConfig(n_sample=n_sample)
        with ExitStack() as stack:
            for name in ("tally_store", "cofiring", "token_entropy", "logit_lens", "write_tensors"):
                stack.enter_context(mock.patch.object(build, name, peak.of(name, getattr(build, name))))
            stack.enter_context(
                mock.patch.object(build, "decoder_neighbors", peak.of("decoder_neighbors", of_some))
            )
            index = peak.of(
                "reading", lambda: build.index_features(sae, store, f"{folder}/index", model, config)
            )()
        n_fired = int((index.tally.counts > 0).sum())
        size = sum(file.stat().st_size for file in Path(f"{folder}/index").rglob("*") if file.is_file())
        print(
            f"{n_rows:,} tokens, d_model {d_model}, {d_sae:,} latents, k {k}: {n_fired:,} fired; index "
            f"{size / 1e9:.2f} GB"
        )
        for name, (most, seconds) in peak.stages.items():
            print(f"  {name:<20} {most / 1e9:6.2f} GB at most {seconds:9.1f} s")
        del index
        logging.disable(logging.WARNING)  # this store names no tokenizer
        index, took = timed(lambda: FeatureIndex.open(f"{folder}/index"))
        drawn = torch.randint(d_sae, (200,)).tolist()
        seconds = [timed(lambda latent=latent: index[latent])[1] for latent in drawn]
        print(
            f"  opening {1e3 * took:.1f} ms, reading one latent {1e3 * statistics.median(seconds):.2f} ms "
            "(median of 200)"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--part", choices=["pass", "again", "memory"], nargs="+", default=["pass", "again", "memory"]
    )
    parser.add_argument("--d-model", type=int, default=192)
    parser.add_argument("--tokens", type=int, default=2**20)
    parser.add_argument("--latents", type=int, default=2**20, help="of the third part")
    parser.add_argument(
        "--near", type=int, default=2**14, help="of a million latents, how many have decoder neighbours"
    )
    parser.add_argument(
        "--sample",
        type=int,
        default=build.IndexConfig().n_sample,
        help="sampled firings kept of each latent, parts 1 and 3",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {torch.get_num_threads()} threads")
    if "pass" in args.part:
        one_pass(args.d_model, 4608, 32, args.tokens, build.IndexConfig().n_top, args.sample, 100_000)
    if "again" in args.part:
        against_encoding_again(768, 16_384, 32, 16_384, args.rounds)
    if "memory" in args.part:
        million(64, args.latents, 32, args.tokens // BLOCK_ROWS * BLOCK_ROWS, args.near, args.sample)
