"""Recovery scores on SAEs made by hand, whose scores are known, and on a training small enough to watch."""

import dataclasses
import json

import pytest
import torch
from torch.nn.functional import normalize

from saelens_lite.analyze.ground_truth.recovery import AbsorptionSums, Pairs, evaluate_recovery
from saelens_lite.analyze.stats.document_split import Split, select_latents
from saelens_lite.analyze.stats.ranks import auroc
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig
from saelens_lite.sae.latents import SparseLatents
from saelens_lite.synthetic import SyntheticActivations, SyntheticConfig

TREES = {"n_trees": 2, "branching": 2, "depth": 1}


@pytest.fixture(scope="module")
def orthogonal() -> SyntheticActivations:
    """16 orthogonal features: two parents 0 and 1 with the children 2, 3 and 4, 5, and ten others."""
    return SyntheticActivations(
        SyntheticConfig(d_model=16, n_features=16, l0=2.0, magnitude_std=0.1, **TREES)
    )


def make_sae(W_enc: torch.Tensor, W_dec: torch.Tensor, threshold: float = 0.3) -> SparseAutoencoder:
    """jumprelu; W_enc float[d_model d_sae], W_dec float[d_sae d_model]"""
    sae = SparseAutoencoder(SAEConfig(d_model=W_dec.shape[1], d_sae=W_dec.shape[0], kind="jumprelu"))
    with torch.no_grad():
        sae.W_enc.copy_(W_enc)
        sae.W_dec.copy_(W_dec)
        sae.threshold.fill_(threshold)
    return sae


@pytest.fixture
def perfect(orthogonal) -> SparseAutoencoder:
    return make_sae(orthogonal.directions.T, orthogonal.directions)


@pytest.fixture
def absorbing(orthogonal) -> SparseAutoencoder:
    """Latent 0 is the parent 0, but silent where its child 2 fires, whose latent stands for both.

    pre-activation of 0: a_0 − 2 a_2, of 2: a_2, which writes d_0 + d_2
    """
    D = orthogonal.directions
    W_enc, W_dec = D.T.clone(), D.clone()
    W_enc[:, 0] = D[0] - 2 * D[2]
    W_dec[2] = D[0] + D[2]
    return make_sae(W_enc, W_dec)


def test_the_planted_dictionary_scores_one(orthogonal, perfect):
    row = evaluate_recovery(perfect, orthogonal, n_rows=5000).row("trained")
    for name in ("mcc", "uniqueness", "precision", "recall", "f1", "feature_f1", "recovered", "norm_ratio"):
        assert getattr(row, name) == pytest.approx(1, abs=1e-4), name
    assert (row.dead, row.absorption, row.missed_alone, row.scored_edges) == (0, 0, 0, 4)
    assert row.fvu < 1e-9 and row.l0 == pytest.approx(2, abs=0.1)


def test_the_order_of_latents_does_not_matter(orthogonal, absorbing):
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    permuted = make_sae(absorbing.W_enc.detach()[:, order], absorbing.W_dec.detach()[order])
    given, again = (
        evaluate_recovery(sae, orthogonal, n_rows=3000).row("trained") for sae in (absorbing, permuted)
    )
    assert dataclasses.astuple(given)[1:] == pytest.approx(dataclasses.astuple(again)[1:], rel=1e-6)


def test_absorption_is_found_and_told_from_misses(orthogonal, absorbing):
    # Of the four edges, 2 → 0 is absorbed on every row (a_0 − 2 a_2 is below 0.3 for magnitudes near 1); 3 →
    # 0, 4 → 1 and 5 → 1 on none. Where no child of theirs fires, both parents' latents fire.
    row = evaluate_recovery(absorbing, orthogonal, n_rows=5000).row("trained")
    assert row.scored_edges == 4
    assert row.absorption == pytest.approx(1 / 4, abs=1e-3)
    assert row.missed_alone == 0


def test_a_parents_latent_that_is_silent_for_another_reason_is_no_absorption(orthogonal):
    D = orthogonal.directions
    W_enc = D.T.clone()
    W_enc[:, 0] = 0  # never fires, and nobody writes in its place
    row = evaluate_recovery(make_sae(W_enc, D), orthogonal, n_rows=2000).row("trained")
    assert row.absorption == 0 and row.missed_alone == pytest.approx(1 / 2)  # of the parents 0 and 1
    assert row.dead == 1 / 16


def test_an_edge_whose_parent_has_no_latent_of_its_own_is_not_scored(orthogonal):
    # Without the latent of parent 0 the nearest one to it is some other feature's.
    D = orthogonal.directions[1:]
    row = evaluate_recovery(make_sae(D.T, D), orthogonal, n_rows=2000).row("trained")
    assert row.scored_edges == 2 and row.absorption == 0
    assert row.mcc == pytest.approx(1) and row.recovered == pytest.approx(15 / 16)
    assert 15 / 16 < row.feature_f1 < 0.99  # some latent is taken for feature 0, seldom rightly


