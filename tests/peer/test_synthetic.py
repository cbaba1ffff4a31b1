"""Recovery scores equal those that SAELens computes of the same SAE on the same rows."""

import json
import subprocess

import pytest
import torch
from safetensors.torch import save_file

from saelens_lite.analyze.ground_truth.recovery import evaluate_recovery
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig
from saelens_lite.synthetic import SyntheticActivations, SyntheticConfig

pytestmark = pytest.mark.peer

N_ROWS = 2000
SCORE_WITH_SAELENS = """
import json
from safetensors.torch import load_file
from sae_lens import SAE
from sae_lens.synthetic import evals
given, sae = load_file("given.safetensors"), SAE.load_from_disk("sae").requires_grad_(False)
features, acts, directions = given["features"], given["acts"], given["directions"]
latents = sae.encode(acts)
scores = evals.compute_classification_metrics(latents, features, sae.W_dec, directions)
shrinkage = evals.ShrinkageCalculator()
shrinkage.add_batch(sae.decode(latents), acts)
print(json.dumps({
    "precision": scores.precision, "recall": scores.recall, "f1": scores.f1_score,
    "norm_ratio": shrinkage.compute(),
    "mcc": evals.mean_correlation_coefficient(sae.W_dec, directions),
    "uniqueness": evals.feature_uniqueness(sae.W_dec, directions),
    "dead": int((latents == 0).all(0).sum()) / latents.shape[1],
}))
"""


def test_scores_are_saelens_scores(peer_python, tmp_path):
    synthetic = SyntheticActivations(
        SyntheticConfig(d_model=24, n_features=96, l0=4, n_trees=2, branching=3, depth=2)
    )
    sae = SparseAutoencoder(SAEConfig(d_model=24, d_sae=40, kind="topk", k=4))
    torch.manual_seed(0)
    with torch.no_grad():  # half of the latents near a feature, half anywhere, one dead
        sae.W_dec.copy_(torch.randn(40, 24))
        sae.W_dec[:20] = synthetic.directions[:20] + 0.1 * torch.randn(20, 24)
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_enc[7] = -100
    sae.save(tmp_path / "sae")
    acts, features = synthetic.rows(0, N_ROWS)
    given = {"acts": acts, "features": features.to_dense(), "directions": synthetic.directions}
    save_file(given, tmp_path / "given.safetensors")
    done = subprocess.run(
        [str(peer_python), "-c", SCORE_WITH_SAELENS], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    row = evaluate_recovery(sae, synthetic, n_rows=N_ROWS, start_row=0).row("trained")
    for name, theirs in json.loads(done.stdout.splitlines()[-1]).items():
        assert getattr(row, name) == pytest.approx(theirs, rel=1e-5), name
