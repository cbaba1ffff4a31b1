"""Out-of-distribution scores: the surprise by hand, then planted rows that lack a direction, or a rate, or a
strength."""

import math

import pytest
import torch
from torch import Tensor

from saelens_lite.analyze import fit_anomaly
from saelens_lite.analyze.stats.ranks import auroc
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig
from saelens_lite.store.reader import ActivationStore

WIDTH, D_SAE = 32, 24


def axis_sae(width: int = WIDTH, d_sae: int = D_SAE) -> SparseAutoencoder:
    """Latent i is coordinate i where it is positive; coordinates from d_sae on are not in the dictionary."""
    sae = SparseAutoencoder(SAEConfig(d_model=width, d_sae=d_sae, kind="relu"))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(width, d_sae))
        sae.W_dec.copy_(torch.eye(d_sae, width))
    return sae


def rows(n: int, rates: Tensor, seed: int, strength: float = 1.0) -> Tensor:
    """Latents fire independently, with magnitudes exp(N(0, 0.3²)) · strength; a little noise outside the
    dictionary."""
    generator = torch.Generator().manual_seed(seed)
    fires = torch.rand(n, D_SAE, generator=generator) < rates
    magnitudes = strength * (0.3 * torch.randn(n, D_SAE, generator=generator)).exp()
    noise = 0.1 * torch.randn(n, WIDTH - D_SAE, generator=generator)
    return torch.cat([fires * magnitudes, noise], dim=1)


RATES = torch.tensor([0.3] * 12 + [0.02] * 12)
NORMAL = rows(3000, RATES, 0)


def test_surprise_by_hand():
    """Four rows of two latents: latent 0 fires thrice with e, e, e³, latent 1 once with e²; all logs: 1, 1,
    3, 2."""
    sae = axis_sae(3, 2)
    e = math.e
    normal = torch.tensor([[e, 0, 0.5], [e, 0, -0.5], [e**3, 0, 1.0], [0, e**2, 2.0]])
    detector = fit_anomaly(sae, normal)
    p = [3.5 / 5, 1.5 / 5]
    assert detector.surprise.rates.tolist() == pytest.approx(p)
    pooled_mean = 7 / 4
    pooled_variance = 15 / 4 - pooled_mean**2
    mean = [(5 + 2 * pooled_mean) / 5, (2 + 2 * pooled_mean) / 3]
    own = [2 * (1 - mean[0]) ** 2 + (3 - mean[0]) ** 2, (2 - mean[1]) ** 2]
    std = [math.sqrt((own[0] + 2 * pooled_variance) / 5), math.sqrt((own[1] + 2 * pooled_variance) / 3)]
    assert detector.surprise.log_mean.tolist() == pytest.approx(mean, abs=1e-6)
    assert detector.surprise.log_std.tolist() == pytest.approx(std, abs=1e-6)
    scores = detector.scores(torch.tensor([[0.0, 0.0, 0.0], [e**2, 0.0, 3.0]]))
    q = math.erfc((2 - mean[0]) / std[0] / math.sqrt(2))
    silent = -math.log(1 - p[0]) - math.log(1 - p[1])
    assert scores.surprise.tolist() == pytest.approx(
        [silent, -math.log(p[0]) - math.log(1 - p[1]) - math.log(q)], abs=1e-5
    )
    assert scores.error.tolist() == pytest.approx([0, 3])
    # errors of the normal rows 0.5 0.5 1 2: lower median 0.5, distances from it 0 0 0.5 1.5, lower median 0
    assert (detector.error_center, detector.error_scale) == pytest.approx((0.5, 1e-6))


def test_normal_rows_kept_apart_are_not_odd():
    detector = fit_anomaly(axis_sae(), NORMAL)
    normal, other = (detector.scores(rows(1500, RATES, seed)) for seed in (1, 2))
    for name in ("error", "surprise", "combined"):
        assert auroc(getattr(normal, name), getattr(other, name)) == pytest.approx(
            0.5, abs=0.035
        )  # 3 standard errors
    assert abs(float(normal.error_z.median())) < 0.1 and abs(float(normal.surprise_z.median())) < 0.1
    assert "1,500 rows" in repr(normal) and repr(detector).startswith(
        f"AnomalyDetector of {len(NORMAL):,} normal rows: error"
    )


