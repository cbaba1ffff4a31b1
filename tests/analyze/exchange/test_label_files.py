"""Labels leave an index as files and come back by the byte, and follow an SAE whose decoder is the same."""

import gzip
import json

import pytest
import torch

from saelens_lite import cli
from saelens_lite.analyze.exchange import export_labels, import_labels
from saelens_lite.analyze.index.build import index_features
from saelens_lite.analyze.index.feature_index import FeatureIndex
from saelens_lite.analyze.index.folder import decoder_identity
from saelens_lite.analyze.index.labels import Label
from tests.analyze.conftest import make_sae

LABELS = [
    Label(0, 'quotes " and , commas', "two\nlines\r\nand \t", True),
    Label(3, "</script><b>é😀", ""),
    Label(7, "", "=1+1", False),
    Label(40, "", "", True),
]


@pytest.fixture
def index(sae, store, tmp_path):
    return index_features(sae, store, tmp_path / "index")


@pytest.fixture
def labelled(index):
    index.labels.set_all(LABELS)
    return index


@pytest.mark.parametrize("name", ["labels.json", "labels.csv"])
def test_labels_come_back_by_the_byte(labelled, sae, store, tmp_path, name):
    assert export_labels(labelled, tmp_path / name) == 4
    fresh = index_features(sae, store, tmp_path / "fresh")
    assert import_labels(fresh.path, tmp_path / name) == 4
    assert fresh.labels.all() == LABELS
    export_labels(fresh, tmp_path / f"again_{name}")
    assert (tmp_path / f"again_{name}").read_bytes() == (tmp_path / name).read_bytes()


def test_the_files_are_what_they_say(labelled, sae, tmp_path):
    export_labels(labelled, tmp_path / "labels.csv")
    lines = (tmp_path / "labels.csv").read_bytes().decode().splitlines(keepends=True)
    owner = f"{labelled.sae['sha256']},{decoder_identity(sae)}\n"
    assert lines[0] == "latent,label,notes,starred,sae,decoder\n"
    assert lines[-1] == f"40,,,1,{owner}" and lines[-2] == f"7,,=1+1,,{owner}"
    export_labels(labelled, tmp_path / "labels.json")
    content = json.loads((tmp_path / "labels.json").read_text())
    assert content["decoder"] == decoder_identity(sae) and content["sae"] == labelled.sae["sha256"]
    assert content["labels"][3] == {"latent": 40, "label": "", "notes": "", "starred": True}
    assert labelled.labels.import_json(tmp_path / "labels.json") == 4, "what a page exports has the same form"


def test_a_table_that_a_person_wrote_is_read(index, tmp_path):
    (tmp_path / "own.csv").write_text("\ufefflabel,latent\r\nthe sun,3\r\n,4\r\n", newline="")
    index.labels.set(4, "goes")
    assert import_labels(index, tmp_path / "own.csv") == 2
    assert index.labels.all() == [Label(3, "the sun")]


def test_labels_outlive_a_new_index_and_follow_a_converted_sae(labelled, sae, store, tmp_path):
    from saelens_lite.analyze.index.build import IndexConfig

    again = index_features(sae, store, labelled.path, config=IndexConfig(n_top=3))
    assert again.labels.all() == LABELS, "of an index made anew in the same folder"
    converted = make_sae(model_name="another/name")
    with torch.no_grad():  # rows at unit norm and in bfloat16, with the norms folded into the encoder
        norms = converted.W_dec.norm(dim=1, keepdim=True)
        converted.W_dec.copy_((converted.W_dec / norms).bfloat16())
        converted.W_enc.mul_(norms.T)
        converted.b_enc.mul_(norms[:, 0])
    assert decoder_identity(converted) == decoder_identity(sae)
    follower = index_features(converted, store, tmp_path / "follower", hook_point=labelled.hook_point)
    assert follower.sae["sha256"] != labelled.sae["sha256"]
    for name in ("labels.json", "labels.csv"):
        export_labels(labelled, tmp_path / name)
        assert import_labels(follower, tmp_path / name) == 4
    assert follower.labels.all() == LABELS
    (follower.path / "labels.sqlite").unlink()
    (follower.path / "labels.sqlite").write_bytes((labelled.path / "labels.sqlite").read_bytes())
    assert FeatureIndex.open(follower.path).labels.all() == LABELS, "the file itself may be carried over"


