"""Sabotaged kernels are found before they answer: a run then equals one by stock torch, after one warning.

Stand-ins in stock torch take the place of the Triton kernels, which test_triton.py runs through the same
checks in Triton's interpreter.
"""

import os
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from saelens_lite.kernels import call_slices, self_check, torch_ops
from saelens_lite.kernels import dispatch as kernels
from saelens_lite.sae.config import SAEConfig
from saelens_lite.train.config import TrainConfig
from saelens_lite.train.kinds.choice import kind_class
from saelens_lite.train.optimise.initial import initial_sae
from saelens_lite.train.optimise.trainer import Trainer

try:
    from saelens_lite.kernels import triton as path
except ImportError:
    pytest.skip(
        "triton absent: it comes with torch for CUDA, and from PyPI for Linux", allow_module_level=True
    )


@pytest.mark.long
def test_without_a_gpu_triton_is_never_imported():
    code = (
        "import sys, torch; from saelens_lite.kernels import dispatch as k; x = torch.ones(4, 8);"
        "k.select_topk(x.clone(), torch.zeros(8), 2); k.decode(torch.ones(2), torch.tensor([0, 1]), "
        "torch.tensor([0, 2]), x); print(k.choice(x), 'triton' in sys.modules)"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON", "SAELENS_LITE"))}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.split()[1:] == ["False"], done.stderr


def test_a_slice_is_specialised_as_its_call():
    """By hand: kinds are 0, 1, multiples of 16, others."""
    assert [call_slices.number_kind(n) for n in (0, 1, 2, 15, 16, 17, 4096)] == [0, 1, 2, 2, 16, 2, 16]
    assert [call_slices.like(n, 256) for n in (1, 7, 16, 300, 304, 1000)] == [1, 7, 16, 255, 256, 255]
    # 131,072 latents in 4,096 groups, a multiple of 16: 64 of them; 64 values a token: at most 64 / 4
    assert call_slices.small_topk(16_384, 131_072, 64) == (256, 2048, 16)
    # 1,000 tokens are no multiple of 16, but 1,000 · 4 values are: 252 tokens · 4 = 63 · 16
    tokens, n, m = call_slices.small_topk(1000, 131_072, 4)
    assert (tokens, n, m) == (252, 2048, 4)
    assert call_slices.small_batch_topk(4096, 8192, 4096 * 32) == (256, 2048, 4096)
    assert call_slices.small_batch_topk(4096, 8192, 33) == (256, 2048, 33)


@pytest.mark.parametrize("aligned", [True, False])
def test_a_slice_of_pairs_names_the_rows_that_the_call_names(aligned):
    """Ragged pairs of three tokens over a table of 5,000 rows, by hand."""
    values = torch.arange(1.0, 8)[0 if aligned else 1 :][:6]
    indices = torch.tensor([4000, 3, 17, 3, 4999, 17])
    table = torch.arange(5000.0)[:, None].expand(-1, 4).contiguous()
    part = call_slices.small_pairs(3, values, indices, torch.tensor([0, 1, 4, 6]), table)
    assert part.table[:, 0].tolist() == [3, 17, 4000, 4999]
    assert part.indices.tolist() == [2, 0, 1, 0, 3, 1]
    assert part.offsets.tolist() == [0, 1, 4, 6] and part.bags == part.tokens == 3
    assert torch.equal(part.values, values)
    assert (part.values.data_ptr() % 16 == 0) is aligned


@pytest.mark.long
def test_a_slice_has_at_most_2048_latents_and_16_mib_of_rows():
    P = 40 * 512
    indices, values = torch.arange(P), torch.ones(P)
    part = call_slices.small_pairs(40, values.view(40, 512), indices.view(40, 512), None, torch.ones(P, 4))
    assert (part.tokens, part.values.shape, len(part.table)) == (4, (4, 512), 2048)
    part = call_slices.small_pairs(2, values, indices, torch.tensor([0, 9000, P]), torch.ones(P, 4))
    assert part.offsets.tolist() == [0, 2048, 2048] and len(part.table) == 2048
    part = call_slices.small_pairs(2, values, indices, torch.tensor([0, 9000, P]), torch.ones(P, 8192))
    assert len(part.table) * 8192 * 4 == 2**24


KINDS = {"topk": 1, "batchtopk": 1, "matryoshka": 1, "relu": None, "gated": None, "jumprelu": None}


def screened_topk(inputs, W_rows, bias, k):
    return torch_ops.select_topk(inputs @ W_rows.T, bias, k)


def screened_batch_topk(inputs, W_rows, bias, n_pairs):
    return torch_ops.select_batch_topk([inputs @ W_rows.T], bias, n_pairs)


STAND_INS = {
    name: getattr(torch_ops, name) for name in ("token_pass", "latent_pass", "decode", "select_topk")
}
STAND_INS |= {"screened_topk": screened_topk, "screened_batch_topk": screened_batch_topk}


@pytest.fixture(autouse=True)
def on_triton(monkeypatch):
    """CPU tensors take the path of CUDA tensors, and nothing was checked before."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delenv("SAELENS_LITE_KERNELS", raising=False)
    monkeypatch.setattr(self_check, "failure", None)
    monkeypatch.setattr(self_check, "_passed", set())
    monkeypatch.setattr(path, "usable", lambda *tensors: all(t.is_contiguous() for t in tensors))
    for name, kernel in STAND_INS.items():
        monkeypatch.setattr(path, name, kernel)


def three_steps(kind):
    """Losses of three steps on 6 tokens, and the gradients of the first; few latents fire, so that sparse
    passes run."""
    k = KINDS[kind]
    gen = torch.Generator().manual_seed(0)
    acts = [torch.randn(6, 8, generator=gen) for _ in range(3)]
    config = TrainConfig(kind=kind, batch_size_rows=6, lr=1e-2, **({} if k is None else {"k": k}))
    sae_kind = kind_class(kind).sae_kind
    sae_config = SAEConfig(d_model=8, d_sae=128, kind=sae_kind, k=k if sae_kind == "topk" else None)
    sae = initial_sae(sae_config, acts[0], 0)
    if k is None:
        for name in {"b_enc", "b_gate"} & dict(sae.named_parameters()).keys():
            sae.get_parameter(name).data -= 3.5
    trainer = Trainer(sae, config, n_steps=6)
    losses = [float(trainer.update(acts[0]).reconstruction)]
    grads = [p.grad.clone() for p in sae.parameters() if p.grad is not None]
    losses += [float(trainer.update(batch).reconstruction) for batch in acts[1:]]
    return [torch.tensor(losses), *grads]


def by_stock_torch(monkeypatch, kind):
    with monkeypatch.context() as patch:
        patch.setenv("SAELENS_LITE_KERNELS", "torch")
        return three_steps(kind)


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.name == self_check.__name__]


@pytest.mark.parametrize("kind", KINDS)
def test_right_kernels_pass_and_answer(kind, monkeypatch, caplog):
    want = by_stock_torch(monkeypatch, kind)
    assert kernels.choice(torch.zeros(1)) == "triton"
    got = three_steps(kind)
    names = {variant[0] for variant in self_check._passed}
    assert {"token_pass", "latent_pass"} <= names and self_check.failure is None
    assert ("screened_topk" in names) == (kind == "topk")
    assert not warnings_of(caplog)
    for ours, stock in zip(got, want, strict=True):
        assert_close(ours, stock, rtol=1e-4, atol=1e-5)


def off(result, by):
    """The first of its floating-point tensors, off by that share of the largest value at one place."""
    parts = list(result) if isinstance(result, tuple) else [result]
    first = next(i for i, t in enumerate(parts) if t.is_floating_point())
    parts[first] = parts[first].clone()
    parts[first].view(-1)[0] += by * parts[first].abs().max()
    return type(result)(*parts) if hasattr(result, "_fields") else tuple(parts) if parts[1:] else parts[0]


def shifted(result):
    """A selection whose indices are others."""
    values, indices, *rest = result
    return values, (indices + 1) % 128, *rest


def raises(*_, **__):
    raise RuntimeError("Failed to find C compiler")


SABOTAGE = {
    "raises": lambda kernel: raises,
    "wrong by 10 tolerances": lambda kernel: lambda *a, **k: off(kernel(*a, **k), 1e-4),
    "nan": lambda kernel: lambda *a, **k: off(kernel(*a, **k), torch.nan),
}
CASES = [
    (kind, name, how)
    for kind, names in (
        ("topk", ("token_pass", "latent_pass", "screened_topk")),
        ("batchtopk", ("token_pass", "screened_batch_topk")),
        ("matryoshka", ("latent_pass",)),
        ("relu", ("token_pass",)),
        ("gated", ("latent_pass",)),
        ("jumprelu", ("token_pass",)),
    )
    for name in names
    for how in SABOTAGE
]


def sabotage(monkeypatch, name, make):
    kernel, calls = getattr(path, name), []
    broken = make(kernel)
    monkeypatch.setattr(path, name, lambda *a, **k: calls.append(1) or broken(*a, **k))
    return calls


@pytest.mark.parametrize(("kind", "name", "how"), CASES)
def test_a_sabotaged_kernel_ends_in_one_warning_and_stock_torch(kind, name, how, monkeypatch, caplog):
    want = by_stock_torch(monkeypatch, kind)
    calls = sabotage(monkeypatch, name, SABOTAGE[how])
    got = three_steps(kind)
    assert len(calls) == 1  # in the check; it never answers
    (line,) = warnings_of(caplog)
    assert f"the Triton kernel {name} failed on a CPU with torch" in line and "Stock torch takes over" in line
    assert ("Failed to find C compiler" in line) == (how == "raises")
    assert kernels.choice(torch.zeros(1)) == "torch"
    for ours, stock in zip(got, want, strict=True):
        assert_close(ours, stock, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["screened_topk", "screened_batch_topk"])
def test_right_values_with_wrong_indices_are_found(name, monkeypatch, caplog):
    sabotage(monkeypatch, name, lambda kernel: lambda *a: shifted(kernel(*a)))
    inputs, W_rows = torch.randn(6, 8), torch.randn(128, 8)
    call = getattr(kernels, name)
    count = (1,) if name == "screened_topk" else (6, 0.1)
    assert call(inputs, W_rows, torch.zeros(128), *count) is None  # the caller multiplies and selects
    assert len(warnings_of(caplog)) == 1


def test_with_triton_asked_for_a_failure_is_an_error(monkeypatch):
    monkeypatch.setenv("SAELENS_LITE_KERNELS", "triton")
    sabotage(monkeypatch, "token_pass", SABOTAGE["nan"])
    with pytest.raises(RuntimeError, match="token_pass failed on a CPU.*expected .* got nan.*unset it"):
        three_steps("topk")


def test_a_lack_of_memory_is_no_failure(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    sabotage(monkeypatch, "token_pass", lambda kernel: full)
    with pytest.raises(torch.OutOfMemoryError):
        three_steps("topk")
    assert self_check.failure is None


def test_a_lost_cuda_context_is_no_failure_that_stock_torch_could_mend(monkeypatch):
    def lost(*_, **__):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    sabotage(monkeypatch, "token_pass", lambda kernel: lost)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        three_steps("topk")
    assert self_check.failure is None


def test_while_something_records_stock_torch_answers_unless_the_variant_has_passed(monkeypatch):
    x, values, W_dec, b_dec = torch.randn(3, 8), torch.rand(3, 2), torch.randn(9, 8), torch.zeros(8)
    call = x, values, torch.tensor([[0, 5], [1, 6], [2, 7]]), W_dec, b_dec, 1.0
    calls, stock = sabotage(monkeypatch, "token_pass", lambda kernel: kernel), []
    monkeypatch.setattr(torch_ops, "token_pass", lambda *a: stock.append(1))
    for recording, expected in ((True, (0, 1)), (False, (2, 1)), (True, (3, 1))):  # 2: the check, the answer
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: recording)  # noqa: B023
        kernels.token_pass(*call)
        assert (len(calls), len(stock)) == expected


def test_gradients_of_decode_are_checked_too(monkeypatch, caplog):
    class Broken(torch.autograd.Function):
        """The value right, the gradient of values 0.1 % too large."""

        @staticmethod
        def forward(ctx, values, indices, offsets, table):
            ctx.save_for_backward(indices, table)
            return torch_ops.decode(values, indices, offsets, table)

        @staticmethod
        def backward(ctx, grad):
            indices, table = ctx.saved_tensors
            return 1.001 * (grad[[0, 1, 1, 1]] * table[indices]).sum(1), None, None, None

    monkeypatch.setattr(path, "decode", Broken.apply)
    table = torch.randn(7, 8)
    for learns, lines in ((False, 0), (True, 1)):
        values = torch.rand(4, requires_grad=learns)
        kernels.decode(values, torch.tensor([0, 3, 3, 6]), torch.tensor([0, 1, 4]), table).sum()
        assert len(warnings_of(caplog)) == lines
