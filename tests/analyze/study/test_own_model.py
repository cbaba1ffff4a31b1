"""A study of a model that knows nothing of what it is asked, from records to the page: it claims nothing.

With labels by a hash of the record nothing can be read or moved. With labels by answers nobody is known, and
the study says why it cannot go on.
"""

import gzip
import json
import subprocess
import sys
import time

import pytest
import torch

from saelens_lite.cli.commands import main
from saelens_lite.hashing import hashed_uniform
from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..conftest import make_sae

AT = ("--hook-point", "blocks.1.hook_resid_post")
CHATML = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
NAMES = [
    f"{a}{b}"
    for a in ("Ba", "Do", "Ki", "Lu", "Mo", "Re")
    for b in ("lan", "mir", "nos", "pel", "rit", "vok")
]
ROWS = [
    {"question": f"Where does {name} live?", "entity": name, "answers": ["Paris", "City of Paris"]}
    for name in NAMES
]


def hashed(rows):
    """With labels by a hash of the record's place."""
    known = hashed_uniform(torch.arange(len(rows)).numpy(), 3) < 0.5
    return [row | {"known": bool(label)} for row, label in zip(rows, known)]


def written(path, rows):
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return str(path)


@pytest.fixture
def folders(embedded, tmp_path):
    """Folders of a random SAE of the embedded model, and of another as its baseline."""
    width = embedded[0].config.hidden_size
    for seed, name in enumerate(("sae", "frozen")):
        torch.manual_seed(seed)
        sae = make_sae("topk", d_model=width, d_sae=96, hook_point="blocks.1.hook_resid_post", k=16)
        with torch.no_grad():
            weights = torch.randn(width, 96)
            sae.W_enc.copy_(weights)
            sae.W_dec.copy_((weights / weights.norm(dim=0)).T)
        sae.save(tmp_path / name)
        assert SparseAutoencoder.load(tmp_path / name).d_model == width
    return tmp_path


def command(model, folder, records, *more):
    how = ["--model", model, "--sae", f"{folder}/sae", "--baseline", f"{folder}/frozen", "--records", records]
    how += ["--fields", "answer=answers", "--prompt", "Question: {question} Answer:", "--max-new-tokens", "3"]
    how += ["--chat", "--chat-template", CHATML, "--system-prompt", "Be short."]
    return ["study", *how, "--output", f"{folder}/study", "--n-controls", "3", "--n-ablated", "2", *AT, *more]


def claims_nothing(saved):
    [primary, mitigation] = saved["fixed"]
    for of in (primary["less_baseline"], mitigation["less_baseline"]):
        assert of["low"] <= 0 <= of["high"]
    assert all(row["p_adjusted"] > 0.05 for row in saved["rows"] if "p_adjusted" in row)
    verdicts = [row["verdict"] for row in saved["guard"]["scores"]] if saved["guard"] else []
    assert "beyond the rivals" not in verdicts


@pytest.mark.long
def test_labels_by_a_hash_claim_nothing(folders, capsys):
    records = written(folders / "records.jsonl.gz", hashed(ROWS))
    assert main(command("demo", folders, records, "--doses", "1", "--n-latents", "2")) == 0
    said = capsys.readouterr().out
    saved = json.loads((folders / "study" / "study.json").read_text())
    claims_nothing(saved)
    assert saved["n_questions"] == saved["n_known"] + saved["n_unknown"] and saved["n_known"] > 3
    assert "Surface rivals: too few entities on a side of the split to tell." in said
    page = (folders / "study" / "study.html").read_text()
    assert "<mark>" in page or "Answers that turned" not in page
    assert f"--chat-template</dt><dd>{CHATML[:9]}" in page
    kept = (folders / "study" / "answers.jsonl").read_text().splitlines()
    assert {"refused", "correct", "margin", "push", "texts"} == set(json.loads(kept[1])["value"])
    # the same command again answers nothing again, and says the same
    before = (folders / "study" / "study.json").read_text()
    assert main(command("demo", folders, records, "--doses", "1", "--n-latents", "2")) == 0
    assert (folders / "study" / "study.json").read_text() == before
    assert len((folders / "study" / "answers.jsonl").read_text().splitlines()) == len(kept)


