"""Synthetic activations: the statistics that were ordered, and rows that depend on their number alone."""

import dataclasses
import itertools

import pytest
import torch

from saelens_lite.store.reader import ActivationStore
from saelens_lite.synthetic import BLOCK_ROWS, SyntheticActivations, SyntheticConfig, spread

SMALL = {
    "d_model": 16,
    "n_features": 64,
    "l0": 4.0,
    "n_trees": 2,
    "branching": 2,
    "depth": 2,
    "correlation_rank": 5,
}
N_ROWS = 40 * BLOCK_ROWS


def make(**changes) -> SyntheticActivations:
    return SyntheticActivations(SyntheticConfig(**SMALL | changes))


def fires(synthetic: SyntheticActivations, n_rows: int = N_ROWS) -> torch.Tensor:
    """bool[n_rows n_features]"""
    return synthetic.rows(0, n_rows).latents.to_dense() > 0


def within_bounds(counts: torch.Tensor, rates: torch.Tensor, n_rows: int) -> None:
    """Every count within five standard deviations of its binomial."""
    deviation = (counts.double() - rates * n_rows).abs() / (rates * (1 - rates) * n_rows).sqrt()
    assert deviation.max() < 5, deviation.max()


def test_rates_fall_by_the_zipf_law_and_sum_to_l0():
    rates = make(n_trees=0, l0=4.0, zipf_exponent=0.5).rates
    torch.testing.assert_close(rates.sum().item(), 4.0)
    torch.testing.assert_close(rates, rates[0] * torch.arange(1, 65, dtype=torch.float64) ** -0.5)


def test_rates_are_capped_and_the_others_make_up_for_it():
    rates = make(n_trees=0, l0=10.0, max_rate=0.3).rates
    assert (rates[:3] == 0.3).all() and rates.max() == 0.3
    torch.testing.assert_close(rates.sum().item(), 10.0)


@pytest.mark.parametrize("correlation_scale, exclusive", list(itertools.product([0.0, 0.4], [False, True])))
def test_features_fire_at_their_rates_whatever_binds_them(correlation_scale, exclusive):
    synthetic = make(correlation_scale=correlation_scale, exclusive_siblings=exclusive)
    torch.testing.assert_close(synthetic.rates.sum().item(), 4.0)
    within_bounds(fires(synthetic).sum(0), synthetic.rates, N_ROWS)


