"""Row order is a pure function of (seed, step); shares of a mixture are met at every step."""

from fractions import Fraction

import pytest
import torch

from saelens_lite.train.rows.row_order import MixedOrder, RowOrder, shares

SIZES = (1000, 300, 57)
PARTS = [torch.arange(1000), 5000 + torch.arange(300), 9000 + torch.arange(57)]


def mixed(weights=SIZES, parts=PARTS, seed=0, **fields):
    return MixedOrder(parts, weights, **{"batch_size_rows": 30, "buffer_rows": 300, **fields}, seed=seed)


def batch(order, step):
    key, within = order.place(step)
    return order.rows(key)[within]


def of_parts(rows):
    return [int(((rows >= part[0]) & (rows <= part[-1])).sum()) for part in PARTS]


def test_shares_add_up_and_never_fall():
    """7 rows at 1:1:1: 2 + 1/3 each, rounded from the last one on; one more row goes to one part."""
    assert shares(7, [1, 1, 1]) == [2, 3, 2]
    weights = [Fraction(w) for w in (0.7, 0.2, 0.0999, 0.0001)]
    before = [0] * 4
    for n in range(1, 3000):
        found = shares(n, weights)
        assert sum(found) == n and sorted(b - a for a, b in zip(before, found, strict=True)) == [0, 0, 0, 1]
        assert all(abs(share - n * float(w)) <= 2 for share, w in zip(found, weights, strict=True))
        before = found


def test_every_batch_has_the_given_shares_and_rounding_does_not_add_up():
    """0.7 · 30 = 21, 0.2 · 30 = 6, 0.1 · 30 = 3; of 0.45, 13.5."""
    assert {tuple(of_parts(batch(mixed((0.7, 0.2, 0.1)), step))) for step in range(40)} == {(21, 6, 3)}
    found = [of_parts(batch(mixed((0.45, 0.45, 0.1)), step)) for step in range(40)]
    assert {n[0] for n in found} == {13, 14} and [sum(n) for n in zip(*found, strict=True)] == [540, 540, 120]


def test_with_sizes_as_weights_an_epoch_shows_every_row_at_most_once():
    order = mixed()
    seen = torch.cat([batch(order, step) for step in range(order.steps_per_epoch)])
    assert order.steps_per_epoch == 45
    assert len(seen.unique()) == len(seen) == 1350


def test_a_part_of_much_weight_comes_again_in_another_order():
    order = mixed((0.1, 0.1, 0.8))
    seen = torch.cat([batch(order, step) for step in range(19)])
    small = seen[seen >= 9000]
    assert len(small) == 19 * 24 == 8 * 57
    assert small.unique(return_counts=True)[1].tolist() == [8] * 57
    large = seen[seen < 5000]
    assert len(large.unique()) == len(large) == 19 * 3


def test_a_mixed_batch_does_not_depend_on_what_was_asked_before():
    forwards = [batch(mixed(), step) for step in range(70)]
    for step in (69, 3, 40, 0, 34):
        assert torch.equal(batch(mixed(), step), forwards[step])
    assert not torch.equal(batch(mixed(seed=1), 0), forwards[0])


def test_the_rows_of_a_part_do_not_stand_together_in_a_batch():
    first_half = batch(mixed((1, 1, 1), batch_size_rows=300), 0)[:150]
    assert all(30 < n < 70 for n in of_parts(first_half))


def test_a_mixed_buffer_has_rows_from_everywhere():
    parts = [torch.arange(100_000), 200_000 + torch.arange(100_000)]
    rows = batch(mixed((1, 1), parts, batch_size_rows=2000, buffer_rows=20_000), 0)
    assert 350 < int((rows < 50_000).sum()) < 650


def test_where_buffers_end():
    """33 steps an epoch, 10 a buffer."""
    order = RowOrder(torch.arange(1000), batch_size_rows=30, buffer_rows=300, seed=0)
    assert [order.end(key) for key in ((0, 0), (0, 2), (0, 3), (1, 0))] == [10, 30, 33, 43]
    for either in (order, mixed()):
        ends = [either.end(either.place(step)[0]) for step in range(100)]
        assert all(end > step and either.place(end)[1] == 0 for step, end in enumerate(ends))


def test_too_few_rows_is_a_clear_error():
    with pytest.raises(ValueError, match="at least one batch of 2000 rows, got 1357"):
        mixed(batch_size_rows=2000)
