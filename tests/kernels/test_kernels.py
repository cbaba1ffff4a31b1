"""Every fast path against the definition in kernels/reference.py."""

import pytest
import torch
from torch.testing import assert_close

from saelens_lite.kernels import cpu, reference, torch_ops
from saelens_lite.kernels.cpu_build import library

PATHS = [torch_ops, pytest.param(cpu, marks=pytest.mark.skipif(library() is None, reason="no C compiler"))]


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
    pre_acts = torch.tensor([1.0, 0.0, -1.0])[
        torch.randint(0, 3, (11, 2048), generator=torch.Generator().manual_seed(1))
    ]
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
@pytest.mark.parametrize(("n", "k"), [(1000, 256), (33, 1), (7, 7), (5, 9), (64, 40)])
def test_keep_topk_equals_reference(path, n, k):
    acts = torch.randn(23, n, generator=torch.Generator().manual_seed(n))
    acts[0], acts[1, 0] = -1.0, float("inf")
    assert_close(path.keep_topk_(acts.clone(), k), reference.keep_topk_(acts.clone(), k), rtol=0, atol=0)


@pytest.mark.parametrize("path", [reference, *PATHS])
def test_keep_topk_of_equal_values(path):
    acts = torch.tensor([[2.0, -1.0, 3.0, 2.0, 2.0], [0.0, 1e-45, 0.0, -5.0, 1.0]])
    kept = path.keep_topk_(acts.clone(), 3)
    assert sorted(kept[0].tolist()) == [0.0, 0.0, 2.0, 2.0, 3.0]
    assert_close(kept[1], torch.tensor([0.0, 1e-45, 0.0, 0.0, 1.0]), rtol=0, atol=0)
    if path is not torch_ops:
        assert kept[0].tolist() == [2.0, 0.0, 3.0, 2.0, 0.0]


needs_screen = pytest.mark.skipif(
    library() is None
    or cpu.screened_topk(torch.randn(48, 8), torch.randn(80, 8), torch.zeros(80), 1) is None,
    reason="no C compiler, or a processor without AVX512-VNNI",
)


@pytest.mark.skipif(library() is None, reason="no C compiler")
def test_nth_largest_by_hand():
    values = torch.tensor([0.5, 3.0, -1.0, 3.0, float("inf"), 0.0])
    assert [cpu.nth_largest(values, n) for n in (1, 2, 3, 4, 5, 6)] == [float("inf"), 3.0, 3.0, 0.5, 0.0, 0.0]


@needs_screen
@pytest.mark.parametrize(
    ("B", "n", "d", "k"), [(300, 2048, 64, 8), (49, 1000, 33, 5), (1, 80, 3, 2), (13, 4100, 512, 32)]
)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e6])
def test_screened_topk_equals_the_product(B, n, d, k, scale):
    gen = torch.Generator().manual_seed(n)
    inputs, bias = torch.randn(B, d, generator=gen) * scale, torch.randn(n, generator=gen) * scale
    W_rows = torch.randn(n, d, generator=gen) * torch.rand(
        n, 1, generator=gen
    )  # rows of very different norms
    inputs[0] = 0
    want_values, want = by_index(
        *reference.select_topk((inputs.double() @ W_rows.double().T), bias.double(), k)
    )
    values, indices = by_index(*cpu.screened_topk(inputs, W_rows, bias, k))
    assert_close(indices, want)
    assert_close(values.double(), want_values, rtol=1e-5, atol=1e-5 * scale)


