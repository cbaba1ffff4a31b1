"""Sparse probes: planted latents found, nothing learnt from test texts, intervals, controls and what is
refused."""

import gzip
import json

import numpy as np
import pytest
import sklearn.linear_model
import sklearn.metrics
import torch
from scipy.sparse import csr_matrix, random_array

from saelens_lite.analyze.probing.clusters import classes_of, clusters_of, folds_of, sides
from saelens_lite.analyze.probing.fit import (
    all_columns,
    fit_probe,
    mean_direction,
    ranked_latents,
    strongest_latents,
)
from saelens_lite.analyze.probing.pooling import PooledLatents, pooled_latents
from saelens_lite.analyze.probing.probes import sparse_probes
from saelens_lite.analyze.stats.bootstrap import bootstrap_statistic, cluster_bootstrap
from saelens_lite.analyze.stats.document_split import Split
from saelens_lite.analyze.stats.ranks import auroc, weighted_auroc
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig

N, D_SAE, PLANTED = 400, 50, 7
FAST = {"n_resamples": 200, "inverse_l2": (0.01, 1.0), "n_folds": 2, "n_shuffles": 0}


def features_of(latents, acts=None, documents=None, name="sae") -> PooledLatents:
    """Features as `pooled_latents` gives them, from arrays."""
    n = latents.shape[0]
    return PooledLatents(
        acts=np.random.default_rng(1).normal(size=(n, 6)).astype(np.float32) if acts is None else acts,
        by_name={name: csr_matrix(latents, dtype=np.float32)},
        documents=torch.arange(n) if documents is None else torch.as_tensor(documents),
        n_tokens=np.full(n, 5),
        n_truncated=0,
        max_tokens=None,
        pool="mean",
        acts_pool="mean",
        hook_point="blocks.0.hook_resid_post",
        model_name="tiny",
    )


def noise(n=N, d_sae=D_SAE, seed=0) -> np.ndarray:
    """Latents that say nothing: a tenth of them on, float[n d_sae]."""
    return random_array((n, d_sae), density=0.1, rng=np.random.default_rng(seed)).toarray()


LABELS = np.random.default_rng(2).integers(0, 2, N)


def planted_latents() -> np.ndarray:
    """Latent 7 fires where the label is 1, and only there."""
    latents = noise()
    latents[:, PLANTED] = LABELS * 3.0
    return latents


# What is found ----------------------------------------------------------------------------------------------


def test_one_latent_that_carries_the_label_is_found_and_is_enough():
    report = sparse_probes(features_of(planted_latents()), LABELS.tolist(), k=[1, 2], **FAST)
    one = report["sae k=1"]
    assert one.latents == ((PLANTED,),)
    assert (one.auroc, one.f1, one.accuracy) == (1, 1, 1)
    assert one.less_acts == 1 - report["activations"].auroc > 0.3 and one.less_acts_low > 0
    assert [row.name for row in report.rows] == [
        "activations", "DiffMean of activations", "text length", "sae k=1", "sae k=2", "sae all 50",
    ]  # fmt: skip


def test_a_direction_of_the_activations_is_found_by_their_probe_and_by_diff_mean():
    acts = np.random.default_rng(0).normal(size=(N, 6))
    acts[:, 0] += 4 * LABELS
    report = sparse_probes(features_of(noise(), acts.astype(np.float32)), LABELS.tolist(), k=[1], **FAST)
    assert min(report["activations"].auroc, report["DiffMean of activations"].auroc) > 0.98
    assert report["sae all 50"].less_acts_high < 0
    assert (
        "of 2 probes of latents 2 below that of the activations, 2 of them with the whole interval; 0 above"
        in str(report)
    )


def test_texts_that_differ_in_length_alone_are_told_apart_by_it():
    features = features_of(noise())
    features.n_tokens[:] = 5 + 3 * LABELS + np.arange(N) % 2
    report = sparse_probes(features, LABELS.tolist(), k=[1], **FAST)
    assert report["text length"].auroc == 1 and abs(report["sae k=1"].auroc - 0.5) < 0.15


