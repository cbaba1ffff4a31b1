"""The buffer gives what the order says, whatever was read before."""

import threading
import time
from concurrent.futures import wait

import pytest
import torch

from saelens_lite.prefetch import THREAD_NAME
from saelens_lite.train.rows.row_buffer import RowBuffer
from saelens_lite.train.rows.row_order import RowOrder


class Source:
    """Row r is [r, r]."""

    def gather(self, rows, dtype, out=None):
        acts = rows[:, None].repeat(1, 2).to(dtype)
        return acts if out is None else out.copy_(acts)


def buffer(rows=None, source=None, ahead=0, **fields):
    rows = torch.arange(1000) if rows is None else rows
    order = RowOrder(rows, **{"batch_size_rows": 30, "buffer_rows": 300, "seed": 0, **fields})
    return RowBuffer(source or Source(), order, d_model=2, dtype=torch.float32, ahead_to=ahead)


def test_an_epoch_shows_every_row_at_most_once_and_leaves_out_less_than_a_batch():
    b = buffer()
    seen = torch.cat([b.batch(s)[:, 0] for s in range(b._order.steps_per_epoch)])
    assert b._order.steps_per_epoch == 33
    assert len(seen.unique()) == len(seen) == 990


def test_only_the_given_rows_are_used():
    rows = torch.arange(0, 1000, 3)
    seen = torch.cat([buffer(rows).batch(s)[:, 0] for s in range(20)])
    assert set(seen.long().tolist()) <= set(rows.tolist())


def test_a_batch_does_not_depend_on_what_was_read_before():
    b = buffer()
    forwards = [b.batch(s) for s in range(70)]
    fresh = buffer()
    for step in (69, 3, 40, 0, 34):
        assert torch.equal(fresh.batch(step), forwards[step])


def test_seed_and_epoch_change_the_order():
    b = buffer()
    assert not torch.equal(b.batch(0), buffer(seed=1).batch(0))
    assert not torch.equal(b.batch(0), b.batch(b._order.steps_per_epoch))


def test_a_buffer_mixes_rows_from_everywhere():
    b = buffer(torch.arange(100_000), buffer_rows=10_000, batch_size_rows=1000)
    halves = (b.batch(0)[:, 0] < 50_000).float().mean()
    assert 0.2 < halves < 0.8


def test_too_few_rows_is_a_clear_error():
    with pytest.raises(ValueError, match="at least one batch of 30 rows, got 12"):
        buffer(torch.arange(12))


# reading ahead


class Slow(Source):
    """Notes what was asked for, in which thread; may fail at a call, and waits where it is told to."""

    def __init__(self, fails_at=None):
        self.calls, self.fails_at, self.go_on = [], fails_at, threading.Event()
        self.go_on.set()

    def gather(self, rows, dtype, out=None):
        self.calls.append((len(rows), threading.current_thread().name))
        if len(self.calls) - 1 == self.fails_at:
            raise OSError("disk gone")
        assert self.go_on.wait(30)
        return super().gather(rows, dtype, out)


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


def test_ahead_gives_the_same_batches():
    alone, ahead = buffer(), buffer(ahead=100)
    for step in (*range(70), 3, 40, 41, 0, 69):
        assert torch.equal(ahead.batch(step), alone.batch(step))
    ahead.close()


def test_the_next_buffer_is_read_while_this_one_is_trained_on():
    source = Slow()
    b = buffer(source=source, ahead=100)
    for step in range(10):
        b.batch(step)
    wait([b._buffers._next.made])
    assert [name for _, name in source.calls] == ["MainThread", f"{THREAD_NAME}_0"]
    b.batch(10)
    b.close()
    assert [size for size, _ in source.calls] == [300, 300, 300]  # steps 0–9, 10–19, 20–29


def test_nothing_is_read_ahead_of_the_last_step():
    for ahead, expected in ((10, 1), (11, 2)):  # steps 0–9 are of the first buffer
        source = Slow()
        b = buffer(source=source, ahead=ahead)
        b.batch(0)
        b.close()
        assert len(source.calls) == expected


def test_without_it_one_buffer_is_held_at_a_time_and_no_thread_runs():
    source = Slow()
    b = buffer(source=source)
    b.batch(0)
    assert len(source.calls) == 1 and not threads()


def test_a_failure_while_reading_ahead_is_raised_where_its_rows_are_due():
    b = buffer(source=Slow(fails_at=1), ahead=100)
    for step in range(10):
        b.batch(step)
    with pytest.raises(OSError, match="disk gone"):
        b.batch(10)
    assert torch.equal(b.batch(10), buffer().batch(10))  # asked again, it is read again
    b.close()
    assert not threads()


def test_nothing_is_left_running_when_it_is_closed():
    source = Slow()
    b = buffer(source=source, ahead=100)
    b.batch(0)
    wait([b._buffers._next.made])
    source.go_on.clear()
    closing = threading.Thread(target=b.close)
    b.batch(10)
    closing.start()
    time.sleep(0.05)
    source.go_on.set()
    closing.join(30)
    assert not threads() and not closing.is_alive()
