"""Most latents silent before the first step: said where b_dec is far from the mean, and only there."""

import torch

import saelens_lite as sl
from saelens_lite.sae.config import SAEConfig
from saelens_lite.train.runs.silent_start import warn_of_silence


def test_a_start_that_sees_only_the_mean_is_told(caplog):
    """Encoder rows +e or −e of one axis, the mean at 30 on it: the minus half and more is never on."""
    sae = sl.SparseAutoencoder(SAEConfig(d_model=4, d_sae=8, kind="relu"))
    rows = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    rows[:, 0] += 30
    with torch.no_grad():
        sae.W_enc[0] = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0, -1.0])
    warn_of_silence(sae, rows)
    assert "62% of the latents fire on none of 500 rows" in caplog.text  # 5 of 8
    assert "times their spread away from b_dec" in caplog.text
    caplog.clear()
    with torch.no_grad():
        sae.b_dec[0] = 30.0  # all fire on some row now, and the mean is at b_dec
    warn_of_silence(sae, rows)
    with torch.no_grad():
        sae.b_dec[0] = 0.0
        sae.W_enc[0] = 1.0  # far away, but all are on
    warn_of_silence(sae, rows)
    assert not caplog.records