@needs_screen
def test_screened_topk_of_equal_rows_keeps_the_lower_latents():
    inputs, W_rows = torch.randn(70, 16, generator=torch.Generator().manual_seed(0)), torch.ones(200, 16)
    found = cpu.screened_topk(inputs, W_rows, torch.arange(200) // 100 * 0.5, 4)
    assert found is None or torch.equal(found[1].sort(1).values, torch.arange(100, 104).expand(70, 4))


@needs_screen
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["inputs", "W_rows", "bias"])
def test_screened_topk_gives_up_where_something_is_not_finite(bad, where):
    given = {"inputs": torch.randn(250, 16), "W_rows": torch.randn(400, 16), "bias": torch.zeros(400)}
    given[where].view(-1)[given[where].numel() * 9 // 10] = bad
    if where == "bias" and bad == float("-inf"):
        return  # such a latent is simply never selected
    assert cpu.screened_topk(**given, k=2) is None
    assert cpu.screened_batch_topk(**given, n_pairs=500, guess=5.0) is None


@needs_screen
@pytest.mark.parametrize(
    ("B", "n", "d", "n_pairs"), [(300, 2048, 64, 2400), (49, 1000, 33, 30), (101, 4100, 512, 3232)]
)
def test_screened_batch_topk_equals_the_product(B, n, d, n_pairs):
    gen = torch.Generator().manual_seed(n)
    inputs, bias = torch.randn(B, d, generator=gen), torch.randn(n, generator=gen)
    inputs *= torch.rand(B, 1, generator=gen) * 3  # so that tokens differ in how many latents they get
    W_rows = torch.randn(n, d, generator=gen)
    want = reference.select_batch_topk([inputs.double() @ W_rows.double().T], bias.double(), n_pairs)
    least = float(want[0].min())
    for guess in (0.9 * least, 0.999 * least):
        values, indices, offsets = cpu.screened_batch_topk(inputs, W_rows, bias, n_pairs, guess)
        assert_close(values.double(), want[0], rtol=1e-5, atol=1e-5)
        assert_close(indices, want[1])
        assert_close(offsets, want[2])
    assert cpu.screened_batch_topk(inputs, W_rows, bias, n_pairs, 1.001 * least) is None
    assert cpu.screened_batch_topk(inputs, W_rows, bias, n_pairs, 0.0) is None


@needs_screen
def test_screened_topk_gives_up_where_bounds_tell_nothing():
    inputs = torch.randn(300, 64) + 1e4 * torch.eye(64)[0]  # one dimension leaves the others no bits
    W_rows = torch.randn(2000, 64) * (torch.arange(64) > 0)
    assert cpu.screened_topk(inputs, W_rows, torch.zeros(2000), 8) is None


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


def ragged_pairs(lengths, n=300, d=24, seed=0):
    gen = torch.Generator().manual_seed(seed)
    acts = torch.randn(len(lengths), d, generator=gen)
    W_dec = torch.nn.functional.normalize(torch.randn(n, d, generator=gen), dim=1)
    indices = torch.cat([torch.randperm(n, generator=gen)[:m] for m in lengths])
    values = torch.randn(len(indices), generator=gen).relu()
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return acts, values, indices, W_dec, torch.randn(d, generator=gen), offsets


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("lengths", [[3, 0, 17, 1, 0], [0, 0, 5], [2, 0, 0], [0, 0], [300, 1], [1] * 40])
def test_ragged_passes_equal_reference(path, lengths):
    acts, values, indices, W_dec, b_dec, offsets = ragged_pairs(lengths)
    got = path.token_pass(acts, values, indices, W_dec, b_dec, 0.25, offsets=offsets)
    want = reference.token_pass(acts, values, indices, W_dec, b_dec, 0.25, offsets)
    for g, w in zip(got, want, strict=True):
        assert_close(g, w, rtol=1e-5, atol=1e-5)
    args = (want.recons_grad, acts, values, want.pair_grads, indices, W_dec)
    for g, w in zip(
        path.latent_pass(*args, offsets=offsets), reference.latent_pass(*args, offsets), strict=True
    ):
        assert_close(g, w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", [reference, *PATHS])
def test_ragged_and_uniform_pairs_give_the_same(path):
    acts, values, indices, W_dec, b_dec = pairs()
    offsets, flat = (
        torch.arange(0, values.numel() + 1, values.shape[1]),
        (values.reshape(-1), indices.reshape(-1)),
    )
    uniform = path.token_pass(acts, values, indices, W_dec, b_dec, 0.25)
    ragged = path.token_pass(acts, *flat, W_dec, b_dec, 0.25, offsets=offsets)
    args = (uniform.recons_grad, acts, flat[0], uniform.pair_grads, flat[1], W_dec)
    results = (*uniform, *path.latent_pass(*args)), (*ragged, *path.latent_pass(*args, offsets=offsets))
    for one, other in zip(*results, strict=True):
        assert_close(one, other, rtol=0, atol=0)


def test_ragged_passes_by_hand():
    # token 0 has nothing, token 1 has latents 2 (value 3) and 0 (value 0, so it does not fire); rows are e0,
    # e1, e0
    acts, b_dec = torch.tensor([[1.0, 1.0], [1.0, 2.0]]), torch.tensor([0.0, 1.0])
    W_dec, offsets = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 0, 2])
    values, indices = torch.tensor([3.0, 0.0]), torch.tensor([2, 0])
    tokens = reference.token_pass(acts, values, indices, W_dec, b_dec, 0.5, offsets)
    # recons are (0, 1) and (3, 1): errors (−1, 0) and (2, −1)
    assert tokens.recons_grad.tolist() == [[-0.5, 0.0], [1.0, -0.5]]
    assert tokens.pair_grads.tolist() == [1.0, 1.0]
    assert tokens.sq_error.tolist() == [1.0, 5.0]
    latents = reference.latent_pass(
        tokens.recons_grad, acts, values, tokens.pair_grads, indices, W_dec, offsets
    )
    assert latents.dec_grad.tolist() == [
        [0.0, 0.0],
        [0.0, 0.0],
        [0.0, -1.5],
    ]  # 3 · (1, −0.5), less its part along e0
    assert latents.enc_grad.tolist() == [[0.0, 0.0], [0.0, 0.0], [1.0, 2.0]]
    assert latents.bias_grad.tolist() == [0.0, 0.0, 1.0]
    assert latents.fired.tolist() == [False, False, True]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("lengths", "nested"), [([3, 0, 17, 1, 0, 0], 3), ([0, 0, 5, 2], 2), ([0, 0], 2), ([2, 300] * 20, 4)]
)
def test_nested_passes_equal_reference(path, lengths, nested):
    _, values, indices, W_dec, b_dec, offsets = ragged_pairs(lengths, d=40)
    acts = torch.randn(len(lengths) // nested, 40, generator=torch.Generator().manual_seed(1))
    got = path.token_pass(acts, values, indices, W_dec, b_dec, 0.25, offsets=offsets)
    want = reference.token_pass(acts, values, indices, W_dec, b_dec, 0.25, offsets)
    for g, w in zip(got, want, strict=True):
        assert_close(g, w, rtol=1e-5, atol=1e-4)
    args = (want.recons_grad, acts, values, want.pair_grads, indices, W_dec)
    for g, w in zip(
        path.latent_pass(*args, offsets=offsets), reference.latent_pass(*args, offsets), strict=True
    ):
        assert_close(g, w, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("path", [reference, *PATHS])
def test_nested_passes_by_hand(path):
    # one token x = (3, 2), its first bag 3 · e0, its second 1 · e1: errors (0, −2) and (0, −1)
    acts, W_dec, offsets = torch.tensor([[3.0, 2.0]]), torch.eye(2), torch.tensor([0, 1, 2])
    values, indices = torch.tensor([3.0, 1.0]), torch.tensor([0, 1])
    tokens = path.token_pass(acts, values, indices, W_dec, torch.zeros(2), 2.0, offsets=offsets)
    assert tokens.recons_grad.tolist() == [[0.0, 2 * (-2 - 1)], [0.0, 2 * -1]]
    assert (tokens.pair_grads.tolist(), tokens.sq_error.tolist()) == ([0.0, -2.0], [1.0])
    latents = path.latent_pass(
        tokens.recons_grad, acts, values, tokens.pair_grads, indices, W_dec, offsets=offsets
    )
    assert latents.dec_grad.tolist() == [[0.0, 3 * -6], [0.0, 0.0]]  # the second's is along its row
    assert latents.enc_grad.tolist() == [[0.0, 0.0], [-2 * 3, -2 * 2]]
    assert latents.bias_grad.tolist() == [0.0, -2.0]


@pytest.mark.parametrize("path", [reference, *PATHS])
def test_select_batch_topk_by_hand(path):
    products = torch.tensor([[1.0, 5.0, -2.0], [2.0, 0.0, 0.5], [5.0, 3.0, 2.0]])
    bias = torch.tensor([0.0, 0.0, 1.0])  # ties at 3: (2, 1) comes before (2, 2)
    values, indices, offsets = path.select_batch_topk(products.split(1), bias, 3)
    assert (values.tolist(), indices.tolist(), offsets.tolist()) == ([5.0, 5.0, 3.0], [1, 0, 1], [0, 1, 1, 3])
    values, indices, offsets = path.select_batch_topk(products.split(2), bias, 9)  # −1 and 0 are not positive
    assert values.tolist() == [1.0, 5.0, 2.0, 1.5, 5.0, 3.0, 3.0]
    assert (indices.tolist(), offsets.tolist()) == ([0, 1, 0, 2, 0, 1, 2], [0, 2, 4, 7])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("B", "n", "n_pairs", "chunk"), [(50, 700, 400, 7), (3, 33, 1, 2), (64, 129, 5000, 64), (9, 8, 99, 4)]
)
@pytest.mark.parametrize("levels", [None, 3])
@pytest.mark.parametrize("guess", [0.0, 0.5, 2.0, 1e9])
def test_select_batch_topk_equals_reference_for_any_guess(path, B, n, n_pairs, chunk, levels, guess):
    gen = torch.Generator().manual_seed(B)
    products, bias = torch.randn(B, n, generator=gen), torch.randn(n, generator=gen)
    if levels:  # few different values: most of them equal
        products, bias = products.clamp(-1, 1).mul(levels).round(), torch.zeros(n)
    products[0, 0], products[0, 1] = float("nan"), float("inf")
    want = reference.select_batch_topk(products.split(chunk), bias, n_pairs)
    got = path.select_batch_topk(products.split(chunk), bias, n_pairs, guess)
    for g, w in zip(got, want, strict=True):
        assert_close(g, w, rtol=0, atol=0)


@pytest.mark.parametrize("path", [reference, *PATHS])
def test_select_batch_topk_where_nothing_is_positive(path):
    values, indices, offsets = path.select_batch_topk([-torch.ones(2, 5)], torch.zeros(5), 3)
    assert len(values) == len(indices) == 0
    assert offsets.tolist() == [0, 0, 0]


@pytest.mark.parametrize("path", [reference, cpu] if library() else [reference])
def test_regroup_by_hand(path):
    order, offsets = path.regroup(torch.tensor([2, 0, 2, 3, 0]), 5)
    assert order.tolist() == [1, 4, 0, 2, 3]
    assert offsets.tolist() == [0, 2, 2, 4, 5, 5]


@pytest.mark.skipif(library() is None, reason="no C compiler")
def test_cpu_kernels_do_not_depend_on_the_number_of_threads():
    acts, values, indices, W_dec, b_dec = pairs(B=64)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            selected = cpu.select_topk(acts @ W_dec.T, torch.zeros(1000), 8)
            tokens = cpu.token_pass(acts, values, indices, W_dec, b_dec, 1.0)
            args = (tokens.recons_grad, acts, values.view(-1), tokens.pair_grads, indices.view(-1), W_dec)
            screened = cpu.screened_topk(acts, W_dec, torch.zeros(1000), 2) or ()
            results.append((*selected, *screened, *tokens, *cpu.latent_pass(*args)))
        finally:
            torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert_close(one, two, rtol=0, atol=0)


def test_decode_equals_reference_for_bags_of_any_length():
    offsets = torch.tensor([0, 2, 2, 5])
    indices, values, table = (
        torch.tensor([3, 1, 0, 0, 2]),
        torch.tensor([1.0, -2.0, 0.5, 0.5, 0.0]),
        torch.randn(4, 6),
    )
    assert_close(
        torch_ops.decode(values, indices, offsets, table), reference.decode(values, indices, offsets, table)
    )
    assert_close(reference.decode(values, indices, offsets, table)[0], table[3] - 2 * table[1])
