"""Every fast path against the definition in kernels/reference.py."""

import pytest
import torch
from torch.testing import assert_close

from saelens_lite.kernels import bags, cpu, reference

PATHS = [bags, pytest.param(cpu, marks=pytest.mark.skipif(cpu.library() is None, reason="no C compiler"))]


def pairs(B=37, n=1000, d=24, k=8, seed=0):
    gen = torch.Generator().manual_seed(seed)
    acts = torch.randn(B, d, generator=gen)
    W_dec = torch.nn.functional.normalize(torch.randn(n, d, generator=gen), dim=1)
    values, indices = reference.select_topk(torch.randn(B, n, generator=gen), torch.full((n,), -2.5), k)
    return acts, values.relu(), indices, W_dec, torch.randn(d, generator=gen)


def by_index(values, indices):
    order = indices.argsort(-1)
    return values.gather(1, order), indices.gather(1, order)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("n", "k"), [(1024, 4), (4096, 32), (1000, 8), (64, 64), (33, 1), (7, 3)])
def test_select_topk_equals_reference(path, n, k):
    pre_acts = torch.randn(19, n, generator=torch.Generator().manual_seed(n))
    bias = torch.randn(n, generator=torch.Generator().manual_seed(1))
    expected_values, expected_indices = by_index(*reference.select_topk(pre_acts, bias, k))
    values, indices = by_index(*path.select_topk(pre_acts, bias, k))
    assert_close(indices, expected_indices)
    assert_close(values, expected_values, rtol=0, atol=0)


@pytest.mark.parametrize("path", PATHS)
def test_select_topk_with_ties_keeps_k_values_that_are_there(path):
    pre_acts = torch.tensor([1.0, 0.0, -1.0])[torch.randint(0, 3, (11, 2048), generator=torch.Generator().manual_seed(1))]
    values, indices = path.select_topk(pre_acts, torch.zeros(2048), 16)
    assert_close(values, torch.ones(11, 16))
    assert_close(pre_acts.gather(1, indices), values)
    assert all(len(set(row.tolist())) == 16 for row in indices)


@pytest.mark.parametrize("path", PATHS)
def test_select_topk_with_infinities_and_nan(path):
    pre_acts = torch.randn(3, 2048)
    pre_acts[0] = float("-inf")
    pre_acts[1, 7] = float("inf")
    pre_acts[2, 9] = float("nan")
    values, indices = path.select_topk(pre_acts, torch.zeros(2048), 4)
    assert all(len(set(row.tolist())) == 4 for row in indices)
    assert 7 in indices[1] and values[1].max() == float("inf")


@pytest.mark.parametrize("path", PATHS)
def test_token_pass_equals_reference(path):
    acts, values, indices, W_dec, b_dec = pairs()
    got = path.token_pass(acts, values, indices, W_dec, b_dec, 0.25)
    want = reference.token_pass(acts, values, indices, W_dec, b_dec, 0.25)
    for g, w in zip(got, want, strict=True):
        assert_close(g, w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_latent_pass_equals_reference(path):
    acts, values, indices, W_dec, b_dec = pairs()
    recons_grad, pair_grads, _ = reference.token_pass(acts, values, indices, W_dec, b_dec, 0.25)
    args = (recons_grad, acts, values.reshape(-1), pair_grads, indices.reshape(-1), W_dec)
    for g, w in zip(path.latent_pass(*args), reference.latent_pass(*args), strict=True):
        assert_close(g, w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", [reference, cpu] if cpu.library() else [reference])
def test_regroup_by_hand(path):
    order, offsets = path.regroup(torch.tensor([2, 0, 2, 3, 0]), 5)
    assert order.tolist() == [1, 4, 0, 2, 3]
    assert offsets.tolist() == [0, 2, 2, 4, 5, 5]


@pytest.mark.skipif(cpu.library() is None, reason="no C compiler")
def test_cpu_kernels_do_not_depend_on_the_number_of_threads():
    acts, values, indices, W_dec, b_dec = pairs(B=64)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            selected = cpu.select_topk(acts @ W_dec.T, torch.zeros(1000), 8)
            tokens = cpu.token_pass(acts, values, indices, W_dec, b_dec, 1.0)
            args = (tokens.recons_grad, acts, values.view(-1), tokens.pair_grads, indices.view(-1), W_dec)
            results.append((*selected, *tokens, *cpu.latent_pass(*args)))
        finally:
            torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert_close(one, two, rtol=0, atol=0)


def test_decode_equals_reference_for_bags_of_any_length():
    offsets = torch.tensor([0, 2, 2, 5])
    indices, values, table = torch.tensor([3, 1, 0, 0, 2]), torch.tensor([1.0, -2.0, 0.5, 0.5, 0.0]), torch.randn(4, 6)
    assert_close(bags.decode(values, indices, offsets, table), reference.decode(values, indices, offsets, table))
    assert_close(reference.decode(values, indices, offsets, table)[0], table[3] - 2 * table[1])


def test_without_a_home_folder_the_bags_do_the_work(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(cpu.Path, "home", staticmethod(no_home))
    assert cpu.library.__wrapped__() is None
