"""One pass gives exactly what brute force on the dense matrix gives, however the rows were cut; in C as in
torch."""

from itertools import pairwise

import pytest
import torch

from saelens_lite.analyze.index import tally as tallies
from saelens_lite.analyze.index.tally import Tally, activation_bins, bin_edges, position_bins
from saelens_lite.hashing import firing_hash
from saelens_lite.sae.latents import SparseLatents

N_ROWS, D_SAE, N_TOP, N_SAMPLE, SEED = 700, 40, 5, 9, 3


@pytest.fixture
def dense():
    """Latent values with many ties (integers), rows without firings, a silent latent and one that always
    fires."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-6, 5, (N_ROWS, D_SAE), generator=generator).clamp_min(0).float()
    values[:, 3] = 0
    values[::11] = 0
    values[:, 7] += 1
    return values


def positions(n_rows=N_ROWS):
    return torch.arange(n_rows) % 37


def tally_of(dense, cuts, first_row=0, dtype=torch.float32):
    """A Tally that saw the rows in blocks with these edges."""
    tally = Tally(dense.shape[1], N_TOP, N_SAMPLE, SEED, dtype)
    bins = position_bins(positions())
    for start, stop in pairwise(cuts):
        block = SparseLatents.from_dense(dense[start:stop].to(dtype))
        tally.update(block, first_row + start, bins[first_row + start : first_row + stop])
    return tally


def brute_force(dense):
    """The tensors of a Tally by sorting and counting every column on its own."""
    expected = {name: [] for name in Tally(1, 1).tensors()}
    edges, rows = torch.tensor(bin_edges()), torch.arange(len(dense))
    for latent, column in enumerate(dense.T):
        fired = rows[column > 0]
        values = column[fired]
        expected["counts"].append(len(fired))
        expected["first_fired"].append(int(fired[0]) if len(fired) else -1)
        expected["last_fired"].append(int(fired[-1]) if len(fired) else -1)
        expected["histogram"].append(torch.histogram(values, edges).hist.int())
        digits = torch.tensor(
            [len(f"{p:b}") * (p > 0) for p in positions(len(dense))[fired].tolist()], dtype=torch.int64
        )
        expected["positions"].append(torch.bincount(digits, minlength=16).int())
        strongest = [row for _, row in sorted(zip((-values).tolist(), fired.tolist()))][:N_TOP]
        sampled = [row for _, row in sorted(zip(firing_hash(SEED, latent, fired).tolist(), fired.tolist()))][
            :N_SAMPLE
        ]
        for name, chosen, n in (("top", strongest, N_TOP), ("sample", sampled, N_SAMPLE)):
            empty = n - len(chosen)
            expected[f"{name}_rows"].append(torch.tensor([*chosen, *[-1] * empty]))
            expected[f"{name}_values"].append(torch.tensor([*column[chosen].tolist(), *[0.0] * empty]))
    tensors = {
        name: torch.tensor(column)
        for name, column in expected.items()
        if column and isinstance(column[0], int)
    }
    tensors |= {
        name: torch.stack(column) for name, column in expected.items() if column and name not in tensors
    }
    all_digits = torch.tensor([len(f"{p:b}") * (p > 0) for p in positions(len(dense)).tolist()])
    return tensors | {
        "token_positions": torch.bincount(all_digits, minlength=16),
        "n_tokens": torch.tensor([len(dense)]),
    }


def assert_equal(tally, expected):
    assert tally.keys() == expected.keys()
    for name in expected:
        assert torch.equal(tally[name], expected[name]), name


@pytest.mark.property_check(4)
@pytest.mark.parametrize("block_rows", [1, 7, 64, 699, 700])
def test_a_tally_equals_brute_force(dense, kernels_path, block_rows):
    cuts = [*range(0, N_ROWS, block_rows), N_ROWS]
    assert_equal(tally_of(dense, cuts).tensors(), brute_force(dense))


def test_threads_cannot_matter(dense, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert_equal(tally_of(dense, [0, 300, N_ROWS]).tensors(), brute_force(dense))


def test_topk_layout_equals_brute_force(dense, kernels_path):
    """Pairs stored in another order, and stored zeros, change nothing."""
    values, indices = dense.topk(D_SAE, dim=1)
    tally = Tally(D_SAE, N_TOP, N_SAMPLE, SEED)
    tally.update(SparseLatents.from_topk(values, indices, D_SAE), 0, position_bins(positions()))
    assert_equal(tally.tensors(), brute_force(dense))


@pytest.mark.property_check(4)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_merged_in_any_order_equals_one(dense, kernels_path, order, monkeypatch):
    monkeypatch.setattr("saelens_lite.analyze.index.kept_firings._MERGE_LATENTS", 7)
    parts = [tally_of(dense[a:b], [0, b - a], first_row=a) for a, b in ((0, 300), (300, 301), (301, N_ROWS))]
    whole = parts[order[0]]
    for place in order[1:]:
        whole.merge(Tally.from_tensors(parts[place].tensors(), SEED))
    assert_equal(whole.tensors(), brute_force(dense))
    more = tally_of(dense[301:], [0, N_ROWS - 301], first_row=301)
    assert torch.equal(Tally.from_tensors(more.tensors(), SEED).first_fired, more.first_fired)


def test_float64_latents_go_by_the_definition(dense):
    tally = tally_of(dense, [0, 300, N_ROWS], dtype=torch.float64)
    expected = brute_force(dense)
    expected |= {name: expected[name].double() for name in ("top_values", "sample_values")}
    assert_equal(tally.tensors(), expected)


@pytest.mark.property_check(7)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_activation_lies_inside_its_bin_and_no_zero_has_one(dtype):
    # 1 = 2^0 lies at the lower edge of bin 32: bins count from 2^-8, and an octave has four. 1.25 is the next
    # edge.
    by_hand = torch.tensor([1.0, 1.2499999, 1.25, 1.5, 1.999, 2.0, 1e-9, 1e9], dtype=dtype)
    assert activation_bins(by_hand).tolist() == [32, 32, 33, 34, 35, 36, 0, 95]
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(20_000, generator=generator).mul(3).exp().to(dtype)
    edges = torch.tensor(bin_edges(), dtype=dtype)
    values = torch.cat([values, edges, torch.nextafter(edges, edges.new_tensor(0))])
    values = values[(values > 0) & (values < edges[-1])]
    bins = activation_bins(values)
    assert (edges[bins] <= values).all() and (values < edges[bins + 1]).all()
    latents = SparseLatents.from_topk(torch.tensor([[0.0, 2.0]], dtype=dtype), torch.tensor([[0, 1]]), 2)
    tally = Tally(2, 1, dtype=dtype)
    tally.update(latents, 0)
    assert tally.histogram.sum(1).tolist() == [0, 1] and tally.counts.tolist() == [0, 1]


def test_a_hash_by_hand():
    """splitmix64's finaliser in Python's integers."""

    def by_hand(seed, latent, row):
        x = ((latent + 1) * 0x9E3779B97F4A7C15 + row * 0xD1B54A32D192ED03 + seed) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return (x ^ (x >> 31)) >> 1

    for seed, latent, row in ((0, 0, 0), (7, 5, 123_456_789), (1, -1, 2**40), (2**31, 999_999, 3)):
        assert int(firing_hash(seed, latent, torch.tensor(row))) == by_hand(seed, latent, row)


def test_samples_are_uniform():
    """2,000 latents fire on rows 0 to 99: each row is in the samples of 10 firings 200 times, give or take 5
    σ = 67."""
    tally = Tally(2000, 1, 10)
    for row in range(100):
        tally.update(SparseLatents.from_dense(torch.ones(1, 2000)), row)
    assert torch.bincount(tally.sample.rows.flatten(), minlength=100).sub(200).abs().max() < 67


def test_latents_that_are_not_finite_are_named():
    with pytest.raises(ValueError, match="nan or infinity on row 12"):
        Tally(2, 1).update(SparseLatents.from_dense(torch.tensor([[1.0, 0], [0, 1], [0, float("nan")]])), 10)


def test_l0_and_density(dense):
    tally = tally_of(dense, [0, N_ROWS])
    assert tally.l0 == pytest.approx(float((dense > 0).sum() / N_ROWS))
    assert torch.equal(tally.density, (dense > 0).double().mean(0))
    assert tallies.Tally(3, 1).l0 == 0
