"""The page of a study: what was asked, what was found, and pictures whose numbers stand below them."""

import re
from dataclasses import replace

import pytest
import torch

import saelens_lite as sl
from saelens_lite.analyze.edits.neutral_text import SideEffects
from saelens_lite.analyze.pages.report_study import highlighted
from saelens_lite.analyze.stats.bootstrap import cluster_bootstrap
from saelens_lite.analyze.study.result import Flipped

from ..study.test_study import (
    HALLUCINATED,
    N_CONTROLS,
    result,  # noqa: F401
    study,  # noqa: F401
    world,  # noqa: F401
)


@pytest.fixture
def page(result, tmp_path):  # noqa: F811
    """With an example whose texts are hostile."""
    hostile = Flipped(
        "clamp known", "Is <b>Ada</b> old?", (6, 9), False, "refused", "wrong", "<script>", "&amp;"
    )
    asked = {"--doses": (0.25, 1.0), "--chat": None, "--records": "<img src=x>"}
    path = sl.pages.study_page(replace(result, flipped=(hostile,)), tmp_path / "study.html", asked)
    return path.read_text(encoding="utf-8")


def rows_of(page, heading):
    """Cells of the first table behind a heading."""
    table = page.split(heading, 1)[1].split("<table>", 1)[1].split("</table>", 1)[0]
    return [
        [re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in table.split("<tr>")[1:]
    ]


@pytest.mark.long
def test_the_page_holds_every_part_and_runs_nothing(page):
    for heading in (
        "What was found", "Edits", "Dose and response", "The effect among its controls",
        "Reading who is known",
        "What hallucination costs", "Answers that turned", "What this does not show",
    ):  # fmt: skip
        assert page.count(f"<h2>{heading}</h2>") == 1
    assert page.count("<svg viewBox") == 2 + 6 + 1 + 1  # doses, histograms, AUROC, trade-off
    assert "default-src &#39;none&#39;" in page and "<script" not in page
    assert "They leave out how language model and SAE were trained" in page
    assert "<dt>--doses</dt><dd>0.25, 1.0</dd>" in page and "--chat" not in page


@pytest.mark.long
def test_its_numbers_are_those_of_the_result(page):
    found = {(row[0], row[1], row[2]): row for row in rows_of(page, "To raise hallucination")}
    head = found["edit", "SAE", "dose"]
    clamped = dict(zip(head, found["clamp known (1)", "trained", "1"]))
    assert (clamped["hallucination"], clamped["accuracy"], clamped["coverage"]) == ("1", "1", "1")
    assert clamped["p"] == f"{1 / (N_CONTROLS + 1):.4g}"
    lines = {row[0]: row[1:] for row in rows_of(page, "clamp known: hallucination")}
    assert lines["trained"] == [f"{HALLUCINATED:.4g}", "1", "1"] and lines["line"][0] == "dose 0.25"
    assert lines["frozen decoder"] == [f"{HALLUCINATED:.4g}"] * 3
    histogram = {row[0]: row[1] for row in rows_of(page, "<h3>clamp known at dose 1</h3>")}
    assert histogram["the chosen latents"] == "1"
    assert histogram["controls, median"] == f"{HALLUCINATED:.4g}"
    trade = {row[0]: row[1:] for row in rows_of(page, "Trade-off")}
    assert trade["constant on the logit of refusal"][-1].endswith("/ 1.00")
    assert trade["no edit"][0] == f"{HALLUCINATED:.2f} / 1.00"


def test_effects_stand_beside_their_cost_on_neutral_text(result, tmp_path):  # noqa: F811
    def costing(row):
        cost = cluster_bootstrap(torch.full((3,), (row.edit.dose or 0.0) / 10), n_resamples=10)
        return replace(row, edit=row.edit._replace(side_effects=SideEffects(cost, cost, 0.0, None)))

    found = replace(result, rows=tuple(map(costing, result.rows)))
    page = sl.pages.study_page(found, tmp_path / "study.html").read_text(encoding="utf-8")
    head, *rows = rows_of(page, "clamp known: hallucination against its cost")
    assert head == ["dose", "ΔCE", "hallucination"]
    want = {
        row.edit.dose: row.measures["hallucination"].estimate.item()
        for row in result.rows
        if (row.edit.name, row.edit.sae) == ("clamp known", "trained")
    }
    assert [(float(d), float(c)) for d, c, _ in rows] == [(d, pytest.approx(d / 10)) for d in sorted(want)]
    assert [float(value) for *_, value in rows] == [pytest.approx(want[d], rel=1e-3) for d in sorted(want)]


@pytest.mark.long
def test_texts_are_data_and_the_entity_is_marked(page):
    assert "Is &lt;b&gt;<mark>Ada</mark>&lt;/b&gt; old?" in page
    assert "refused: &lt;script&gt;" in page and "wrong: &amp;amp;" in page and "&lt;img src=x&gt;" in page


def test_the_entity_stands_amid_its_text():
    long = highlighted("a" * 300 + "Ada" + "b" * 300, (300, 303))
    assert long == f"…{'a' * 78}<mark>Ada</mark>{'b' * 78}…"
    assert highlighted("c" * 200, None) == "…" + "c" * 160 and highlighted("<", None) == "&lt;"