def test_a_probe_of_length_is_confounded_and_one_of_meaning_is_beyond():
    acts = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
    features = features_of(planted_latents(), acts)
    rng = np.random.default_rng(3)
    features.n_tokens[:] = 5 + 2 * LABELS + rng.integers(0, 5, N)
    acts[:, 0] += features.n_tokens  # all that the activations know
    report = sparse_probes(features, LABELS.tolist(), k=[1], **FAST)
    assert report["activations"].verdict == "confounded by tokens"
    assert report["sae k=1"].verdict == "beyond the rivals" and report["text length"].verdict is None
    by_name = {rival.name: rival.auroc for rival in report.guard.rivals}
    assert by_name["tokens"] == pytest.approx(report["text length"].auroc)
    assert "confounded by tokens" in str(report) and "the surface alone, in AUROC: tokens 0." in str(report)
    assert report.to_dict()["guard"]["scores"][0]["verdict"] == "confounded by tokens"
    source = ["web" if label else "book" for label in LABELS]
    given = sparse_probes(features, LABELS.tolist(), k=[1], rivals={"source": source}, **FAST)
    assert given["sae k=1"].verdict == "confounded by source"


@pytest.mark.long
def test_more_classes_than_two_have_no_verdict():
    three = np.arange(N) % 3
    report = sparse_probes(features_of(noise()), three.tolist(), k=[1], **FAST)
    assert report.guard is None and report["sae k=1"].verdict is None
    assert report.to_dict()["guard"] is None and "beside the surface" not in str(report)


def test_numbers_are_those_of_scikit_learn():
    acts = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
    acts[:, 0] += LABELS
    features, split = features_of(noise(), acts), Split(test_fraction=0.3)
    row = sparse_probes(features, LABELS.tolist(), k=[1], **FAST | {"inverse_l2": (1.0,)})["activations"]
    tests = split.tests(features.documents).numpy()
    mean, spread = acts[~tests].mean(0), acts[~tests].std(0)
    model = sklearn.linear_model.LogisticRegression(C=1.0, max_iter=1000)
    model.fit((acts[~tests] - mean) / spread, LABELS[~tests])
    inputs = (acts[tests] - mean) / spread
    assert row.auroc == pytest.approx(
        sklearn.metrics.roc_auc_score(LABELS[tests], model.decision_function(inputs)), abs=1e-3
    )
    assert row.f1 == pytest.approx(sklearn.metrics.f1_score(LABELS[tests], model.predict(inputs)), abs=0.02)
    assert row.accuracy == pytest.approx(model.score(inputs, LABELS[tests]), abs=0.02)


@pytest.mark.long
def test_several_classes_are_each_probed_against_the_rest():
    """Latent 3 is class a, latent 4 class b, and c has neither: its probe needs both."""
    classes = np.random.default_rng(3).integers(0, 3, N)
    latents = noise()
    latents[:, [3, 4]] = np.stack([classes == 0, classes == 1], axis=1) * 5.0
    report = sparse_probes(features_of(latents), [["a", "b", "c"][i] for i in classes], k=[1, 2], **FAST)
    two = report["sae k=2"]
    assert two.auroc == two.f1 == two.accuracy == 1
    assert two.latents[0][0] == 3 and two.latents[1][0] == 4 and set(two.latents[2]) == {3, 4}
    assert report.classes == ("a", "b", "c") and len(report["activations"].inverse_l2) == 3
    one = report["sae k=1"]
    assert [latents[0] for latents in one.latents][:2] == [3, 4] and 0.8 < one.auroc < 1  # of c it knows half
    assert "each of 3 classes against the rest (a " in str(report)


def test_macro_auroc_is_the_mean_over_classes():
    classes = np.random.default_rng(3).integers(0, 3, N)
    acts = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
    acts[:, :3] += np.eye(3)[classes]
    features = features_of(noise(), acts)
    row = sparse_probes(features, classes.tolist(), k=[1], **FAST | {"inverse_l2": (1.0,)})["activations"]
    tests = Split(test_fraction=0.3).tests(features.documents).numpy()
    each = []
    for i in range(3):
        probe = fit_probe(acts[~tests], classes[~tests] == i, all_columns, [], [1.0])
        scores = probe.scores(acts[tests])
        each.append(sklearn.metrics.roc_auc_score(classes[tests] == i, scores))
    assert row.auroc == pytest.approx(np.mean(each), abs=1e-9)


# What test texts may not do
# -------------------------------------------------------------------------------------


def two_faced() -> tuple[np.ndarray, np.ndarray]:
    """Latent 3 tells the labels apart in training texts, latent 4, three times as strongly, in test texts
    only."""
    tests = Split(test_fraction=0.3).tests(torch.arange(N)).numpy()
    latents = noise()
    latents[:, 3] = np.where(tests, 0, LABELS * 1.0)
    latents[:, 4] = np.where(tests, LABELS * 9.0, 0)
    return latents, tests


