"""Search: what it finds is what the sampled rows, the text, the directions and the numbers say."""

import csv
import io
import json

import pytest
import torch
import transformers
from safetensors.torch import save_file

import saelens_lite as sl
from saelens_lite.analyze.index.build import IndexConfig, index_features
from saelens_lite.analyze.index.search import (
    by_number,
    fires_on_regex,
    fires_on_text,
    fires_on_token,
    nearest_to,
    promotes_token,
)
from saelens_lite.analyze.latents.text_windows import Contexts
from saelens_lite.cli.search import SearchConfig, answer
from saelens_lite.lm.token_text import token_of
from saelens_lite.text_table import in_format

from ..conftest import HOOK_POINT, make_sae


@pytest.fixture
def index(store, sae, gpt2, byte_tokenizer, tmp_path):
    """Of all 1,500 rows: every row is sampled."""
    config = IndexConfig(n_neighbors=4, n_logits=5)
    return index_features(sae, store, tmp_path / "index", gpt2, config, tokenizer=byte_tokenizer)


@pytest.fixture
def dense(store, sae):
    with torch.no_grad():
        return sae.encode_dense(store.gather(torch.arange(store.n_rows)))


def test_an_index_is_searched_by_its_own_methods(index):
    assert index.token("S") == fires_on_token(index, "S") != []
    assert index.regex(r"\d", 3) == fires_on_regex(index, r"\d", 3) != []
    assert index.text("tory 1", 3) == fires_on_regex(index, "tory 1", 3) != []
    assert index.text("1.", 3) == fires_on_regex(index, r"1\.", 3), "a text is no pattern"
    with pytest.raises(ValueError, match="got an empty text"):
        index.text("")


def by_hand(dense, asked, n=10):
    """(latent, f1) by counting: 2 · both / (fires + asked), best first."""
    fires = dense > 0
    f1 = 2 * (fires & asked[:, None]).sum(0).double() / (fires.sum(0) + asked.sum())
    best = f1.argsort(descending=True, stable=True)[:n].tolist()
    return [(latent, float(f1[latent])) for latent in best if f1[latent] > 0]


def test_what_fires_on_a_token(index, store, dense, byte_tokenizer):
    assert len(index.token_sample.rows) == 1500
    ids = torch.cat([store.tokens(s).input_ids[store.tokens(s).kept.bool()] for s in range(store.n_shards)])
    asked = ids == byte_tokenizer("S", add_special_tokens=False).input_ids[0]
    found = fires_on_token(index, "S")
    assert [(match.latent, match.f1) for match in found] == by_hand(dense, asked)
    best = found[0]
    assert best.n_rows == int(asked.sum()) and best.fired == int((dense[asked, best.latent] > 0).sum())
    assert best.mean == pytest.approx(float(dense[asked, best.latent].sum() / best.fired), rel=1e-5)
    assert best == fires_on_token(index, int(ids[asked][0]), n=1)[0]
    for wrong, message in (("", "text of a token, got ''"), ("st", r"one token, 'st' is 2: \['s', 't'\]")):
        with pytest.raises(ValueError, match=message):
            fires_on_token(index, wrong)


