"""What the feature index costs beside encoding alone, and beside encoding again for every 128 latents.

    .venv/bin/python tests/bench/index.py                  both parts, a few minutes
    .venv/bin/python tests/bench/index.py --d-model 768    the first part at another width

Part 1: 1 M tokens through a TopK SAE of 4,608 latents. Every block of 4,096 rows is encoded, tallied and sampled, each step
timed on its own, so that what else the machine does falls on all of them alike; co-firing follows at the end. Rows are made
between the timings: sparse Zipf-distributed sums of the SAE's own directions, so that latents fire at very different rates.

Part 2: 16,384 latents. SAEDashboard 0.8.0 encodes all latents of a TopK SAE again for every batch of 128 and keeps those 128
(feature_data_generator.py), so a full dictionary is 128 encodings. Such an encoding is timed as SAELens writes it (dense
pre-activations, topk, scatter), alternating with a whole index pass of ours over the same rows, and multiplied by 128; what
the peer does with the 128 columns afterwards is left out, in its favour.

Part 3: the memory of the tables of a million latents.
"""

import argparse
import platform
import resource
import statistics
import time

import torch

from saelens_lite.analyze.cofiring import cofiring
from saelens_lite.analyze.geometry import decoder_neighbors
from saelens_lite.analyze.tally import Tally, position_bins
from saelens_lite.analyze.tokensample import TokenSample
from saelens_lite.sae import SAEConfig, SparseAutoencoder

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
def one_pass(d_model: int, d_sae: int, k: int, n_rows: int, n_top: int, n_sample: int, sample_tokens: int) -> None:
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
        sampled = timed(lambda latents=latents, row=block * BLOCK_ROWS: _sample(latents, row, sample_tokens / n_rows))
        samples.append(sampled[0])
        seconds["sample"].append(sampled[1])
    (near, together), joined = timed(lambda: _near(samples, d_sae, sample_tokens))
    cosine = timed(lambda: decoder_neighbors(sae, 10))[1]
    encode, core, sample = (sum(seconds[name]) for name in ("encode", "tally", "sample"))
    median = statistics.median((a + b) / a for a, b in zip(seconds["encode"], seconds["tally"], strict=True))
    print(f"{tally.n_tokens:,} tokens, d_model {d_model}, {d_sae:,} latents, k {k}: l0 {tally.l0:.1f}")
    rows = {"encoding alone": 0.0, "core index": core, f"with co-firing of {together:,}": core + sample + joined}
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
    print(f"  one encoding of all latents, dense  {theirs:8.2f} s; {n_batches} of them {theirs * n_batches:10.1f} s")
    print(f"  index of all latents, ours          {mine:8.2f} s")
    print(f"  faster by {ratio:.0f} (median of rounds; {min(n_batches * a / b for a, b in pairs):.0f} to "
          f"{max(n_batches * a / b for a, b in pairs):.0f})")  # fmt: skip


def million(d_sae: int, n_top: int, n_sample: int) -> None:
    """Memory of the tables of very many latents."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tally = Tally(d_sae, n_top, n_sample)
    tables = sum(tensor.numel() * tensor.element_size() for tensor in tally.tensors().values())
    for tensor in tally.tensors().values():
        tensor.add_(0)  # touched, so that it is there
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{d_sae:,} latents: tables of {tables / 2**30:.2f} GiB, process grew by {grown / 2**20:.2f} GiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["pass", "again", "memory"], nargs="+", default=["pass", "again", "memory"])
    parser.add_argument("--d-model", type=int, default=192)
    parser.add_argument("--tokens", type=int, default=2**20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {torch.get_num_threads()} threads")
    if "pass" in args.part:
        one_pass(args.d_model, 4608, 32, args.tokens, 20, 64, 100_000)
    if "again" in args.part:
        against_encoding_again(768, 16_384, 32, 16_384, args.rounds)
    if "memory" in args.part:
        million(1_000_000, 20, 64)