def test_latents_are_chosen_by_training_texts_alone():
    latents, tests = two_faced()
    everything = ranked_latents(csr_matrix(latents), LABELS == 1, "mean_difference")
    assert everything[0] == 4  # what a selection that sees test texts would take, for an AUROC of 1
    row = sparse_probes(features_of(latents), LABELS.tolist(), k=[1], **FAST)["sae k=1"]
    assert row.latents == ((3,),) and row.auroc == 0.5
    assert auroc(latents[tests & (LABELS == 0), 4], latents[tests & (LABELS == 1), 4]) == 1


@pytest.mark.long
def test_nothing_fitted_changes_with_the_test_texts():
    """Other test texts with other labels: the same latents, C and, on the old test texts, scores."""
    latents, tests = planted_latents(), Split(test_fraction=0.3).tests(torch.arange(N)).numpy()
    other, labels = latents.copy(), LABELS.copy()
    other[tests] = 100 * noise(seed=9)[tests]
    labels[tests] = np.random.default_rng(5).permutation(LABELS[tests])
    first = sparse_probes(features_of(latents), LABELS.tolist(), k=[1, 5], **FAST)
    second = sparse_probes(features_of(other), labels.tolist(), k=[1, 5], **FAST)
    for a, b in zip(first.rows, second.rows):
        assert (a.latents, a.inverse_l2) == (b.latents, b.inverse_l2)
    assert second["sae k=1"].auroc < 0.7 < first["sae k=1"].auroc


@pytest.mark.long
def test_shuffled_labels_give_one_half():
    report = sparse_probes(
        features_of(planted_latents()), LABELS.tolist(), k=[1, 5], **FAST | {"n_shuffles": 20}
    )
    for row in report.rows:
        assert abs(row.shuffled - 0.5) < 0.04, (
            row
        )  # of 120 test texts one draw has a standard deviation of 0.053
    assert report["sae k=1"].auroc == 1


@pytest.mark.long
def test_shuffled_labels_show_test_texts_that_leak_into_training(monkeypatch):
    honest = sides

    def leaking(*args):
        train, test = honest(*args)
        return np.concatenate([train, test]), test

    monkeypatch.setattr("saelens_lite.analyze.probing.probes.sides", leaking)
    report = sparse_probes(features_of(noise()), LABELS.tolist(), k=[1], **FAST | {"n_shuffles": 5})
    assert report["sae all 50"].shuffled > 0.6


def test_labels_without_meaning_are_not_predicted():
    labels = np.random.default_rng(8).permutation(LABELS).tolist()
    report = sparse_probes(features_of(planted_latents()), labels, k=[1, 5], **FAST | {"n_resamples": 1000})
    for row in report.rows:
        assert row.auroc_low <= 0.5 <= row.auroc_high, row


def test_copies_and_groups_stay_together():
    """Texts 0 and 1 are copies, 1 and 2 share a group, 3 is in the group of 4; 5 has none."""
    documents = torch.tensor([11, 11, 30, 40, 25, 60])
    groups = ["x", "g", "g", "h", "h", None]
    assert clusters_of(documents, groups).tolist() == [11, 11, 11, 25, 25, 60]
    assert clusters_of(documents).tolist() == documents.tolist()
    nobody = clusters_of(documents, [None] * 6)
    assert nobody.tolist() == documents.tolist()


@pytest.mark.long
def test_memorised_copies_do_not_help():
    """Each text twice, its label drawn at random, and a latent of its own: a probe with copies on both sides
    would know."""
    n = 120
    labels = np.repeat(np.random.default_rng(0).integers(0, 2, n), 2)
    latents = np.repeat(np.eye(n), 2, axis=0)
    straddling = sparse_probes(features_of(latents), labels.tolist(), k=[1], **FAST)["sae all 120"].auroc
    documents = np.repeat(np.arange(n), 2)
    report = sparse_probes(features_of(latents, documents=documents), labels.tolist(), k=[1], **FAST)
    assert straddling > 0.7 and report["sae all 120"].auroc == 0.5
    assert report.n_copies == n and sum(report.n_clusters) == n
    by_group = sparse_probes(features_of(latents), labels.tolist(), documents.tolist(), k=[1], **FAST)
    assert by_group["sae all 120"].auroc == 0.5 and "120 are copies" in str(report)


