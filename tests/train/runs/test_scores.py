"""Scores on held-out rows, against rows worked by hand and against the evaluation of the saved SAE."""

import math
from types import SimpleNamespace

import pytest
import torch

import saelens_lite as sl
from saelens_lite.sae.config import SAEConfig
from saelens_lite.train.config import TrainConfig
from saelens_lite.train.optimise.trainer import Trainer
from saelens_lite.train.runs.finite import Finite
from saelens_lite.train.runs.scores import HeldOutScores

ROWS = torch.tensor([[11.0, 0.0], [13.0, 4.0], [12.0, -1.0], [12.0, 5.0]])
"""Their mean is (12, 2): Σ‖x − x̄‖² = (1 + 4) + (1 + 4) + (0 + 9) + (0 + 9) = 28."""


@pytest.fixture
def scores():
    """Scores of a ReLU SAE that writes max(x₀ − 10, 0) − 1 into dimension 0, max(x₁, 0) into dimension 1."""
    config = TrainConfig(kind="relu", batch_size_rows=3, device="cpu")
    sae = sl.SparseAutoencoder(SAEConfig(d_model=2, d_sae=2, kind="relu"))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
        sae.W_dec.copy_(torch.eye(2))
        sae.b_dec.copy_(torch.tensor([10.0, 0.0]))
        sae.b_enc.copy_(torch.tensor([-1.0, 0.0]))
    trainer = Trainer(sae, config, 10)
    rows = SimpleNamespace(held_out=lambda: ROWS / 4, scale=4.0, check_steps=lambda *_: None)
    return HeldOutScores(trainer, rows, Finite(trainer, rows), None)


def test_fvu_and_l0_of_rows_worked_by_hand(scores):
    """Reconstructions (10, 0), (12, 4), (11, 0), (11, 5): errors 1, 1, 1 + 1 and 1 in squares, 5 of 28."""
    metrics = scores.update()
    assert metrics == {"held_out_fvu": pytest.approx(5 / 28, rel=1e-9), "held_out_l0": 5 / 4}
    assert scores.density.tolist() == [3 / 4, 2 / 4]


def test_scores_are_computed_once_a_step_unless_the_sae_changed(scores):
    first = scores.update()
    with torch.no_grad():
        scores.trainer.sae.b_enc.copy_(torch.tensor([0.0, 0.0]))
    assert scores.update() is first
    scores.outdated()
    assert scores.update()["held_out_fvu"] == pytest.approx(1 / 28, rel=1e-9)


def test_rows_that_do_not_vary_and_absent_rows_have_no_fvu(scores):
    scores.rows.held_out = lambda: ROWS[:1] / 4
    assert scores.update()["held_out_fvu"] is None
    scores.rows.held_out = lambda: ROWS[:0]
    scores.outdated()
    assert scores.update() == {"held_out_fvu": None, "held_out_l0": None}


def test_an_error_that_is_not_finite_stops_the_run(scores):
    with torch.no_grad():
        scores.trainer.sae.b_dec[0] = math.inf
    with pytest.raises(FloatingPointError, match="error on held-out rows is not finite at step 0.*diverged"):
        scores.update()


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "jumprelu", "relu", "gated"])
def test_the_fvu_of_a_run_is_that_of_the_evaluation(planted, tmp_path, kind):
    store = sl.ActivationStore.from_arrays(tmp_path / "store", planted.acts + 3.0)
    fields = {"k": 3} if kind in ("topk", "batchtopk") else {}
    sae = sl.train_sae(
        store, output=tmp_path / "sae", kind=kind, d_sae=64, n_steps=40, batch_size_rows=256,
        held_out_fraction=0.2, device="cpu", progress=False, **fields,
    )  # fmt: skip
    scored = sae.config.metadata["saelens_lite"]
    row = sl.evaluate_sae(sae, store, max_tokens=None).row("trained")
    assert scored["held_out_fvu"] == pytest.approx(row.fvu, rel=1e-6)
    assert scored["held_out_l0"] == pytest.approx(row.l0, rel=1e-6)
