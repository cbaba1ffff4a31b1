"""Permissions come from the command line: no store and no file of settings gives them."""

import json
import shutil
import zlib

import pytest

from saelens_lite.cli.commands import main
from saelens_lite.demo import MODEL_DIR

POINT = "blocks.0.hook_resid_post"


@pytest.fixture
def damaged(tmp_path):
    """A function that gives a damaged store whose log names these settings."""

    def make(**settings):
        store = tmp_path / "store"
        (tmp_path / "t.jsonl").write_text(
            "\n".join(json.dumps({"text": f"import os  # {i}\n" * 9}) for i in range(20))
        )
        argv = [
            "harvest",
            "--model",
            str(MODEL_DIR),
            "--dataset",
            str(tmp_path / "t.jsonl"),
            "--hook-points",
            POINT,
        ]
        assert main([*argv, "--store", str(store), "--max-tokens", "200", "--no-progress"]) == 0
        lines = []
        for line in (store / "log.jsonl").read_text().splitlines():
            entry = json.loads(line)
            del entry["crc32"]
            if entry["event"] == "start":
                entry["settings"] |= settings
            lines.append(json.dumps({**entry, "crc32": zlib.crc32(json.dumps(entry).encode())}))
        (store / "log.jsonl").write_text("\n".join(lines) + "\n")
        data = store / f"shards/00000/{POINT}.safetensors"
        data.write_bytes(data.read_bytes()[:-1] + bytes([data.read_bytes()[-1] ^ 1]))
        return store

    return make


def evil_model(folder):
    """A model folder whose own code leaves the file PWNED beside it."""
    shutil.copytree(MODEL_DIR, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(
        f"open({str(folder.parent / 'PWNED')!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class C(LlamaConfig):\n    model_type = 'evil'\nclass M(LlamaForCausalLM):\n    config_class = C\n"
    )
    return str(folder)


@pytest.mark.parametrize("field", ["model", "tokenizer"])
def test_a_repair_runs_no_code_that_the_store_names(field, damaged, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    store = damaged(**{field: evil_model(tmp_path / "evil"), "trust_remote_code": True})
    before = {file: file.read_bytes() for file in store.rglob("*") if file.is_file()}
    assert main(["verify", str(store), "--repair"]) == 2
    assert "if you trust that code, add --trust-remote-code" in capsys.readouterr().err
    assert not (tmp_path / "PWNED").exists()
    assert {file: file.read_bytes() for file in store.rglob("*") if file.is_file()} == before


def test_a_repair_keeps_the_check_for_room_and_mends(damaged, monkeypatch, capsys):
    from saelens_lite.harvest import harvest

    asked = []
    real = harvest.check_fits
    monkeypatch.setattr(harvest, "check_fits", lambda *args: (asked.append(True), real(*args)))
    assert main(["verify", str(damaged(check_space=False)), "--repair"]) == 0
    assert asked and capsys.readouterr().out.endswith("every file is as it was written\n")


@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [("trust_remote_code", True, "--trust-remote-code"), ("check_space", False, "--no-check-space")],
)
def test_a_file_of_settings_gives_no_permission(field, value, flag, tmp_path, capsys):
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({field: value}))
    assert main(["harvest", "--config", str(file), "--model", "x"]) == 2
    assert capsys.readouterr().err.strip().endswith(f"type {flag}")
    file.write_text(json.dumps({field: not value, "dataset": "x"}))
    assert main(["harvest", "--config", str(file), "--model", "x"]) == 2
    assert flag not in capsys.readouterr().err


def test_the_tokenizer_of_a_store_never_asks_to_run_code(tmp_path, monkeypatch):
    import transformers

    from saelens_lite.analyze.latents.text_windows import Contexts

    given = []
    monkeypatch.setattr(
        transformers.AutoTokenizer, "from_pretrained", lambda *args, **options: given.append(options)
    )

    class Store:
        tokenizer_name, shard_rows, path = "evil/tokenizer", [1], tmp_path

    assert Contexts(Store()).tokenizer is None
    assert given == [{"trust_remote_code": False}]