@pytest.mark.parametrize("seed", [0, -1, 2**40])
def test_folds_hold_clusters_whole_and_both_labels(seed):
    clusters = np.repeat(np.arange(30), 3)
    positive = np.repeat(np.random.default_rng(0).random(30) < 0.3, 3)
    folds = folds_of(clusters, positive, 4, seed)
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(90))
    for fitted, held in folds:
        assert not set(clusters[fitted]) & set(clusters[held])
        assert 0 < positive[held].sum() < len(held)


# Pieces, by hand --------------------------------------------------------------------------------------------


def test_latents_by_hand():
    """Of the first three latents the means are 4, 1, 0 against 4, 0.75, 0."""
    latents = csr_matrix(np.array([[4.0, 1, 0], [4, 1, 0], [0, 0.75, 0], [8, 0.75, 0]]))
    positive = np.array([True, True, False, False])
    assert ranked_latents(latents, positive, "mean_difference").tolist() == [1, 0, 2]
    wide = csr_matrix(np.array([[9.0, 1], [1, 1], [4, 0], [0, 0]]))
    assert ranked_latents(wide, positive, "mean_difference").tolist() == [0, 1]  # 5 − 2 against 1
    assert ranked_latents(wide, positive, "standardised").tolist() == [1, 0]  # 3 / 3.5 against 1 / 0.5


def test_what_each_probe_sees():
    rows = np.array([[1.0, 5], [3, 5]])
    seen, chosen = all_columns(rows, np.array([True, False]))
    assert chosen == () and seen(rows).tolist() == [
        [-1, 0],
        [1, 0],
    ]  # a constant column is silenced, not divided by 0
    sparse, _ = all_columns(csr_matrix(rows), np.array([True, False]))
    assert sparse(csr_matrix(rows)).toarray().tolist() == [
        [1, 0],
        [3, 0],
    ]  # over its deviation 1, not centred
    along, _ = mean_direction(rows, np.array([False, True]))
    assert along(rows).tolist() == [[-1], [1]]
    few, chosen = strongest_latents(1, "mean_difference")(csr_matrix(rows), np.array([False, True]))
    assert chosen == (0,) and few(csr_matrix(rows)).tolist() == [[-1], [1]]


def test_the_penalty_is_chosen_by_held_out_folds():
    """200 columns of noise with the label's own weak one: a weak penalty overfits, and the fold says so."""
    generator = np.random.default_rng(0)
    positive = generator.random(150) < 0.5
    rows = generator.normal(size=(150, 200)) + 0.3 * positive[:, None] * (np.arange(200) < 5)
    folds = folds_of(np.arange(150), positive, 4, 0)
    assert fit_probe(rows, positive, all_columns, folds, (1e-3, 10.0)).inverse_l2 == 1e-3
    strong = rows[:, :2] + 5 * positive[:, None]
    assert fit_probe(strong, positive, all_columns, folds, (1e-3, 10.0)).inverse_l2 == 10.0


def test_weighted_auroc_is_that_of_repeated_items():
    generator = np.random.default_rng(0)
    scores, positive = generator.integers(0, 5, 40).astype(float), generator.random(40) < 0.4
    times = generator.integers(0, 4, (6, 40))
    found = weighted_auroc(scores, positive, torch.from_numpy(times).double())
    for row, n in enumerate(times):
        s, p = np.repeat(scores, n), np.repeat(positive, n)
        assert float(found[row]) == pytest.approx(auroc(s[~p], s[p]), abs=1e-12)
    assert weighted_auroc(scores, positive, torch.from_numpy(positive * 1.0)[None]).isnan().all()
    with pytest.raises(ValueError, match="got nan at place 1"):
        weighted_auroc([0.0, float("nan")], [True, False], torch.ones(1, 2))


# Intervals --------------------------------------------------------------------------------------------------


def test_the_bootstrap_of_a_mean_is_the_cluster_bootstrap():
    generator = torch.Generator().manual_seed(0)
    values, clusters = torch.randn(60, generator=generator).double(), torch.arange(60) // 3
    known = cluster_bootstrap(values, clusters, n_resamples=500)
    found = bootstrap_statistic(lambda w: ((w @ values) / w.sum(1))[:, None], clusters, n_resamples=500)
    for field in ("estimate", "low", "high"):
        assert float(getattr(found, field)) == pytest.approx(float(getattr(known, field)), abs=1e-12)


