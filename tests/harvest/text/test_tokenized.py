"""Documents to packed shards: what is tokenised, what only passed, and the ids of texts, chats and token
ids."""

import copy
import itertools
import json

import datasets
import numpy as np
import pytest

from saelens_lite.harvest.text.chat import chat_facts
from saelens_lite.harvest.text.sources import open_given, open_named
from saelens_lite.harvest.text.tokenized import packed_shards, token_ids
from saelens_lite.lm.token_text import special_token_ids

PLAN = {
    "documents_per_shard": 8,
    "context_length": 16,
    "bos_id": 1,
    "separator_id": 1,
    "special_ids": [0, 1, 2],
    "max_tokens": 1000,
}
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


class Counting:
    """A tokenizer that keeps the texts it was given; it has no backend, as slow ones."""

    def __init__(self, tokenizer):
        self.tokenizer, self.texts = tokenizer, []
        self.bos_token_id = tokenizer.bos_token_id

    def __call__(self, texts, **options):
        self.texts += texts
        return self.tokenizer(texts, **options)


@pytest.fixture
def chat_tokenizer(byte_tokenizer):
    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def shards(source, tokenizer, claims=None, start=0, cursor=None, **changes):
    claims = itertools.count() if claims is None else claims
    return packed_shards(source, tokenizer, PLAN | changes, claims, 259, start, cursor)


def assert_equal(shard, other):
    assert (shard.index, shard.n_documents, shard.cursor) == (other.index, other.n_documents, other.cursor)
    assert shard.contexts.first_doc == other.contexts.first_doc == 8 * shard.index
    for name in ("input_ids", "attended", "kept", "doc_id"):
        np.testing.assert_array_equal(getattr(shard.contexts, name), getattr(other.contexts, name))


def files(folder, texts):
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    datasets.Dataset.from_dict({"text": texts}).to_parquet(folder / "a.parquet")
    return [str(folder / "a.jsonl"), str(folder / "a.parquet")]


def test_only_claimed_shards_are_tokenised(texts, byte_tokenizer, tmp_path):
    for source in (
        open_given(texts),
        open_given(iter(texts)),
        *(open_named([name]) for name in files(tmp_path, texts)),
    ):
        tokenizer = Counting(byte_tokenizer)
        found = list(shards(source, tokenizer, [1, 4]))
        assert [(shard.index, shard.n_documents) for shard in found] == [(1, 8), (4, 8)]
        assert tokenizer.texts == texts[8:16] + texts[32:40]


def test_a_shard_is_the_same_from_wherever_the_source_is_opened(texts, byte_tokenizer, tmp_path):
    for names in ([name] for name in files(tmp_path, texts)):
        everything = list(shards(open_named(names), byte_tokenizer))
        assert [shard.index for shard in everything] == [0, 1, 2, 3, 4]
        for start, first in itertools.combinations_with_replacement(range(5), 2):
            cursor = json.loads(json.dumps(everything[start].cursor))
            tokenizer = Counting(byte_tokenizer)
            found = list(shards(open_named(names), tokenizer, itertools.count(first), start, cursor))
            for shard, expected in zip(found, everything[first:], strict=True):
                assert_equal(shard, expected)
            assert tokenizer.texts == texts[8 * first :]


def test_claims_are_taken_one_at_a_time_and_end_with_the_documents(texts, byte_tokenizer):
    taken = []
    claims = (taken.append(i) or i for i in itertools.count(0, 2))
    stream = shards(open_given(texts[:37]), byte_tokenizer, claims)
    assert taken == []
    for expected in ([0], [0, 2], [0, 2, 4]):
        assert next(stream).index == expected[-1]
        assert taken == expected
    assert next(stream, None) is None and taken == [0, 2, 4, 6]
    assert list(shards(open_given(texts), byte_tokenizer, [100])) == []
    with pytest.raises(ValueError, match="claims expected ascending shards from 3 on, got 1"):
        list(shards(open_given(texts), byte_tokenizer, [2, 1]))


def test_fast_and_slow_calls_agree(byte_tokenizer, texts):
    texts = [*texts, "", "<|bos|>x<|eos|>"]
    expected = byte_tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert token_ids(byte_tokenizer, texts) == expected
    assert token_ids(Counting(byte_tokenizer), texts) == expected
    left_behind = copy.deepcopy(byte_tokenizer)
    left_behind.backend_tokenizer.enable_truncation(3)
    left_behind.backend_tokenizer.enable_padding(length=9)
    assert token_ids(left_behind, texts) == expected
    splitting = copy.deepcopy(byte_tokenizer)
    splitting.split_special_tokens = True
    assert (
        token_ids(splitting, ["<|bos|>"])
        == splitting(["<|bos|>"], add_special_tokens=False)["input_ids"]
        != [[1]]
    )


