"""Absorption by hand: SAEs that absorb all, half or nothing, rows whose shares can be counted, probes against
the truth."""

import dataclasses
import json
import math

import pytest
import torch
from torch.nn.functional import normalize

from saelens_lite.analyze.ground_truth.absorption import belongs_to, planted_absorption
from saelens_lite.analyze.probing.absorption import carried, label_absorption
from saelens_lite.sae.latents import SparseLatents
from saelens_lite.synthetic import SyntheticActivations, SyntheticConfig

from .test_recovery import make_sae


@pytest.fixture(scope="module")
def two_trees() -> SyntheticActivations:
    """16 orthogonal features: parents 0 and 1 with the children 2, 3 and 4, 5, all children equally
    frequent."""
    trees = {"n_trees": 2, "branching": 2, "depth": 1, "zipf_exponent": 0.0, "correlation_scale": 0.0}
    return SyntheticActivations(
        SyntheticConfig(d_model=16, n_features=16, l0=2.0, magnitude_std=0.1, **trees)
    )


@pytest.fixture(scope="module")
def rare_children() -> SyntheticActivations:
    """48 orthogonal features: a parent with 20 children, each on 2.5 % of its rows."""
    tree = {"n_trees": 1, "branching": 20, "depth": 1, "zipf_exponent": 0.0, "max_child_share": 0.5}
    return SyntheticActivations(SyntheticConfig(d_model=48, n_features=48, l0=6.0, magnitude_std=0.1, **tree))


def absorbing(synthetic: SyntheticActivations, children: list[int]):
    """A latent a feature; those of `children` write their parent's direction too, and silence its latent."""
    D = synthetic.directions
    W_enc, W_dec = D.T.clone(), D.clone()
    for child in children:
        parent = int(synthetic.parents[child])
        W_enc[:, parent] -= 3 * D[child]
        W_dec[child] = D[child] + D[parent]
    return make_sae(W_enc, W_dec)


@pytest.mark.parametrize(("children", "by_parent"), [([], (0, 0)), ([2, 3, 4, 5], (1, 1)), ([2, 3], (1, 0))])
def test_all_half_and_nothing(two_trees, children, by_parent):
    found = planted_absorption(absorbing(two_trees, children), two_trees, n_rows=4000)
    assert [row.latents for row in found.rows] == [(0,), (1,)]
    assert [row.absorption for row in found.rows] == pytest.approx(by_parent, abs=0.005)
    assert [row.fraction for row in found.rows] == pytest.approx(by_parent, abs=0.005)
    assert found.absorption == pytest.approx(sum(by_parent) / 2, abs=0.005)
    assert found.missed_alone == 0 and found.n_latents == 1


def test_one_child_of_two_absorbs_half_of_the_rows_with_a_child(two_trees):
    found = planted_absorption(absorbing(two_trees, [2]), two_trees, n_rows=8000).rows[0]
    assert found.absorption == pytest.approx(0.5, abs=0.04) and found.n_absorbed <= found.n_silent
    assert (
        found.rate == pytest.approx(found.n_absorbed / found.n_rows)
        and found.n_child_rows / found.n_rows > 0.5
    )


def test_silent_for_another_reason_is_no_absorption(two_trees):
    # The latent of parent 0 is silent where the child 2 fires, and nobody writes in its place.
    W_enc = two_trees.directions.T.clone()
    W_enc[:, 0] -= 3 * two_trees.directions[2]
    row = planted_absorption(make_sae(W_enc, two_trees.directions), two_trees, n_rows=4000).rows[0]
    assert row.n_absorbed == 0 and row.n_silent / row.n_child_rows == pytest.approx(0.5, abs=0.04)
    assert row.fraction == 0


def test_a_parent_without_a_latent_of_its_own_is_not_scored(two_trees):
    W_enc = two_trees.directions.T.clone()
    W_enc[:, 1] = 0
    found = planted_absorption(make_sae(W_enc, two_trees.directions), two_trees, n_rows=3000)
    assert [row.scored for row in found.rows] == [True, False] and math.isnan(found.rows[1].absorption)
    assert math.isnan(found.rows[1].fraction) and found.fraction == found.rows[0].fraction == 0
    assert "mean of 1 of 2 parents" in str(found)


def labelled(synthetic, n_rows, features):
    rows = synthetic.rows(0, n_rows)
    on = rows.latents.to_dense() > 0
    return rows.acts, {str(feature): on[:, feature] for feature in features}


