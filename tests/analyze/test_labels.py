"""Labels: written, found, kept from other SAEs."""

import pytest

from saelens_lite import FeatureIndexError
from saelens_lite.analyze.labels import Label, Labels

SAE = {"sha256": "a" * 64, "d_sae": 10}


def test_labels_are_kept_and_found(tmp_path):
    labels = Labels(tmp_path / "labels.sqlite", SAE)
    assert labels.get(3) is None and labels.all() == [] and labels.search("x") == []
    assert not labels.path.exists(), "nothing is written before there is a label"
    labels.set(3, "quotes '\" and %", "50_0")
    labels.set(1, "Sun", "</script>")
    labels.set(3, "100 % quotes")
    assert Labels(tmp_path / "labels.sqlite", SAE).all() == [Label(1, "Sun", "</script>"), Label(3, "100 % quotes")]
    assert [label.latent for label in labels.search("sun")] == [1]
    assert [label.latent for label in labels.search("0 %")] == [3]
    assert labels.search("1%q") == [] and labels.search("script") == [Label(1, "Sun", "</script>")]
    labels.remove(3)
    assert labels.get(3) is None
    with pytest.raises(ValueError, match="from 0 to 9, got 10"):
        labels.set(10, "none")


def test_labels_of_another_sae_or_another_file_are_refused(tmp_path):
    Labels(tmp_path / "labels.sqlite", SAE).set(0, "one")
    with pytest.raises(FeatureIndexError, match="labels of the SAE aaaaaaaa, this index is of bbbbbbbb"):
        Labels(tmp_path / "labels.sqlite", SAE | {"sha256": "b" * 64}).get(0)
    (tmp_path / "text").write_text("no database, but long enough to be read as the head of one" * 20)
    with pytest.raises(FeatureIndexError, match="cannot be read or written as a file of labels"):
        Labels(tmp_path / "text", SAE).all()
