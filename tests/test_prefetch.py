"""What is made ahead: in which order, how much of it, in which thread, and how it ends."""

import threading
import weakref
from concurrent.futures import wait
from typing import ClassVar

import pytest

from saelens_lite.prefetch import THREAD_NAME, Ahead, ahead


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


# the items of an iterable


def test_items_keep_their_order_and_stay_within_the_depth():
    made, names = [], set()

    def items():
        for i in range(100):
            made.append(i)
            names.add(threading.current_thread().name)
            yield i * i

    with ahead(items(), depth=2) as taken:
        for i, item in enumerate(taken):
            assert item == i * i
            assert len(made) <= i + 1 + 2
    assert i == 99 and names == {f"{THREAD_NAME}_0"} and not threads()


def test_items_are_made_while_the_block_works():
    third = threading.Event()

    def items():
        yield from (1, 2)
        third.set()
        yield 3

    with ahead(items(), depth=2) as taken:
        assert next(taken) == 1
        assert third.wait(30)
        assert list(taken) == [2, 3]


def test_an_exception_is_raised_where_its_item_would_have_come():
    def items():
        yield from (1, 2)
        raise OSError("gone")

    with ahead(items(), depth=4) as taken:
        assert [next(taken), next(taken)] == [1, 2]
        with pytest.raises(OSError, match="gone"):
            next(taken)
    assert not threads()


def test_after_an_exception_nothing_more_is_made():
    class Items:
        n = 0

        def __iter__(self):
            return self

        def __next__(self):
            self.n += 1
            raise OSError("gone")

    items = Items()
    with pytest.raises(OSError, match="gone"), ahead(items, depth=4) as taken:
        next(taken)
    assert items.n == 1


def test_an_interrupted_block_ends_the_thread():
    with pytest.raises(KeyboardInterrupt), ahead(iter(range(10**9)), depth=2) as taken:
        assert next(taken) == 0
        raise KeyboardInterrupt
    assert not threads()


# what belongs to keys


class Made:
    """What belongs to a key; counts how many there are."""

    alive: ClassVar = weakref.WeakSet()

    def __init__(self, key):
        self.key = key
        self.alive.add(self)


class Maker:
    def __init__(self, fails_at=None):
        self.calls, self.most, self.fails_at = [], 0, fails_at

    def __call__(self, key, stopped):
        self.calls.append((key, threading.current_thread().name.startswith(THREAD_NAME)))
        if key == self.fails_at:
            self.fails_at = None
            raise OSError("disk gone")
        made = Made(key)
        self.most = max(self.most, len(Made.alive))
        return made


def test_the_next_is_made_in_the_thread_and_what_does_not_follow_in_the_caller():
    maker = Maker()
    made = Ahead(maker, lambda key, _: key + 1 if key < 3 else None)
    assert [made[key].key for key in (0, 0, 1, 2, 3, 9)] == [0, 0, 1, 2, 3, 9]
    assert maker.calls == [(0, False), (1, True), (2, True), (3, True), (9, False)]
    made.close()
    assert not threads()


def test_another_key_than_the_next_is_made_once_the_next_is_given_up():
    stops, going = [], threading.Event()

    def make(key, stopped):
        if key == 1:
            going.set()
            assert stopped.wait(30)
            stops.append(key)
        return key * 10

    made = Ahead(make, lambda key, _: 1 if key == 0 else None)
    assert made[0] == 0 and going.wait(30)
    assert made[5] == 50 and stops == [1]
    made.close()


@pytest.mark.parametrize(("follows", "most"), [(True, 2), (False, 1)])
def test_no_more_is_in_memory_than_one_and_the_next(follows, most):
    maker = Maker()
    made = Ahead(maker, lambda key, _: key + 1 if follows else None)
    for key in range(6):
        assert made[key].key == key
    made.close()
    assert maker.most == most and not Made.alive


def test_a_failure_is_raised_where_its_key_is_asked_for_and_the_key_is_made_again():
    made = Ahead(Maker(fails_at=1), lambda key, _: key + 1)
    assert made[0].key == 0
    wait([made._next.made])
    assert made[0].key == 0
    with pytest.raises(OSError, match="disk gone"):
        made[1]
    assert made[1].key == 1
    made.close()
    assert not threads()


def test_closing_tells_the_thread_to_stop_and_waits_for_it():
    going = threading.Event()

    def make(key, stopped):
        if key == 1:
            going.set()
            assert stopped.wait(30)
        return key

    made = Ahead(make, lambda key, _: key + 1)
    assert made[0] == 0 and going.wait(30)
    made.close()
    assert not threads()
