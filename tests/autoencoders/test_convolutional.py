"""Convolutions equal dense layers with the unrolled matrix; shapes come back, odd sides included."""

import pytest
import torch

from saelens_lite.autoencoders.convolutional import Convolutional
from saelens_lite.autoencoders.fields import Relative


def made(shape, **fields):
    relative = Relative(**{"kind": "convolutional", "code_size": 3, "channels": (2,)} | fields)
    d_model = int(torch.tensor(shape).prod())
    autoencoder = Convolutional(relative, d_model, shape)
    autoencoder.reset(torch.Generator().manual_seed(0))
    return autoencoder


def unrolled(weight, side, out_side):
    """The matrix of a convolution of one channel, stride 2, padding 1, kernel 3: entry by entry."""
    channels = len(weight)
    matrix = torch.zeros(channels, out_side, out_side, side, side)
    for c in range(channels):
        for i in range(out_side):
            for j in range(out_side):
                for a in range(3):
                    for b in range(3):
                        y, x = 2 * i + a - 1, 2 * j + b - 1
                        if 0 <= y < side and 0 <= x < side:
                            matrix[c, i, j, y, x] += weight[c, 0, a, b]
    return matrix.reshape(channels * out_side**2, side**2)


def test_it_equals_a_dense_one_with_the_unrolled_matrices():
    conv = made((1, 5, 5))
    rows = torch.randn(4, 25, generator=torch.Generator().manual_seed(1))
    forth = unrolled(conv.encoder[0].weight, 5, 3)
    hidden = torch.relu(rows @ forth.T + conv.encoder[0].bias.repeat_interleave(9))
    codes = hidden @ conv.to_code.weight.T + conv.to_code.bias
    torch.testing.assert_close(conv.encode(rows), codes)
    back = unrolled(conv.decoder[0].weight, 5, 3)  # a transposed convolution is the transposed matrix
    inner = torch.relu(codes @ conv.from_code.weight.T + conv.from_code.bias)
    torch.testing.assert_close(conv.decode(codes), inner @ back + conv.decoder[0].bias)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 10), (2, 11), (1, 9)])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_pictures_and_series_of_any_side_keep_their_size(shape, kernel_size):
    conv = made(shape, channels=(4, 6), kernel_size=kernel_size)
    rows = torch.randn(2, 3, conv.d_model, generator=torch.Generator().manual_seed(1))
    recons, codes = conv(rows)
    assert recons.shape == rows.shape and codes.shape == (2, 3, 3)


def test_rows_without_a_shape_are_refused():
    with pytest.raises(ValueError, match=r"convolutional expected rows of a shape \(c, h, w\) .* got None"):
        Convolutional(Relative(kind="convolutional"), 25, None)