def test_the_probe_agrees_with_the_truth_where_latents_are_given(two_trees):
    sae = absorbing(two_trees, [2, 3, 4])
    exact = planted_absorption(sae, two_trees, n_rows=12_000, start_row=0)
    acts, labels = labelled(two_trees, 12_000, [0, 1])
    halves = (
        torch.arange(12_000) // 6000
    )  # the exact version's halves, by a split that puts document 1 on the test side
    split = next(
        split for split in map(_split, range(100)) if split.tests(torch.arange(2)).tolist() == [False, True]
    )
    found = label_absorption(sae, acts, labels, halves, split, latents={"0": [0], "1": [1]})
    for probed, known in zip(found.rows, exact.rows, strict=True):
        assert probed.probe_f1 > 0.99 and abs(probed.n_rows - known.n_rows) < 0.02 * known.n_rows
        assert probed.rate == pytest.approx(known.rate, abs=0.01) and probed.n_silent >= known.n_silent - 5
    assert {latent for latent, _ in found.rows[0].absorbers} == {2, 3} and found.rows[1].absorbers[0][0] == 4


def _split(seed):
    from saelens_lite.analyze.stats.document_split import Split

    return Split(seed=seed)


@pytest.mark.parametrize("n_absorbing", [0, 10, 20])
def test_the_probe_finds_latents_and_rate_of_rare_children_by_itself(rare_children, n_absorbing):
    sae = absorbing(rare_children, list(range(1, 1 + n_absorbing)))
    exact = planted_absorption(sae, rare_children, n_rows=10_000, start_row=0)
    acts, labels = labelled(rare_children, 10_000, [0])
    found = label_absorption(sae, acts, labels)
    assert found.rows[0].latents == exact.rows[0].latents == (0,)
    assert exact.absorption == pytest.approx(n_absorbing / 20, abs=0.06)
    assert found.rate == pytest.approx(exact.rate, abs=0.03) and found.rate == pytest.approx(
        n_absorbing / 40, abs=0.05
    )
    assert found.n_latents == 1 and found.rows[0].scored


def test_frequent_children_count_as_parts_and_absorb_nothing(two_trees):
    """What the k-sparse step of the paper does with children that have a third of their parent's rows."""
    acts, labels = labelled(two_trees, 6000, [0])
    found = label_absorption(absorbing(two_trees, [2, 3]), acts, labels)
    assert set(found.rows[0].latents) == {0, 2, 3} and found.rate == 0


def test_each_row_by_hand():
    # u is the first axis. Latent 0 is the main one; 1 has cos 0.6, 2 has cos 0.08, 3 has cos 0.8; 4 points
    # away from u.
    W_dec = torch.tensor([[1.0, 0], [0.6, 0.8], [0.08, 0.9968], [0.8, 0.6], [-1, 0]], dtype=torch.float64)
    acts = torch.tensor([
        [0, 1.0, 0, 0, 0],  # writes 0.6 of 1: absorbed
        [0, 0.5, 0, 0, 0],  # writes 0.3 of 1: silent, no more
        [0, 0, 9.0, 0, 0],  # writes 0.72, absorbed as a whole; cos 0.08 is too little for the fraction
        [0.5, 0.5, 0, 0.5, 0],  # writes 0.5, others 0.3 + 0.4; t − m bounds them: 0.5 / (0.5 + 0.5)
        [0.9, 0, 0, 0.5, 0],  # the main latent 0.9, others 0.4 of 1: 0.1 / (0.1 + 0.9)
        [1.2, 0, 0, 0.9, 0],  # the main latent has it all
        [0, 0, 0, 1.0, 2.0],  # t is below 0: nothing to explain
        [0, 0, 0, 0, 1.0],  # only away from u
    ], dtype=torch.float64)  # fmt: skip
    to_explain = torch.tensor([1.0, 1, 1, 1, 1, 1, -1, 1], dtype=torch.float64)
    u = torch.tensor([1.0, 0], dtype=torch.float64)
    latents = SparseLatents.from_dense(torch.cat([acts.new_ones(1, 5), acts]))
    found = carried(latents, torch.arange(1, 9), W_dec, u, to_explain, torch.tensor([0, 0]))
    assert found.silent.tolist() == [True, True, True, False, False, False, True, True]
    assert found.absorbed.tolist() == [True, False, True, False, False, False, False, False]
    assert found.fraction.tolist() == pytest.approx([1, 0, 0, 0.5, 0.1, 0, 0, 0])
    assert found.absorber[[0, 2, 4]].tolist() == [1, 2, 3]
    only = carried(latents, torch.arange(1, 9), W_dec, u, to_explain, torch.tensor([0]), torch.arange(5) == 3)
    assert only.absorbed.sum() == 0 and only.fraction.tolist() == pytest.approx(
        [0, 0, 0, 4 / 9, 0.1, 0, 0, 0]
    )