def test_a_token_is_meant_as_it_reads_in_a_text_though_the_tokenizer_puts_a_space_before_a_text(index):
    """As Llama does: "dog" alone becomes " dog", and " dog" a lone space and " dog"."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {
        "<unk>": 0.0,
        "▁": -5.0,
        "▁dog": -1.0,
        "dog": -2.0,
        "▁cat": -1.0,
        "c": -9.0,
        "a": -9.0,
        "t": -9.0,
    }
    unigram = Tokenizer(models.Unigram(list(vocabulary.items()), unk_id=0))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    unigram.decoder = decoders.Metaspace(prepend_scheme="always")
    index.contexts = Contexts(
        index.tokens, PreTrainedTokenizerFast(tokenizer_object=unigram, unk_token="<unk>")
    )
    assert fires_on_token(index, " dog", 3) == fires_on_token(index, 2, 3)
    assert fires_on_token(index, "dog", 3) == fires_on_token(index, 3, 3)
    with pytest.raises(ValueError, match="'cat' is none but ' cat' is: search that"):
        fires_on_token(index, "cat")


@pytest.mark.long
def test_what_fires_on_a_regex_and_on_a_text_where_it_occurs(index, dense):
    """Digits are single tokens here, so the matches are the rows of digits; 'ory 1' is five tokens."""
    contexts = [index.contexts.at(row) for row in range(1500)]
    texts, places = (
        [context.token for context in contexts],
        [(context.shard, context.sequence) for context in contexts],
    )
    asked = torch.tensor([text.isdigit() for text in texts])
    assert [(m.latent, m.f1) for m in fires_on_regex(index, r"\d")] == by_hand(dense, asked)
    (match,) = fires_on_regex(index, "ory 1", n=1)
    starts = [i for i in range(1496) if texts[i : i + 5] == list("ory 1") and places[i] == places[i + 4]]
    assert match.n_rows == 5 * len(starts) > 0, "matches lie within a context"
    assert fires_on_regex(index, "no such text") == []
    # an empty match shares no character with a token
    assert fires_on_regex(index, r"\d*") == fires_on_regex(index, r"\d+") == fires_on_regex(index, r"\d")
    for pattern in ("(?=r)", r"\b", "(?<=t)", "$|^", "(?!x)"):
        assert fires_on_regex(index, pattern) == []
    assert answer(SearchConfig(index="", text="ory 1", n=1), index).lines == [repr(match)]
    for pattern, message in (("", "got an empty text"), ("(", r"got '\(': missing")):
        with pytest.raises(ValueError, match=message):
            fires_on_regex(index, pattern)


def test_what_fires_on_a_text_of_ones_own(index, sae, gpt2, byte_tokenizer):
    found = fires_on_text(sae, gpt2.train(), byte_tokenizer, "sun é", n=2)
    gpt2.eval()
    assert "".join(firings.token for firings in found[1:]) == "sun é⟨0xA9⟩"
    ids = byte_tokenizer("sun é", return_tensors="pt").input_ids
    with torch.no_grad():
        stream = gpt2(input_ids=ids, output_hidden_states=True).hidden_states[1][0]
        dense = sae.encode_dense(stream)
    for firings, row in zip(found, dense, strict=True):
        best = row.sort(descending=True)
        assert [latent for latent, _ in firings.latents] == best.indices[:2].tolist()
        assert [value for _, value in firings.latents] == pytest.approx(best.values[:2].tolist(), abs=1e-5)
    with pytest.raises(ValueError, match="got an empty one"):
        fires_on_text(sae, gpt2, byte_tokenizer, "")
    limit = gpt2.config.max_position_embeddings
    assert len(fires_on_text(sae, gpt2, byte_tokenizer, "a" * (limit - 1))) == limit  # with the BOS
    with pytest.raises(
        ValueError, match=f"within the model's {limit} positions, got one of {limit + 1} tokens"
    ):
        fires_on_text(sae, gpt2, byte_tokenizer, "a" * limit)


def test_a_text_is_read_as_the_store_was(store, sae, gpt2, byte_tokenizer):
    ids = store.tokens(0).input_ids[0].tolist()
    assert ids[0] == byte_tokenizer.bos_token_id
    text = byte_tokenizer.decode(ids[1:9], skip_special_tokens=False)

    class WithoutBos:  # as GPT-2's: it puts none before a text
        def __call__(self, text, add_special_tokens=True, **how):
            return byte_tokenizer(text, add_special_tokens=False, **how)

        def __getattr__(self, name):
            return getattr(byte_tokenizer, name)

    dense = sae.encode_dense(store.gather(torch.arange(8)))
    for tokenizer in (WithoutBos(), byte_tokenizer):
        found = fires_on_text(sae, gpt2, tokenizer, text, n=100)
        assert found[0].latents and len(found) == 9
        for firings, row in zip(found[1:], dense, strict=True):
            assert {latent for latent, _ in firings.latents} == set((row > 0).nonzero().flatten().tolist())


def test_the_token_of_a_word_is_that_of_a_text(shared_data, byte_tokenizer):
    tokenizer = transformers.AutoTokenizer.from_pretrained(shared_data / "models/stories3m-llama")
    last = tokenizer("a girl named Lily", add_special_tokens=False).input_ids[-1]
    assert token_of(tokenizer, " Lily") == last
    assert tokenizer.convert_ids_to_tokens(last) == "▁Lily"
    assert tokenizer(" Lily", add_special_tokens=False).input_ids[0] != last  # the idiom that takes "▁"
    assert token_of(byte_tokenizer, "a") == byte_tokenizer("a", add_special_tokens=False).input_ids[0]
    for word, told in {"ab": "is 2: ", "": "is 0: "}.items():
        with pytest.raises(ValueError, match=f"expected the text of one token, '{word}' {told}"):
            token_of(byte_tokenizer, word)


def test_errors_of_a_text_of_ones_own(index, sae, gpt2, byte_tokenizer):
    with pytest.raises(ValueError, match="does not say where it was trained"):
        fires_on_text(make_sae(hook_point=""), gpt2, byte_tokenizer, "sun")
    with pytest.raises(
        ValueError, match="blocks.0.* of GPT2LMHeadModel: expected one of d_model=32, got one of d_model=16"
    ):
        fires_on_text(make_sae(d_model=16), gpt2, byte_tokenizer, "sun")
    lines = answer(SearchConfig(index="", text="sun", sae="-", model="-", n=2), index, sae, gpt2).lines
    assert len(lines) == 4 and "'s'" in lines[1]


def test_directions(index, sae, tmp_path):
    direction = 3 * sae.W_dec[7].detach() + 0.01
    assert nearest_to(sae, direction, 1) == [(7, pytest.approx(1, abs=0.01))]
    assert [latent for latent, _ in nearest_to(sae, sae.W_dec[7], 5)[1:]] == [i for i, _ in index[7].cosine]
    for wrong in (torch.ones(5), torch.zeros(32), torch.full((32,), torch.nan)):
        with pytest.raises(ValueError, match=r"a finite direction \[d_model=32\]"):
            nearest_to(sae, wrong)
    save_file({"direction": direction}, tmp_path / "one.safetensors")
    save_file({"a": direction, "b": -direction}, tmp_path / "two.safetensors")
    (tmp_path / "text").write_text("none")
    asked = {
        name: SearchConfig(index="", direction=str(tmp_path / name), sae="-")
        for name in ("one.safetensors", "text")
    }
    assert answer(asked["one.safetensors"], index, sae).lines[0].startswith("latent       7  cosine 0.99")
    with pytest.raises(ValueError, match="expected a safetensors file"):
        answer(asked["text"], index, sae)
    with pytest.raises(ValueError, match="expected one tensor, the direction; it holds 2: a, b"):
        answer(SearchConfig(index="", direction=str(tmp_path / "two.safetensors"), sae="-"), index, sae)
    with pytest.raises(ValueError, match="is the index of the topk SAE .* not of"):
        answer(asked["one.safetensors"], index, make_sae(k=5))


def test_an_answer_has_rows_for_programs(index):
    """Each in the formats that commands print; the lines hold the same numbers, rounded."""

    def ask(**fields):
        return answer(SearchConfig(index="", **fields), index)

    [row] = json.loads(in_format(ask(token="S", n=1), "json"))["rows"]
    [match] = index.token("S", 1)
    assert row == {
        "latent": match.latent, "f1": match.f1, "mean": match.mean, "fired": match.fired,
        "n_rows": match.n_rows, "elsewhere": match.elsewhere, "label": None,
    }  # fmt: skip
    index.labels.set(5, 'a "quoted", one | two')
    found = ask(by="density", n=48)
    lines = list(csv.DictReader(io.StringIO(found.to_csv())))
    pairs = [(int(line["latent"]), float(line["value"])) for line in lines]
    assert pairs == by_number(index, "density", n=48)
    assert [line["label"] for line in lines if line["latent"] == "5"] == ['a "quoted", one | two']
    assert r'a "quoted", one \| two' in found.to_markdown()
    assert [line.split()[1] for line in found.lines] == [line["latent"] for line in lines]
    [facts] = ask(latent=7, n=3).to_dict()["rows"]
    assert facts["density"] == index[7].density and facts["n_fired"] == index[7].n_fired
    assert [of["activation"] for of in facts["strongest"]] == [value for value, _ in index[7].strongest[:3]]
    assert facts["output_score"] is None, "nan is no JSON"
    index.labels.set(5, "\u202ereversed\n")
    assert ask(labelled="reversed").to_dict()["rows"] == [
        {"latent": 5, "label": "\u202ereversed\n", "notes": "", "starred": False}
    ]
    assert "⟨U+202E⟩reversed↵" in ask(labelled="reversed").to_markdown()
    none = ask(labelled="no such label")
    assert in_format(none, "json") == '{\n "rows": []\n}' and in_format(none, "csv") == ""
    assert none.to_markdown() == "nothing found" == str(none)
    index.labels.remove(5)


def test_the_lens_and_the_numbers(index, sae, gpt2, byte_tokenizer, dense):
    lens = sl.logit_lens(sae, gpt2, n=5)
    token = int(lens.top_ids[7, 2])
    latents = [i for i in range(48) if token in lens.top_ids[i].tolist()]
    found = promotes_token(index, token, n=48)
    assert sorted(latent for latent, _ in found) == latents and found == sorted(
        found, key=lambda pair: -pair[1]
    )
    demoted = promotes_token(index, int(lens.bottom_ids[7, 0]), n=48, demotes=True)
    assert 7 in dict(demoted) and demoted == sorted(demoted, key=lambda pair: pair[1])
    density = (dense > 0).double().mean(0)
    within = [(i, float(d)) for i, d in enumerate(density) if 0.05 <= d <= 0.2]
    assert by_number(index, "density", 0.05, 0.2, 48) == sorted(within, key=lambda pair: (-pair[1], pair[0]))
    assert by_number(index, "density", n=1, ascending=True)[0][1] == float(density.min())
    assert by_number(index, "max", n=1)[0][1] == pytest.approx(float(dense.max()), abs=1e-5)
    entropies = by_number(index, "token_entropy", n=48)
    assert len(entropies) == int((density > 0).sum()), "latents that never fired have none"
    lacking = (
        ("output_score", "has no 'output_score'.*--output-score adds"),
        ("l0", "of density, max, token_entropy, token_share"),
    )
    for name, message in lacking:
        with pytest.raises(ValueError, match=message):
            by_number(index, name)


def test_questions_of_the_command_line(index):
    def ask(**fields):
        return answer(SearchConfig(index="", **fields), index).lines

    assert ask(latent=7) == [repr(index[7])]
    assert "label: the sun (and the moon)" in ask(latent=7, label="the sun", notes="and the moon")[0]
    assert "label: a sun (and the moon)" in ask(latent=7, label="a sun")[0]
    assert "(" not in ask(latent=7, label="the sun", notes="")[0].split("label: ")[1].split("\n")[0]
    assert "label: the sun (and the moon)" in ask(latent=7, label="the sun", notes="and the moon")[0]
    assert ask(labelled="MOON") == ["Label(latent=7, label='the sun', notes='and the moon', starred=False)"]
    assert any("the sun" in line for line in ask(by="density", n=48))
    assert "label" not in ask(latent=7, label="")[0] and ask(labelled="") == []
    assert [line.split()[2] for line in ask(like=7, n=2)][:2] == ["cosine", "cosine"]
    assert ask(token="S", n=1)[0].startswith("latent")
    with pytest.raises(ValueError, match="a latent from 0 to 47, got 48"):
        ask(latent=48, label="nobody")
    for fields, message in (
        ({}, "expected one of --latent, .* got none"),
        ({"token": "a", "by": "max"}, "got --token and --by"),
        ({"token": "a", "label": "b"}, "--label expected --latent too"),
        ({"direction": "file"}, "needs --sae too"),
        ({"text": "a", "model": "demo"}, "needs --sae too"),
        ({"text": "a", "sae": "folder"}, "needs --model too"),
        ({"by": "max", "n": 0}, "n expected at least 1, got 0"),
        ({"latent": 7, "notes": "the moon"}, "--notes expected --label too"),
    ):
        with pytest.raises(ValueError, match=message):
            SearchConfig(index="", **fields)


def test_rows_without_text(tmp_path, planted, caplog):
    store = sl.ActivationStore.from_arrays(tmp_path / "store", planted.acts[:500])
    index = index_features(make_sae(d_model=16, hook_point="acts", model_name=""), store, tmp_path / "index")
    with pytest.raises(ValueError, match="rows without text"):
        fires_on_regex(index, "a")
    with pytest.raises(ValueError, match="rows without text"):
        fires_on_token(index, 5)
    assert index.contexts.tokenizer is None and not caplog.text, "rows that name no tokenizer lack none"
    assert HOOK_POINT not in repr(index)
