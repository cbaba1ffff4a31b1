"""A stream gives the rows that a harvest stores, in its order, bit for bit, and writes nothing."""

import pytest
import torch

from saelens_lite.errors import HookError
from saelens_lite.harvest import streaming
from saelens_lite.harvest.shards import write
from saelens_lite.harvest.streaming import activation_stream

HOOK_POINT = "blocks.0.hook_resid_post"
SETTINGS = {"context_length": 32, "batch_size_seqs": 4, "documents_per_shard": 8, "dtype": "float32"}


@pytest.fixture
def streamed(gpt2, byte_tokenizer, texts):
    """streamed(dataset=TEXTS, start=0, cursor=None, **options): all shards from one on."""

    def run(dataset=texts, start=0, cursor=None, hook_point=HOOK_POINT, **options):
        options = SETTINGS | {"tokenizer": byte_tokenizer} | options
        with activation_stream(gpt2, dataset, hook_point, **options) as rows:
            return list(rows.shards(start, cursor))

    return run


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_rows_are_those_of_a_store_of_the_same_text(harvest, streamed, dtype):
    store = harvest(hook_points=[HOOK_POINT], max_tokens=10**6, dtype=dtype)
    shards = streamed(dtype=dtype)
    assert [shard.index for shard in shards] == list(range(store.n_shards)) and store.n_shards == 5
    for shard in shards:
        assert (
            torch.equal(shard.acts, store.acts(shard.index))
            and shard.acts.dtype == store.acts(shard.index).dtype
        )
        assert torch.equal(shard.doc_ids, store.row_docs(shard.index))


def test_it_begins_where_it_is_told(streamed, texts, tmp_path):
    whole = streamed()
    for shard in (1, 4):
        assert all(
            torch.equal(a.acts, b.acts) for a, b in zip(streamed(start=shard), whole[shard:], strict=True)
        )
    assert streamed(start=5) == []
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    from_file = streamed(str(file))
    assert from_file[3].cursor is not None
    again = streamed(str(file), start=3, cursor=from_file[3].cursor)
    assert torch.equal(again[0].acts, from_file[3].acts) and torch.equal(again[0].acts, whole[3].acts)


def test_stages_that_overlap_give_the_same(streamed, monkeypatch):
    whole = streamed()
    for room in (write, streaming):
        monkeypatch.setattr(room, "overlaps", lambda model: True)
    assert all(torch.equal(a.acts, b.acts) for a, b in zip(streamed(), whole, strict=True))


def test_a_document_without_tokens_leaves_a_shard_without_rows(streamed):
    shards = streamed(["", "", "some", "text"], documents_per_shard=2)
    assert [len(shard.acts) for shard in shards] == [0, 8]


def test_the_fingerprint_names_the_rows(gpt2, byte_tokenizer, texts):
    def fingerprint(dataset=texts, **options):
        with activation_stream(
            gpt2, dataset, HOOK_POINT, tokenizer=byte_tokenizer, **SETTINGS | options
        ) as rows:
            return rows.fingerprint

    first = fingerprint()
    gpt2.config.name_or_path = "elsewhere"
    assert fingerprint() == first
    assert (
        len({first, fingerprint(context_length=16), fingerprint(dtype="bfloat16"), fingerprint(texts[:20])})
        == 4
    )


def test_shards_are_small_where_nothing_is_said(gpt2, byte_tokenizer, texts):
    """Eight batches of 2 · 32 tokens are 512 tokens; documents have 40 on average, so 8 of them a shard."""
    options = SETTINGS | {"batch_size_seqs": 2, "documents_per_shard": None}
    mean = sum(len(text.encode()) for text in texts) / len(texts)
    with activation_stream(gpt2, texts, HOOK_POINT, tokenizer=byte_tokenizer, **options) as rows:
        assert rows.plan["documents_per_shard"] <= 512 / mean < 2 * rows.plan["documents_per_shard"]


def test_the_model_is_held_still_and_left_as_it_was(gpt2, byte_tokenizer, texts):
    gpt2.train()
    with activation_stream(gpt2, texts, HOOK_POINT, tokenizer=byte_tokenizer, **SETTINGS) as rows:
        assert not gpt2.training and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        next(rows.shards())
    assert gpt2.training


def test_what_is_wrong_is_said_as_in_a_harvest(streamed):
    with pytest.raises(HookError, match="blocks.9"):
        streamed(hook_point="blocks.9.hook_resid_post")
    with pytest.raises(ValueError, match="unknown key 'context_lenght'"):
        streamed(context_lenght=8)
    with pytest.raises(ValueError, match="holds no documents"):
        streamed([])
