"""The Triton kernels against reference.py: in Triton's interpreter on any machine, at real sizes on a GPU.

Triton reads TRITON_INTERPRET when a kernel is defined, so the first test runs this file once more in a
process of its own, where the tests marked gpu run on the CPU. Tolerances: float32 1e-5, as for the other
paths; of operands in tf32 2e-3 and in bf16 2e-2 of the largest value; the selection may differ from the exact
one in values nearer to each other than that.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from saelens_lite.kernels import cpu, reference, self_check, torch_ops
from saelens_lite.kernels import dispatch as kernels
from saelens_lite.kernels.cpu_build import library
from saelens_lite.kernels.triton_select import screened_batch_topk, screened_topk, select_topk
from saelens_lite.sae.config import SAEConfig
from saelens_lite.train.config import TrainConfig
from saelens_lite.train.kinds.choice import kind_class
from saelens_lite.train.optimise.initial import initial_sae
from saelens_lite.train.optimise.trainer import Trainer

try:
    from saelens_lite.kernels import triton as path
    from saelens_lite.kernels import triton_select
except ImportError:
    pytest.skip(
        "triton absent: it comes with torch for CUDA, and from PyPI for Linux", allow_module_level=True
    )

INTERPRETED = triton_select.INTERPRETED
DEVICE = "cpu" if INTERPRETED else "cuda"
REAL = not INTERPRETED

on_device = pytest.mark.skipif(
    REAL and not torch.cuda.is_available(), reason="no accelerator: Triton needs a GPU"
)


def gpu(test):
    """Marked gpu, except where the interpreter takes its place."""
    return on_device(pytest.mark.gpu(test)) if REAL else test


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def pairs_of(lengths, n, d, n_tokens, dtype=torch.float32, seed=0):
    """acts, values (a third of them 0), indices, W_dec, b_dec, offsets; lengths of the bags."""
    gen = torch.Generator().manual_seed(seed)
    acts, W_dec, b_dec = random(n_tokens, d, seed=1), random(n, d, seed=2), random(d, seed=3)
    indices = torch.cat([torch.randperm(n, generator=gen)[:m] for m in lengths]).to(DEVICE)
    values = (random(len(indices), seed=4) + 0.5).relu()
    rows = torch.nn.functional.normalize(W_dec, dim=1)
    return (
        *(t.to(dtype) for t in (acts, values)),
        indices,
        rows.to(dtype),
        b_dec.to(dtype),
        offsets_of(lengths),
    )


def offsets_of(lengths):
    return torch.tensor([0, *lengths], device=DEVICE).cumsum(0)


def assert_passes_equal_reference(
    lengths, n_tokens, n, d, *, uniform=False, dtype=torch.float32, tolerance=1e-5
):
    acts, values, indices, W_dec, b_dec, offsets = pairs_of(lengths, n, d, n_tokens, dtype)
    exact = [t.double() for t in (acts, values, W_dec, b_dec)]
    if uniform:
        values, indices, offsets = values.view(n_tokens, -1), indices.view(n_tokens, -1), None
    got = path.token_pass(acts, values, indices, W_dec, b_dec, 0.25, offsets=offsets)
    want = reference.token_pass(
        exact[0], exact[1], indices.view(-1), exact[2], exact[3], 0.25, offsets_of(lengths)
    )
    assert_all_close(got, want, dtype, tolerance)

    recons_grad, pair_grads, flat = want.recons_grad.to(dtype), want.pair_grads.to(dtype), indices.view(-1)
    got = path.latent_pass(recons_grad, acts, values.view(-1), pair_grads, flat, W_dec, offsets=offsets)
    args = (recons_grad.double(), exact[0], exact[1], pair_grads.double(), flat, exact[2])
    want = reference.latent_pass(*args, offsets_of(lengths))
    assert_all_close(got[:3], want[:3], dtype, tolerance)
    assert torch.equal(got.fired, want.fired)


def assert_all_close(got, want, dtype, tolerance):
    for g, w in zip(got, want, strict=True):
        assert g.dtype == dtype
        scale = float(w.abs().max()) if w.numel() else 0.0
        assert_close(g.double(), w.double(), rtol=tolerance, atol=tolerance * max(scale, 1.0))


if REAL:

    @pytest.mark.long
    def test_in_the_interpreter(tmp_path):
        """All tests below, in a process where Triton runs kernels in Python."""
        env = {
            **os.environ,
            "TRITON_INTERPRET": "1",
            "OMP_NUM_THREADS": "1",
            "TRITON_CACHE_DIR": str(tmp_path),
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__))]
        done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=Path(__file__).parents[2])
        assert done.returncode == 0, done.stdout + done.stderr
        assert " passed" in done.stdout and "skipped" not in done.stdout

    def test_the_environment_chooses(monkeypatch):
        tensors = (torch.zeros(3),)
        for choice, expected in (("", cpu), ("cpu", cpu), ("torch", torch_ops), ("triton", torch_ops)):
            monkeypatch.setenv("SAELENS_LITE_KERNELS", choice)
            assert kernels._path(*tensors) is (
                torch_ops if expected is cpu and library() is None else expected
            )
        monkeypatch.setattr(self_check, "triton", lambda: None)
        with pytest.raises(ValueError, match="got triton: pip install triton"):
            kernels._path(*tensors)
        monkeypatch.setenv("SAELENS_LITE_KERNELS", "tritn")
        with pytest.raises(ValueError, match="expected torch, cpu or triton, got 'tritn'"):
            kernels._path(*tensors)

    @pytest.mark.long
    @pytest.mark.parametrize(
        "kernel", ["_token_pass", "_latent_pass", "_bag_sum", "_encode_groups", "_compute_groups"]
    )
    @pytest.mark.parametrize("capability", [90, 75])
    def test_kernels_compile_for_an_h100_and_a_t4(kernel, capability, tmp_path, monkeypatch):
        """Without a GPU: types are right, ptxas takes it, and nothing spills from registers.

        A T4 has no bf16 and no tf32: `_encode_groups` is never asked for there.
        """
        if capability == 75 and kernel == "_encode_groups":
            return
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
        function = getattr(triton_select if hasattr(triton_select, kernel) else path, kernel)
        constants = {
            "RAGGED": True,
            "NESTED": 4,
            "BLOCK_P": 4,
            "BLOCK_D": 1024,
            "GROUP": 32,
            "EACH": 8,
            "PRECISION": "tf32",
        }
        constants |= {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 64, "SWEEP": 8}
        types = {"scale": "fp32", "wanted": "*i1", "fired": "*i1", "members": "*i8"}
        types |= dict.fromkeys(
            ("indices", "offsets", "pair_order", "bags", "latent_order", "tokens", "groups"), "*i64"
        )
        types |= dict.fromkeys(("k", "d", "n_groups", "B", "m"), "i32")
        types |= dict.fromkeys(("inputs", "W_rows"), "*bf16" if capability == 90 else "*fp16")
        names = function.arg_names
        signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in names}
        values = {(i,): constants[name] for i, name in enumerate(names) if name in constants}
        aligned = {
            (i,): [["tt.divisibility", 16]]
            for i, name in enumerate(names)
            if "*" in signature[name] or name == "d"
        }
        options = {"num_warps": 8, "num_stages": 3} if kernel == "_encode_groups" else {"num_warps": 4}
        source = ASTSource(function, signature, values, aligned)
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert made.metadata.shared <= (227 if capability == 90 else 64) * 2**10
        assert ("wgmma" in made.asm["ptx"]) == (kernel == "_encode_groups")
        assert ".local" not in made.asm["ptx"]


SIZES = [(16_384, 32_768, 768, 32), (4096, 131_072, 4096, 64)] if REAL else [(5, 37, 24, 3), (2, 11, 33, 5)]


@gpu
@pytest.mark.parametrize(("B", "n", "d", "k"), SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_passes_of_k_pairs_a_token(B, n, d, k, dtype, tolerance):
    if REAL:  # the reference is dense: its [B, n] in float64 must fit
        B = min(B, 2**28 // n)
    assert_passes_equal_reference([k] * B, B, n, d, uniform=True, dtype=dtype, tolerance=tolerance)


@gpu
@pytest.mark.parametrize("lengths", [[3, 0, 17, 1, 0], [0, 0, 5], [0, 0], [1] * 4])
def test_passes_of_ragged_pairs(lengths):
    assert_passes_equal_reference(lengths, len(lengths), 19, 24)


@gpu
@pytest.mark.parametrize(("lengths", "nested"), [([3, 0, 17, 1, 0, 0], 3), ([0, 0, 5, 2], 2), ([0, 0], 2)])
def test_passes_of_nested_pairs(lengths, nested):
    assert_passes_equal_reference(lengths, len(lengths) // nested, 19, 24)


@gpu
def test_memory_of_an_earlier_pass_is_used_again():
    acts, values, indices, W_dec, b_dec, offsets = pairs_of([2, 0, 3], 9, 24, 3)
    first = path.token_pass(acts, values, indices, W_dec, b_dec, 0.25, offsets=offsets)
    latents = path.latent_pass(
        first.recons_grad, acts, values, first.pair_grads, indices, W_dec, offsets=offsets
    )
    want = [t.clone() for t in (*first, *latents)]
    for tensor in (*first, *latents):
        tensor.fill_(True) if tensor.dtype == torch.bool else tensor.fill_(torch.nan)
    again = path.token_pass(acts, values, indices, W_dec, b_dec, 0.25, first, offsets)
    rest = path.latent_pass(
        again.recons_grad, acts, values, again.pair_grads, indices, W_dec, latents, offsets
    )
    for g, w, old in zip((*again, *rest), want, (*first, *latents), strict=True):
        assert_close(g, w, rtol=0, atol=0)
        assert g.data_ptr() == old.data_ptr()


@gpu
@pytest.mark.parametrize("lengths", [[2, 0, 5, 1], [0], []])
def test_decode_and_its_gradients(lengths):
    _, values, indices, table, _, offsets = pairs_of(lengths or [0], 12, 33, 1)
    offsets = offsets if lengths else offsets[:1]
    results = []
    for decode in (path.decode, reference.decode):
        leaves = values.clone().requires_grad_(), table.clone().requires_grad_()
        out = decode(leaves[0], indices, offsets, leaves[1])
        (out * random(*out.shape, seed=7)).sum().backward()
        results.append((out, *(leaf.grad for leaf in leaves)))
    for got, want in zip(*results, strict=True):
        assert_close(got, want, rtol=1e-5, atol=1e-5)


@gpu
def test_the_passes_gather_from_tables_of_another_dtype():
    """Decoder rows, error gradients and inputs in bf16; sums and results stay float32."""
    lengths, n, d = [3, 0, 5, 2], 24, 17
    acts, values, indices, W_dec, b_dec, offsets = pairs_of(lengths, n, d, len(lengths))
    table = W_dec.bfloat16()
    got = path.token_pass(acts, values, indices, table, b_dec, 0.25, offsets=offsets)
    exact = [t.double() for t in (acts, values)]
    want = reference.token_pass(*exact, indices, table.double(), b_dec.double(), 0.25, offsets)
    assert_all_close(got, want, torch.float32, 1e-5)

    rows, pair_grads = (got.recons_grad.bfloat16(), acts.bfloat16()), got.pair_grads
    got = path.latent_pass(*rows, values, pair_grads, indices, W_dec, offsets=offsets)
    args = (*(t.double() for t in (*rows, values, pair_grads)), indices, W_dec.double())
    want = reference.latent_pass(*args, offsets)
    assert_all_close(got[:3], want[:3], torch.float32, 1e-5)


@gpu
@pytest.mark.parametrize("shape", [(3, 64), (1, 4096)])
def test_the_largest_on_two_levels_are_the_largest(shape, monkeypatch):
    monkeypatch.setattr(triton_select, "_TWO_LEVELS", True)
    maxima, m = random(*shape), shape[1] // 16
    maxima[:, 1::8] = maxima[:, :1]  # equal ones, in different blocks
    values, places = triton_select._largest(maxima, m)
    assert torch.equal(values.sort().values, maxima.topk(m, dim=1).values.sort().values)
    assert torch.equal(maxima.gather(1, places), values)
    assert all(len(set(row)) == m for row in places.tolist())


@gpu
def test_selection_on_two_levels_is_that_on_one(monkeypatch):
    inputs, W_rows, bias = encoder(3, 2048, 16)
    one = screened_topk(inputs, W_rows, bias, 4), screened_batch_topk(inputs, W_rows, bias, 12)
    calls = []
    monkeypatch.setattr(triton_select, "_TWO_LEVELS", True)
    topk = torch.topk
    monkeypatch.setattr(torch, "topk", lambda t, *a, **o: calls.append(t.shape) or topk(t, *a, **o))
    two = screened_topk(inputs, W_rows, bias, 4), screened_batch_topk(inputs, W_rows, bias, 12)
    assert calls == [(3, 8), (3, 32), (3, 128), (1, 24), (1, 96), (384,)]
    for (values, indices, *_), (found, places, *_) in zip(one, two, strict=True):
        assert torch.equal(values.sort().values, found.sort().values)
        assert torch.equal(indices.sort().values, places.sort().values)


PRECISIONS = {"highest": 1e-5, "high": 2e-3, "medium": 2e-2}


@pytest.fixture(params=PRECISIONS)
def tolerance(request):
    """Of products at each of torch's precisions, which is restored."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield PRECISIONS[request.param]
    torch.set_float32_matmul_precision(before)


