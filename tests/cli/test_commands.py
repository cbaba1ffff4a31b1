"""The command line: every command on the embedded model, and errors that are one line."""

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest

import saelens_lite as sl
from saelens_lite.cli import commands
from saelens_lite.cli.commands import COMMANDS, main
from saelens_lite.demo import load_model
from saelens_lite.errors import with_option

POINT = "blocks.2.hook_resid_post"
HARVEST = ["harvest", "--model", "demo", "--hook-points", POINT, "--no-progress", "--max-tokens"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a store, an SAE and its baseline, made by the commands on a text of many small
    documents."""
    folder = tmp_path_factory.mktemp("cli")
    text = folder / "data.jsonl"
    lines = [{"text": f"def f{i}(x):\n    return x + {i}\n\nclass C{i}:\n    pass\n"} for i in range(400)]
    text.write_text("\n".join(map(json.dumps, lines)))
    store = str(folder / "store")
    assert main([*HARVEST, "6000", "--dataset", str(text), "--store", store, "--context-length", "64"]) == 0
    training = [
        "train",
        "--store",
        store,
        "--k",
        "4",
        "--d-sae",
        "64",
        "--n-steps",
        "20",
        "--batch-size-rows",
        "256",
        "--buffer-rows",
        "2048",
    ]
    assert main([*training, "--no-progress", "--output", str(folder / "topk")]) == 0
    assert main([*training, "--no-progress", "--freeze-decoder", "--output", str(folder / "frozen")]) == 0
    return folder


def fails(capsys, *argv):
    """The line on stderr of a command that must end with exit code 2, with one line and no traceback."""
    capsys.readouterr()
    assert main([str(arg) for arg in argv]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("saelens-lite: ")]
    assert len(lines) == 1, err
    return lines[0]


# The commands -------------------------------------------------------------------------------------


@pytest.mark.long
def test_harvest_and_train_say_what_they_made_and_what_comes_next(made, capsys):
    main(
        [
            *HARVEST,
            "6000",
            "--dataset",
            str(made / "data.jsonl"),
            "--store",
            str(made / "store"),
            "--context-length",
            "64",
        ]
    )
    out = capsys.readouterr().out
    assert f"6,000 rows of {POINT} (width 192)" in out
    assert f"next: saelens-lite train --store {made / 'store'} --output runs/topk" in out


@pytest.mark.long
def test_a_dry_run_says_what_a_harvest_takes_and_writes_nothing(made, tmp_path, capsys):
    """6,000 rows of bfloat16[192], their norms and 10 bytes a position: 6000 * (384 + 4 + 10) = 2.39 MB."""
    argv = [
        *HARVEST,
        "6000",
        "--dataset",
        str(made / "data.jsonl"),
        "--store",
        str(tmp_path / "store"),
        "--dry-run",
    ]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert f"{tmp_path / 'store'}: would take at most 6,000 rows, 2.39 MB;" in out
    assert "are free; about" in out
    assert out.endswith("to harvest, give the same command without --dry-run\n")
    assert not (tmp_path / "store").exists()


@pytest.mark.long
def test_a_dry_run_of_what_cannot_fit_is_1(made, tmp_path, capsys, monkeypatch):
    from saelens_lite.store.folder import LocalFolder

    monkeypatch.setattr(LocalFolder, "free_bytes", lambda self: 1_000_000)
    argv = [*HARVEST, "6000", "--dataset", str(made / "data.jsonl"), "--store", str(tmp_path / "store")]
    assert main([*argv, "--dry-run"]) == 1
    assert "2.39 MB; 1 MB are free" in capsys.readouterr().out
    assert "expected room for at most 6,000 rows" in fails(capsys, *argv)


@pytest.mark.long
@pytest.mark.parametrize("place", ["file://{}/store", "memory://cli"])
def test_a_store_at_a_url(made, tmp_path, capsys, place):
    url = place.format(tmp_path)
    assert main([*HARVEST, "600", "--dataset", str(made / "data.jsonl"), "--store", url]) == 0
    assert f"{url}: 600 rows of {POINT}" in capsys.readouterr().out
    assert main(["verify", url]) == 0
    assert "every file is as it was written" in capsys.readouterr().out


@pytest.mark.long
def test_hook_points_are_added_and_a_flipped_bit_is_mended(made, tmp_path, capsys):
    store, other = tmp_path / "store", "blocks.1.hook_mlp_out"
    main(
        [
            *HARVEST,
            "600",
            "--dataset",
            str(made / "data.jsonl"),
            "--store",
            str(store),
            "--documents-per-shard",
            "16",
        ]
    )
    capsys.readouterr()
    assert main(["add-hook-points", str(store), other, "--model", "demo", "--no-progress"]) == 0
    out = capsys.readouterr().out
    assert f"600 rows each of {other}, {POINT}" in out and f"--hook-point {other}" in out
    assert main(["verify", str(store)]) == 0
    file = f"shards/00000/{other}.safetensors"
    whole = (store / file).read_bytes()
    (store / file).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    capsys.readouterr()
    assert main(["verify", str(store)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{file} has another sha256 than its commit records",
        f"{store}: 1 problem",
        f"next: saelens-lite verify {store} --repair",
    ]
    assert main(["verify", str(store), "--repair"]) == 0
    assert (store / file).read_bytes() == whole


@pytest.mark.long
def test_of_several_processes_the_first_speaks(made, capsys, monkeypatch):
    argv = [
        *HARVEST,
        "6000",
        "--dataset",
        str(made / "data.jsonl"),
        "--store",
        str(made / "store"),
        "--context-length",
        "64",
    ]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, speaks in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        capsys.readouterr()
        assert main(argv) == 0
        assert ("6,000 rows" in capsys.readouterr().out) == speaks


def test_train_takes_a_config_file_with_flags_on_top(made, capsys):
    argv = [
        "train",
        "--config",
        made / "topk" / "train_config.json",
        "--n-steps",
        "2",
        "--output",
        made / "again",
    ]
    assert main(list(map(str, argv))) == 0
    out = capsys.readouterr().out
    assert "topk SAE of 64 latents" in out and "2 steps, 512 rows" in out
    assert f"--sae {made / 'again'} --store {made / 'store'} --model demo" in out
    assert json.loads((made / "again" / "train_config.json").read_text())["k"] == 4


@pytest.mark.long
def test_refit_says_what_it_did_and_leaves_the_sae_that_it_was_given(made, capsys):
    sae, output, store = (str(made / name) for name in ("relu", "refitted", "store"))
    training = ["--d-sae=64", "--n-steps=60", "--batch-size-rows=256", "--no-progress", "--refit-fraction=0"]
    assert main(["train", "--store", store, "--kind", "relu", *training, "--output", sae]) == 0
    before = (made / "relu" / "sae_weights.safetensors").read_bytes()
    argv = ["refit", "--sae", sae, "--store", store, "--model", "demo", "--n-steps", "60", "--no-progress"]
    argv += ["--batch-size-rows", "512"]
    capsys.readouterr()
    assert main([*argv, "--output", output]) == 0
    out = capsys.readouterr().out
    number = r"(-?[\d.]+ → -?[\d.]+)"
    fvu, ce, l0 = re.search(rf"fvu {number}, ΔCE {number} nats; l0 ([\d.]+)\n", out).groups()
    was, now = map(float, fvu.split(" → "))
    assert now < 0.8 * was
    record = json.loads((made / "refitted" / "cfg.json").read_text())["metadata"]["saelens_lite"]["refit"]
    assert f"{record['before']['held_out_fvu']:.4f} → {record['after']['held_out_fvu']:.4f}" == fvu
    assert f"{record['before']['held_out_delta_ce']:.4f} → {record['after']['held_out_delta_ce']:.4f}" == ce
    assert record["decoder"] and record["after"]["held_out_l0"] == pytest.approx(float(l0), abs=0.05)
    assert f"next: saelens-lite evaluate --sae {output} --store {store} --model demo" in out
    assert (made / "relu" / "sae_weights.safetensors").read_bytes() == before
    assert "expected a new folder as --output" in fails(capsys, *argv, "--output", output)
    topk = ["refit", "--sae", made / "topk", "--store", store, "--output", made / "none"]
    assert "expected a relu SAE (SAELens' standard), got topk" in fails(capsys, *topk)
    assert not (made / "none").exists()


@pytest.mark.long
def test_train_streams_from_a_model(made, capsys):
    argv = [
        "train",
        "--model",
        "demo",
        "--dataset",
        str(made / "data.jsonl"),
        "--hook-point",
        "blocks.2.hook_resid_post",
    ]
    argv += [
        "--context-length",
        "64",
        "--d-sae",
        "64",
        "--k",
        "4",
        "--batch-size-rows",
        "256",
        "--buffer-rows",
        "1024",
    ]
    assert main([*argv, "--n-steps", "6", "--device", "cpu", "--output", str(made / "streamed")]) == 0
    out = capsys.readouterr().out
    assert "topk SAE of 64 latents on blocks.2.hook_resid_post" in out and "6 steps, 1,536 rows" in out
    assert (
        "with --freeze-decoder and another --output" in out and "with --baseline" not in out
    )  # which it would refuse
    assert (
        f"next: saelens-lite analyze --sae {made / 'streamed'} --model demo --dataset {made / 'data.jsonl'}\n"
        in out
    )
    assert "train needs --store" in fails(capsys, "train", "--n-steps", "2")
    assert "needs --dataset and --hook-point" in fails(capsys, "train", "--model", "demo")
    for flags in (["--store-weights", "1"], ["--baseline"]):
        assert "excludes --store" in fails(capsys, *argv, *flags)
    store = ["--store", made / "store", "--dataset", made / "data.jsonl"]
    assert "--dataset needs --model" in fails(capsys, "train", *store)
    mixed = fails(capsys, "train", "--store", made / "store", "--dtype", "bfloat16")
    assert "Got bfloat16 with --store" in mixed and "--matmul-precision medium multiplies in bf16" in mixed


@pytest.mark.long
def test_train_mixes_several_stores(made, capsys):
    stores = [str(made / "store"), str(made / "store")]
    argv = ["train", "--store", *stores, "--store-weights", "0.5", "0.5", "--d-sae", "64", "--n-steps", "2"]
    argv += ["--batch-size-rows", "256", "--buffer-rows", "2048"]
    assert main([*argv, "--output", str(made / "mixed")]) == 0
    assert f"--sae {made / 'mixed'} --store {stores[0]} --model demo" in capsys.readouterr().out
    assert json.loads((made / "mixed" / "train_config.json").read_text())["store"] == stores
    argv = [
        "train",
        "--config",
        str(made / "mixed" / "train_config.json"),
        "--output",
        str(made / "mixed again"),
    ]
    assert main(argv) == 0


@pytest.mark.long
def test_evaluate_prints_the_table_with_controls_and_writes_it(made, capsys):
    argv = [
        "evaluate",
        "--sae",
        made / "topk",
        "--store",
        made / "store",
        "--baseline",
        made / "frozen",
        "--model",
        "demo",
    ]
    assert main([*map(str, argv), "--windows-tokens", "1000", "--output", str(made / "numbers.json")]) == 0
    out = capsys.readouterr().out
    for expected in (
        "trained",
        "baseline",
        "zero ablation",
        "mean ablation",
        "dead@1k",
        "ΔCE",
        "the embedded model",
    ):
        assert expected in out
    rows = {row["name"]: row for row in json.loads((made / "numbers.json").read_text())["rows"]}
    assert rows["mean ablation"]["fvu"] == pytest.approx(1, abs=0.05)
    assert 0 < rows["trained"]["l0"] <= 4


def test_evaluate_prints_every_number_and_the_noise_of_seeds(made, capsys):
    argv = [
        "evaluate",
        "--sae",
        made / "topk",
        "--store",
        made / "store",
        "--windows-tokens",
        "1000",
        "--max-tokens",
        "500",
    ]
    assert main([*map(str, argv), "--all"]) == 0
    shown = capsys.readouterr().out
    assert "ev_dictionary_learning" in shown and "encoder_decoder_cosine" in shown
    line = fails(capsys, *argv, "--seeds", made / "frozen")
    assert "seed 1 is not as trained: freeze_decoder expected False, got True" in line


def test_analyze_writes_a_page(made, capsys):
    page = made / "features.html"
    argv = [
        "analyze",
        "--sae",
        made / "topk",
        "--store",
        made / "store",
        "--output",
        page,
        "--n-latents",
        "3",
    ]
    assert main(list(map(str, argv))) == 0
    out = capsys.readouterr().out
    assert f"page: {page}" in out and f"index: {made / 'features.index'}" in out
    assert page.read_text().startswith("<!doctype html>")
    assert (made / "features.index" / "index.json").exists()


def test_store_and_sae_may_stand_first_without_flags(made, tmp_path, capsys):
    store, sae, page = made / "store", made / "topk", tmp_path / "f.html"
    argv = ["analyze", store, sae, "--output", page, "--n-latents", "3"]
    assert main(list(map(str, argv))) == 0
    assert f"page: {page}" in capsys.readouterr().out
    assert main(["evaluate", str(store), str(sae), "--windows-tokens", "1000", "--max-tokens", "500"]) == 0
    assert "trained" in capsys.readouterr().out
    assert "needs --store, or --model and --dataset" in fails(capsys, "analyze", sae)
    line = fails(capsys, "analyze", store, sae, "third")
    assert line == f"saelens-lite: expected STORE SAE before the flags, got {store} {sae} third"
    assert "the folder is an activation store, no SAE" in fails(capsys, "analyze", sae, store)
    assert "this folder is an SAE, no activation store" in fails(capsys, "train", "--store", sae)


@pytest.mark.long
def test_what_comes_next_runs_as_it_is_printed(made, tmp_path, capsys):
    """From the analysis on: the search that it names, and the latent that this names."""
    argv = [
        "analyze",
        str(made / "store"),
        str(made / "topk"),
        "--output",
        str(tmp_path / "f.html"),
        "--n-latents",
        "3",
    ]
    for _ in range(2):
        assert main(argv) == 0
        following = [
            line for line in capsys.readouterr().out.splitlines() if line.startswith("next: saelens-lite ")
        ]
        assert len(following) == 1
        argv = shlex.split(following[0])[2:]
    assert argv[-2] == "--latent" and main(argv) == 0
    assert f"latent {argv[-1]}: " in capsys.readouterr().out


@pytest.mark.long
def test_the_page_shows_the_evaluation_beside_the_sae(made, tmp_path, capsys):
    sae = shutil.copytree(made / "topk", tmp_path / "topk")
    evaluate = ["evaluate", made / "store", sae, "--max-tokens", "500", "--output", sae / "evaluation.json"]
    assert main(list(map(str, evaluate))) == 0
    fvu = json.loads((sae / "evaluation.json").read_text())["rows"][0]["fvu"]
    analyze = ["analyze", made / "store", sae, "--output", tmp_path / "f.html", "--n-latents", "3"]
    assert main(list(map(str, analyze))) == 0
    assert re.search(rf'"fvu", ?"{fvu:.4f} \(', (tmp_path / "f.html").read_text())
    other = json.loads((sae / "evaluation.json").read_text()) | {"hook_point": "blocks.9.hook_resid_post"}
    (sae / "evaluation.json").write_text(json.dumps(other))
    assert main(list(map(str, analyze))) == 0
    assert not re.search(r'"fvu", ?"\d', (tmp_path / "f.html").read_text())
    assert "evaluation.json: expected an evaluation at blocks." in capsys.readouterr().err
    line = fails(capsys, *analyze, "--evaluation", sae / "evaluation.json")
    assert "got one at blocks.9.hook_resid_post" in line


@pytest.mark.long
def test_search_in_the_index(made, capsys):
    page, index = made / "searched.html", str(made / "searched.index")
    argv = ["analyze", "--sae", made / "topk", "--store", made / "store", "--output", page, "--model", "demo"]
    assert main(list(map(str, argv))) == 0
    assert "\nunigram: " in capsys.readouterr().out
    for question in (
        ["--token", " return"],
        ["--regex", "f[0-9]"],
        ["--by", "max", "--n", "2"],
        ["--text", "class C1"],
    ):
        assert main(["search", index, *question]) == 0
        assert capsys.readouterr().out.startswith("latent"), question
    assert main(["search", index, "--unigram", ""]) == 0
    assert capsys.readouterr().out.startswith("unigram: ")
    own = ["--text", "def f(x):", "--sae", str(made / "topk"), "--model", "demo", "--device", "cpu"]
    assert main(["search", index, *own]) == 0
    assert "' f'" in capsys.readouterr().out
    assert main(["search", index, "--latent", "3", "--label", "the third"]) == 0
    assert main(["search", index, "--labelled", "third"]) == 0
    assert "Label(latent=3, label='the third'" in capsys.readouterr().out
    sha256 = json.loads((made / "searched.index" / "index.json").read_text())["plan"]["sae"]["sha256"]
    four = {"latent": 4, "label": "the fourth", "notes": "", "starred": True}
    exported = {"format": "saelens_lite labels", "version": 1, "sae": sha256, "labels": [four]}
    (made / "labels.json").write_text(json.dumps(exported))
    assert main(["search", index, "--import-labels", str(made / "labels.json")]) == 0
    assert main(["search", index, "--latent", "4", "--label", "4th"]) == 0
    assert main(["search", index, "--labelled", ""]) == 0
    assert "Label(latent=4, label='4th', notes='', starred=True)" in capsys.readouterr().out
    assert "expected a latent from 0 to 63, got 64" in fails(capsys, "search", index, "--latent", "64")
    assert "got an empty one" in fails(capsys, "search", index, "--text", "", *own[2:])
    assert "not of the topk SAE" in fails(capsys, "search", index, *own[:3], made / "frozen", *own[4:])
    assert "search expected one of --latent" in fails(capsys, "search", index)
    line = fails(capsys, "search", made / "store", "--by", "max")
    assert f"does not exist; `saelens-lite analyze STORE SAE --index {made / 'store'}` makes it" in line
    assert main(["search", index, "--regex", "no such text"]) == 0
    assert "no latent of" in capsys.readouterr().out


@pytest.mark.long
def test_analyze_harvests_for_itself(made, tmp_path, capsys):
    argv = [
        "analyze",
        "--sae",
        made / "topk",
        "--model",
        "demo",
        "--dataset",
        made / "data.jsonl",
        "--max-tokens",
        "700",
    ]
    assert (
        main([*map(str, argv), "--output", str(tmp_path / "f.html"), "--index", str(tmp_path / "index")]) == 0
    )
    assert "over 700 tokens" in capsys.readouterr().out
    assert "needs --store, or --model and --dataset" in fails(
        capsys, "analyze", "--sae", made / "topk", "--model", "demo"
    )


@pytest.mark.long
def test_diff_tells_latents_of_one_corpus_from_those_of_another(made, tmp_path, capsys):
    """A: loops, B: imports, 40 each; which latents fire in how many is counted once more, text by text."""
    corpora = {
        "a": [f"for x{i} in range({i}):" for i in range(40)],
        "b": [f"import m{i} as x{i}" for i in range(40)],
    }
    for name, texts in corpora.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    files, page, numbers = (
        [tmp_path / "a.jsonl", tmp_path / "b.jsonl"],
        tmp_path / "d.html",
        tmp_path / "d.json",
    )
    argv = ["diff", "--sae", made / "topk", "--model", "demo", "--texts", *files]
    assert main([str(arg) for arg in [*argv, "--output", numbers, "--page", page]]) == 0
    out = capsys.readouterr().out
    assert "latents fire in more documents of one corpus" in out and "A has 40 documents, B 40" in out
    rows = json.loads(numbers.read_text())["rows"]
    model, tokenizer = load_model()
    sae = sl.SparseAutoencoder.load(made / "topk")
    for row in rows[:2]:
        of = {
            name: sum(
                float(sl.encode_text(model, tokenizer, sae, text)[row["latent"]][1:].max() > 0)
                for text in texts
            )
            for name, texts in corpora.items()
        }
        assert (row["rate_a"], row["rate_b"]) == (of["a"] / 40, of["b"] / 40)
    assert rows and all(row["q"] <= 0.1 for row in rows) and "⟦" in rows[0]["examples"][0]
    assert f">{rows[0]['latent']}<" in page.read_text() and "a.jsonl (A) and b.jsonl (B)" in page.read_text()
    assert "no_such.jsonl" in fails(capsys, *argv[:-1], tmp_path / "no_such.jsonl")


@pytest.mark.long
def test_probe_prints_the_table_with_controls_and_writes_it(made, capsys):
    """Classes d and f by the first word of the text; e is not asked for."""
    data = made / "labelled.jsonl.gz"
    with gzip.open(data, "wt") as file:
        for i in range(120):
            kind = ("def", "for", "else")[i % 3]
            file.write(
                json.dumps({"code": f"{kind} x{i} in y", "kind": kind[0], "by": f"author {i // 4}"}) + "\n"
            )
    argv = ["probe", "--sae", made / "topk", "--model", "demo", "--texts", data, "--text-field", "code"]
    named = [*argv, "--label-field", "kind", "--group-field", "by", "--labels", "d", "f"]
    few = [
        "--k",
        "1",
        "4",
        "--baseline",
        made / "frozen",
        "--max-tokens",
        "64",
        "--output",
        made / "probes.json",
    ]
    assert main([str(arg) for arg in [*named, *few]]) == 0
    out = capsys.readouterr().out
    for row in (
        "activations",
        "DiffMean of activations",
        "text length",
        "sae k=1",
        "sae k=4",
        "sae all 64",
        "baseline k=4",
    ):
        assert re.search(rf"^{row}  ", out, flags=re.MULTILINE), out
    assert "blocks.2.hook_resid_post of the embedded model, mean over tokens" in out
    found = json.loads((made / "probes.json").read_text())
    assert found["classes"] == ["d", "f"] and sum(found["n_train"]) + sum(found["n_test"]) == 80
    assert sum(found["n_clusters"]) == 30
    assert found["rows"][0]["auroc"] == 1  # it can see the first word
    assert "no field 'label'" in fails(capsys, *argv) and "its fields are code, kind, by" in fails(
        capsys, *argv
    )
    assert "has no label 'g'; it has d (40), f (40), e (40)" in fails(capsys, *named, "g")
    assert "no file /nowhere.jsonl" in fails(capsys, *argv[:5], "--texts", "/nowhere.jsonl")
    assert "expected a file of .jsonl, .json, .csv, .parquet" in fails(
        capsys, *argv[:5], "--texts", made / "a.xlsx"
    )
    assert main([str(arg) for arg in [*named, "--k", "1", "--max-texts", "60"]]) == 0
    assert "--baseline" in capsys.readouterr().out


def test_report_writes_a_page_of_the_runs(made, capsys):
    page = made / "report.html"
    assert main(["report", str(made / "topk"), str(made / "frozen"), "--output", str(page)]) == 0
    assert f"page: {page}" in capsys.readouterr().out
    text = page.read_text()
    assert "2 runs compared" in text and "topk with frozen decoder" in text
    assert "expected a run (metrics.jsonl or cfg.json)" in fails(capsys, "report", made / "store")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"usage: saelens-lite {command}" in capsys.readouterr().out


def test_help_ends_a_flag_with_its_bounds_and_a_wrong_one_is_one_line(made, capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "documents drawn by a hash; None for all. At least 1. (default: 100000)" in told
    line = fails(capsys, "evaluate", made / "store", made / "topk", "--max-tokens", "0")
    assert line == "saelens-lite: --max-tokens expected at least 1 or None, got 0"


def test_an_earlier_sae_is_not_replaced_unasked(made, capsys):
    argv = ["train", "--store", made / "store", "--n-steps", "2", "--output", made / "topk"]
    assert "choose another output, or --overwrite to replace it" in fails(capsys, *argv)
    assert main(["evaluate", "--sae", str(made / "topk"), "--store", str(made / "store")]) == 0


@pytest.mark.parametrize(
    ("option", "text", "typed"),
    [
        ("overwrite", "or overwrite=True to replace it", "or --overwrite to replace it"),
        ("hook_point", "or pass hook_point= (a, b) if", "or pass --hook-point (a, b) if"),
        ("hook_point", "pass hook_point='a' if", "pass --hook-point a if"),
        (
            "k",
            "k= changes where overwrite=True is not the option",
            "--k changes where overwrite=True is not the option",
        ),
    ],
)
def test_the_option_of_an_error_is_told_as_a_flag(capsys, monkeypatch, option, text, typed):
    def fail(name):
        raise with_option(ValueError(text), option)

    monkeypatch.setattr(commands, "import_module", fail)
    assert fails(capsys, "report") == f"saelens-lite: {typed}"


@pytest.mark.long
def test_threads_wait_asleep_unless_the_user_says_otherwise():
    code = (
        "import os; from saelens_lite.cli import main; main(['no-such']);print(os.environ['OMP_WAIT_POLICY'])"
    )
    for given, expected in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        env = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"} | given
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert done.stdout.strip() == expected, done.stderr


def test_the_overview_loads_neither_torch_nor_tyro():
    code = (
        "import sys; from saelens_lite.cli import main; main(['--help']);"
        "assert not {'torch', 'tyro'} & set(sys.modules)"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    assert time.perf_counter() - began < 10


# What the user can put right
# ------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_missing_hook_point_names_those_the_model_has(made, tmp_path, capsys):
    text = made / "data.jsonl"
    argv = ["harvest", "--model", "demo", "--dataset", text, "--store", tmp_path / "s", "--max-tokens", "100"]
    line = fails(capsys, *argv, "--hook-points", "blocks.2.hook_resid_pots")
    assert "did you mean 'blocks.2.hook_resid_post'" in line
    line = fails(capsys, *argv, "--hook-points", "blocks.9.hook_mlp_out")
    assert (
        "it has blocks.0 to blocks.3 with .hook_resid_pre, .attn.hook_z, .hook_attn_out, .mlp.hook_in, "
        ".hook_mlp_out, .hook_resid_post" in line
    )
    assert not (tmp_path / "s").exists()


def test_a_dataset_without_the_text_column_names_its_columns(tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text('{"title": "a", "story": "once"}\n')
    line = fails(capsys, *HARVEST, "100", "--dataset", data, "--store", tmp_path / "s")
    assert "has no column 'text'" in line and "title, story" in line


def test_an_sae_of_another_width_names_both(made, tmp_path, capsys):
    from saelens_lite import SAEConfig, SparseAutoencoder

    SparseAutoencoder(SAEConfig(d_model=32, d_sae=64, kind="topk", k=4, hook_point=POINT)).save(
        tmp_path / "narrow"
    )
    line = fails(capsys, "evaluate", "--sae", made / "topk", "--store", made / "store", "--output", tmp_path)
    assert "expected a file" in line
    line = fails(capsys, "evaluate", "--sae", tmp_path / "narrow", "--store", made / "store")
    assert "d_model=32" in line and "d_model=192" in line


def test_an_unknown_config_key_suggests_the_nearest(tmp_path, capsys):
    config = tmp_path / "config.json"
    config.write_text('{"store": "store", "expantion": 8}')
    line = fails(capsys, "train", "--config", config)
    assert "unknown key 'expantion' (did you mean 'expansion'?)" in line and str(config) in line


def test_a_config_file_that_is_no_json_is_named(tmp_path, capsys):
    (tmp_path / "config.json").write_text("lr: 3")
    assert "config.json" in fails(capsys, "train", "--config", tmp_path / "config.json")
    assert "No such file" in fails(capsys, "train", "--config", tmp_path / "none.json")


def test_missing_things_are_named(made, tmp_path, capsys):
    assert "train needs --store" in fails(capsys, "train")
    assert "activation store" in fails(capsys, "train", "--store", tmp_path)
    assert "activation store" in fails(capsys, "verify", tmp_path)
    assert "activation store" in fails(capsys, "add-hook-points", tmp_path, POINT)
    assert str(tmp_path) in fails(capsys, "evaluate", "--sae", tmp_path, "--store", made / "store")
    line = fails(capsys, *HARVEST, "100", "--dataset", tmp_path / "none.jsonl", "--store", tmp_path / "s")
    assert "none.jsonl" in line


def test_an_unknown_command_or_flag_suggests_the_nearest(capsys):
    assert "did you mean 'harvest'" in fails(capsys, "harvst")
    line = fails(capsys, "train", "--expantion", "8")
    assert line.startswith("saelens-lite: train has no flag --expantion (did you mean '--expansion'?); ")


def test_traceback_on_request(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="train needs --store"):
        main(["train", "--traceback"])
    monkeypatch.setenv("SAELENS_LITE_TRACEBACK", "1")
    with pytest.raises(ValueError, match="train needs --store"):
        main(["train"])


def test_ctrl_c_is_130_and_one_line(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("saelens_lite.cli.train.run", interrupted)
    assert main(["train"]) == 130
    assert capsys.readouterr().err == "saelens-lite: interrupted\n"
