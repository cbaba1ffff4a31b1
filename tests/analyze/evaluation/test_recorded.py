"""An evaluation as values: the file says what the result says, and anything else is refused by name."""

import json

import pytest

from saelens_lite.analyze.evaluation.recorded import recorded_evaluation
from saelens_lite.analyze.evaluation.result import Evaluation, EvaluationRow

AT = "blocks.0.hook_resid_post"


def made(**fields):
    rows = (EvaluationRow(name="trained", fvu=0.25), EvaluationRow(name="baseline", given=False))
    facts = {"hook_point": AT, "store": "s", "held_out": True, "same_store": True, "n_tokens": 8}
    return Evaluation(**facts, n_ce_tokens=0, n_contexts=0, ce_clean=None, rows=rows, **fields)


def test_a_file_says_what_the_result_says(tmp_path):
    file = tmp_path / "evaluation.json"
    file.write_text(json.dumps(made().to_dict()))
    assert recorded_evaluation(file, AT) == recorded_evaluation(made(), AT) == made().to_dict()
    assert recorded_evaluation(str(file), AT)["rows"][0]["fvu"] == 0.25
    assert recorded_evaluation(file, "model.layers.0") == made().to_dict(), "perhaps the same place"
    with pytest.raises(ValueError, match="expected an evaluation at blocks.1.hook_resid_post, got one"):
        recorded_evaluation(file, "blocks.1.hook_resid_post")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "which `saelens-lite evaluate --output` writes: Expecting value"),
        ("[]", "expected a JSON object, got"),
        (json.dumps({"rows": []}), "hook_point is missing"),
        (json.dumps(made().to_dict() | {"n_tokens": "8"}), "n_tokens expected int, got '8'"),
        (json.dumps(made().to_dict() | {"rows": [{"name": "k=16", "given": True}]}), "no row is named 'trai"),
    ],
)
def test_what_is_no_evaluation_of_one_sae_is_refused(content, message, tmp_path):
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(ValueError, match=f"other.json expected the evaluation of one SAE.*{message}"):
        recorded_evaluation(tmp_path / "other.json", AT)
    with pytest.raises(FileNotFoundError):
        recorded_evaluation(tmp_path / "absent.json", AT)
