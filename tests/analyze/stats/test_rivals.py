"""The guard against shortcuts: planted worlds, each verdict, and its numbers by hand or by another way."""

import dataclasses

import pytest
import torch

from saelens_lite.analyze.stats.bootstrap import holm, p_above_zero, student_t
from saelens_lite.analyze.stats.document_split import Split
from saelens_lite.analyze.stats.logistic import fit_few
from saelens_lite.analyze.stats.ranks import auroc, weighted_auroc
from saelens_lite.analyze.stats.rivals import against_rivals

N = 150  # entities a side
NAMES = [f"entity {i}" for i in range(2 * N)]
KNOWN = torch.arange(2 * N) < N
SELECTS = ~Split().tests(NAMES)
WIDTH = 32


def shift(area: float) -> float:
    """By which one of two normal groups of deviation 1 is moved for this AUROC: Φ(shift / √2)."""
    return 2**0.5 * float(torch.special.ndtri(torch.tensor(area, dtype=torch.float64)))


def world(seed: int, of_length: float = 0.5, of_direction: float = 0.5):
    """Activations float64[300 32] with a planted direction and one that reads length, and surface rivals.

    of_length, of_direction: AUROC of known against unknown
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    known = KNOWN.double()
    length = (4 + 1.5 * (normal(2 * N) + known * shift(of_length))).round().clamp(1, 12)
    planted, of_tokens = torch.linalg.qr(normal(WIDTH, 2))[0].T
    acts = normal(2 * N, WIDTH)
    acts = acts + (known * shift(of_direction))[:, None] * planted + (length - 4)[:, None] * of_tokens
    kinds = torch.randint(3, (2 * N,), generator=generator).tolist()
    rivals = {"length": length, "log probability": normal(2 * N), "kind": ["abc"[kind] for kind in kinds]}
    random = torch.nn.functional.normalize(normal(WIDTH, WIDTH), dim=1)
    latents = acts @ torch.cat([planted[None], of_tokens[None], random]).T
    return latents, rivals


def best_of(latents: torch.Tensor) -> int:
    """The latent that the selecting side takes."""
    once = torch.ones(1, int(SELECTS.sum()), dtype=torch.float64)
    return int((weighted_auroc(latents[SELECTS], KNOWN[SELECTS], once)[0] - 0.5).abs().argmax())


def verdict_on_best(seed: int, **planted: float) -> tuple[int, str]:
    latents, rivals = world(seed, **planted)
    best = best_of(latents)
    found = against_rivals({"best": latents[:, best]}, KNOWN, rivals, NAMES, n_resamples=1000)
    return best, found["best"].verdict


def verdicts_of_nothing(seed: int) -> list[str]:
    latents, rivals = world(seed)
    scores = {str(i): latents[:, i] for i in range(5)}
    return [row.verdict for row in against_rivals(scores, KNOWN, rivals, NAMES, n_resamples=1000).scores]


def check_planted_worlds(seeds: range, least: float) -> None:
    """least: share of the seeds that must find what is planted."""
    enough = least * len(seeds)
    confounded = [verdict_on_best(seed, of_length=0.9) for seed in seeds]
    assert all(verdict.startswith("confounded by") for _, verdict in confounded), confounded
    for planted in ({"of_direction": 0.8}, {"of_length": 0.65, "of_direction": 0.9}):
        found = [verdict_on_best(seed, **planted) for seed in seeds]
        assert sum(one == (0, "beyond the rivals") for one in found) >= enough, found
    nothing = [verdict for seed in seeds for verdict in verdicts_of_nothing(seed)]
    assert nothing.count("beyond the rivals") <= 0.05 * len(nothing), nothing


@pytest.mark.long
def test_planted_worlds_have_their_verdicts():
    check_planted_worlds(range(100, 102), 1.0)


@pytest.mark.long
def test_planted_worlds_have_their_verdicts_in_eighteen_of_twenty_seeds():
    check_planted_worlds(range(20), 0.9)


def test_areas_and_differences_are_those_of_the_testing_side():
    latents, rivals = world(0, of_length=0.7, of_direction=0.8)
    scores = {"planted": latents[:, 0], "turned": -latents[:, 0]}
    found = against_rivals(
        scores, KNOWN, rivals, NAMES, beside={"probe": latents[:, 0] ** 3}, n_resamples=400
    )
    tests = ~SELECTS
    area = auroc(latents[tests & ~KNOWN, 0], latents[tests & KNOWN, 0])
    length = auroc(rivals["length"][tests & ~KNOWN], rivals["length"][tests & KNOWN])
    row, turned = found["planted"], found["turned"]
    assert row.auroc == pytest.approx(area) and row.sign == 1
    assert dataclasses.replace(turned, name="planted", sign=1) == row and turned.sign == -1
    by_name = {rival.name: rival for rival in found.rivals}
    assert by_name["length"].auroc == pytest.approx(length)
    assert row.less == pytest.approx(area - max(rival.auroc for rival in found.rivals))
    assert row.less == pytest.approx(area - by_name[row.closest].auroc)
    assert row.auroc_low < row.auroc < row.auroc_high and row.less_low < row.less < row.less_high
    assert [one.name for one in found.rivals] == [
        "length",
        "length (any function)",
        "log probability",
        "log probability (any function)",
        "kind",
        "all rivals together",
    ]
    assert [one.name for one in found.beside] == ["probe"]
    assert found.beside[0].auroc == pytest.approx(area)  # a cube keeps the order
    n_test = [int((tests & (label == KNOWN)).sum()) for label in (False, True)]
    assert found.n_clusters == ((N - n_test[0], N - n_test[1]), tuple(n_test))
    table = str(found)
    assert "planted" in table and row.verdict in table and "pairs)" in table
    assert found.to_dict()["scores"][0]["in_strata"]["kind"]["n_pairs"] == row.in_strata["kind"].n_pairs
    assert list(found.to_frame()["verdict"]) == [row.verdict] * 2


def test_all_together_are_one_logistic_regression_of_the_selecting_side():
    from sklearn.linear_model import LogisticRegression

    latents, rivals = world(1, of_length=0.7)
    found = against_rivals({"x": latents[:, 0]}, KNOWN, rivals, NAMES, n_resamples=400)
    one_hot = torch.tensor([[kind == letter for letter in "abc"] for kind in rivals["kind"]]).double()
    columns = torch.cat([rivals["length"][:, None], rivals["log probability"][:, None], one_hot], dim=1)
    inside = columns[SELECTS]
    standard = ((columns - inside.mean(0)) / inside.std(0, correction=0)).numpy()
    probe = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000)
    probe.fit(standard[SELECTS.numpy()], KNOWN[SELECTS].numpy())
    said = torch.from_numpy(probe.decision_function(standard))[~SELECTS]
    weights, bias = fit_few(inside, KNOWN[SELECTS])
    torch.testing.assert_close(columns[~SELECTS] @ weights + bias, said, atol=1e-5, rtol=1e-5)
    area = auroc(said[~KNOWN[~SELECTS]], said[KNOWN[~SELECTS]])
    assert found.rivals[-1].auroc == pytest.approx(area)


def test_a_latent_of_one_length_in_the_middle_is_confounded_by_a_function_of_length():
    generator = torch.Generator().manual_seed(0)
    length = torch.where(KNOWN, 3, torch.randint(2, 5, (2 * N,), generator=generator)).double()
    found = against_rivals({"is three": (length == 3).double()}, KNOWN, {"length": length}, NAMES)
    row = found["is three"]
    assert row.auroc > 0.75 and row.verdict == "confounded by length (any function)"
    assert row.less == 0
    assert row.in_strata["length"].auroc == 0.5  # of equal length, all are equal


def test_a_category_confounds():
    relation = ["country" if known and i % 10 else "mayor" for i, known in enumerate(KNOWN.tolist())]
    latent = torch.tensor([one == "country" for one in relation]).double()
    found = against_rivals({"latent": latent}, KNOWN, {"relation": relation}, NAMES)
    assert found["latent"].verdict == "confounded by relation" and found["latent"].less == 0


@pytest.mark.long
def test_popularity_has_a_verdict_of_its_own():
    latents, rivals = world(3)
    popularity = torch.randn(2 * N, generator=torch.Generator().manual_seed(4)) + 2 * KNOWN
    latent = popularity + 0.3 * latents[:, 5]
    found = against_rivals({"latent": latent}, KNOWN, rivals, NAMES, popularity=popularity)
    assert found["latent"].verdict == "no more than popularity" and found["latent"].closest == "popularity"
    assert [one.name for one in found.rivals][-1] == "all rivals together"
    without = against_rivals({"latent": latent}, KNOWN, rivals, NAMES)
    assert without["latent"].verdict == "beyond the rivals"
    # it is not fitted with the others
    assert without.rivals[-1].auroc == found.rivals[-1].auroc
    both = against_rivals(
        {"latent": latent}, KNOWN, rivals | {"twin": popularity}, NAMES, popularity=popularity
    )
    assert both["latent"].verdict.startswith("confounded by twin")


def test_few_entities_leave_all_undecided():
    few = torch.arange(2 * N) % 15 == 0
    latents, rivals = world(0, of_direction=0.99)
    names = [name for name, here in zip(NAMES, few.tolist()) if here]
    length = {"length": rivals["length"][few]}
    found = against_rivals({"latent": latents[few, 0]}, KNOWN[few], length, names)
    assert min(map(min, found.n_clusters)) < 10
    assert found["latent"].verdict == "undecided: too few entities" and found["latent"].auroc > 0.9
    assert "undecided" in str(found) and "n/a" in str(found) and "nan" not in str(found)


def test_what_no_item_reads_is_nothing_and_what_few_read_may_be_useful_still():
    latents, rivals = world(7)
    assert against_rivals({"x": latents[:, 3]}, KNOWN, rivals, NAMES)["x"].verdict == "reads nothing"
    fewer = torch.arange(2 * N) % 4 == 0  # 76 entities
    names = [name for name, here in zip(NAMES, fewer.tolist()) if here]
    weak = latents[fewer, 3] + 0.4 * KNOWN[fewer]
    found = against_rivals({"x": weak}, KNOWN[fewer], {"length": rivals["length"][fewer]}, names)["x"]
    assert found.verdict == "undecided: too few entities" and found.auroc_high > 0.7


def test_pairs_of_equal_stratum_are_counted_by_hand():
    """Lengths 1 and 2 of the testing side: pairs of one length alone, ties half."""
    latents, _ = world(2)
    length = torch.where(torch.arange(2 * N) % 3 == 0, 1.0, 2.0)
    score = latents[:, 0].round()
    found = against_rivals({"x": score}, KNOWN, {"length": length}, NAMES, n_resamples=100)["x"]
    won = pairs = 0.0
    tests = (~SELECTS).nonzero()[:, 0].tolist()
    for i in tests:
        for j in tests:
            if KNOWN[i] and not KNOWN[j] and length[i] == length[j]:
                won += float(score[i] > score[j]) + 0.5 * float(score[i] == score[j])
                pairs += 1
    won = won if found.sign == 1 else pairs - won
    assert found.in_strata["length"].n_pairs == pairs
    assert found.in_strata["length"].auroc == pytest.approx(won / pairs)
    apart = against_rivals({"x": score}, KNOWN, {"length": KNOWN.double()}, NAMES, n_resamples=100)["x"]
    assert apart.in_strata["length"] == (None, 0)


def test_items_of_one_entity_are_drawn_together():
    """Four copies of each item say no more than one: without names, the interval would halve."""
    latents, rivals = world(5, of_direction=0.7)
    once = against_rivals({"x": latents[:, 0]}, KNOWN, {"length": rivals["length"]}, NAMES)["x"]
    four = against_rivals(
        {"x": latents[:, 0].repeat(4)}, KNOWN.repeat(4), {"length": rivals["length"].repeat(4)}, NAMES * 4
    )["x"]
    assert four.auroc == pytest.approx(once.auroc)
    assert four.auroc_low == pytest.approx(once.auroc_low, abs=1e-12)


def test_another_split_says_which_items_test():
    latents, rivals = world(6, of_direction=0.9)
    of_type_b = torch.arange(2 * N) % 2 == 1
    found = against_rivals({"x": latents[:, 0]}, KNOWN, rivals, NAMES, split=of_type_b)["x"]
    inside = latents[of_type_b, 0]
    assert found.auroc == pytest.approx(auroc(inside[~KNOWN[of_type_b]], inside[KNOWN[of_type_b]]))
    with pytest.raises(ValueError, match="1 documents have items on both sides of the split"):
        against_rivals({"x": latents[:, 0]}, KNOWN, rivals, ["one", "one", *NAMES[2:]], split=of_type_b)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"scores": {}}, "expected scores and rivals, at least one each"),
        ({"rivals": {}}, "expected scores and rivals, at least one each"),
        ({"rivals": {"x": torch.zeros(2 * N)}}, "by names that differ, got \\['x', 'x'\\]"),
        ({"rivals": {"length": [1.0, 2.0]}}, "'length' expected a value of each of 300 items, got 2"),
        ({"rivals": {"length": torch.full((2 * N,), torch.nan)}}, "'length' expected one finite number"),
        ({"scores": {"x": ["a"] * 2 * N}}, "'x' expected a number of each item, got categories"),
        ({"documents": NAMES[:7]}, "documents expected one for each of 300 items, got 7"),
        ({"labels": torch.ones(2 * N)}, "both labels on either side of the split, got 0 clusters of 0"),
        ({"split": torch.ones(3)}, "split expected whether each of 300 items tests, got 3"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    given = {"scores": {"x": torch.arange(2.0 * N)}, "labels": KNOWN, "rivals": {"length": torch.ones(2 * N)}}
    with pytest.raises(ValueError, match=message):
        against_rivals(**({**given, "documents": NAMES} | change))


def test_many_scores_at_once_equal_each_alone():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(6, (40, 7), generator=generator).double()
    positive = torch.rand(40, generator=generator) < 0.5
    weights = torch.randint(3, (9, 40), generator=generator).double()
    found = weighted_auroc(scores, positive, weights)
    assert found.shape == (9, 7)
    for r in range(9):  # every copy that was drawn
        copies = torch.arange(40).repeat_interleave(weights[r].long())
        for m in range(7):
            drawn, ones = scores[copies, m], positive[copies]
            assert float(found[r, m]) == pytest.approx(auroc(drawn[~ones], drawn[ones]))


def test_holm_is_that_of_a_case_by_hand():
    """.005·4, then .01·3, then the larger of .03·2 and what came before, and .04·1 after it."""
    torch.testing.assert_close(
        holm(torch.tensor([0.01, 0.04, 0.03, 0.005])),
        torch.tensor([0.03, 0.06, 0.06, 0.02]).double(),
        atol=1e-8,
        rtol=0,
    )
    rows = holm(torch.tensor([[0.5, 0.9], [0.125, 0.25]]))
    assert rows.tolist() == [[1.0, 1.0], [0.25, 0.25]]


def test_a_p_value_is_where_the_expanded_interval_ends_at_zero():
    """20 clusters; draws of which 2.5 % by Student's t lie below 0."""
    n = 20
    tail = float(torch.special.ndtr(torch.tensor(-((n / (n - 1)) ** 0.5) * student_t(0.975, n - 1)).double()))
    draws = torch.linspace(0, 1, 100_001).double() - tail
    assert float(p_above_zero(draws, n)) == pytest.approx(0.025, rel=1e-2)
    assert float(p_above_zero(torch.tensor([1.0, 1.0, 1.0]), n)) < 0.5 < float(p_above_zero(-draws, n))


def test_a_separable_column_and_a_constant_one_have_finite_weights():
    inputs = torch.stack([torch.arange(20.0), torch.ones(20)], dim=1)
    weights, bias = fit_few(inputs, torch.arange(20) >= 10)
    assert weights[0] > 0 and weights[1] == 0
    assert float(inputs[9] @ weights.float() + bias) < 0 < float(inputs[10] @ weights.float() + bias)
