"""The choice of a shard's size."""

import pytest

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
