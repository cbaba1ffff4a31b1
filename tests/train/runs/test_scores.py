"""Scores on held-out rows, against rows worked by hand and against the evaluation of the saved SAE."""

import dataclasses
import math
import re
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
    trainer = Trainer(sae, config, 10, scale=4.0)
    rows = SimpleNamespace(held_out=lambda: ROWS / 4, scale=4.0, check_steps=lambda *_: None)
    return HeldOutScores(trainer, rows, Finite(trainer, rows), None)


def test_fvu_and_l0_of_rows_worked_by_hand(scores):
    """Reconstructions (10, 0), (12, 4), (11, 0), (11, 5): errors 1, 1, 1 + 1 and 1 in squares, 5 of 28."""
    metrics = scores.update()
    assert metrics == {
        "held_out_fvu": pytest.approx(5 / 28, rel=1e-9),
        "held_out_l0": 5 / 4,
        "held_out_fvu_within_10x": metrics["held_out_fvu"],
        "held_out_share_within_10x": 1.0,
    }
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
    assert set(scores.update().values()) == {None}


def test_rows_of_massive_norm_are_told_from_the_others(scores, caplog):
    """A fifth row (400, 0) becomes (399, 0): 1 of about 1.2e5 beside the 5 of 28 of the others."""
    scores.rows.held_out = lambda: torch.cat([ROWS, torch.tensor([[400.0, 0.0]])]) / 4
    with caplog.at_level("WARNING", logger="saelens_lite.train"):
        metrics = scores.update()
        scores.outdated()
        scores.update()
    assert metrics["held_out_fvu"] < 1e-4
    assert metrics["held_out_fvu_within_10x"] == pytest.approx(5 / 28, rel=1e-6)
    assert metrics["held_out_share_within_10x"] == 4 / 5
    told = r"at step 0: 20.00% of the scored rows .* and 0.1786 that of all other rows. --max-norm-ratio 10"
    assert len(re.findall(told, caplog.text)) == 1
    scores.trainer.config = dataclasses.replace(scores.trainer.config, max_norm_ratio=10.0)
    scores._told = False
    caplog.clear()
    scores.outdated()
    scores.update()
    assert not caplog.text  # as it was trained without them


def test_an_error_that_is_not_finite_stops_the_run(scores):
    with torch.no_grad():
        scores.trainer.sae.b_dec[0] = math.inf
    with pytest.raises(FloatingPointError, match="error on held-out rows is not finite at step 0.*diverged"):
        scores.update()


@pytest.mark.long
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