def test_parents_are_those_of_the_levels():
    # 2 roots, 4 children, 8 grandchildren
    assert make().parents[:14].tolist() == [-1, -1, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert (make().parents[14:] == -1).all()


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_child_fires_only_where_its_parent_does(exclusive):
    synthetic = make(exclusive_siblings=exclusive, correlation_scale=0.3)
    on, children = fires(synthetic), (synthetic.parents >= 0).nonzero()[:, 0]
    assert on[:, children].sum() > 1000
    assert not (on[:, children] & ~on[:, synthetic.parents[children]]).any()
    assert (synthetic.rates[children] <= 0.8 * synthetic.rates[synthetic.parents[children]] + 1e-12).all()


def test_siblings_exclude_each_other_when_told_to():
    def together(synthetic: SyntheticActivations) -> int:
        return int((fires(synthetic)[:, 2:14].view(N_ROWS, 6, 2).sum(2) == 2).sum())

    assert together(make(exclusive_siblings=True)) == 0
    assert together(make(exclusive_siblings=False)) > 100


def test_a_parent_is_seen_without_its_children():
    # Wanted shares of a root by Zipf are far above the cap, so all its children together have 0.5 of it.
    synthetic = make(exclusive_siblings=True, max_child_share=0.5, zipf_exponent=0.0)
    on = fires(synthetic)
    alone = (on[:, 0] & ~on[:, 2:4].any(1)).sum()
    within_bounds(alone, synthetic.rates[0] / 2, N_ROWS)


def test_features_fire_together_as_their_correlation_says():
    synthetic = make(n_trees=0, correlation_scale=0.4, zipf_exponent=0.0, l0=16.0)
    z_correlation = synthetic.loadings @ synthetic.loadings.T
    of_firings = torch.corrcoef(fires(synthetic).T.float())
    strong = z_correlation.abs().fill_diagonal_(0) > 0.4
    assert strong.sum() > 50 and (z_correlation[strong] < 0).any() and (z_correlation[strong] > 0).any()
    assert (of_firings[strong].sign() == z_correlation[strong].sign()).all()
    assert (
        torch.corrcoef(fires(make(n_trees=0, correlation_scale=0.0)).T.float()).fill_diagonal_(0).abs().max()
        < 0.06
    )


def test_a_childs_loading_is_orthogonal_to_its_ancestors_so_that_its_rate_holds():
    synthetic = make(correlation_scale=0.4)
    for feature in range(2, 14):
        ancestor = int(synthetic.parents[feature])
        while ancestor >= 0:
            assert abs(float(synthetic.loadings[feature] @ synthetic.loadings[ancestor])) < 1e-6
            ancestor = int(synthetic.parents[ancestor])


def test_acts_are_the_sum_of_the_directions_that_fire():
    synthetic = make()
    acts, latents = synthetic.rows(3, 500)
    assert acts.dtype == torch.float32 and acts.shape == (500, 16) and latents.d_sae == 64
    torch.testing.assert_close(acts, latents.to_dense() @ synthetic.directions)
    torch.testing.assert_close(synthetic.directions.norm(dim=1), torch.ones(64))


def test_magnitudes_are_those_of_a_folded_normal():
    values = make(magnitude_mean=2.0, magnitude_std=0.5).rows(0, N_ROWS).latents.values
    assert (values > 0).all()
    assert (
        abs(values.mean() - 2) < 0.02 and abs(values.std() - 0.5) < 0.02
    )  # 4 deviations from 0: hardly any is folded
    assert (make(magnitude_std=0.0).rows(0, 100).latents.values == 1).all()


def test_rows_depend_on_the_seed_and_their_number_alone():
    synthetic, again = make(), make()
    whole = synthetic.rows(0, 3 * BLOCK_ROWS)
    for first_row, n_rows in [
        (0, 1),
        (BLOCK_ROWS - 1, 2),
        (100, BLOCK_ROWS),
        (2 * BLOCK_ROWS, BLOCK_ROWS),
        (7, 0),
    ]:
        part = again.rows(first_row, n_rows)
        assert torch.equal(part.acts, whole.acts[first_row : first_row + n_rows])
        assert torch.equal(part.latents.to_dense(), whole.latents.to_dense()[first_row : first_row + n_rows])
    chunks = list(synthetic.chunks(100, 500, chunk_rows=77))
    assert [len(chunk.acts) for chunk in chunks] == [77] * 6 + [38]
    assert torch.equal(torch.cat([chunk.acts for chunk in chunks]), whole.acts[100:600])
    assert not torch.equal(make(seed=1).rows(0, 50).acts, whole.acts[:50])
    assert len(synthetic.rows(2**40, 5).acts) == 5


def test_blocks_differ():
    acts = make().rows(0, 2 * BLOCK_ROWS).acts
    assert not torch.equal(acts[:BLOCK_ROWS], acts[BLOCK_ROWS:])


def test_spreading_lowers_the_noise_of_superposition_to_its_bound():
    noise = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))

    def interference(directions: torch.Tensor) -> float:
        return (directions @ directions.T).square().sum().item()  # with the diagonal, as in the bound n²/d

    bound = 64**2 / 16
    assert interference(spread(noise, 0)) > 1.15 * bound
    assert bound <= interference(spread(noise, 20)) * (1 + 1e-6) < 1.001 * bound
    torch.testing.assert_close(
        spread(noise[:16], 1) @ spread(noise[:16], 1).T, torch.eye(16), atol=1e-5, rtol=0
    )


def test_a_store_of_them_holds_the_rows_with_blocks_as_documents(tmp_path):
    synthetic, n_rows = make(), 40 * BLOCK_ROWS + 9
    store = synthetic.to_store(tmp_path / "store", n_rows, rows_per_shard=3000)
    assert (
        isinstance(store, ActivationStore) and store.hook_points == ["synthetic"] and store.n_rows == n_rows
    )
    held = torch.cat([store.acts(shard) for shard in range(store.n_shards)])
    assert torch.equal(held, synthetic.rows(0, n_rows).acts)
    assert 0 < store.held_out_rows(0.1).sum() < n_rows
    held_out = torch.as_tensor(store.held_out_rows(0.1))[: 40 * BLOCK_ROWS].view(40, BLOCK_ROWS)
    assert (held_out.all(1) == held_out.any(1)).all()


OTHERS = {
    "d_model": 17, "n_features": 65, "l0": 5.0, "zipf_exponent": 1.0, "max_rate": 0.1, "magnitude_mean": 2.0,
    "magnitude_std": 0.3, "spread_steps": 0, "correlation_rank": 6, "correlation_scale": 0.2, "n_trees": 3,
    "branching": 3, "depth": 1, "exclusive_siblings": False, "max_child_share": 0.3, "seed": 1,
}  # fmt: skip


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(SyntheticConfig)])
def test_every_field_changes_the_rows(field):
    rows, others = make().rows(0, 512).acts, make(**{field: OTHERS[field]}).rows(0, 512).acts
    assert rows.shape != others.shape or not torch.equal(rows, others)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"d_model": 0}, "d_model expected at least 1, got 0"),
        ({"max_rate": 1.0}, "max_rate expected above 0 and below 1, got 1.0"),
        ({"n_features": 13}, "n_features expected at least the 14 of 2 trees, got 13"),
        ({"correlation_rank": 2}, "correlation_rank expected at least 3"),
        ({"l0": 60.0}, "l0 expected at most .* from 64 features under max_rate=0.4"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make(**change)


def test_rows_before_the_first_are_refused():
    with pytest.raises(ValueError, match="start_row and n_rows of 0 or more, got -1 and 3"):
        make().rows(-1, 3)
