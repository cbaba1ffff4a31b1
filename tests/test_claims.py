"""Work shared among processes: two that meet in one key-value store, and one alone."""

import itertools

import pytest
from torch.distributed import HashStore

from saelens_lite import claims


@pytest.fixture
def two(monkeypatch):
    """The first and the second of two processes."""
    store, ranks = HashStore(), iter((0, 1))
    monkeypatch.setattr(claims, "several_processes", lambda: True)
    monkeypatch.setattr(claims, "meeting", lambda purpose: (store, next(ranks), 2))
    return claims.Processes("test"), claims.Processes("test")


def test_each_item_is_claimed_once_by_whoever_asks_first(two):
    first, second = (process.claimed([3, 5, 8, 9]) for process in two)
    assert [next(first), next(second), next(second), next(first)] == [3, 5, 8, 9]
    assert (list(first), list(second)) == ([], [])


def test_items_may_be_infinitely_many(two):
    first, second = (process.claimed(itertools.count()) for process in two)
    assert [next(first), next(second), next(first)] == [0, 1, 2]


def test_what_the_first_says_and_what_anyone_posts_is_known_to_all(two):
    first, second = two
    assert first.agreed("found", lambda: {"a": [1]}) == {"a": [1]}
    assert second.agreed("found", lambda: pytest.fail("only the first process looks")) == {"a": [1]}
    assert first.posted("rows/2") is None
    second.post("rows/2", -1)
    assert first.posted("rows/2") == -1


def test_a_single_process_takes_all_and_waits_for_nobody(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = claims.Processes("test")
    assert (alone.rank, alone.world_size, list(alone.claimed([4, 2]))) == (0, 1, [4, 2])
    assert alone.agreed("found", lambda: (1, 2)) == (1, 2)
    alone.wait_for_all()
