"""Latent scaling: a case by hand, and the definition recomputed in float64 with every matrix dense."""

import pytest
import torch

from saelens_lite.analyze.model_diffing.scaling import latent_scaling
from saelens_lite.sae.config import SAEConfig, Side
from saelens_lite.sae.crosscoder import Crosscoder
from saelens_lite.store.derived import paired_store
from saelens_lite.store.reader import ActivationStore


def crosscoder_of(d_sae, widths=(4, 4), **weights):
    sides = tuple(Side(d_model=d) for d in widths)
    config = SAEConfig(d_model=sum(widths), d_sae=d_sae, kind="relu", sides=sides)
    crosscoder = Crosscoder(config)
    with torch.no_grad():
        for name, value in weights.items():
            crosscoder.get_parameter(name).copy_(torch.as_tensor(value).float())
    return crosscoder


def stored(path, rows):
    return ActivationStore.from_arrays(path, torch.as_tensor(rows).float())


def test_one_latent_by_hand(tmp_path):
    """f = (2, 1), d = (0, 2) in the tuned model and nothing in the base. The base has (0, 2) · ½ f all the
    same, the tuned model (0, 2) f and an error of (1, 0), so ν of the error is ½; of the reconstruction 0."""
    base, tuned = [[0.0, 2.0], [0.0, 1.0]], [[1.0, 4.0], [1.0, 2.0]]
    crosscoder = crosscoder_of(1, (2, 2), W_enc=[[0.0], [0], [0], [0.5]], W_dec=[[0.0, 0, 0, 2]])
    found = latent_scaling(
        crosscoder, paired_store([stored(tmp_path / "a", base), stored(tmp_path / "b", tuned)])
    )
    # Σ f² = 5, ‖d‖² = 4; base: Σ f ⟨d, x⟩ = 2 · 4 + 1 · 2 = 10 of 20; tuned: Σ f ⟨d, x̂⟩ = 2 · 8 + 1 · 4 = 20
    torch.testing.assert_close(found.beta_error, torch.tensor([[0.5, 1.0]], dtype=torch.float64))
    torch.testing.assert_close(found.beta_reconstruction, torch.tensor([[0.0, 1.0]], dtype=torch.float64))
    assert found.nu_error.item() == 0.5 and found.nu_reconstruction.item() == 0
    assert not found.exclusive.item() and found.n_fired.item() == 2


@pytest.mark.parametrize("of, against", [(1, 0), (0, 1)])
def test_it_is_the_definition(tmp_path, of, against):
    generator = torch.Generator().manual_seed(0)
    d_sae, n = 12, 500

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    crosscoder = crosscoder_of(
        d_sae,
        W_enc=normal(8, d_sae) / 3,
        W_dec=normal(d_sae, 8),
        b_enc=normal(d_sae) / 3 - 0.5,
        b_dec=normal(8) / 5,
    )
    with torch.no_grad():
        crosscoder.b_enc[3] = -100  # silent
    rows = [normal(n, 4), normal(n, 4)]
    pair = paired_store([stored(tmp_path / "a", rows[0]), stored(tmp_path / "b", rows[1])])
    found = latent_scaling(crosscoder, pair, of=of, against=against)

    W_enc, W_dec, b_enc, b_dec = (
        getattr(crosscoder, name).detach().double() for name in ("W_enc", "W_dec", "b_enc", "b_dec")
    )
    x = torch.cat(rows, dim=1).double()
    f = ((x - b_dec) @ W_enc + b_enc).relu()
    recons, blocks = f @ W_dec + b_dec, (slice(0, 4), slice(4, 8))
    d = W_dec[:, blocks[of]]
    for j in range(d_sae):
        for place, side in enumerate((against, of)):
            own = f[:, j, None] * W_dec[j, blocks[side]]
            x_hat = recons[:, blocks[side]]
            for name, y in (("reconstruction", x_hat), ("error", x[:, blocks[side]] - x_hat + own)):
                beta = (f[:, j] * (y @ d[j])).sum() / (d[j].square().sum() * f[:, j].square().sum())
                ours = getattr(found, f"beta_{name}")[j, place]
                if j == 3:
                    assert ours.isnan()
                else:
                    torch.testing.assert_close(ours, beta, rtol=1e-4, atol=1e-5)
    assert found.nu_error[0] == found.beta_error[0, 0] / found.beta_error[0, 1]
    some = latent_scaling(crosscoder, pair, [5, 2], of=of, against=against)
    torch.testing.assert_close(some.beta_error, found.beta_error[[5, 2]])


def test_what_does_not_fit_is_refused(tmp_path):
    a, b, wide = (stored(tmp_path / name, torch.zeros(3, d)) for name, d in (("a", 4), ("b", 4), ("c", 3)))
    with pytest.raises(ValueError, match="of 2 sides expected rows side by side, got ActivationStore"):
        latent_scaling(crosscoder_of(2), a)
    with pytest.raises(ValueError, match=r"expected sides of widths \[4, 4\], got \[4, 3\]"):
        latent_scaling(crosscoder_of(2), paired_store([a, wide]))
    with pytest.raises(ValueError, match="expected two sides of one width, got 3 and 4"):
        latent_scaling(crosscoder_of(2, (4, 3)), paired_store([b, wide]))
