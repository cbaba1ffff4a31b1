"""Training that continues from an SAE of a folder, and what the reconstruction costs the model meanwhile."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import saelens_lite as sl
from saelens_lite.train.optimise.fold import fold_scale
from saelens_lite.train.optimise.initial import sae_to_finetune

GOLDEN = Path(__file__).parents[2] / "golden"
POINT = "blocks.0.hook_resid_post"
HARVEST = {"context_length": 32, "max_tokens": 2000, "dtype": "float32", "progress": False}
OPTIONS = {"batch_size_rows": 256, "n_steps": 40, "device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def store(planted, tmp_path_factory):
    return sl.ActivationStore.from_arrays(tmp_path_factory.mktemp("rows") / "store", planted.acts)


def facts(sae):
    return sae.config.metadata["saelens_lite"]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["topk", "batchtopk", "matryoshka", "relu", "gated", "jumprelu"])
def test_training_goes_on_where_the_folder_stands(store, tmp_path, kind):
    own = {"l1_coeff": 0.3} if kind in ("relu", "gated") else {}
    k = {"k": 3} if kind in ("topk", "batchtopk", "matryoshka") else {}
    first = sl.train_sae(store, output=tmp_path / "first", kind=kind, d_sae=64, **OPTIONS, **own, **k)
    fresh = sl.train_sae(
        store, output=tmp_path / "fresh", kind=kind, d_sae=64, **{**OPTIONS, "n_steps": 1}, **own, **k
    )
    on = {**OPTIONS, "n_steps": 1, "lr": 1e-6}
    after = sl.train_sae(store, output=tmp_path / "after", init_from=str(tmp_path / "first"), **on, **own)
    assert (facts(after)["train"]["kind"], facts(after)["train"]["k"]) == (kind, k.get("k", 32))
    assert facts(after)["held_out_fvu"] == pytest.approx(facts(first)["held_out_fvu"], rel=0.02)
    assert facts(after)["held_out_fvu"] < 0.8 * facts(fresh)["held_out_fvu"]
    assert_close(after.W_dec, first.W_dec, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["saelens_topk", "saelens_standard", "saelens_jumprelu", "saelens_gated"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_saelens_folders_compute_the_same_in_the_scale_of_training(name, scale):
    source = sl.SparseAutoencoder.load(GOLDEN / name)
    config = dataclasses.replace(source.config, apply_b_dec_to_input=True)
    if source.config.normalize_activations != "none":
        config = dataclasses.replace(config, normalize_activations="none")
        with pytest.raises(ValueError, match="training scales all rows by one number"):
            sae_to_finetune(config, str(GOLDEN / name), scale)
        return
    sae = sae_to_finetune(config, str(GOLDEN / name), scale)
    assert sae.config.apply_b_dec_to_input
    assert_close(sae.W_dec.norm(dim=1), torch.ones(sae.d_sae))
    acts = torch.randn(50, sae.d_model, generator=torch.Generator().manual_seed(0))
    assert_close(fold_scale(sae, scale)(acts).recons, source(acts).recons, atol=1e-4, rtol=1e-4)
    assert_close(sae(acts * scale).recons / scale, source(acts).recons, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["relu", "gated", "jumprelu"])
def test_an_input_that_is_encoded_as_it_is_makes_no_difference(tmp_path, kind):
    torch.manual_seed(0)
    config = sl.SAEConfig(d_model=8, d_sae=24, kind=kind, apply_b_dec_to_input=False)
    source = sl.SparseAutoencoder(config)
    for parameter in source.parameters():
        torch.nn.init.uniform_(parameter, 0.1, 1.0)
    source.save(tmp_path)
    sae = sae_to_finetune(dataclasses.replace(config, apply_b_dec_to_input=True), str(tmp_path), 1.0)
    acts = torch.randn(50, 8)
    assert sae.config.apply_b_dec_to_input
    assert_close(sae(acts).recons, source(acts).recons, atol=1e-4, rtol=1e-4)


def saved_with_norms(folder, kind, norms):
    """An SAE with random weights and decoder rows of the given norms, saved to a folder."""
    k = {"k": 3} if kind == "topk" else {}
    sae = sl.SparseAutoencoder(sl.SAEConfig(d_model=8, d_sae=24, kind=kind, **k))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn.abs() if name == "threshold" else drawn)
        sae.W_dec.copy_(torch.nn.functional.normalize(sae.W_dec, dim=1) * norms[:, None])
    sae.save(folder)
    return sae


DIFFERENT_NORMS = torch.linspace(0.5, 2.0, 24)


@pytest.mark.parametrize(
    "kind, norms",
    [
        *((kind, DIFFERENT_NORMS) for kind in ("relu", "jumprelu", "gated")),
        ("topk", torch.full((24,), 3.0)),
        ("topk", torch.linspace(0.997, 1.0, 24)),
    ],
)
def test_unit_rows_change_no_reconstruction(tmp_path, kind, norms):
    source = saved_with_norms(tmp_path, kind, norms)
    sae = sae_to_finetune(source.config, str(tmp_path), 2.0)
    acts = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    rounding = 2e-3 if kind == "topk" else 1e-5
    assert_close(sae.W_dec.norm(dim=1), torch.ones(24), atol=rounding, rtol=0)
    assert_close(sae(2 * acts).recons / 2, source(acts).recons, atol=1e-4, rtol=1e-5)
    carried = source.encode_dense(acts) * norms
    assert_close(sae.encode_dense(2 * acts) / 2, carried, atol=1e-5, rtol=max(rounding, 1e-4))


def test_a_topk_sae_that_unit_rows_would_alter_is_refused(store, tmp_path):
    source = saved_with_norms(tmp_path, "topk", DIFFERENT_NORMS)
    message = (
        f"init_from={tmp_path} expected decoder rows of one norm in a TopK SAE, got norms from 0.5 to 2: .*"
    )
    with pytest.raises(ValueError, match=message + r"train a fresh SAE \(init_from=None\)"):
        sae_to_finetune(source.config, str(tmp_path), 2.0)
    free = sae_to_finetune(source.config, str(tmp_path), 2.0, unit_decoder=False)
    acts = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    assert_close(free(2 * acts).recons / 2, source(acts).recons, atol=1e-5, rtol=1e-5)


def test_another_kind_or_width_is_refused_with_what_fits(store, tmp_path):
    sl.SparseAutoencoder(sl.SAEConfig(d_model=16, d_sae=32, k=3)).save(tmp_path / "topk")
    sl.SparseAutoencoder(sl.SAEConfig(d_model=8, d_sae=32, k=3)).save(tmp_path / "narrow")
    with pytest.raises(
        ValueError,
        match="expected an SAE of kind 'relu', got 'topk': an SAE saved as topk can be trained as topk",
    ):
        sl.train_sae(store, output=tmp_path / "sae", kind="relu", init_from=str(tmp_path / "topk"), **OPTIONS)
    with pytest.raises(ValueError, match="of d_model 16, got 8: it is of another model or hook point"):
        sl.train_sae(store, output=tmp_path / "sae", k=3, init_from=str(tmp_path / "narrow"), **OPTIONS)
    with pytest.raises(ValueError, match="d_sae expected None with init_from"):
        sl.train_sae(
            store, output=tmp_path / "sae", k=3, d_sae=32, init_from=str(tmp_path / "topk"), **OPTIONS
        )
    assert not (tmp_path / "sae").exists()


@pytest.mark.long
def test_a_killed_fine_tuning_goes_on_without_its_source(store, tmp_path, killed_before):
    source = sl.train_sae(store, output=tmp_path / "source", k=3, d_sae=48, **OPTIONS)
    options = {**OPTIONS, "k": 3, "init_from": str(tmp_path / "source"), "checkpoint_every_steps": 10}
    whole = sl.train_sae(store, output=tmp_path / "whole", **options)
    assert whole.d_sae == source.d_sae and facts(whole)["lr"] == pytest.approx(2e-4 * (2**14 / 48) ** 0.5)
    with killed_before(25):
        sl.train_sae(store, output=tmp_path / "killed", **options)
    shutil.rmtree(tmp_path / "source")
    sl.train_sae(store, output=tmp_path / "killed", **options)
    weights = [(tmp_path / name / "sae_weights.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]


@pytest.mark.long
def test_evaluations_tell_what_the_reconstruction_costs_the_model(gpt2, byte_tokenizer, tmp_path):
    texts = [f"{i} squared is {i * i}, and its cube {i**3}" for i in range(100)]
    store = sl.harvest_activations(
        gpt2, texts, [POINT], tmp_path / "text", tokenizer=byte_tokenizer, **HARVEST
    )
    options = {**OPTIONS, "k": 3, "d_sae": 64, "eval_every_steps": 20, "held_out_fraction": 0.2}
    sae = sl.train_sae(store, output=tmp_path / "sae", model=gpt2, **options)
    lines = [json.loads(line) for line in (tmp_path / "sae" / "metrics.jsonl").read_text().splitlines()]
    told = [line["held_out_delta_ce"] for line in lines if "held_out_delta_ce" in line]
    expected = sl.evaluate_sae(sae, store, gpt2, max_tokens=8192).row("trained").delta_ce
    assert len(told) == 2 and told[-1] == pytest.approx(expected, abs=1e-5) and told[-1] != 0
    assert facts(sae)["held_out_delta_ce"] == told[-1]
    plain = sl.train_sae(store, output=tmp_path / "plain", **options)
    assert_close(plain.W_dec, sae.W_dec, atol=0, rtol=0)


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "matryoshka", "jumprelu", "gated", "relu"])
def test_kind_k_and_prefixes_are_the_folders_unless_they_are_given(store, tmp_path, kind):
    k = {"k": 3} if kind in ("topk", "batchtopk", "matryoshka") else {}
    prefixes = {"matryoshka_fractions": (0.25, 1.0)} if kind == "matryoshka" else {}
    few = {**OPTIONS, "n_steps": 2}
    first = sl.train_sae(store, output=tmp_path / "first", kind=kind, d_sae=48, **few, **k, **prefixes)
    options = {**few, "init_from": str(tmp_path / "first")}
    after = sl.train_sae(store, output=tmp_path / "after", **options)
    train = facts(after)["train"]
    assert (after.kind, after.config.k, train["kind"], train["k"]) == (
        first.kind,
        first.config.k,
        kind,
        k.get("k", 32),
    )
    assert next(iter(train["matryoshka_fractions"])) == (0.25 if prefixes else 1 / 16)
    if k:
        told = sl.train_sae(store, output=tmp_path / "told", k=5, **options)
        assert facts(told)["train"]["k"] == 5 and facts(told)["train"]["kind"] == kind
    if kind == "matryoshka":
        other = sl.train_sae(store, output=tmp_path / "other", kind="batchtopk", **options)
        assert (facts(other)["train"]["kind"], facts(other)["train"]["k"]) == ("batchtopk", 3)


def test_thresholds_are_the_folders_zero_ones_too_unless_they_are_given(store, tmp_path):
    torch.manual_seed(0)
    source = sl.SparseAutoencoder(sl.SAEConfig(d_model=16, d_sae=32, kind="jumprelu"))
    with torch.no_grad():
        source.W_dec.copy_(torch.nn.functional.normalize(torch.randn(32, 16), dim=1))
        source.W_enc.copy_(source.W_dec.T)
        source.threshold.copy_(torch.linspace(0, 1, 32))
    source.save(tmp_path / "source")
    options = {**OPTIONS, "n_steps": 2, "lr": 1e-6, "init_from": str(tmp_path / "source")}
    kept = sl.train_sae(store, output=tmp_path / "kept", **options)
    assert_close(kept.threshold, source.threshold, atol=1e-5, rtol=0)
    assert kept.threshold[0] == 0
    told = sl.train_sae(store, output=tmp_path / "told", initial_threshold=0.5, **options)
    assert_close(told.threshold, told.threshold[:1].expand(32), atol=1e-5, rtol=0)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["topk", "batchtopk", "jumprelu", "gated", "relu"])
def test_a_latent_whose_row_is_zero_stays_silent(store, tmp_path, kind, caplog):
    k = {"k": 3} if kind in ("topk", "batchtopk") else {}
    options = {**OPTIONS, "n_steps": 5}
    source = sl.train_sae(store, output=tmp_path / "first", kind=kind, d_sae=48, **options, **k)
    with torch.no_grad():
        source.W_dec[3] = 0  # the encoder's column lives on: it would fire and write nothing
    source.save(tmp_path / "pruned")
    with caplog.at_level("INFO", logger="saelens_lite.train"):
        after = sl.train_sae(
            store, output=tmp_path / "after", init_from=str(tmp_path / "pruned"), kind=kind, **options
        )
    assert "1 latents have a decoder row of zero and stay silent" in caplog.text
    assert all(bool(parameter.isfinite().all()) for parameter in after.parameters())
    assert not after.encode_dense(store.gather(torch.arange(2000)))[:, 3].any()
    assert not after.W_dec[3].any()
    assert_close(after.W_dec.norm(dim=1), torch.ones(48).index_fill(0, torch.tensor([3]), 0.0))


def test_free_rows_of_zero_break_no_number(store, tmp_path):
    options = {**OPTIONS, "n_steps": 5, "kind": "relu", "unit_decoder": False}
    source = sl.train_sae(store, output=tmp_path / "first", d_sae=48, **options)
    with torch.no_grad():
        source.W_dec[3] = 0
    source.save(tmp_path / "pruned")
    after = sl.train_sae(store, output=tmp_path / "after", init_from=str(tmp_path / "pruned"), **options)
    assert all(bool(parameter.isfinite().all()) for parameter in after.parameters())


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
@pytest.mark.parametrize("width", [{"expansion": 2}, {"init_from": "first"}])
def test_k_is_at_most_the_width_wherever_that_comes_from(store, tmp_path, kind, width):
    few = {**OPTIONS, "n_steps": 1}
    sl.train_sae(store, output=tmp_path / "first", kind=kind, d_sae=32, k=3, **few)
    fields = {name: str(tmp_path / value) if value == "first" else value for name, value in width.items()}
    with pytest.raises(ValueError, match="TrainConfig.k expected at most d_sae=32, got 33"):
        sl.train_sae(store, output=tmp_path / "sae", kind=kind, k=33, **fields, **few)
    assert not (tmp_path / "sae").exists()
    sl.train_sae(store, output=tmp_path / "sae", kind=kind, k=32, **fields, **few)
