"""What the surface of texts says: counts and logs by hand, with a tokenizer of bytes."""

import math

import pytest
import torch

from saelens_lite.analyze.stats.surface import surface_rivals


def test_texts_are_counted_by_hand(byte_tokenizer):
    """Bytes, a BOS before each text: "ab", "b", "b" and "aé"; distinct texts hold a twice, b twice, é's two
    bytes once each, and 259 tokens are smoothed by one."""
    found = surface_rivals(byte_tokenizer, ["ab", "b", "b", "aé"])
    assert found["tokens"].tolist() == [2, 1, 1, 3] and found["characters"].tolist() == [2, 1, 1, 2]
    total = 6 + len(byte_tokenizer)
    a, b, half = (math.log((n + 1) / total) for n in (2, 2, 1))
    wanted = [(a + b) / 2, b, b, (a + 2 * half) / 3]
    torch.testing.assert_close(found["log probability"], torch.tensor(wanted, dtype=torch.float64))


def test_an_entity_has_its_own_length_and_place(byte_tokenizer):
    texts, spans = ["I am Bo, yes", "Anna is"], [(5, 7), (0, 4)]
    found = surface_rivals(byte_tokenizer, texts, spans)
    assert found["entity tokens"].tolist() == [2, 4] == found["entity characters"].tolist()
    assert found["position"].tolist() == [7, 4]  # BOS is token 0
    assert found["prompt tokens"].tolist() == [12, 7]


def test_counts_of_text_at_large_are_taken(byte_tokenizer):
    counts = torch.zeros(len(byte_tokenizer), dtype=torch.int64)
    (b,) = byte_tokenizer("b", add_special_tokens=False)["input_ids"]
    counts[b] = 9
    found = surface_rivals(byte_tokenizer, ["a", "b"], token_counts=counts)["log probability"]
    total = 9 + len(counts)
    assert found.tolist() == pytest.approx([math.log(1 / total), math.log(10 / total)])


def test_what_is_the_same_of_all_is_no_rival(byte_tokenizer):
    assert list(surface_rivals(byte_tokenizer, ["ab", "bc"], token_counts=torch.ones(259))) == []
    assert list(surface_rivals(byte_tokenizer, ["xx", "xyx"])) == ["tokens", "characters", "log probability"]


def test_what_has_no_tokens_is_refused(byte_tokenizer):
    with pytest.raises(ValueError, match="expected a token in each text, and in its span, got none in 'abc'"):
        surface_rivals(byte_tokenizer, ["abc"], [(1, 1)])
    with pytest.raises(ValueError, match="expected texts, and a span of each or none, got 2 and 1"):
        surface_rivals(byte_tokenizer, ["abc", "d"], [(1, 2)])
    with pytest.raises(ValueError, match="token_counts expected 259 counts"):
        surface_rivals(byte_tokenizer, ["abc"], token_counts=torch.ones(3))
    with pytest.raises(ValueError, match="expected a fast tokenizer"):
        surface_rivals(object(), ["abc"])