def encoder(B, n, d):
    """inputs, W_rows, bias with rows of one group that nearly equal each other, and mostly negative
    pre-activations."""
    inputs, W_rows, bias = random(B, d, seed=1), random(n, d, seed=2), random(n, seed=3) - 1
    W_rows[n // 32 :: n // 32] = W_rows[0] * (1 + 0.1 * random(31, 1, seed=4))
    return inputs, W_rows, bias


def assert_selected(got, places, exact, want, tolerance):
    """got: values; places: where exact has them; want: the largest of exact, in any order."""
    scale = float(exact.abs().max())
    assert len(set(places.tolist())) == len(places)
    assert_close(got.double(), exact.view(-1)[places], rtol=0, atol=tolerance * scale)
    assert_close(got.double().sort().values, want.sort().values, rtol=0, atol=tolerance * scale)


SELECTIONS = (
    [(2048, 32_768, 768, 32), (1024, 131_072, 4096, 64)] if REAL else [(7, 1024, 40, 5), (3, 160, 33, 1)]
)


@gpu
@pytest.mark.parametrize(("B", "n", "d", "k"), SELECTIONS)
def test_encode_and_select_topk(B, n, d, k, tolerance):
    inputs, W_rows, bias = encoder(B, n, d)
    exact = inputs.double() @ W_rows.double().T + bias
    values, indices = screened_topk(inputs, W_rows, bias, k)
    for token in range(min(B, 64)):
        assert_selected(values[token], indices[token], exact[token], exact[token].topk(k).values, tolerance)


@gpu
@pytest.mark.parametrize(("B", "n", "d", "k"), SELECTIONS)
def test_encode_and_select_batch_topk(B, n, d, k, tolerance):
    inputs, W_rows, bias = encoder(B, n, d)
    inputs *= (
        torch.arange(B, device=DEVICE)[:, None] / B
    )  # so that tokens differ in how many latents they get
    exact = (inputs.double() @ W_rows.double().T + bias).relu()
    values, indices, offsets = screened_batch_topk(inputs, W_rows, bias, k * B)
    tokens = reference.token_ids(offsets, len(values))
    assert (len(values), int(offsets[-1])) == (k * B, k * B)
    assert torch.equal((tokens * n + indices).sort().values, tokens * n + indices)
    assert_selected(values, tokens * n + indices, exact, exact.view(-1).topk(k * B).values, tolerance)


@gpu
def test_batch_topk_makes_up_for_what_is_not_positive_with_zeros():
    inputs, W_rows, bias = encoder(4, 256, 8)
    values, indices, _ = screened_batch_topk(
        inputs, W_rows, bias - 100 + 101 * (torch.arange(256, device=DEVICE) == 7), 8
    )
    assert int((values > 0).sum()) == int((inputs @ W_rows[7] + bias[7] + 1 > 0).sum())
    assert set(indices[values > 0].tolist()) <= {7} and len(values) == 8


@gpu
@pytest.mark.parametrize(("B", "n", "k"), [(9, 1024, 7), (3, 160, 1), (2, 100, 3)])
def test_select_topk(B, n, k):
    products, bias = random(B, n), random(n, seed=1)
    exact = products.double() + bias
    values, indices = select_topk(products.clone(), bias, k)
    for token in range(B):
        assert_selected(values[token], indices[token], exact[token], exact[token].topk(k).values, 1e-6)


@gpu
def test_of_equal_values_any_are_selected(tolerance):
    inputs, W_rows, bias = (
        torch.ones(3, 8, device=DEVICE),
        torch.ones(512, 8, device=DEVICE),
        torch.zeros(512, device=DEVICE),
    )
    values, indices = screened_topk(inputs, W_rows, bias, 4)
    assert values.tolist() == [[8.0] * 4] * 3
    assert all(len(set(row)) == 4 for row in indices.tolist())
    values, indices, offsets = screened_batch_topk(inputs, W_rows, bias, 12)
    assert values.tolist() == [8.0] * 12
    assert len(set((reference.token_ids(offsets, 12) * 512 + indices).tolist())) == 12


@gpu
def test_encode_and_select_of_infinities():
    inputs, W_rows, bias = encoder(2, 512, 8)
    bias[7], inputs[1] = torch.inf, 0
    values, indices = screened_topk(inputs, W_rows, bias, 4)
    assert (indices == 7).any(1).all() and values.max() == torch.inf
    values, indices = screened_topk(inputs, W_rows, torch.full_like(bias, -torch.inf), 4)
    assert all(len(set(row)) == 4 for row in indices.tolist())


@gpu
def test_encode_and_select_of_rows_in_bf16():
    inputs, W_rows, bias = (t.bfloat16() for t in encoder(5, 512, 40))
    exact = inputs.double() @ W_rows.double().T + bias.double()
    values, indices = screened_topk(inputs, W_rows, bias, 4)
    assert values.dtype == torch.bfloat16
    for token in range(5):
        assert_selected(values[token], indices[token], exact[token], exact[token].topk(4).values, 1e-2)


@gpu
def test_shapes_in_which_groups_do_not_narrow_the_choice_are_left_to_others():
    for n, k in ((1000, 1), (1024, 9)):
        assert screened_topk(random(4, 8), random(n, 8), random(n), k) is None
        assert screened_batch_topk(random(4, 8), random(n, 8), random(n), 4 * k) is None


@gpu
@pytest.mark.parametrize("kind", ["topk", "batchtopk", "matryoshka"] if REAL else ["topk", "matryoshka"])
def test_gradients_of_a_step_equal_those_of_the_embedding_bags(kind, monkeypatch):
    """A whole step but for the optimiser, AuxK on."""
    B, n, d, k = (512, 8192, 256, 16) if REAL else (6, 128, 8, 1)
    acts, dead, results = random(B, d), torch.arange(n - 20, n, device=DEVICE), []
    config, sae_kind = TrainConfig(kind=kind, k=k, batch_size_rows=B), kind_class(kind).sae_kind
    for choice in ("torch", "triton"):
        monkeypatch.setenv("SAELENS_LITE_KERNELS", choice)
        sae = initial_sae(
            SAEConfig(d_model=d, d_sae=n, kind=sae_kind, k=k if sae_kind == "topk" else None), acts.cpu(), 0
        )
        trained = kind_class(kind)(sae.to(DEVICE), config)
        with torch.no_grad():
            stats, fired = trained.gradients(acts, dead, 1.0)
        grads = [parameter.grad for parameter in sae.parameters() if parameter.grad is not None]
        results.append([*stats, fired, *trained.state().values(), *grads])
    assert len(results[0]) >= 8
    passed = {variant[0] for variant in self_check._passed}
    assert {"token_pass", "latent_pass"} <= passed  # a failure would have been an error
    if kind == "topk":
        assert "screened_topk" in passed
    for ours, bag in zip(*reversed(results), strict=True):
        assert_close(ours, bag, rtol=1e-4, atol=1e-5)


if REAL:

    @gpu
    @pytest.mark.parametrize("kind", ["topk", "batchtopk", "matryoshka"])
    @pytest.mark.filterwarnings("default")
    def test_the_host_does_not_wait_for_a_step(kind):
        """AuxK on: the number of dead latents has arrived by then."""
        B, n, d, k = 4096, 8192, 256, 16
        config = TrainConfig(kind=kind, k=k, lr=1e-3, batch_size_rows=B, dead_after_tokens=B)
        sae_kind = kind_class(kind).sae_kind
        acts = random(B, d)
        sae = initial_sae(
            SAEConfig(d_model=d, d_sae=n, kind=sae_kind, k=k if sae_kind == "topk" else None), acts.cpu(), 0
        )
        trainer = Trainer(sae.to(DEVICE), config, n_steps=8)
        trainer.update(acts)
        torch.cuda.set_sync_debug_mode("error")
        try:
            trainer.update(acts)
        finally:
            torch.cuda.set_sync_debug_mode("default")