def test_what_a_latent_belongs_to_by_hand():
    features = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1]]).float()
    latents = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]).float()
    # 0: only where 0 fires alone, F1 2 / (1 + 3); 1: where 1 fires, F1 1, and 0.8 with 0; 2: where 2 fires;
    # 3: never
    held = [SparseLatents.from_dense(rows) for rows in (latents, features)]
    assert belongs_to(*held, torch.ones(4, 3)).tolist() == [0, 1, 2, -1]
    cosines = torch.tensor([[0.9, 0, 0], [0.9, 0.5, 0], [0, 0, -0.1], [1, 0, 0]])
    assert belongs_to(*held, cosines).tolist() == [0, 0, -1, -1], "0.8 · 0.9 exceeds 1 · 0.5"


def test_normalised_inputs_leave_shares_as_they_are():
    # Rows of norm about 10 sqrt(8) come to sqrt(16) = 4, each by a factor of its own: latents of 10 to about
    # 1.4.
    trees = {
        "n_trees": 2,
        "branching": 2,
        "depth": 1,
        "zipf_exponent": 0.0,
        "max_rate": 0.6,
        "magnitude_mean": 10.0,
    }
    dense = SyntheticActivations(
        SyntheticConfig(d_model=16, n_features=16, l0=8.0, magnitude_std=0.5, **trees)
    )
    sae = absorbing(dense, [2, 3])
    sae.config = dataclasses.replace(sae.config, normalize_activations="constant_norm_rescale")
    found = planted_absorption(sae, dense, n_rows=3000)
    assert [row.absorption for row in found.rows] == pytest.approx([1, 0], abs=0.01)


def test_tables_and_plain_values(two_trees):
    sae = absorbing(two_trees, [2])
    exact = planted_absorption(sae, two_trees, n_rows=2000)
    acts, labels = labelled(two_trees, 2000, [0])
    labels["never read"] = torch.rand(2000, generator=torch.Generator().manual_seed(0)) < 0.3
    probed = label_absorption(sae, acts, labels, max_latents=1)
    assert "absorbed" in str(probed).splitlines()[0] and "mean of 1 of 2 labels" in str(probed)
    assert not probed.rows[1].scored and probed.rate == probed.rows[0].rate
    held = json.loads(json.dumps([exact.to_dict(), probed.to_dict()]))
    assert held[0]["absorption"] == exact.absorption and held[0]["rows"][0]["rate"] == exact.rows[0].rate
    assert held[1]["rows"][1]["scored"] is False and held[1]["rate"] == probed.rate


def test_what_cannot_be_scored_is_refused(two_trees):
    sae, flat = (
        absorbing(two_trees, []),
        SyntheticActivations(SyntheticConfig(d_model=16, n_features=16, l0=2.0)),
    )
    with pytest.raises(ValueError, match="set SyntheticConfig.n_trees"):
        planted_absorption(sae, flat)
    with pytest.raises(ValueError, match="expected an SAE of d_model=16"):
        planted_absorption(make_sae(torch.zeros(8, 3), normalize(torch.ones(3, 8))), two_trees)
    acts, labels = labelled(two_trees, 500, [0])
    for wrong, message in (
        ({}, "at least one label"),
        ({"none": torch.zeros(500)}, "items of both labels"),
        ({"0": labels["0"][:10]}, "a label each"),
    ):
        with pytest.raises(ValueError, match=message):
            label_absorption(sae, acts, wrong)
    with pytest.raises(ValueError, match="indices from 0 to 15"):
        label_absorption(sae, acts, labels, latents={"0": [16]})
    for wrong in ({"max_latents": 0}, {"f1_rise": 0.0}):
        for score in (
            lambda **w: label_absorption(sae, acts, labels, **w),
            lambda **w: planted_absorption(sae, two_trees, n_rows=200, **w),
        ):
            with pytest.raises(ValueError, match="max_latents of 1 or more and f1_rise above 0"):
                score(**wrong)
    acts[7, 3] = torch.nan
    with pytest.raises(ValueError, match="nan or infinity in row 7"):
        label_absorption(sae, acts, labels)
