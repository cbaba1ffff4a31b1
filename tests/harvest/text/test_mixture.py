"""Mixtures: shares, sources that end, positions; and that a document's source says nothing about its being
held out."""

import itertools
import json

import numpy as np
import pytest

from saelens_lite.harvest.config import HarvestConfig
from saelens_lite.harvest.text.mixture import chained, open_mixture
from saelens_lite.harvest.text.sources import open_given, open_named
from saelens_lite.hashing import hashed_uniform, is_held_out

A, B, C = ([f"{name}{i}" for i in range(n)] for name, n in (("a", 1400), ("b", 800), ("c", 40)))


def mixture(*datasets, weights=(5, 3, 2), seed=0):
    return open_mixture([open_given(dataset) for dataset in datasets or (A, B, C)], weights, seed)


def test_every_document_comes_once_and_in_its_sources_order():
    documents = list(mixture().open(0, None))
    assert sorted(documents) == sorted(A + B + C)
    for texts in (A, B, C):
        assert [text for text in documents if text in set(texts)] == texts


def test_shares_follow_the_weights_and_then_the_weights_that_are_left():
    documents = list(mixture().open(0, None))
    ended = documents.index("c39") + 1  # 40 documents of weight 2 in 10
    after = documents[ended : ended + 1000]
    for n, share, name, part in (
        (ended, 0.5, "a", documents[:ended]),
        (ended, 0.3, "b", documents[:ended]),
        (1000, 5 / 8, "a", after),
        (1000, 3 / 8, "b", after),
    ):
        found = sum(text[0] == name for text in part)
        assert abs(found - n * share) < 4 * (n * share * (1 - share)) ** 0.5, (n, share, found)
    assert documents[-1][0] in "ab" and not any(text[0] == "c" for text in after)


def test_the_draw_is_a_hash_of_seed_and_position():
    first = [text[0] for text in mixture().first]
    bounds = np.array([0.5, 0.8, 1.0])
    assert first == [
        "abc"[np.searchsorted(bounds, u, side="right")] for u in hashed_uniform(np.arange(64), 0, 1)
    ]
    assert mixture(seed=1).first != mixture().first
    assert mixture(weights=(50, 30, 20)).first == mixture().first == mixture().first


def test_the_held_out_split_does_not_follow_the_source():
    mixed = mixture([f"a{i}" for i in range(30000)], [f"b{i}" for i in range(30000)], weights=(1, 9))
    from_a = np.array([text[0] == "a" for text in itertools.islice(mixed.open(0, None), 20000)])
    held_out = is_held_out(np.arange(20000), 0.05, seed=0)
    assert abs(from_a[held_out].mean() - 0.1) < 4 * (0.09 / held_out.sum()) ** 0.5


def test_hashed_uniform_is_uniform_and_depends_on_every_key():
    n = 100_000
    numbers = [hashed_uniform(np.arange(n), *keys) for keys in ((), (0,), (0, 1), (1, 0), (-5,))]
    for i, values in enumerate(numbers):
        assert values.min() >= 0 and values.max() < 1
        counts = np.histogram(values, bins=100, range=(0, 1))[0]
        assert ((counts - n / 100) ** 2 / (n / 100)).sum() < 160  # chi squared, 99 degrees of freedom
        for others in numbers[:i]:
            assert abs(np.corrcoef(values, others)[0, 1]) < 4 / n**0.5


@pytest.mark.long
def test_every_position(tmp_path):
    (tmp_path / "b.txt").write_text("".join(f"b{i}\n" for i in range(80)))

    def source():
        parts = [
            open_given(A[:100]),
            open_named([str(tmp_path / "b.txt")]),
            open_given(dict.fromkeys(C[:9]).keys()),
        ]
        return open_mixture(parts, (5, 3, 2), seed=3)

    one, other = source(), source()
    everything = list(one.open(0, None))
    assert one.n_documents is None and len(everything) == 189
    stream = one.open(0, None)
    for start in range(190):
        cursor = json.loads(json.dumps(stream.cursor()))
        assert list(other.open(start, cursor)) == everything[start:]
        assert list(other.open(start, None)) == everything[start:]
        skipped = other.open(0, None)
        assert skipped.skip(start) == start and skipped.cursor() == cursor
        assert next(stream, None) == (everything[start] if start < 189 else None)
    assert one.open(0, None).skip(500) == 189


def test_chains_pass_empty_sources_and_end(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "a.txt").write_text("a\nb")
    names = [str(tmp_path / f"{name}.txt") for name in ("empty", "a", "empty", "a", "empty")]
    source = open_named(names)
    everything = list(source.open(0, None))
    assert everything == ["a", "b", "a", "b"]
    stream = source.open(0, None)
    for start in range(5):
        assert list(source.open(start, stream.cursor())) == everything[start:]
        next(stream, None)
    assert chained([open_given(A), open_given(B)], {}).n_documents == 2200


def test_facts_tell_mixtures_apart():
    facts = json.loads(json.dumps(mixture().facts))
    assert facts == mixture().facts
    assert facts["weights"] == [5.0, 3.0, 2.0] and facts["seed"] == 0 and len(facts["mixture"]) == 3
    assert facts != mixture(seed=1).facts and facts != mixture(weights=(5, 3, 3)).facts
    assert facts != mixture(A, B[:-1], C).facts
    assert mixture().n_documents == 2240


def test_weights_are_checked():
    settings = {
        "model": "m",
        "dataset": ("a.txt", "b.txt"),
        "hook_points": ("p",),
        "store": "s",
        "max_tokens": 1,
    }
    assert HarvestConfig(**settings, dataset_weights=(1, 2.5)).seed == 0
    for weights, message in (
        ((1.0,), "one weight for each dataset, got 1 for 2"),
        ((1.0, 0.0), "expected positive numbers, got 0.0"),
        ((1.0, float("nan")), "expected positive numbers, got nan"),
        ((1.0, float("inf")), "expected positive numbers, got inf"),
        ((1.0, "2"), r"(got tuple \(1.0, '2'\)|expected positive numbers, got '2')"),
    ):
        with pytest.raises(ValueError, match=message):
            HarvestConfig(**settings, dataset_weights=weights)
        with pytest.raises(ValueError, match=message):
            mixture(A, B, weights=weights)