def test_half_a_surrogate_pair_is_a_replacement_character(byte_tokenizer):
    assert token_ids(byte_tokenizer, ["ok", "a\ud83d."]) == token_ids(byte_tokenizer, ["ok", "a\ufffd."])


def test_chats_go_through_the_template_and_lose_its_bos(chat_tokenizer):
    text = "[user]Hi<|eos|>[assistant]Ho<|eos|>"
    expected = chat_tokenizer([text], add_special_tokens=False)["input_ids"][0]
    assert expected[-1] == 2 and expected[0] != 1
    assert token_ids(chat_tokenizer, ["plain", CHAT, [1, 7, 1], [7], [], "<|bos|>x"]) == [
        *token_ids(chat_tokenizer, ["plain"]),
        expected,
        [7, 1],
        [7],
        [],
        [1, *token_ids(chat_tokenizer, ["x"])[0]],
    ]
    (shard,) = shards(open_given([CHAT]), chat_tokenizer)
    ids = shard.contexts.input_ids[shard.contexts.attended.astype(bool)]
    assert (
        ids[0] == 1 and (ids == 1).sum() == shard.contexts.n_seqs
    )  # one BOS a context, none of the template
    assert ids[ids != 1].tolist() == expected


def test_a_template_that_asks_for_the_date_gets_the_same_on_every_day(chat_tokenizer):
    chat_tokenizer.chat_template = (
        "\n{% set day = strftime_now('%d %b %Y') if strftime_now is defined %}{{ day }}"
    )
    assert token_ids(chat_tokenizer, [CHAT]) == token_ids(chat_tokenizer, ["\n26 Jul 2024"])


def test_the_template_is_a_fact_where_there_are_chats(chat_tokenizer):
    assert chat_facts(chat_tokenizer, ["text", [1, 2], []]) == {}
    facts = chat_facts(chat_tokenizer, ["text", CHAT])
    assert facts == chat_facts(chat_tokenizer, [CHAT[:1]])
    chat_tokenizer.chat_template += " "
    assert facts != chat_facts(chat_tokenizer, [CHAT])


def test_chats_that_cannot_be_templated(byte_tokenizer, chat_tokenizer):
    with pytest.raises(ValueError, match="are chats, and the tokenizer has no chat template: take the"):
        token_ids(byte_tokenizer, [CHAT])
    chat_tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match="template refuses a chat, .*'Hi'.*: roles must alternate"):
        token_ids(chat_tokenizer, [CHAT])


@pytest.mark.parametrize("wrong", [-1, 259, 2**40])
def test_ids_that_the_model_lacks(byte_tokenizer, wrong):
    source = open_given([[5, 6], [258, wrong, 0]])
    with pytest.raises(
        ValueError, match=f"document 1 holds id {wrong}, the model has embeddings for 0 to 258"
    ):
        list(shards(source, byte_tokenizer))


def test_a_tokenizer_of_another_model(texts, byte_tokenizer):
    with pytest.raises(ValueError, match="the tokenizer gave id 500, the model has embeddings for 0 to 258"):
        list(shards(open_given(texts), byte_tokenizer, bos_id=500))


@pytest.mark.long
def test_real_twin(shared_data):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "models/stories260k-llama")
    source = open_named([str(shared_data / "corpora/tinystories/train_v2_gpt4.jsonl.gz")])
    assert (
        token_ids(tokenizer, source.first) == tokenizer(source.first, add_special_tokens=False)["input_ids"]
    )
    rows = {"max_tokens": 10**6, "context_length": 256, "special_ids": special_token_ids(tokenizer)}
    everything = list(
        packed_shards(source, tokenizer, PLAN | rows | {"documents_per_shard": 512}, itertools.count(), 512)
    )
    assert [shard.n_documents for shard in everything] == [512, 512, 512, 191]
    again = open_named([str(shared_data / "corpora/tinystories/train_v2_gpt4.jsonl.gz")])
    plan = PLAN | rows | {"documents_per_shard": 512}
    (last,) = packed_shards(again, tokenizer, plan, itertools.count(3), 512, 2, everything[2].cursor)
    np.testing.assert_array_equal(last.contexts.input_ids, everything[3].contexts.input_ids)