def test_differences_keep_their_pairing():
    """A probe of the activations and one of latents that are the activations: no difference, and no width."""
    acts = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32) ** 2
    acts[:, 0] += LABELS
    report = sparse_probes(features_of(acts, acts), LABELS.tolist(), k=[1], **FAST | {"inverse_l2": (1.0,)})
    row = report["sae all 6"]
    assert (row.less_acts_low, row.less_acts_high) == pytest.approx((0, 0), abs=1e-3)
    assert row.auroc_high - row.auroc_low > 0.05


@pytest.mark.long
def test_intervals_are_wider_where_texts_come_in_groups():
    """Groups of 5 texts with one label and one latent value each are 5 times fewer texts: √5 the width, or
    so."""
    n_groups = 120
    generator = np.random.default_rng(0)
    label, value = generator.integers(0, 2, n_groups), generator.random(n_groups)
    labels, latents = np.repeat(label, 5), np.repeat(0.1 + value[:, None] + 0.3 * label[:, None], 5, axis=0)
    groups = np.repeat(np.arange(n_groups), 5)
    options = FAST | {"n_resamples": 500}
    wide = sparse_probes(features_of(latents), labels.tolist(), groups.tolist(), k=[1], **options)["sae k=1"]
    narrow = sparse_probes(features_of(latents), labels.tolist(), k=[1], **options)["sae k=1"]
    assert wide.auroc_high - wide.auroc_low > 1.6 * (narrow.auroc_high - narrow.auroc_low)


@pytest.mark.long
def test_intervals_of_an_auroc_cover_it():
    """400 simulations of 120 items, AUROC Φ(1/√2) = 0.760: 95 % ± 3.3 % (three standard errors)."""
    truth, generator = 0.5 * (1 + torch.erf(torch.tensor(0.5)).item()), torch.Generator().manual_seed(0)
    positive, n_covered = torch.arange(120) % 2 == 0, 0
    for _ in range(400):
        scores = torch.randn(120, generator=generator).double() + positive
        found = bootstrap_statistic(
            lambda w, s=scores: weighted_auroc(s, positive, w)[:, None], torch.arange(120), n_resamples=400
        )
        n_covered += bool(found.low <= truth <= found.high)
    assert 0.917 <= n_covered / 400 <= 0.983


def test_a_statistic_that_many_draws_lack_is_refused():
    positive = torch.tensor([True, False, False, False, False])
    with pytest.raises(ValueError, match="a class has too few of them"):
        bootstrap_statistic(
            lambda w: weighted_auroc(torch.arange(5.0), positive, w)[:, None], torch.arange(5)
        )


# Splits, labels, output
# -----------------------------------------------------------------------------------------


@pytest.mark.long
def test_several_splits_give_their_spread():
    report = sparse_probes(features_of(planted_latents()), LABELS.tolist(), k=[1], n_splits=3, **FAST)
    acts = [
        sparse_probes(
            features_of(planted_latents()),
            LABELS.tolist(),
            k=[1],
            split=Split(test_fraction=0.3, seed=i),
            **FAST,
        )
        for i in range(3)
    ]
    each = [one["activations"].auroc for one in acts]
    row = report["activations"]
    assert (row.splits_mean, row.splits_sd) == pytest.approx((np.mean(each), np.std(each, ddof=1)))
    assert row.auroc == each[0] and "3 splits" in str(report)
    assert report["sae k=1"].splits_sd == 0
    assert sparse_probes(features_of(noise()), LABELS.tolist(), k=[1], **FAST)["sae k=1"].splits_sd is None


@pytest.mark.long
def test_the_same_call_gives_the_same_numbers_and_json_holds_them():
    def call():
        return sparse_probes(features_of(noise()), LABELS.tolist(), k=[1, 2], **FAST | {"n_shuffles": 1})

    found = json.loads(json.dumps(call().to_dict()))
    assert call().to_frame()["auroc"].tolist() == [row["auroc"] for row in found["rows"]]
    assert found == json.loads(json.dumps(call().to_dict()))
    assert found["rows"][0]["name"] == "activations" and 0 <= found["rows"][0]["auroc"] <= 1
    assert set(found["rows"][0]) - {"name", "sae", "k"} == set(found["definitions"])
    assert found["classes"] == [0, 1] and sum(found["n_train"]) + sum(found["n_test"]) == N
    with pytest.raises(KeyError, match="no probe 'x', there are activations"):
        call()["x"]


