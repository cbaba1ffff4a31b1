"""The choice of a shard's size, and the thread that works ahead."""

import threading

import pytest

from saelens_lite.harvest.ahead import ahead
from saelens_lite.harvest.shards.plan import documents_per_shard


@pytest.mark.parametrize(
    ("mean_tokens", "max_tokens", "documents"),
    [
        (210, 10**9, 1024),  # 2^18 rows / 210 = 1248
        (1000, 10**9, 256),  # 2^18 rows / 1000 = 262
        (210, 2_000_000, 256),  # eight batches of 8,192 tokens / 210 = 312
        (210, 5_000_000, 512),  # 156,250 rows / 210 = 744
        (10**6, 10**9, 1),
        (0, 2_000_000, 65536),  # documents without tokens count as one
    ],
)
def test_documents_per_shard(mean_tokens, max_tokens, documents):
    assert documents_per_shard(mean_tokens, max_tokens, 8192) == documents


def test_ahead_keeps_order_and_stays_within_its_depth():
    made = []

    def items():
        for i in range(100):
            made.append(i)
            yield i

    with ahead(items(), depth=2) as taken:
        for i, item in enumerate(taken):
            assert item == i
            assert len(made) <= i + 1 + 2 + 1  # taken, two waiting, one in the producer's hand
    assert i == 99


def test_ahead_raises_where_the_item_would_have_come():
    def items():
        yield 1
        raise OSError("gone")

    with ahead(items(), depth=2) as taken:
        assert next(taken) == 1
        with pytest.raises(OSError, match="gone"):
            next(taken)


def test_ahead_leaves_no_thread_behind():
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), ahead(iter(range(10**9)), depth=2) as taken:
        next(taken)
        raise KeyboardInterrupt
    assert threading.active_count() == before
