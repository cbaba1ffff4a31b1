"""One pass gives exactly what brute force on the dense matrix gives, however the rows were cut."""

from itertools import pairwise

import pytest
import torch

from saelens_lite.analyze import max_activating_tokens
from saelens_lite.analyze.index import ActivationHistogram, TopFirings, index_latents
from saelens_lite.sparse import SparseLatents

from .conftest import make_sae

N_ROWS, D_SAE, N = 700, 40, 5


@pytest.fixture
def dense():
    """Latent values with many ties (integers), rows without firings, a silent latent and one that always fires."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-6, 5, (N_ROWS, D_SAE), generator=generator).clamp_min(0).float()
    values[:, 3] = 0
    values[:, 7] += 1
    values[::11] = 0
    return values


def brute_force(dense, n=N):
    """(values, rows) [d_sae n] by sorting every column: strongest first, then the lower row."""
    values, rows = dense.T.sort(dim=1, descending=True, stable=True)
    values, rows = values[:, :n], rows[:, :n]
    return values, torch.where(values > 0, rows, -1)


def top_firings(dense, block_rows, first_row=0):
    top = TopFirings(dense.shape[1], N)
    for block in dense.split(block_rows):
        top.update(SparseLatents.from_dense(block), first_row)
        first_row += len(block)
    return top


@pytest.mark.parametrize("block_rows", [1, 7, 64, 699, 700])
def test_top_firings_equal_brute_force(dense, block_rows):
    top = top_firings(dense, block_rows)
    values, rows = brute_force(dense)
    assert torch.equal(top.values, values)
    assert torch.equal(top.rows, rows)


def test_topk_layout_equals_brute_force(dense):
    """Pairs stored in another order, and stored zeros, change nothing."""
    values, indices = dense.topk(D_SAE, dim=1)
    top = TopFirings(D_SAE, N)
    top.update(SparseLatents.from_topk(values, indices, D_SAE), 0)
    assert torch.equal(top.values, brute_force(dense)[0]) and torch.equal(top.rows, brute_force(dense)[1])


@pytest.mark.parametrize("first, second", [(0, 1), (1, 0)])
def test_merged_in_any_order_equals_one(dense, first, second):
    halves = [top_firings(dense[:300], 64), top_firings(dense[300:], 64, first_row=300)]
    halves[first].merge(halves[second])
    assert torch.equal(halves[first].values, brute_force(dense)[0])
    assert torch.equal(halves[first].rows, brute_force(dense)[1])


def test_histogram_by_hand_and_in_total(dense):
    histogram = ActivationHistogram(D_SAE)
    histogram.update(SparseLatents.from_dense(dense))
    assert torch.equal(histogram.counts.sum(1), (dense > 0).sum(0)), "every positive value has a bin, no zero has"
    # 1 = 2^0 lies at the lower edge of bin 32, since the first edge is 2^-8 and an octave has four bins.
    assert ActivationHistogram.edges()[32] == 1.0
    assert torch.equal(histogram.counts[:, 32].long(), (dense == 1).sum(0))
    assert torch.equal(histogram.counts[:, 36].long(), (dense == 2).sum(0))


def test_histogram_bins_hold_what_their_edges_say():
    values = torch.cat([2.0 ** (torch.rand(1000) * 30 - 12), torch.tensor([1e-9, 1e9])])
    histogram = ActivationHistogram(1)
    histogram.update(SparseLatents.from_dense(values[:, None]))
    edges = torch.tensor(ActivationHistogram.edges(), dtype=torch.float64)
    inside = values.double().clamp(edges[0], edges[-1] * (1 - 1e-9))
    counts = torch.stack([((inside >= low) & (inside < high)).sum() for low, high in pairwise(edges)])
    assert (counts - histogram.counts[0]).abs().sum() <= 2, "rounding of log2 at an edge may move one value by one bin"


def integer_sae(kind):
    sae = make_sae(kind)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_((parameter * 10).round())
    return sae


class RoundedStore:
    """The store's rows rounded to integers, so that sums are exact in any order."""

    def __init__(self, store):
        self._store = store

    def __getattr__(self, name):
        return getattr(self._store, name)

    def acts(self, shard, hook_point=None, rows=slice(None)):
        return (self._store.acts(shard, hook_point, rows) * 20).round()


@pytest.mark.parametrize("kind", ["relu", "topk"])
@pytest.mark.parametrize("block_rows", [5, 100, 4096])
def test_end_to_end_equals_brute_force_for_any_block(store, kind, block_rows, monkeypatch):
    monkeypatch.setattr("saelens_lite.analyze.stream.BLOCK_ROWS", block_rows)
    store, sae = RoundedStore(store), integer_sae(kind)
    index = index_latents(sae, store, N)
    with torch.no_grad():
        dense = sae.encode_dense(torch.cat([store.acts(shard) for shard in range(store.n_shards)]))
    assert torch.equal(index.top.values, brute_force(dense)[0])
    assert torch.equal(index.top.rows, brute_force(dense)[1])
    assert torch.equal(index.firing.counts, (dense != 0).sum(0))
    assert index.firing.n_tokens == store.n_rows


def test_table_leads_back_to_rows_and_text(store, sae, byte_tokenizer):
    table = max_activating_tokens(sae, store, n=4, tokenizer=byte_tokenizer, context_tokens=6)
    assert len(table) == sae.d_sae and table.values.shape == (48, 4)
    rows = store.gather(torch.arange(store.n_rows))
    with torch.no_grad():
        dense = sae.encode_dense(rows)
    latent = int(table.n_fired.argmax())
    view = table.latent(latent)
    assert [firing.value for firing in view] == pytest.approx(brute_force(dense, 4)[0][latent].tolist(), abs=1e-5)
    docs = torch.cat([store.row_docs(shard) for shard in range(store.n_shards)])
    ids = torch.cat([store.tokens(s).input_ids[store.tokens(s).kept.bool()] for s in range(store.n_shards)])
    for firing in view:
        assert firing.document == docs[firing.row]
        assert firing.token in ("", byte_tokenizer.decode([int(ids[firing.row])])) or not firing.token.isascii()


def test_latents_can_be_chosen(store, sae, byte_tokenizer):
    everything = max_activating_tokens(sae, store, n=3, tokenizer=byte_tokenizer)
    some = max_activating_tokens(sae, store, n=3, latents=[5, 2], tokenizer=byte_tokenizer)
    assert some.latents.tolist() == [5, 2]
    assert torch.equal(some.rows, everything.rows[[5, 2]])
    assert some.latent(2) == everything.latent(2)
    with pytest.raises(ValueError, match="latent 7 is not in this table of 2 latents"):
        some.latent(7)
    with pytest.raises(ValueError, match="latents from 0 to 47, got 3 to 48"):
        max_activating_tokens(sae, store, latents=[3, 48])
    with pytest.raises(ValueError, match="n >= 1"):
        max_activating_tokens(sae, store, n=0)