def test_labels_of_any_kind():
    assert classes_of([True, False, True], 3)[0] == [False, True]
    assert classes_of(np.array(["b", "a"]), 2)[0] == ["a", "b"]
    assert classes_of(torch.tensor([2, 10, 2]), 3)[1].tolist() == [0, 1, 0]
    for labels, message in (
        ([0, 1], "one for each of 3 texts, got 2"),
        ([0, None, 1], "got None at place 1"),
        ([0.0, 1.0, float("nan")], "got nan at place 2"),
        ([1, 1, 1], "at least two classes, got [1]"),
        ([["a"], ["b"], ["a"]], "expected a str, int or bool for each text, got ['a'] at place 0"),
    ):
        with pytest.raises(ValueError) as error:
            classes_of(labels, 3)
        assert message in str(error.value)


def test_too_few_texts_of_a_class_are_refused_by_side():
    labels = np.zeros(N, dtype=int)
    labels[:3] = 1
    with pytest.raises(ValueError, match="unrelated texts of class 1, got [0-3]; all texts: {1: 3, 0: 397}"):
        sides(torch.arange(N), labels, [0, 1], Split())
    with pytest.raises(ValueError, match="at least 4 unrelated texts"):
        sparse_probes(features_of(noise()), LABELS.tolist(), ["one group"] * N, **FAST)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"k": [0]}, "k expected 1 to 50, the latents of 'sae', got 0"),
        ({"k": [51]}, "k expected 1 to 50, the latents of 'sae', got 51"),
        ({"select_by": "f1"}, "select_by expected one of"),
        ({"n_splits": 0}, "n_splits ≥ 1"),
        ({"inverse_l2": (0.0,)}, "inverse_l2 expected positive numbers"),
        ({"groups": [1]}, "groups expected one for each of 400 texts, got 1"),
        ({"confidence": 1.5}, "confidence expected a share"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError) as error:
        sparse_probes(features_of(noise()), LABELS.tolist(), **FAST | options)
    assert message in str(error.value)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ImportError, match=r"pip install 'saelens_lite\[probes\]'"):
        sparse_probes(features_of(noise()), LABELS.tolist())


# Whole, on models -------------------------------------------------------------------------------------------


def probed(model, tokenizer, texts, labels, sae):
    """The report on texts, after a look at whether each one's features are those that it has alone."""
    features = pooled_latents(model, tokenizer, texts, sae)
    alone = pooled_latents(model, tokenizer, texts[:8], sae, batch_size_texts=1)
    np.testing.assert_allclose(features.acts[:8], alone.acts, rtol=1e-3, atol=1e-4)
    return sparse_probes(features, labels, k=[1, 4], **FAST | {"n_shuffles": 3})


def random_sae(model, point, k=8, d_sae=256):
    d_model = model.config.hidden_size
    sae = SparseAutoencoder(SAEConfig(d_model=d_model, d_sae=d_sae, kind="topk", k=k, hook_point=point))
    with torch.no_grad():
        sae.W_enc.copy_(torch.randn(d_model, d_sae, generator=torch.Generator().manual_seed(0)))
    return sae


@pytest.mark.long
def test_reviews_and_plots_on_a_real_model(shared_data):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared_data / "models" / "stories260k-llama"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with gzip.open(
        shared_data / "corpora" / "subjectivity" / "data.jsonl.gz", "rt", encoding="utf-8"
    ) as file:
        rows = [json.loads(line) for line in file][::20]  # the classes lie in blocks
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    report = probed(model, tokenizer, texts, labels, random_sae(model, "blocks.2.hook_resid_post"))
    assert report["activations"].auroc_low > 0.7
    assert all(abs(row.shuffled - 0.5) < 0.1 for row in report.rows)
    assert report["sae k=1"].less_acts_high < 0


@pytest.mark.long
def test_functions_and_classes_on_the_embedded_model(embedded):
    """The twin of the test above."""
    model, tokenizer = embedded
    texts = [
        f"{word} {name}{i}({end}):"
        for i in range(30)
        for name in "xyz"
        for word, end in (("def", "a"), ("class", "A"))
    ]
    report = probed(model, tokenizer, texts, [0, 1] * 90, random_sae(model, "blocks.2.hook_resid_post"))
    assert report["activations"].auroc > 0.99
    assert all(abs(row.shuffled - 0.5) < 0.15 for row in report.rows)
