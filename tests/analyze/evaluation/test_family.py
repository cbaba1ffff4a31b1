"""SAEs and relatives in one table: each number as it is alone, principal components exact, the command."""

import json

import pytest
import torch

import saelens_lite as sl
from saelens_lite.analyze.evaluation.evaluate import evaluate_sae
from saelens_lite.analyze.evaluation.family import compare_autoencoders
from saelens_lite.cli.commands import main
from saelens_lite.demo import documents
from saelens_lite.train.autoencoders.single import train_autoencoder
from tests.autoencoders.test_network import made

from ..conftest import make_sae

POINT = "blocks.2.hook_resid_post"
HELD = {"held_out_fraction": 0.3}
RUN = {"device": "cpu", "progress": False, "batch_size_rows": 64} | HELD


@pytest.fixture
def relatives(store, tmp_path):
    """Principal components of the rows that are not held out, and an untrained relative of two seeds."""
    pca = train_autoencoder(store, kind="pca", code_size=5, output=tmp_path / "pca", **RUN)
    dense = [made(32, seed, code_size=5, activation="linear") for seed in (0, 1)]
    return {"pca": pca, "dense": dense[0]}, dense[1]


def test_the_numbers_are_those_of_each_alone(store, gpt2, relatives):
    given, other = relatives
    sae, again = make_sae(), make_sae()
    with torch.no_grad():
        again.W_enc.add_(0.1)
    labels = torch.arange(store.n_rows) % 3
    all_of_them = given | {"sae": sae}
    found = compare_autoencoders(all_of_them, store, gpt2, {"dense": other, "sae": again}, labels, **HELD)
    alone = evaluate_sae(sae, store, gpt2, **HELD).row("trained")
    row = found.row("sae")
    assert (row.kind, row.code_size, row.cka is None) == ("topk", 48, False)
    assert row.fvu == pytest.approx(alone.fvu, rel=1e-6) and row.active == pytest.approx(alone.l0)
    assert row.delta_ce == pytest.approx(alone.delta_ce, abs=1e-6)
    assert row.mcc == pytest.approx(1)  # the decoders are one
    rows = store.gather(torch.arange(store.n_rows))[store.held_out_rows(0.3)]
    error = (rows - given["dense"](rows).recons.detach()).square().sum() / (
        rows - rows.mean(0)
    ).square().sum()
    assert found.row("dense").fvu == pytest.approx(float(error), rel=1e-5)
    assert found.row("dense").bits == pytest.approx(40) and found.row("pca").cka is None
    assert found.n_rows == len(rows) and f"{len(rows):,} rows of" in str(found)
    pca = found.row("pca")  # whose own codes are the best for its decoder
    assert pca.fvu < pca.fvu_8_bits < pca.fvu_4_bits < pca.fvu + 0.05
    assert all(0 < row.auroc < 1 for row in found.rows)
    frame = found.to_frame()
    assert frame["name"].tolist() == ["pca", "dense", "sae"]
    assert json.loads(json.dumps(found.to_dict()))["pca_curve"] == list(found.pca_curve)
    with pytest.raises(KeyError, match="no autoencoder 'vae', there are pca, dense, sae"):
        found.row("vae")


def test_the_curve_is_that_of_the_trained_components(store, relatives):
    given, _ = relatives
    found = compare_autoencoders(given, store, **HELD)
    assert found.row("pca").fvu == pytest.approx(found.pca_curve[5], rel=1e-4)
    assert found.row("pca").pca_same_size == found.pca_curve[5]
    assert len(found.pca_curve) == 33 and found.pca_curve[32] == pytest.approx(0, abs=1e-9)
    lines = found.plot().lines
    assert lines[0].get_ydata().tolist() == list(found.pca_curve[1:])
    assert [line.get_xdata()[0] for line in lines[1:]] == [5, 5]


@pytest.mark.long
def test_no_linear_decoder_is_below_the_components_of_the_scored_rows(store, relatives, tmp_path):
    """Bourlard & Kamp 1988, for one that is trained, whatever its encoder."""
    options = RUN | {"held_out_fraction": 0.0}
    given = {
        "dense": train_autoencoder(store, code_size=3, n_epochs=30, output=tmp_path / "dense", **options),
        "denoising": made(32, kind="denoising", code_size=3),
    }
    found = compare_autoencoders(given, store, held_out=False, max_tokens=None)
    assert found.n_rows == store.n_rows
    for row in found.rows:
        assert row.fvu >= row.pca_same_size > 0


@pytest.mark.long
def test_on_the_embedded_model_a_larger_code_costs_less(embedded, tmp_path):
    """All components cost nothing. tests/bench/relatives.py has a larger model and all kinds."""
    (model, tokenizer), texts = embedded, [str(text)[:200] for text in documents()[:40]]
    store = sl.harvest_activations(
        model, texts, [POINT], tmp_path / "s", tokenizer=tokenizer, max_tokens=2000,
        context_length=64, dtype="float32", progress=False,
    )  # fmt: skip
    given = {
        size: train_autoencoder(store, kind="pca", code_size=size, output=tmp_path / str(size), **RUN)
        for size in (4, 32, store.d_model(POINT))
    }
    sae = sl.train_sae(store, kind="topk", k=4, expansion=2, n_steps=100, output=str(tmp_path / "sae"), **RUN)
    named = {str(size): one for size, one in given.items()} | {"topk": sae}
    found = compare_autoencoders(named, store, model)
    few, some, whole, sparse = found.rows
    assert few.fvu > some.fvu > whole.fvu and few.delta_ce > some.delta_ce > whole.delta_ce
    assert whole.fvu < 1e-6 and abs(whole.delta_ce) < 1e-3
    assert sparse.pca_same_active == pytest.approx(few.fvu, rel=1e-3) and sparse.fvu < few.fvu


def test_what_does_not_fit_is_refused(store, relatives):
    given, other = relatives
    with pytest.raises(ValueError, match="other seeds by names among them"):
        compare_autoencoders(given, store, other_seeds={"sae": other})
    with pytest.raises(ValueError, match=f"one of each of {store.n_rows:,} rows, got 2"):
        compare_autoencoders(given, store, labels=[0, 1])
    with pytest.raises(ValueError, match="expected one of d_model=32, got one of d_model=6"):
        compare_autoencoders({"narrow": made(6)}, store)
    with pytest.raises(TypeError, match="expected autoencoders as a SparseAutoencoder"):
        compare_autoencoders({"a": 3}, store)


def test_the_command_compares_where_one_is_a_relative(store, relatives, tmp_path, capsys):
    make_sae().save(tmp_path / "sae")
    paths = [str(tmp_path / name) for name in ("pca", "sae")]
    argv = ["evaluate", "--sae", *paths, "--store", str(store.path), "--held-out-fraction", "0.3"]
    assert main([*argv, "--output", str(tmp_path / "found.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["kind", "units", "active", "fvu"]
    assert [line.split()[0] for line in lines[1:3]] == ["pca", "sae"]
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row["code_size"] for row in rows] == [5, 48]
    assert main([*argv, "--baseline", paths[1]]) == 2
    assert "beside them in --sae" in capsys.readouterr().err
