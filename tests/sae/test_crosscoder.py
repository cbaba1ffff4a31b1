"""A crosscoder: one code for rows side by side, in the units of each side, in a folder of its own."""

import json

import pytest
import torch

from saelens_lite.errors import CheckpointError
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig, Side
from saelens_lite.sae.crosscoder import Crosscoder

SIDES = (
    Side(d_model=2, scale=2.0, hook_point="blocks.1.hook_resid_post", model_name="base"),
    Side(d_model=3, scale=0.5, hook_point="blocks.1.hook_resid_post", model_name="tuned"),
)


def random_sae(kind="jumprelu", **fields):
    generator = torch.Generator().manual_seed(0)
    config = SAEConfig(d_model=5, d_sae=7, kind=kind, hook_point="blocks.1.hook_resid_post", **fields)
    sae = SparseAutoencoder(config)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return sae


def test_the_lean_by_hand():
    """Norms (3, 4) · 2 = 10 against 0.5 · 20 = 10; 2 against 0; 0 against 1.5; 10 against 5."""
    crosscoder = Crosscoder(SAEConfig(d_model=5, d_sae=4, kind="relu", sides=SIDES))
    with torch.no_grad():
        crosscoder.W_dec.copy_(
            torch.tensor([[3.0, 4, 20, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 3, 0], [0, 5, 0, 0, 10]])
        )
    norms = torch.tensor([[10.0, 10], [2, 0], [0, 1.5], [10, 5]])
    torch.testing.assert_close(crosscoder.decoder_norms(), norms)
    torch.testing.assert_close(crosscoder.lean(), torch.tensor([0.5, 0, 1, 0.25]))
    torch.testing.assert_close(crosscoder.lean(0, 1), torch.tensor([0.5, 1, 0, 0.75]))
    assert crosscoder.block(1) == slice(2, 5)
    torch.testing.assert_close(crosscoder.decoder(0)[3], torch.tensor([0.0, 5]))
    with pytest.raises(ValueError, match="side expected 0 to 1, got 2"):
        crosscoder.block(2)


def test_the_scales_are_folded():
    """On rows in their own units it computes what the SAE computes on rows times the scales."""
    sae, rows = random_sae(), torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    crosscoder = Crosscoder.of_scaled(sae, SIDES)
    scale = torch.tensor([2.0, 2, 0.5, 0.5, 0.5])
    with torch.no_grad():
        ours, theirs = crosscoder(rows), sae(rows * scale)
    assert ours.latents.indices.tolist() == theirs.latents.indices.tolist()
    torch.testing.assert_close(ours.latents.values, theirs.latents.values)
    torch.testing.assert_close(ours.recons * scale, theirs.recons)


@pytest.mark.parametrize("kind, k", [("jumprelu", None), ("topk", 3)])
def test_a_folder_comes_back(tmp_path, kind, k):
    crosscoder = Crosscoder.of_scaled(random_sae(kind, k=k), SIDES)
    crosscoder.save(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert cfg["architecture"] == "crosscoder" and cfg["latents"] == kind and cfg["d_in"] == 5
    assert [side["d_model"] for side in cfg["sides"]] == [2, 3]
    loaded = Crosscoder.load(tmp_path)
    assert loaded.sides == SIDES and loaded.kind == kind
    for name, parameter in crosscoder.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter)


def test_each_class_refuses_the_other(tmp_path):
    Crosscoder.of_scaled(random_sae(), SIDES).save(tmp_path / "cross")
    random_sae().save(tmp_path / "sae")
    with pytest.raises(ValueError, match="got a crosscoder of 2 sides: .*Crosscoder.load opens it"):
        SparseAutoencoder.load(tmp_path / "cross")
    with pytest.raises(ValueError, match="got an SAE of d_model=5: sl.SparseAutoencoder.load opens it"):
        Crosscoder.load(tmp_path / "sae")


def test_sides_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="sides expected widths of d_model=6, got 2 \\+ 3"):
        SAEConfig(d_model=6, d_sae=4, kind="relu", sides=SIDES)
    Crosscoder.of_scaled(random_sae(), SIDES).save(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    cfg["sides"][1]["scale"] = "much"
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    with pytest.raises(CheckpointError, match="sides\\[1\\].scale expected float, got 'much'"):
        Crosscoder.load(tmp_path)
