"""Dense and multilayer networks: equations by hand, any layer as the code, PCA as the linear limit."""

import pytest
import torch

from saelens_lite.autoencoders.fields import Relative
from saelens_lite.autoencoders.kinds import class_of


def made(d_model=6, seed=0, **fields):
    relative = Relative(**fields)
    autoencoder = class_of(relative.kind)(relative, d_model)
    autoencoder.reset(torch.Generator().manual_seed(seed))
    return autoencoder


def test_a_dense_one_by_hand():
    """h = relu(2·x₀ − x₁ + 1) is 0 for (0, 3) and 4 for (2, 1); y = (h, 3h − 1)."""
    dense = made(2, code_size=1, weight_decay=0.5)
    with torch.no_grad():
        dense.encoder[0].weight.copy_(torch.tensor([[2.0, -1.0]]))
        dense.encoder[0].bias.fill_(1.0)
        dense.decoder[0].weight.copy_(torch.tensor([[1.0], [3.0]]))
        dense.decoder[0].bias.copy_(torch.tensor([0.0, -1.0]))
    acts = torch.tensor([[0.0, 3.0], [2.0, 1.0]])
    assert dense.encode(acts).tolist() == [[0.0], [4.0]]
    assert dense(acts).recons.tolist() == [[0.0, -1.0], [4.0, 11.0]]
    error = ((0 + 16) + (4 + 100)) / 2
    loss = dense.loss(acts)
    assert [float(part.detach()) for part in loss] == [error + 7.5, error, 7.5]  # 0.5 · (4 + 1 + 1 + 9)


def test_units_of_the_store_are_kept():
    """With shift 10 and scale 2, (11, 14) is (2, 8) in training; a network that copies gives it back."""
    dense = made(2, code_size=2, activation="linear")
    with torch.no_grad():
        for layer in (dense.encoder[0], dense.decoder[0]):
            layer.weight.copy_(torch.eye(2))
        dense.shift.fill_(10.0)
        dense.scale.fill_(2.0)
    assert dense.encode(torch.tensor([11.0, 14.0])).tolist() == [2.0, 8.0]
    assert dense(torch.tensor([11.0, 14.0])).recons.tolist() == [11.0, 14.0]


def test_tied_weights_are_one_and_get_the_gradient_of_both():
    tied = made(code_size=3, tied=True, activation="sigmoid")
    names = {name for name, _ in tied.named_parameters()}
    assert names == {"encoder.0.weight", "encoder.0.bias", "decoder.0.bias"}
    free = made(code_size=3, activation="sigmoid")
    with torch.no_grad():
        free.encoder[0].weight.copy_(tied.encoder[0].weight)
        free.decoder[0].weight.copy_(tied.encoder[0].weight.T)
    acts = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    for autoencoder in (tied, free):
        autoencoder.loss(acts).total.backward()
    both = free.encoder[0].weight.grad + free.decoder[0].weight.grad.T
    torch.testing.assert_close(tied.encoder[0].weight.grad, both)


def test_any_hidden_layer_is_the_code_and_the_reconstruction_stays():
    acts = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    shared = {"kind": "multilayer", "hidden": (5, 4), "code_size": 2}
    middle = made(**shared)
    widths = {}
    for layer in (1, 2, 3, 4, 5):
        other = made(**shared, code_layer=layer)
        widths[layer] = other.encode(acts).shape[1], other.code_size
        torch.testing.assert_close(other(acts).recons, middle(acts).recons)
    assert widths == {1: (5, 5), 2: (4, 4), 3: (2, 2), 4: (4, 4), 5: (5, 5)}
    assert bool((middle.encode(acts) < 0).any()), "a code after hidden layers is linear"


def test_a_linear_one_finds_the_subspace_of_the_first_components():
    """Full batch, float64, eigenvalues 9, 4 | 1, …: source Bourlard & Kamp 1988, Baldi & Hornik 1989."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    raw = torch.randn(400, 6, generator=generator, dtype=torch.float64)
    raw -= raw.mean(0)
    white = torch.linalg.qr(raw).Q * 400**0.5
    rows = white @ torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5, 0.5, 0.1], dtype=torch.float64)) @ basis.T
    dense = made(code_size=2, activation="linear").double()
    optimiser = torch.optim.LBFGS(dense.parameters(), max_iter=200, line_search_fn="strong_wolfe",
                                  tolerance_grad=1e-12, tolerance_change=1e-16)  # fmt: skip

    def closure():
        optimiser.zero_grad()
        total = dense.loss(rows).total
        total.backward()
        return total

    optimiser.step(closure)
    found = torch.linalg.qr(dense.decoder[0].weight.detach()).Q
    cosines = torch.linalg.svdvals(found.T @ basis[:, :2])
    assert float(cosines.clamp(max=1).acos().max()) < 1e-3
    # what is left is the variance of the other components
    assert float(dense.loss(rows).error.detach()) == pytest.approx(1 + 0.25 + 0.25 + 0.01, rel=1e-6)


def test_denoising_learns_from_spoilt_rows_what_clean_ones_are():
    rows = torch.ones(20_000, 2)
    gaussian = made(2, kind="denoising", code_size=2, noise_level=0.5)
    spoilt = gaussian.spoilt(rows, torch.Generator().manual_seed(0))
    assert float((spoilt - rows).std()) == pytest.approx(0.5, rel=0.02)
    masking = made(2, kind="denoising", code_size=2, noise="masking", noise_level=0.3)
    masked = masking.spoilt(rows, torch.Generator().manual_seed(0))
    assert set(masked.unique().tolist()) == {0.0, 1.0}
    assert float((masked == 0).float().mean()) == pytest.approx(0.3, abs=0.01)
    expected = masking.error(rows, masking.reconstruct(masking.code(masked))).mean()
    torch.testing.assert_close(masking.loss(rows, torch.Generator().manual_seed(0)).error, expected)


def test_cross_entropy_of_probabilities():
    """−log 0.8 for a 1 that is given 0.8, −log 0.9 for a 0 that is given 0.1."""
    dense = made(2, code_size=1, output_activation="sigmoid", error="cross_entropy")
    found = dense.error(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.8, 0.1]]))
    torch.testing.assert_close(found, -torch.tensor([0.8 * 0.9]).log())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "variational", "beta": -1.0}, "beta expected at least 0, got -1"),
        (
            {"kind": "pca", "beta": 2.0},
            r"beta expected 1.0 for the kind pca \(variational take it\), got 2.0",
        ),
        ({"kind": "gan"}, "kind expected one of pca, dense"),
        ({"error": "cross_entropy"}, "error expected squared unless output_activation is sigmoid"),
        ({"sparsity_coeff": 1.0}, "sparsity_coeff expected 0 without sigmoid codes"),
        ({"kind": "deep_belief"}, "activation expected sigmoid for deep_belief"),
        ({"kind": "multilayer", "code_layer": 6}, "code_layer expected at most 5, the hidden layers, got 6"),
        ({"code_size": 0}, "code_size expected at least 1, got 0"),
    ],
)
def test_fields_that_cannot_be_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        Relative(**fields)


def test_rows_and_codes_of_another_width_are_refused():
    dense = made(code_size=3)
    with pytest.raises(ValueError, match=r"encode expected float acts\[..., d_model=6\], got .* \[2, 5\]"):
        dense(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"decode expected float codes\[..., code_size=3\], got .* \[4\]"):
        dense.decode(torch.zeros(4))