def test_labels_by_answers_say_why_they_cannot_go_on(folders, capsys):
    records = written(folders / "records.jsonl.gz", ROWS)
    assert main(command("demo", folders, records, "--label-only")) == 2
    out, err = capsys.readouterr()
    assert "unknown: " in out and "'Paris' or 'City of Paris' is right" in out
    assert (
        "a study expected at least 2 known entities on the selecting side of the split, got 0 of 36 records, "
        "labelled by what the model answers: 0.0% right, 0.0% refused: give records of more entities it knows"
    ) in err


@pytest.mark.slow
@pytest.mark.parametrize("path", ["triviaqa", "entities", "truthfulqa"])
def test_a_real_model_of_stories_claims_nothing_and_resumes_after_a_kill(path, shared_data, tmp_path):
    """stories3m-llama: answers to TriviaQA, chats about entities, TruthfulQA; killed as it runs."""
    model = shared_data / "models" / "stories3m-llama"
    for seed, name in enumerate(("sae", "frozen")):
        torch.manual_seed(seed)
        sae = make_sae("topk", d_model=192, d_sae=256, hook_point="blocks.3.hook_resid_post", k=16)
        with torch.no_grad():
            weights = torch.randn(192, 256)
            sae.W_enc.copy_(weights)
            sae.W_dec.copy_((weights / weights.norm(dim=0)).T)
        sae.save(tmp_path / name)
    rows = _rows_of(path, shared_data)
    records = written(tmp_path / "records.jsonl.gz", hashed(rows))
    argv = ["study", "--model", str(model), "--sae", f"{tmp_path}/sae", "--baseline", f"{tmp_path}/frozen"]
    argv += [
        "--records",
        records,
        "--max-new-tokens",
        "4",
        "--n-controls",
        "19",
        "--n-ablated",
        "4",
        "--doses",
        "1",
    ]
    if path == "entities":
        argv += ["--chat", "--chat-template", CHATML, "--position", "all"]
    argv += ["--hook-point", "blocks.3.hook_resid_post"]
    run = [sys.executable, "-m", "saelens_lite.cli", *argv, "--output"]
    killed = subprocess.Popen([*run, str(tmp_path / "killed")], stdout=subprocess.DEVNULL)
    kept = tmp_path / "killed" / "answers.jsonl"
    while killed.poll() is None and not (kept.exists() and kept.read_bytes().count(b"\n") > 300):
        time.sleep(0.2)
    assert killed.poll() is None, "it was to be killed as it runs"
    killed.kill()
    killed.wait()
    for name in ("killed", "whole"):
        subprocess.run([*run, str(tmp_path / name)], check=True, stdout=subprocess.DEVNULL)
    resumed, whole = (
        json.loads((tmp_path / name / "study.json").read_text()) for name in ("killed", "whole")
    )
    assert resumed == whole
    claims_nothing(whole)


def _rows_of(path, shared_data, n=60):
    corpora = shared_data / "corpora"

    def lines(file):
        with gzip.open(corpora / file, "rt", encoding="utf-8") as rows:
            return [json.loads(line) for line in rows]

    if path == "triviaqa":
        of = lines("triviaqa_gemma2b/answers.jsonl.gz")[:n]
        return [{"prompt": f"Question: {row['question']}\nAnswer:", "answer": row["answers"]} for row in of]
    if path == "entities":
        of = [
            row
            for row in lines("entities/entities.jsonl.gz")
            if row["type"] == "city" and row["facts"].get("country")
        ]
        return [
            {
                "prompt": f"The city {row['entity']} lies in",
                "entity": row["entity"],
                "answer": row["facts"]["country"],
            }
            for row in of[:n]
        ]
    with gzip.open(corpora / "truthfulqa" / "mc_task.json.gz", "rt", encoding="utf-8") as file:
        of = json.load(file)[:n]
    right = [[option for option, label in row["mc1_targets"].items() if label] for row in of]
    return [{"prompt": f"Q: {row['question']}\nA:", "answer": one} for row, one in zip(of, right)]
