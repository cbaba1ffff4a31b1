"""Work shared among processes: two that meet in one key-value store, and one alone."""

import itertools
import threading

import pytest
from torch.distributed import HashStore

from saelens_lite import claims
from saelens_lite.errors import SaelensLiteError


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


@pytest.mark.long
def test_a_process_that_ended_is_not_waited_for(two, monkeypatch):
    monkeypatch.setattr(claims, "_BEAT_S", 0.05)
    monkeypatch.setattr(claims, "_SILENCE_S", 0.5)
    first, second = two
    for process in two:  # the beats of before are slower
        process._ended.set()
    for process in two:
        process._ended = threading.Event()
        threading.Thread(target=claims._beat, args=(process._kv, process.rank, process._ended)).start()
    waited = threading.Thread(target=first.wait_for_all)
    waited.start()
    waited.join(1.0)
    assert waited.is_alive()  # the other lives, however long it takes
    second.wait_for_all()
    waited.join(5.0)
    assert not waited.is_alive()
    second._ended.set()
    with pytest.raises(SaelensLiteError, match="process 1 of 2 ended or hangs, .* start all processes again"):
        first._wait(["never"])
    first._ended.set()


def test_the_process_that_keeps_the_store_may_end(two, monkeypatch):
    first, _ = two

    def gone(*_):
        raise RuntimeError("Connection reset by peer")

    class Gone:
        wait = add = gone

    monkeypatch.setattr(claims, "_BEAT_S", 0.0)
    monkeypatch.setattr(first, "_kv", Gone())
    with pytest.raises(SaelensLiteError, match="the first process of 2 ended: what is finished is kept"):
        first._wait(["never"])
