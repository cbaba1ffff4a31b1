"""Crosscoders of dictionary_learning's fork, against a forward pass written from their definition."""

import pytest
import torch
from safetensors.torch import save_file

from saelens_lite.errors import CheckpointError
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.crosscoder import Crosscoder

L, D, N = 2, 6, 20


def tensors(normalisation=1, threshold=0.4, normalised=True):
    generator = torch.Generator().manual_seed(0)
    found = {
        "encoder.weight": torch.randn(L, D, N, generator=generator) / 3,
        "encoder.bias": torch.randn(N, generator=generator) / 5,
        "decoder.weight": torch.randn(L, N, D, generator=generator) / 3,
        "decoder.bias": torch.randn(L, D, generator=generator),
        "activation_mean": torch.randn(L, D, generator=generator),
        "activation_std": torch.rand(L, D, generator=generator) + 1,
        "activation_global_scale": torch.tensor([0.7, 0.3]),
        "target_rms": torch.tensor(1.0),
        "code_normalization_id": torch.tensor(normalisation),
    }
    if not normalised:
        for name in ("activation_mean", "activation_std"):
            found[name] = torch.full((L, D), torch.nan)
        found["activation_global_scale"] = torch.ones(L)
    if threshold is not None:
        found |= {"k": torch.tensor(4), "threshold": torch.tensor(threshold)}
    return found


def forward(t, x):
    """latents [rows N] and reconstruction [rows L D] of x [rows L D], in float64, as the fork has it."""
    t = {name: tensor.double() for name, tensor in t.items()}
    normalised = not t["activation_mean"].isnan().any()
    scale = t["activation_global_scale"][:, None]
    if normalised:
        x = (x - t["activation_mean"]) * scale
    f = (torch.einsum("bld,ldf->bf", x, t["encoder.weight"]) + t["encoder.bias"]).relu()
    norms = t["decoder.weight"].norm(dim=2)
    weight = {1: norms.sum(0), 2: t["decoder.weight"].norm(dim=(0, 2)), 4: torch.ones(N)}[
        int(t["code_normalization_id"])
    ]
    if "threshold" in t and t["threshold"] >= 0:
        f = f * (f * weight > t["threshold"])
    recons = torch.einsum("bf,lfd->bld", f, t["decoder.weight"]) + t["decoder.bias"]
    return f, recons / (scale + 1e-8) + t["activation_mean"] if normalised else recons


@pytest.mark.parametrize(
    "normalisation, threshold, normalised",
    [(1, 0.4, True), (2, 0.4, True), (4, 0.4, False), (1, None, True), (1, -1.0, True)],
)
def test_it_computes_what_the_fork_computes(tmp_path, normalisation, threshold, normalised):
    theirs = tensors(normalisation, threshold, normalised)
    torch.save(theirs, tmp_path / "model_final.pt")
    crosscoder = Crosscoder.load(tmp_path)
    x = torch.randn(200, L, D, generator=torch.Generator().manual_seed(1)).double()
    latents, recons = forward(theirs, x)
    with torch.no_grad():
        ours = crosscoder(x.flatten(1).float())
    assert 0 < (latents > 0).float().mean() < 0.9
    torch.testing.assert_close(ours.latents.to_dense().double(), latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.recons.view_as(x).double(), recons, atol=1e-5, rtol=1e-5)
    scales = [side.scale for side in crosscoder.sides]
    assert scales == pytest.approx([0.7, 0.3] if normalised else [1, 1])
    torch.testing.assert_close(crosscoder.decoder_norms().T, theirs["decoder.weight"].norm(dim=2))


def test_safetensors_of_the_hub_open_too(tmp_path):
    save_file(tensors(), tmp_path / "model.safetensors")
    torch.testing.assert_close(
        Crosscoder.load(tmp_path).decoder(1) * 0.3, tensors()["decoder.weight"][1], atol=1e-6, rtol=1e-6
    )


def test_what_has_no_counterpart_is_refused(tmp_path):
    torch.save(tensors(5), tmp_path / "model_final.pt")
    with pytest.raises(ValueError, match="code_normalization_id 5, latents that differ from layer to layer"):
        Crosscoder.load(tmp_path)
    torch.save(tensors(3), tmp_path / "model_final.pt")
    with pytest.raises(ValueError, match="code_normalization_id 3, a mixture whose factors it lacks"):
        Crosscoder.load(tmp_path)
    torch.save(tensors() | {"encoder.bias": torch.zeros(3)}, tmp_path / "model_final.pt")
    with pytest.raises(CheckpointError, match=r"expected encoder.bias \[20\], got \[3\]"):
        Crosscoder.load(tmp_path)
    torch.save(tensors(), tmp_path / "model_final.pt")
    with pytest.raises(ValueError, match="a crosscoder of 2 sides: .*Crosscoder.load opens it"):
        SparseAutoencoder.load(tmp_path)
