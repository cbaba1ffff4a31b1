"""Labels: written, found, kept from other SAEs."""

import json
import sqlite3

import pytest

from saelens_lite import FeatureIndexError
from saelens_lite.analyze.index.labels import Label, Labels

SAE = {"sha256": "a" * 64, "d_sae": 10}


def test_labels_are_kept_and_found(tmp_path):
    labels = Labels(tmp_path / "labels.sqlite", SAE)
    assert labels.get(3) is None and labels.all() == [] and labels.search("x") == []
    assert not labels.path.exists(), "nothing is written before there is a label"
    labels.set(3, "quotes '\" and %", "50_0")
    labels.set(1, "Sun", "</script>")
    labels.set(3, "100 % quotes")
    assert Labels(tmp_path / "labels.sqlite", SAE).all() == [
        Label(1, "Sun", "</script>"),
        Label(3, "100 % quotes"),
    ]
    assert [label.latent for label in labels.search("sun")] == [1]
    assert [label.latent for label in labels.search("0 %")] == [3]
    assert labels.search("1%q") == [] and labels.search("script") == [Label(1, "Sun", "</script>")]
    labels.remove(3)
    assert labels.get(3) is None
    with pytest.raises(ValueError, match="from 0 to 9, got 10"):
        labels.set(10, "none")
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        labels.set(1, "\ud800")
    with pytest.raises(TypeError, match="expected label and notes as text, got list"):
        labels.set(1, ["x"])
    assert labels.all() == [Label(1, "Sun", "</script>")]


def test_a_latent_that_is_no_integer_is_no_latent(tmp_path):
    labels = Labels(tmp_path / "labels.sqlite", SAE)
    labels.set(1, "one")
    for call in (lambda: labels.set(1.5, "half"), lambda: labels.get(1.5), lambda: labels.remove(1.5)):
        with pytest.raises(TypeError, match="latent as int|integer"):
            call()


def test_labels_of_another_sae_or_another_file_are_refused(tmp_path):
    Labels(tmp_path / "labels.sqlite", SAE).set(0, "one")
    with pytest.raises(FeatureIndexError, match="labels of the SAE aaaaaaaa, this index is of bbbbbbbb"):
        Labels(tmp_path / "labels.sqlite", SAE | {"sha256": "b" * 64}).get(0)
    (tmp_path / "text").write_text("no database, but long enough to be read as the head of one" * 20)
    with pytest.raises(FeatureIndexError, match="cannot be read or written as a file of labels"):
        Labels(tmp_path / "text", SAE).all()


def test_a_star_is_kept_and_a_file_without_stars_is_read(tmp_path):
    with sqlite3.connect(tmp_path / "labels.sqlite") as db:
        db.execute("CREATE TABLE sae (sha256 TEXT)")
        db.execute("INSERT INTO sae VALUES (?)", (SAE["sha256"],))
        db.execute("CREATE TABLE labels (latent INTEGER PRIMARY KEY, label TEXT, notes TEXT)")
        db.execute("INSERT INTO labels VALUES (4, 'old', 'file')")
    db.close()
    labels = Labels(tmp_path / "labels.sqlite", SAE)
    labels.set(5, "", starred=True)
    assert labels.all() == [Label(4, "old", "file"), Label(5, "", "", True)]


def exported(tmp_path, *labels, **facts):
    content = {"format": "saelens_lite labels", "version": 1, "sae": SAE["sha256"], "labels": list(labels)}
    (tmp_path / "export.json").write_text(json.dumps(content | facts))
    return tmp_path / "export.json"


def entry(latent, label="", notes="", starred=False):
    return {"latent": latent, "label": label, "notes": notes, "starred": starred}


def test_what_the_page_exported_is_imported_in_place_of_what_was_there(tmp_path):
    labels = Labels(tmp_path / "labels.sqlite", SAE)
    labels.set(1, "old")
    labels.set(2, "stays")
    labels.set(3, "goes")
    file = exported(tmp_path, entry(1, "new", "n"), entry(3), entry(9, starred=True))
    assert labels.import_json(file) == 3
    assert labels.all() == [Label(1, "new", "n"), Label(2, "stays"), Label(9, "", "", True)]


@pytest.mark.parametrize(
    "label, facts, told",
    [
        (entry(1), {"sae": "b" * 64}, "labels of the SAE bbbbbbbb, this index is of aaaaaaaa"),
        (
            entry(1),
            {"version": 2},
            "expected 'saelens_lite labels' version 1, it states 'saelens_lite labels' version 2",
        ),
        (entry(10), {}, "from 0 to 9, got 10"),
        (entry("1"), {}, r"labels\[1\].latent expected int, got '1'"),
        (entry(True), {}, r"labels\[1\].latent expected int, got True"),
        (entry(1.0), {}, r"labels\[1\].latent expected int, got 1.0"),
        (entry(1, ["x"]), {}, r"labels\[1\].label expected str, got \['x'\]"),
        (entry(1, "x", None), {}, r"labels\[1\].notes expected str, got None"),
        (entry(1, "x", "", "false"), {}, r"labels\[1\].starred expected bool, got 'false'"),
        (entry(1, "\ud83d"), {}, "latent 1 expected text, got half of a surrogate pair"),
        (entry(1, "x", "a\udc00"), {}, "latent 1 expected text, got half of a surrogate pair"),
        ({"latent": 1}, {}, r"that a page of features exported: labels\[1\].label is missing"),
        (entry(1), {"labels": {"1": "x"}}, "labels expected a list"),
    ],
)
def test_a_file_that_does_not_fit_changes_nothing(tmp_path, label, facts, told):
    labels = Labels(tmp_path / "labels.sqlite", SAE)
    labels.set(0, "stays")
    with pytest.raises(ValueError, match=told):
        labels.import_json(exported(tmp_path, entry(0, "replaced"), label, **facts))
    assert labels.all() == [Label(0, "stays")]
    (tmp_path / "text").write_text("no JSON")
    with pytest.raises(ValueError, match="expected labels that a page of features exported: JSONDecodeError"):
        labels.import_json(tmp_path / "text")
