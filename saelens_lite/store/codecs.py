"""How a shard keeps its rows: the codecs float32, float16, bfloat16 and int8.

A codec says which tensors of a shard's data file hold the rows, here in file order; the shard appends `norm`.
n_rows and d_model alone determine their shapes, so a file's head and size are known before its first row. All
is little-endian.

    float32, float16, bfloat16
        acts          {F32|F16|BF16}[n_rows d_model]  the rows, rounded to nearest even
    int8, with m = n_outliers(d_model)
        q             I8[n_rows d_model − m]          quantised entries of the plain columns
        center        F32[d_model]                    a value near each column's mean
        column_scale  F32[d_model − m]                a value near each plain column's spread
        outlier_cols  I32[m]                          ascending; the other columns are plain
        scale         F16[n_rows]                     step of each row, in column_scale
        outliers      BF16[n_rows m]                  entries of the outlier columns less center

A row of int8 is center + q · (scale · column_scale) in the plain columns and center + outliers in the others,
computed in float32 in this order. scale is the row's largest |entry − center| / column_scale, divided by 127
and rounded up, so that |q| ≤ 127. Residual streams have a large mean, columns of very different spread and a
few extreme ones: the center takes away the first, column_scale evens out the second, and the m columns of
largest spread, where extreme entries are, stand apart so that they cannot coarsen the step of their rows.
center, column_scale and outlier_cols come from the first rows of the shard (mean, standard deviation, largest
standard deviation), so rows are written as they come.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from saelens_lite.errors import ShardError

STORE_DTYPES = {name: getattr(torch, name) for name in ("bfloat16", "float16", "float32", "int8")}
"""Codecs by name; the dtype of the tensor that holds most of the rows stands for the codec."""

_CALIBRATION_ROWS = 4096
_LEAST_COLUMN_SCALE = 1 / 8
"""Of the root mean square over the plain columns. It costs at most 1/64 of the error, and bounds what an
entry does to its row where a column that was constant in the first rows moves later."""

_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.int64: "I64",
}

DTYPES = {name: dtype for dtype, name in _DTYPE_NAMES.items()}
"""By the names that safetensors has for them."""

Layout = list[tuple[str, torch.dtype, tuple[int, ...]]]
"""Name, dtype and shape of each tensor in file order; the first grows with the rows, the others follow it."""


class Encoder(Protocol):
    """Turns the rows of one shard and hook point, in order and in any portions, into tensors of a file."""

    layout: Layout

    def encode(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What rows float[n d_model] add to the layout's first tensor, and the rows as readers will see them.

        returns: ([n …], float[n d_model]), both contiguous on the CPU; rows that the codec cannot hold, or
            that are not finite, come back not finite
        """

    def tail(self) -> list[Tensor]:
        """The other tensors of the layout, after the last row."""


def encoder(dtype: torch.dtype, n_rows: int, d_model: int) -> Encoder:
    return Int8Encoder(n_rows, d_model) if dtype == torch.int8 else FloatEncoder(n_rows, d_model, dtype)


def dtype_name(dtype: torch.dtype) -> str:
    return _DTYPE_NAMES[dtype]