def test_each_score_sees_its_own_kind_of_odd():
    detector = fit_anomaly(axis_sae(), NORMAL)
    normal = detector.scores(rows(500, RATES, 1))

    def seen(odd: Tensor) -> tuple[float, float, float]:
        scores = detector.scores(odd)
        return tuple(
            auroc(getattr(normal, name), getattr(scores, name)) for name in ("error", "surprise", "combined")
        )

    outside = rows(500, RATES, 2)
    outside[:, -1] += 1.0  # a direction that the dictionary lacks
    error, surprise, combined = seen(outside)
    assert error > 0.99 and abs(surprise - 0.5) < 0.06 and combined > 0.95
    error, surprise, combined = seen(
        rows(500, RATES.flip(0), 3)
    )  # known directions, rare ones in place of common ones
    assert abs(error - 0.5) < 0.06 and surprise > 0.85 and combined > 0.75
    error, surprise, combined = seen(rows(500, RATES, 4, strength=4.0))  # the usual ones, too strong
    assert abs(error - 0.5) < 0.06 and surprise > 0.95 and combined > 0.85


def test_planted_rows_against_rows_of_other_directions(planted):
    sae = SparseAutoencoder(SAEConfig(d_model=16, d_sae=32, kind="topk", k=3))
    with torch.no_grad():
        sae.W_enc.copy_(planted.directions.T)
        sae.W_dec.copy_(planted.directions)
    others = torch.nn.functional.normalize(
        torch.randn(32, 16, generator=torch.Generator().manual_seed(1)), dim=1
    )
    detector = fit_anomaly(sae, planted.acts[:3000])
    normal = detector.scores(planted.acts[3000:4000])
    odd = detector.scores((planted.latent_acts[4000:5000] @ others).numpy())
    assert (
        auroc(normal.combined, odd.combined) > 0.8
    )  # 32 directions in 16 dimensions, read without a trained encoder
    same = detector.scores(planted.acts[5000:6000])
    assert auroc(normal.combined, same.combined) == pytest.approx(0.5, abs=0.04)


def test_stores_of_arrays_and_the_size_of_blocks(tmp_path, monkeypatch):
    store = ActivationStore.from_arrays(tmp_path / "store", NORMAL[:700], dtype="float32", rows_per_shard=300)
    of_store, of_rows = fit_anomaly(axis_sae(), store), fit_anomaly(axis_sae(), NORMAL[:700])
    assert torch.equal(of_store.surprise.rates, of_rows.surprise.rates)
    monkeypatch.setattr("saelens_lite.analyze.anomaly.BLOCK_ROWS", 64)
    whole, cut = of_rows.scores(NORMAL[:700]), of_store.scores(store)
    torch.testing.assert_close(cut.combined, whole.combined)


def test_a_dead_dictionary_and_rows_without_error_have_finite_scores():
    sae = axis_sae()
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)
    assert fit_anomaly(sae, NORMAL[:50]).scores(NORMAL[50:90]).combined.isfinite().all()
    perfect = axis_sae(4, 4)
    detector = fit_anomaly(perfect, torch.rand(60, 4) + 1)
    assert detector.scores(torch.rand(9, 4) + 1).combined.isfinite().all()


def test_what_does_not_fit_is_refused():
    sae = axis_sae()
    with pytest.raises(ValueError, match="d_model=32"):
        fit_anomaly(sae, torch.rand(5, 7))
    with pytest.raises(ValueError, match="at least 2 normal rows, got 1"):
        fit_anomaly(sae, NORMAL[:1])
    with pytest.raises(ValueError, match="got none"):
        fit_anomaly(sae, NORMAL[:0])
    with pytest.raises(ValueError, match=r"or a store, got \[32\]"):
        fit_anomaly(sae, NORMAL[0])
    with pytest.raises(ValueError, match="nan or infinity in row 1"):
        fit_anomaly(sae, torch.tensor([[0.0] * 32, [math.nan] * 32]))
    with pytest.raises(ValueError, match="chooses among a store's"):
        fit_anomaly(sae, NORMAL, hook_point="blocks.0.hook_resid_post")