def test_counts_by_hand():
    # Feature 1 is the child of 0. Latents 0 and 1 are theirs; latent 1 writes 0.5 along the parent's
    # direction per unit.
    synthetic = SyntheticActivations(
        SyntheticConfig(d_model=4, n_features=3, l0=0.5, n_trees=1, branching=1, depth=1)
    )
    synthetic.directions = torch.eye(3, 4)
    W_dec = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.8, 0, 0], [0, 0, 1.0, 0]])
    of_itself = torch.arange(3)
    sums = AbsorptionSums(W_dec, synthetic, of_itself, of_itself)
    assert sums.scored.tolist() == [False, True, False]
    truth = torch.tensor(
        [[1.0, 1, 0], [1, 1, 0], [1, 1, 0], [1, 1, 0], [1, 0, 0], [1, 0, 1], [1, 0, 0], [0, 0, 1]]
    )
    found = torch.tensor([
        [0.9, 1, 0],  # both fire: not absorbed
        [0.0, 1, 0],  # silent, 1 · 0.5 ≥ 0.4 · 1: absorbed
        [0.0, 0.7, 0],  # silent, 0.7 · 0.5 < 0.4: missed only
        [0.0, 0, 1],  # silent, the child's latent too: missed only
        [1.0, 0, 0], [0.0, 0, 1], [1.0, 1, 0],  # the parent alone: missed once in three
        [1.0, 0, 0],  # the parent does not fire
    ])  # fmt: skip
    for rows in (slice(0, 3), slice(3, 8)):
        sums.update(
            Pairs(SparseLatents.from_dense(found[rows])), Pairs(SparseLatents.from_dense(truth[rows]))
        )
    assert sums.absorption == pytest.approx(1 / 4) and sums.missed_alone == pytest.approx(1 / 3)


def test_precision_recall_and_f1_by_hand(orthogonal):
    # Latent 0 points at the free feature 6 and fires where 6 or 7 does; latent 1 at 8, and is dead.
    D = orthogonal.directions
    sae = make_sae(torch.stack([D[6] + D[7], 0 * D[8]], dim=1), torch.stack([D[6], D[8]]))
    on = orthogonal.rows(0, 3000).latents.to_dense() > 0
    right, fired, true = (on[:, 6] & (on[:, 6] | on[:, 7])).sum(), (on[:, 6] | on[:, 7]).sum(), on[:, 6].sum()
    row = evaluate_recovery(sae, orthogonal, n_rows=3000, start_row=0).row("trained")
    assert row.precision == pytest.approx(float(right / fired) / 2) and row.recall == pytest.approx(1 / 2)
    assert row.f1 == pytest.approx(float(2 * right / (fired + true)) / 2)
    assert row.dead == 1 / 2 and row.uniqueness == 1 and row.mcc == pytest.approx(1)


def test_latents_that_topk_stores_as_zeros_in_any_order_do_not_count():
    latents = SparseLatents.from_topk(
        torch.tensor([[2.0, 0.0], [3.0, 1.0]]), torch.tensor([[4, 1], [3, 0]]), 5
    )
    pairs = Pairs(latents)
    assert (
        pairs.rows.tolist() == [0, 1, 1]
        and pairs.indices.tolist() == [4, 0, 3]
        and pairs.values.tolist() == [2, 1, 3]
    )
    rows, indices = torch.tensor([0, 0, 1, 1]), torch.tensor([1, 4, 3, 4])
    assert pairs.find(rows, indices)[0].tolist() == [False, True, True, False]
    assert pairs.values_of(rows, indices).tolist() == [0, 2, 3, 0]
    nothing = Pairs(latents.with_values(torch.zeros(4)))
    assert not nothing.find(rows, indices)[0].any() and nothing.values_of(rows, indices).tolist() == [0] * 4


