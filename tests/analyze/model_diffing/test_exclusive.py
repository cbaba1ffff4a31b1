"""Latents of one model alone, the page of a pair, and the command, on two models that differ by a shift."""

import json
import re

import pytest
import torch

import saelens_lite as sl
from saelens_lite.analyze.model_diffing.exclusive import exclusive_latents
from saelens_lite.analyze.model_diffing.page import pair_page
from saelens_lite.analyze.model_diffing.row_differences import compare_rows
from saelens_lite.sae.config import SAEConfig, Side
from saelens_lite.sae.crosscoder import Crosscoder
from saelens_lite.store.derived import paired_store

D, ROWS = 4, 400


@pytest.fixture
def planted(tmp_path):
    """Latent 0 writes axis 0 in both models, 1 axis 1 in the tuned one alone, 2 axis 2 in the base alone; 3
    looks the tuned model's own (decoder norms), but the base has axis 3 on the same rows. Each fires on a
    quarter of the rows."""
    z = torch.zeros(ROWS, D)
    z[torch.arange(ROWS), torch.arange(ROWS) % D] = 1.0 + torch.arange(ROWS) / ROWS
    base, tuned = z.clone(), z.clone()
    base[:, 1], tuned[:, 2] = 0, 0
    make, documents = sl.ActivationStore.from_arrays, torch.arange(ROWS) // 20
    stores = [make(tmp_path / n, rows, documents=documents) for n, rows in (("base", base), ("tuned", tuned))]
    sides = tuple(Side(d_model=D, hook_point=store.hook_points[0]) for store in stores)
    config = SAEConfig(d_model=2 * D, d_sae=D, kind="relu", hook_point=stores[0].hook_points[0], sides=sides)
    crosscoder = Crosscoder(config)
    eye = torch.eye(D)
    with torch.no_grad():
        for parameter in crosscoder.parameters():
            parameter.zero_()
        crosscoder.W_enc.copy_(
            torch.cat([torch.diag(torch.tensor([0.5, 0, 1, 0])), torch.diag(torch.tensor([0.5, 1, 0, 1]))])
        )
        crosscoder.W_dec.copy_(
            torch.cat([torch.diag(torch.tensor([1.0, 0, 1, 0])), torch.diag(torch.tensor([1.0, 1, 0, 1]))], 1)
        )
    assert torch.equal(crosscoder.decoder(1)[1], eye[1])
    return stores, crosscoder


def test_what_looks_exclusive_is_checked_against_the_other_model(planted):
    stores, crosscoder = planted
    found = exclusive_latents(crosscoder, paired_store(stores))
    assert found.lean.tolist() == [0.5, 1.0, 0.0, 1.0] and found.n_fired.tolist() == [100] * 4
    assert found.latents("tuned").tolist() == [1] and found.latents("base").tolist() == [2]
    rows = {row["latent"]: row for row in found.to_dict()["rows"]}
    assert set(rows) == {1, 2, 3}
    assert rows[1]["nu_error"] == pytest.approx(0, abs=1e-6) and rows[1]["exclusive"]
    assert rows[3]["nu_error"] == pytest.approx(1, abs=1e-6) and not rows[3]["exclusive"]
    assert "tuned: 2 by decoder norms, 1 of them; base: 1 by decoder norms, 1 of them" in str(found)


def test_the_page_has_every_part_and_runs_nothing(planted):
    stores, crosscoder = planted
    page = pair_page(
        compare_rows(*stores, n_components=3), latents=exclusive_latents(crosscoder, paired_store(stores))
    )
    for heading in ("How far rows are apart at", "Latents of one model alone"):
        assert f"<h2>{heading}" in page
    assert "<script" not in page and page.count("<svg viewBox") == 2
    cells = page.split("Whose latents they are", 1)[1]
    counts = dict(re.findall(r"(base alone|shared|tuned alone)</th><td>(\d+)</td>", cells))
    assert counts == {"base alone": "1", "shared": "1", "tuned alone": "2"}


@pytest.mark.long
def test_the_command_writes_the_page_and_the_numbers(pair, tmp_path, capsys):
    from saelens_lite.cli.diff_models import run

    stores = [str(store.path) for store in (pair.base_store, pair.tuned_store)]
    run(
        [
            "--base-store",
            stores[0],
            "--tuned-store",
            stores[1],
            "--page",
            str(tmp_path / "p.html"),
            "--output",
            str(tmp_path / "p.json"),
        ]
    )
    numbers = json.loads((tmp_path / "p.json").read_text())
    # The stream after block 0 differs by the shift alone, on every token.
    assert numbers["rows"]["difference_norm"] == pytest.approx(float(pair.shift.norm()), rel=1e-3)
    assert numbers["rows"]["mean_share"] == pytest.approx(1, abs=1e-3)
    assert (
        "Two models of one text" in (tmp_path / "p.html").read_text()
        and "mean share" in capsys.readouterr().out
    )