def decode(tensors: Mapping[str, Tensor], rows: slice | Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Some rows of a shard, from the tensors of its data file; only these rows are read.

    tensors: as in the layout, memory-mapped or not
    rows: a slice of the shard's rows, or int64[n] row numbers
    dtype: None gives the type of a float codec, without a copy for a slice; float32 of int8
    returns: dtype[n d_model]
    """
    if "acts" in tensors:
        acts = _rows(tensors["acts"], rows)
        return acts if dtype is None or acts.dtype == dtype else acts.to(dtype)
    q, scale, outliers = (_rows(tensors[name], rows) for name in ("q", "scale", "outliers"))
    columns = tensors["center"], tensors["column_scale"], tensors["outlier_cols"].long()
    decoded = _decode_int8(q, *columns, scale, outliers)
    return decoded if dtype is None else decoded.to(dtype)


def _rows(tensor: Tensor, rows: slice | Tensor) -> Tensor:
    # Of few rows, index_select takes half the time of tensor[rows].
    return tensor[rows] if isinstance(rows, slice) else tensor.index_select(0, rows)


def check_shapes(tensors: Mapping[str, Tensor], n_rows: int, d_model: int, path: str) -> None:
    """raises: ShardError unless a file has the tensors of a shard of n_rows rows of that width"""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    of_ints = {"center": (d_model,), "scale": (n_rows,)} if "q" in shapes else {"acts": (n_rows, d_model)}
    for name, shape in {**of_ints, "norm": (n_rows,)}.items():
        if shapes.get(name) != shape:
            raise ShardError(
                f"{path} expected {name} {list(shape)} as plan and manifest say, got "
                f"{list(shapes[name]) if name in shapes else 'none'}"
            )


def row_bytes(dtype: torch.dtype, d_model: int) -> int:
    """Bytes of a row in the data file, its norm included; dtype: one of STORE_DTYPES."""
    extra = 2 + n_outliers(d_model) if dtype == torch.int8 else 0
    return d_model * dtype.itemsize + extra + 4


def n_outliers(d_model: int) -> int:
    """Outlier columns of an int8 shard: with them a row and its norm take at most 0.52 of bfloat16's bytes.

    d_model + m + 6 ≤ 0.52 · (2 · d_model + 4) gives 3 at width 192, 26 at 768, 159 at 4096, and none below
    123. A row of fewer than 98 columns takes more.
    """
    return max(0, (4 * d_model - 392) // 100)


class FloatEncoder:
    def __init__(self, n_rows: int, d_model: int, dtype: torch.dtype):
        self.layout: Layout = [("acts", dtype, (n_rows, d_model))]
        self._dtype = dtype

    def encode(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        stored = rows.to(self._dtype).cpu().contiguous()
        return stored, stored

    def tail(self) -> list[Tensor]:
        return []


class Int8Encoder:
    """Rows of 8-bit integers with a step for each row and column, as the top of this file says."""

    def __init__(self, n_rows: int, d_model: int):
        m = n_outliers(d_model)
        self.layout: Layout = [
            ("q", torch.int8, (n_rows, d_model - m)),
            ("center", torch.float32, (d_model,)),
            ("column_scale", torch.float32, (d_model - m,)),
            ("outlier_cols", torch.int32, (m,)),
            ("scale", torch.float16, (n_rows,)),
            ("outliers", torch.bfloat16, (n_rows, m)),
        ]
        self._center = torch.zeros(d_model)
        self._column_scale = torch.ones(d_model - m)
        self._outlier_cols = torch.arange(m)
        self._scale = torch.empty(n_rows, dtype=torch.float16)
        self._outliers = torch.empty(n_rows, m, dtype=torch.bfloat16)
        self._n_rows = 0

    def encode(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows.cpu().float()
        if self._n_rows == 0:
            self._calibrate(rows[:_CALIBRATION_ROWS])
        here = slice(self._n_rows, self._n_rows + len(rows))
        self._n_rows = here.stop

        centered = rows - self._center
        self._outliers[here] = centered[:, self._outlier_cols]
        plain = centered.index_select(1, _others(self._outlier_cols, rows.shape[1])).div_(self._column_scale)
        scale = _half_rounded_up(plain.abs().amax(1) / 127)
        self._scale[here] = scale
        q = plain.div_(scale.float().where(scale > 0, 1)[:, None]).round_().to(torch.int8)
        columns = self._center, self._column_scale, self._outlier_cols
        return q, _decode_int8(q, *columns, scale, self._outliers[here])

    def tail(self) -> list[Tensor]:
        return [self._center, self._column_scale, self._outlier_cols.int(), self._scale, self._outliers]

    def _calibrate(self, rows: Tensor) -> None:
        """Choose center, column scales and outlier columns by the finite rows: float32[n d_model]."""
        rows = rows[rows.isfinite().all(1)].double()
        if not len(rows):
            return
        self._center = rows.mean(0).float()
        spread = rows.sub_(self._center).square_().mean(0).sqrt_()
        self._outlier_cols = spread.topk(len(self._outlier_cols)).indices.sort().values
        spread = spread[_others(self._outlier_cols, len(spread))]
        least = _LEAST_COLUMN_SCALE * spread.square().mean().sqrt()
        if least > 0:
            self._column_scale = spread.clamp_min_(least).float()


def _decode_int8(
    q: Tensor, center: Tensor, column_scale: Tensor, outlier_cols: Tensor, scale: Tensor, outliers: Tensor
) -> Tensor:
    """float32[n d_model] from the tensors of int8 at n rows; writer and reader share it, so they agree."""
    plain = scale.float()[:, None] * column_scale
    plain *= q
    if not len(outlier_cols):
        return plain.add_(center)
    rows = plain.new_empty(len(q), len(center))
    rows.index_copy_(1, _others(outlier_cols, len(center)), plain)
    return rows.index_copy_(1, outlier_cols, outliers.float()).add_(center)


def _others(columns: Tensor, d_model: int) -> Tensor:
    """int64[d_model − m]: the other columns, ascending."""
    other = torch.ones(d_model, dtype=torch.bool)
    other[columns] = False
    return other.nonzero().view(-1)


def _half_rounded_up(x: Tensor) -> Tensor:
    """The least float16 not below x ≥ 0; infinity beyond its range, nan for nan. float32[n] → float16[n]"""
    half = x.half()
    return torch.where(half.float() < x, (half.view(torch.int16) + 1).view(torch.float16), half)
