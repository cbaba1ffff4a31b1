"""What all relatives share: arguments that do not fit are named, in methods of every kind."""

import numpy as np
import pytest
import torch

from saelens_lite.autoencoders import Autoencoder, Relative
from saelens_lite.autoencoders.kinds import class_of


def made(kind, **fields):
    return class_of(kind)(Relative(kind=kind, code_size=3, **fields), 6)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda a: a.encode(1j), "expected acts as Tensor, got complex 1j"),
        (lambda a: a.loss(0), "expected acts as Tensor, got int 0"),
        (lambda a: a.code(float("-inf")), "code expected x as Tensor, got float -inf"),
        (lambda a: a.reset({3}), "reset expected generator as torch.Generator.*, got set"),
        (lambda a: a.save(torch.ones(2)), r"save expected folder as .*, got Tensor torch.float32 \[2\]"),
        (lambda a: a.load(3), "load expected folder as .*, got int 3"),
        (lambda a: Autoencoder(a.config, len), "__init__ expected d_model as int, got builtin"),
        (lambda a: a.encode(torch.ones(2, 5)), r"encode expected float acts\[..., d_model=6\]"),
    ],
)
@pytest.mark.parametrize("kind", ["dense", "multilayer", "variational"])
def test_an_argument_that_does_not_fit_is_named(kind, call, said):
    with pytest.raises((TypeError, ValueError), match=said):
        call(made(kind))


def test_a_method_without_gradients_names_its_arguments_too():
    with pytest.raises(TypeError, match="elbo expected n_draws as int, got str 'x'"):
        made("variational").elbo(torch.zeros(2, 6), "x")
    with pytest.raises(TypeError, match="widths expected d_model as int, got str 'x'"):
        made("multilayer").config.widths("x")


def test_a_seed_of_numpy_is_the_int():
    relative = made("variational")
    relative.reset(torch.Generator().manual_seed(1))
    assert torch.equal(relative.sample(4, seed=np.int64(7)), relative.sample(4, seed=7))
    assert not torch.equal(relative.sample(4, seed=np.int64(8)), relative.sample(4, seed=7))
