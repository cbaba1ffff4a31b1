"""Pictures of results draw their numbers: points at estimates, bars from end to end, in their order."""

import dataclasses

import pytest
import torch

from saelens_lite.analyze.edits.doses import ControlEffects, DoseResponse, DoseRow
from saelens_lite.analyze.evaluation.result import DENSITY_LOG10_EDGES, Densities, Evaluation
from saelens_lite.analyze.probing.report import ProbeReport, ProbeRow
from saelens_lite.analyze.stats.bootstrap import Interval
from saelens_lite.analyze.stats.interval_plots import interval_plot, new_axes
from saelens_lite.analyze.study.planned_edits import Planned
from saelens_lite.analyze.study.result import StudyResult, StudyRow


@pytest.fixture(autouse=True)
def plt():
    pytest.importorskip("matplotlib").use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


def filled(cls, **given):
    """A result of which only what a picture shows is given."""
    return cls(**{field.name: given.get(field.name) for field in dataclasses.fields(cls)})


def interval(estimate, low, high):
    return Interval(*map(torch.tensor, (estimate, low, high)), 0.95, 3)


def bars(ax):
    """(low, high, height) of each interval's bar, and (x, y) of each point."""
    ends = [(float(a[0]), float(b[0]), float(a[1])) for a, b in ax.collections[0].get_segments()]
    return ends, ax.lines[0].get_xydata().tolist()


def names(ax):
    return {text.get_text(): text.get_position()[1] for text in ax.get_yticklabels()}


def test_a_bar_for_each_name_from_the_top():
    ax = interval_plot(["a", "b"], [0.5, 2.0], [0.25, 1.0], [1.0, 4.0], "effect")
    assert bars(ax) == ([(0.25, 1.0, 1.0), (1.0, 4.0, 0.0)], [[0.5, 1.0], [2.0, 0.0]])
    assert names(ax) == {"a": 1, "b": 0} and ax.get_xlabel() == "effect"


def test_axes_given_are_drawn_on_and_what_is_none_is_named(plt):
    ax = plt.subplots()[1]
    assert new_axes(ax) is ax and new_axes() is not ax
    with pytest.raises(TypeError, match=r"expected ax as matplotlib axes, got Tensor torch.float32 \[3\]"):
        new_axes(torch.zeros(3))


def test_an_evaluation_draws_how_many_latents_fire_how_often():
    counts = tuple(range(len(DENSITY_LOG10_EDGES) - 1))
    found = filled(
        Evaluation,
        densities={
            "trained": Densities(never=7, counts=counts),
            "baseline": Densities(never=0, counts=counts[::-1]),
        },
    )
    ax = found.plot()
    drawn = [patch.get_data() for patch in ax.patches]
    assert [one.values.tolist() for one in drawn] == [list(counts), list(counts[::-1])]
    assert drawn[0].edges.tolist() == list(DENSITY_LOG10_EDGES)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["trained (7 never)", "baseline"]


def test_a_dose_response_draws_effects_with_intervals_and_the_middle_of_the_controls():
    control = ControlEffects("matched", torch.arange(101.0), 0.5, 0.5)  # 5 and 95 % of 0 … 100 are 5 and 95
    effects = [interval(0.0, -1.0, 1.0), interval(3.0, 2.0, 5.0)]
    rows = [DoseRow(dose, of, of, None, (control,), ()) for dose, of in zip((0.0, 2.0), effects)]
    ax = DoseResponse((1,), effects[0], tuple(rows), False).plot()
    assert ax.lines[0].get_xydata().tolist() == [[0.0, 0.0], [2.0, 3.0]]
    own, band = ([tuple(corner) for corner in of.get_paths()[0].vertices.tolist()] for of in ax.collections)
    assert {(0.0, -1.0), (2.0, 2.0), (2.0, 5.0), (0.0, 1.0)} == set(own)
    assert {(0.0, 5.0), (2.0, 5.0), (2.0, 95.0), (0.0, 95.0)} == set(band)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["latents", "matched"]


def test_a_probe_report_draws_every_auroc():
    made = [("acts", 0.75, 0.5, 1.0), ("sae k=1", 0.625, 0.25, 0.875)]
    rows = [filled(ProbeRow, name=n, auroc=a, auroc_low=low, auroc_high=high) for n, a, low, high in made]
    ax = filled(ProbeReport, rows=tuple(rows), confidence=0.9).plot()
    assert bars(ax) == ([(0.5, 1.0, 1.0), (0.25, 0.875, 0.0)], [[0.75, 1.0], [0.625, 0.0]])
    assert names(ax) == {"acts": 1, "sae k=1": 0} and ax.get_xlabel() == "AUROC, 90% interval"


def test_a_study_draws_the_measure_under_the_edits_that_were_tested_on_it():
    of = {"hallucination": interval(0.5, 0.25, 0.75), "refusal": interval(0.125, 0.0, 0.25)}
    edits = [
        Planned("none"),
        Planned("clamp", "trained", 1.0, "hallucination"),
        Planned("ablate", "trained", None, "refusal"),
    ]
    rows = tuple(filled(StudyRow, edit=edit, measures=of) for edit in edits)
    result = filled(StudyResult, rows=rows, confidence=0.95, score="rates")
    ax = result.plot()
    assert result.tested == ("hallucination", "refusal")
    assert bars(ax) == ([(0.25, 0.75, 1.0), (0.25, 0.75, 0.0)], [[0.5, 1.0], [0.5, 0.0]])
    assert [name.split() for name in names(ax)] == [["none"], ["clamp", "trained", "1"]]
    drawn = bars(result.plot("refusal"))
    assert drawn == ([(0.0, 0.25, 1.0), (0.0, 0.25, 0.0)], [[0.125, 1.0], [0.125, 0.0]])