def test_shrinkage_and_random_directions(orthogonal):
    shrunk = make_sae(orthogonal.directions.T, 0.5 * orthogonal.directions)
    noise = normalize(torch.randn(8, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    found = evaluate_recovery(shrunk, orthogonal, baseline=make_sae(noise.T, noise), n_rows=3000)
    assert found.row("trained").norm_ratio == pytest.approx(0.5) and found.row(
        "trained"
    ).mcc == pytest.approx(1)
    assert (
        found.row("baseline").mcc < 0.7
        and found.row("baseline").f1 < 0.5
        and found.row("baseline").recovered == 0
    )


def test_the_table_and_the_plain_values_hold_every_row(orthogonal, perfect):
    found = evaluate_recovery(perfect, orthogonal, baseline=perfect, n_rows=500)
    lines = str(found).splitlines()
    assert lines[0].split()[:4] == ["mcc", "F1", "precision", "recall"] and "absorption" in lines[0]
    assert [line.split()[0] for line in lines[1:3]] == ["trained", "baseline"]
    assert "16 planted features, " in lines[3] and "over 500 rows" in lines[3]
    assert "4 (trained), 4 (baseline) of 4 parent-child pairs" in lines[4]
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["n_edges"] == 4 and plain["rows"][1]["name"] == "baseline" and plain["rows"][0]["dead"] == 0
    frame = found.to_frame()
    assert frame["name"].tolist() == ["trained", "baseline"] and frame["dead"].tolist() == [0, 0]
    assert frame["mcc"].tolist() == [row.mcc for row in found.rows]


def test_without_a_hierarchy_there_is_no_absorption(perfect):
    flat = SyntheticActivations(SyntheticConfig(d_model=16, n_features=16, l0=2.0))
    found = evaluate_recovery(perfect, flat, n_rows=500)
    assert found.n_edges == 0 and found.row("trained").absorption is None
    assert "absorption" not in found.table()


def test_another_width_is_refused(orthogonal):
    sae = make_sae(torch.zeros(8, 3), torch.zeros(3, 8))
    with pytest.raises(
        ValueError, match="expected an SAE of d_model=16, the width of the synthetic rows, got one of 8"
    ):
        evaluate_recovery(sae, orthogonal)
    with pytest.raises(ValueError, match="n_rows of 1 or more, got 0"):
        evaluate_recovery(make_sae(torch.zeros(16, 3), torch.zeros(3, 16)), orthogonal, n_rows=0)


@pytest.fixture(scope="module")
def superposed(tmp_path_factory):
    """64 features in 32 dimensions, and a store of 25,000 rows of them."""
    synthetic = SyntheticActivations(
        SyntheticConfig(d_model=32, n_features=64, l0=2.0, n_trees=3, branching=2, depth=1)
    )
    return synthetic, synthetic.to_store(tmp_path_factory.mktemp("synthetic") / "store", 25_000)


@pytest.fixture(scope="module")
def trained_and_frozen(superposed, tmp_path_factory):
    """An SAE trained on them, and one that could move its encoder only."""
    import saelens_lite as sl  # the public face, as a user would; the rooms meet in data only

    options = {
        "kind": "batchtopk",
        "k": 2,
        "d_sae": 64,
        "n_epochs": 4,
        "batch_size_rows": 512,
        "progress": False,
    }
    folder = tmp_path_factory.mktemp("runs")
    return tuple(
        sl.train_sae(
            superposed[1], **options, freeze_decoder=freeze, device="cpu", output=str(folder / str(freeze))
        )
        for freeze in (False, True)
    )


@pytest.mark.long
@pytest.mark.property_check(11)
def test_training_finds_planted_features_and_a_frozen_decoder_does_not(superposed, trained_and_frozen):
    import saelens_lite as sl

    trained, frozen = trained_and_frozen
    found = sl.ground_truth.evaluate_recovery(trained, superposed[0], frozen, n_rows=5000)
    assert found.row("trained").mcc > 0.8 and found.row("trained").f1 > 0.6, f"\n{found}"
    assert found.row("baseline").f1 <= found.row("trained").f1 / 2, f"\n{found}"


@pytest.mark.long
@pytest.mark.property_check(11)
def test_selection_finds_the_planted_feature_behind_labels_and_baselines_have_none(
    superposed, trained_and_frozen
):
    """Labels are "feature f fires", for the 16 commonest outside the trees; AUROC is that of rows which did
    not select."""
    synthetic = superposed[0]
    made = synthetic.rows(25_000, 8192)
    fires, documents = made.latents.to_dense() > 0, torch.arange(8192) // 16
    tests, features = Split().tests(documents), range(9, 25)
    drawn = normalize(torch.randn(64, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    found = {}
    with torch.no_grad():
        for name, sae in zip(
            ("trained", "frozen", "random"), (*trained_and_frozen, make_sae(drawn.T, drawn))
        ):
            cosines, scores = [], []
            for feature in features:
                (latent,) = select_latents(
                    sae, made.acts, fires[:, feature], documents, by="welch_t"
                ).latents.tolist()
                cosines.append(normalize(sae.W_dec[latent], dim=0) @ synthetic.directions[feature])
                z, label = sae.encode_dense(made.acts[tests])[:, latent], fires[tests, feature]
                scores.append(auroc(z[~label], z[label]))
            found[name] = torch.stack(cosines), torch.tensor(scores).median()
    assert (found["trained"][0] > 0.9).double().mean() > 0.9 and found["trained"][1] > 0.95, found
    for baseline in ("frozen", "random"):
        assert found[baseline][0].max() < 0.9 and found[baseline][1] < 0.9, found
