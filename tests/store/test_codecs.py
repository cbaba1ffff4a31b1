"""The codecs: int8 worked by hand, its layout, its bounds, and that portions do not matter."""

import pytest
import torch

from saelens_lite.store.codecs import STORE_DTYPES, decode, dtype_name, encoder, n_outliers, row_bytes


def encode(rows, dtype=torch.int8, portion=None):
    """(tensors by name, rows as stored) of one shard that comes in portions."""
    coder = encoder(dtype, *rows.shape)
    portions = rows.split(portion or max(1, len(rows)))
    encoded, stored = zip(*[coder.encode(part) for part in portions], strict=True)
    tensors = [torch.cat(encoded), *coder.tail()]
    for tensor, (name, kind, shape) in zip(tensors, coder.layout, strict=True):
        assert (tensor.dtype, tuple(tensor.shape)) == (kind, shape), name
    return {name: tensor for tensor, (name, _, _) in zip(tensors, coder.layout, strict=True)}, torch.cat(
        stored
    )


def streams(n_rows, d_model, seed=0):
    """Rows with a mean, columns of spreads from 0.1 to 3, and two columns that are sometimes extreme."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(-1, 0.5, d_model)[torch.randperm(d_model, generator=generator)]
    rows = torch.randn(n_rows, d_model, generator=generator) * spread + 5 * torch.randn(
        d_model, generator=generator
    )
    rows[:, [3, 77]] *= torch.where(torch.rand(n_rows, 2, generator=generator) < 0.05, 80.0, 1.0)
    return rows


def codec_fvu(rows, stored):
    rows = rows.double()
    return float((rows - stored.double()).square().sum() / (rows - rows.mean(0)).square().sum())


def test_int8_by_hand():
    """Two columns of two rows, (1, 10) and (3, 50): center (2, 30), spread (1, 20), root mean square √200.5,
    so neither is below an eighth of it except 1, which becomes √200.5 / 8 = 1.7700. The entries less center
    are (−1, −20) and (1, 20); in columns scales (∓0.56497, ∓1). The row scale is 1 / 127 = 0.0078740 rounded
    up to float16: its step there is 2⁻¹⁷, so 1033 · 2⁻¹⁷ = 0.0078812. Then q = ∓(71.69, 126.88) → ∓(72, 127).
    """
    rows = torch.tensor([[1.0, 10.0], [3.0, 50.0]])
    tensors, stored = encode(rows)
    assert tensors["center"].tolist() == [2.0, 30.0]
    assert tensors["column_scale"].tolist() == pytest.approx([200.5**0.5 / 8, 20.0])
    assert tensors["scale"].tolist() == [1033 * 2**-17] * 2
    assert tensors["q"].tolist() == [[-72, -127], [72, 127]]
    step = 1033 * 2**-17
    expected = torch.tensor(
        [[2 - 72 * step * 200.5**0.5 / 8, 30 - 127 * step * 20], [2 + 72 * step * 200.5**0.5 / 8, 0]]
    )
    torch.testing.assert_close(stored[0], expected[0])
    torch.testing.assert_close(decode(tensors, slice(1, 2))[0, 0], expected[1, 0])


def test_outlier_columns_are_those_of_largest_spread_and_stand_apart():
    rows = streams(3000, 200)
    tensors, stored = encode(rows)
    assert n_outliers(200) == 4
    columns = tensors["outlier_cols"].tolist()
    assert columns == sorted(rows.std(0).topk(4).indices.tolist())
    assert {3, 77} <= set(columns)
    less_center = (rows - tensors["center"])[:, columns]
    assert torch.equal(tensors["outliers"], less_center.bfloat16())
    torch.testing.assert_close(stored[:, columns], rows[:, columns], rtol=2**-8, atol=0.05)


def test_error_is_at_most_half_a_step():
    rows = streams(3000, 200)
    tensors, stored = encode(rows)
    plain = torch.ones(200, dtype=torch.bool)
    plain[tensors["outlier_cols"].long()] = False
    step = tensors["scale"].float()[:, None] * tensors["column_scale"]
    assert bool(((stored - rows)[:, plain].abs() <= 0.501 * step).all())
    assert codec_fvu(rows, stored) < 1e-4


def test_columns_of_one_step_would_be_far_worse():
    """What the column scales and the columns apart are for: 8 bits for each row alone leave out 50 times as
    much."""
    rows = streams(3000, 200)
    step = rows.abs().amax(1, keepdim=True) / 127
    assert codec_fvu(rows, (rows / step).round() * step) > 50 * codec_fvu(rows, encode(rows)[1])


@pytest.mark.parametrize("name", STORE_DTYPES)
def test_readers_get_what_the_writer_saw_and_portions_do_not_matter(name):
    rows = streams(5000, 123)
    tensors, stored = encode(rows, STORE_DTYPES[name], portion=4096)
    again, _ = encode(rows, STORE_DTYPES[name], portion=4500)
    assert all(torch.equal(tensors[key], again[key]) for key in tensors)
    kind = torch.float32 if name == "int8" else STORE_DTYPES[name]
    for wanted in (slice(None), slice(7, 9), slice(5, 5), torch.tensor([4999, 0, 0, 17])):
        found = decode(tensors, wanted)
        assert found.dtype == kind
        assert torch.equal(found, stored[wanted])
    assert torch.equal(decode(tensors, slice(0, 9), torch.float16), stored[:9].half())


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_float_codecs_are_a_cast(name):
    rows = streams(10, 5 + 73)
    tensors, stored = encode(rows, STORE_DTYPES[name])
    assert list(tensors) == ["acts"]
    assert torch.equal(stored, rows.to(STORE_DTYPES[name]))
    assert decode(tensors, slice(2, 4)).data_ptr() == tensors["acts"][2:].data_ptr()


@pytest.mark.parametrize("d_model", [1, 2, 122, 123, 192])
def test_rows_that_are_all_the_same(d_model):
    rows = torch.full((9, d_model), 7.25)
    rows[:, 0] = -1.5
    assert torch.equal(encode(rows)[1], rows)
    assert torch.equal(encode(torch.zeros(9, d_model))[1], torch.zeros(9, d_model))


@pytest.mark.parametrize("d_model", [1, 192])
def test_no_rows(d_model):
    tensors, stored = encode(torch.empty(0, d_model))
    assert stored.shape == decode(tensors, slice(None)).shape == (0, d_model)


def test_a_portion_without_rows_calibrates_nothing():
    rows = streams(100, 123)
    coder = encoder(torch.int8, 100, 123)
    coder.encode(rows[:0])
    coder.encode(rows)
    tensors, _ = encode(rows)
    assert all(
        torch.equal(tensor, tensors[name]) for tensor, (name, _, _) in zip(coder.tail(), coder.layout[1:])
    )


def test_a_column_that_moves_late_does_not_ruin_its_rows():
    """Constant for the first rows, then as large as the others: the row's step is at most 8 times what it
    would be."""
    rows = torch.randn(5000, 32, generator=torch.Generator().manual_seed(0))
    rows[:4096, 5] = 2.0
    _, stored = encode(rows, portion=4096)
    assert codec_fvu(rows, stored) < 5e-4


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("column", [0, 150])
def test_a_row_that_is_not_finite_comes_back_not_finite_and_alone(broken, column):
    rows = streams(50, 192)
    rows[:, column] *= 1000  # makes it an outlier column
    for place in (column, column + 1):
        spoilt = rows.clone()
        spoilt[7, place] = broken
        finite = encode(spoilt)[1].isfinite().all(1)
        assert (~finite).nonzero().flatten().tolist() == [7]


def test_a_row_beyond_the_scale_of_float16_comes_back_not_finite():
    """Its entry is 10⁸ column scales from the center; 65504 · 127 = 8.3 · 10⁶ is the most."""
    rows = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    rows[150] = 1e8
    coder = encoder(torch.int8, 200, 4)
    coder.encode(rows[:100])
    assert coder.encode(rows[100:])[1].isfinite().all(1).tolist() == [row != 50 for row in range(100)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_rows_of_any_float_type(dtype):
    rows = streams(60, 80).to(dtype)
    assert codec_fvu(rows.float(), encode(rows)[1]) < 1e-4


def test_bytes_of_a_row():
    """Width 192: 189 + 2 + 2 · 3 for the row and 4 for its norm are 201 of 388, 0.518; float types are d ·
    itemsize + 4."""
    assert row_bytes(torch.int8, 192) == 201
    assert row_bytes(torch.bfloat16, 192) == 388
    for d_model in range(98, 5000):
        assert row_bytes(torch.int8, d_model) <= 0.52 * row_bytes(torch.bfloat16, d_model)
        assert (
            row_bytes(torch.int8, d_model) + 1 > 0.52 * row_bytes(torch.bfloat16, d_model)
            or n_outliers(d_model) == 0
        )
    for name, dtype in STORE_DTYPES.items():
        layout = encoder(dtype, 10, 192).layout
        grows = (
            sum(kind.itemsize * torch.Size(shape).numel() for _, kind, shape in layout if shape[0] == 10)
            + 4 * 10
        )
        assert grows == 10 * row_bytes(dtype, 192), name
        assert all(dtype_name(kind) for _, kind, _ in layout)


POINTS = [
    "blocks.0.hook_resid_pre",
    "blocks.1.hook_resid_post",
    "blocks.3.hook_resid_post",
    "blocks.3.hook_mlp_out",
]


def harvested_fvu(model, tokenizer, texts, folder):
    """Codec fvu by hook point of 2400 rows, harvested in float32 and in int8."""
    import saelens_lite as sl

    exact, small = (
        sl.harvest_activations(
            model,
            texts,
            POINTS,
            folder / dtype,
            max_tokens=2400,
            tokenizer=tokenizer,
            dtype=dtype,
            progress=False,
        )
        for dtype in ("float32", "int8")
    )
    rows = torch.arange(2400)
    return {point: codec_fvu(exact.gather(rows, point), small.gather(rows, point)) for point in POINTS}


@pytest.mark.long
def test_int8_keeps_the_rows_of_the_embedded_model(embedded, tmp_path):
    from saelens_lite.demo.corpus import stdlib_documents

    texts = [document["text"] for document, _ in zip(stdlib_documents("held_out"), range(5))]
    for point, fvu in harvested_fvu(*embedded, texts, tmp_path).items():
        assert fvu < 1e-4, point


@pytest.mark.long
def test_int8_keeps_the_rows_of_a_real_model(shared_data, tmp_path):
    import gzip
    import json

    from transformers import AutoModelForCausalLM, AutoTokenizer

    with gzip.open(shared_data / "corpora/tinystories/validation_v1.jsonl.gz", "rt") as file:
        texts = [json.loads(line)["text"] for line, _ in zip(file, range(80))]
    folder = shared_data / "models/stories3m-llama"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for point, fvu in harvested_fvu(model, tokenizer, texts, tmp_path).items():
        assert fvu < 1e-4, point