def test_another_decoder_has_other_labels(labelled, store, tmp_path):
    other = make_sae()
    with torch.no_grad():
        other.W_dec[5] *= -1
    stranger = index_features(other, store, tmp_path / "stranger")
    for name in ("labels.json", "labels.csv"):
        export_labels(labelled, tmp_path / name)
        with pytest.raises(ValueError, match="holds labels of the SAE .*, this index is of"):
            import_labels(stranger, tmp_path / name)
    assert stranger.labels.all() == []


EXPLAINED = [
    {"index": "7", "description": " sun ", "typeName": "oai", "explanationModelName": "x"},
    {"index": 3, "description": "moon"},
    {"index": "7", "description": "stars", "typeName": "np", "explanationModelName": None},
]


def test_neuronpedia_s_explanations_are_labels(index, tmp_path):
    lines = "".join(json.dumps({"modelId": "m", "layer": "3-set"} | row) + "\n" for row in EXPLAINED)
    (tmp_path / "batch-0.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    index.labels.set(3, "mine")
    assert import_labels(index, tmp_path / "batch-0.jsonl.gz", keep=True) == 1
    assert index.labels.all() == [Label(3, "mine"), Label(7, "sun", "oai by x\nstars (np)")]
    (tmp_path / "batch-0.jsonl").write_text(lines)
    assert import_labels(index, tmp_path / "batch-0.jsonl") == 2
    assert index.labels.get(3) == Label(3, "moon")


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("l.csv", b"latent,label\n3,\xff\n", "expected labels as CSV in UTF-8"),
        ("l.csv", b"id,label\n3,x\n", "expected columns latent and label, got id, label"),
        ("l.csv", b"latent,label\nx,y\n", r"entry 1 expected a latent and its label, got \['x', 'y'\]"),
        ("l.csv", b"latent,label\n3,y,z\n", "entry 1 expected a latent and its label"),
        ("l.csv", b"latent,label\n48,y\n", "l.csv: expected a latent from 0 to 47, got 48"),
        ("l.csv", b"latent,label,decoder\n4,y,abc\n", "holds labels of the SAE abc"),
        ("l.json", b'{"labels": []}', "format is missing"),
        ("l.jsonl", b'{"index": 3, "description": "\\ud800"}', "latent 3 expected text, got half of a"),
        ("l.jsonl", b'{"index": -3, "description": "x"}', "line 1 expected the index of a latent, got -3"),
        ("l.jsonl", b'{"index": 3}', "line 1 expected an explanation of Neuronpedia: description is missing"),
        ("l.jsonl", b"no", "line 1 expected a JSON object"),
        ("l.jsonl.gz", b"no", "expected a gzip file"),
        ("l.txt", b"", r"expected a name that ends in .json or .csv or .jsonl or .jsonl.gz"),
    ],
)
def test_a_file_that_does_not_fit_changes_nothing(labelled, tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=told):
        import_labels(labelled, tmp_path / name)
    assert labelled.labels.all() == LABELS


def test_the_command_shows_exports_and_imports(labelled, tmp_path, capsys):
    folder, file = str(labelled.path), str(tmp_path / "out.csv")
    assert cli.main(["labels", folder, "--export-to", file]) == 0
    assert capsys.readouterr().out == f"labels of 4 latents: {file}\n"
    labelled.labels.remove(3)
    assert cli.main(["labels", folder, "--import-from", file]) == 0
    assert labelled.labels.all() == LABELS
    capsys.readouterr()
    assert cli.main(["labels", folder]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[1] == "Label(latent=3, label='</script><b>é😀', notes='', starred=False)"
    assert cli.main(["labels", folder, "--keep"]) == 2
    assert "labels --keep expected --import-from too" in capsys.readouterr().err
