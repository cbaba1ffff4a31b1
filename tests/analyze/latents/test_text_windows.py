"""A row leads to its token and the text around it, and every summary of it is inert."""

from html.parser import HTMLParser

import pytest
import torch

from saelens_lite.analyze.index.max_activating import max_activating_tokens
from saelens_lite.analyze.latents.text_windows import Contexts, visible
from saelens_lite.harvest import harvest_activations

from ..conftest import TEXTS


@pytest.mark.property_check(8)
def test_windows_are_the_text_around_the_row(store, byte_tokenizer):
    contexts = Contexts(store, byte_tokenizer, before_tokens=5, after_tokens=3)
    row = 0
    for shard in range(store.n_shards):
        tokens = store.tokens(shard)
        for sequence, position in tokens.kept.nonzero().tolist()[:40]:
            found = contexts.at(row)
            assert (found.shard, found.sequence, found.position) == (shard, sequence, position)
            assert found.document == int(tokens.doc_id[sequence, position]) + tokens.first_doc
            start = max(0, position - 5)
            stop = min(int(tokens.attended[sequence].sum()), position + 4)
            assert found.positions == tuple(range(start, stop))
            assert found.positions[found.at] == position
            ids = tokens.input_ids[sequence, start:stop].tolist()
            if all(i >= 3 for i in ids) and "�" not in (text := byte_tokenizer.decode(ids)):
                assert found.before + found.token + found.after == text
                assert text.split("Story")[0] in TEXTS[found.document] or "Story" in text
            row += 1
        row = sum(store.shard_rows[: shard + 1])
    with pytest.raises(ValueError, match="rows 0 to 1499, got 1500"):
        contexts.at(1500)


def test_characters_of_several_tokens_stay_whole_at_a_windows_end(gpt2, byte_tokenizer, tmp_path):
    """A byte a token: 🌳 and 木 are four and three of them, wherever a window of one token each side ends."""
    text = "a🌳木é."
    options = {"context_length": 64, "max_tokens": 100, "tokenizer": byte_tokenizer, "progress": False}
    store = harvest_activations(gpt2, [text], "blocks.0.hook_resid_post", tmp_path, **options)
    contexts = Contexts(store, byte_tokenizer, before_tokens=1, after_tokens=1)
    found = [contexts.at(row) for row in range(store.n_rows)]
    pieces = ["a", "🌳", "", "", "", "木", "", "", "é", "", "."]
    bytes_ = ["⟨0x9F⟩", "⟨0x8C⟩", "⟨0xB3⟩", "⟨0x9C⟩", "⟨0xA8⟩", "⟨0xA9⟩"]
    spelled = iter(bytes_)
    assert [context.token for context in found] == [piece or next(spelled) for piece in pieces]
    assert [context.position for context in found] == list(range(1, 12))
    assert [context.after for context in found] == [*pieces[1:], ""]


@pytest.mark.property_check(8)
@pytest.mark.parametrize("context_length", [4, 5, 6])
def test_characters_that_a_contexts_edge_cuts_stay_whole(gpt2, byte_tokenizer, tmp_path, context_length):
    """Contexts of 3 to 5 bytes behind a BOS: some cut 🌳 or 木; the documents' edges are no such cut."""
    texts = ["a🌳木é", "木b🌳"]
    options = {
        "context_length": context_length,
        "max_tokens": 100,
        "tokenizer": byte_tokenizer,
        "progress": False,
    }
    store = harvest_activations(gpt2, texts, "blocks.0.hook_resid_post", tmp_path, **options)
    for width in (0, 1, 3):
        contexts = Contexts(store, byte_tokenizer, before_tokens=width, after_tokens=width)
        found = [contexts.at(row) for row in range(store.n_rows)]
        tree, wood = ["🌳", "⟨0x9F⟩", "⟨0x8C⟩", "⟨0xB3⟩"], ["木", "⟨0x9C⟩", "⟨0xA8⟩"]
        expected = ["a", *tree, *wood, "é", "⟨0xA9⟩", *wood, "b", *tree]
        assert [context.token for context in found] == expected


def test_rows_of_a_window(store, byte_tokenizer):
    contexts = Contexts(store, byte_tokenizer, before_tokens=40, after_tokens=40)
    for row in (0, 31, 700, 1499):
        found = contexts.at(row)
        rows = contexts.rows_of(found)
        assert rows[found.at] == row
        assert rows[0] == -1, "BOS has no row"
        kept = [r for r in rows if r >= 0]
        assert kept == list(range(kept[0], kept[0] + len(kept)))


def test_without_a_tokenizer_ids_are_shown_and_it_is_said(store, caplog):
    found = Contexts(store).at(3)
    assert found.token.startswith("<") and found.token.endswith(">")
    assert "pass tokenizer=" in caplog.text


def test_without_tokens_there_is_no_text(store, sae, byte_tokenizer, monkeypatch):
    monkeypatch.setattr(Contexts, "has_tokens", False)
    view = max_activating_tokens(sae, store, n=2, tokenizer=byte_tokenizer)
    view = view.latent(int(view.n_fired.argmax()))
    assert [firing.token for firing in view] == ["", ""]
    assert f"row {view[0].row}" in repr(view)


def test_visible():
    assert visible("a b\n\tc\r") == "a b↵⇥c⇤"
    assert visible("\u202eabc\x00\u2028\ud800") == "⟨U+202E⟩abc⟨U+0000⟩⟨U+2028⟩⟨U+D800⟩"
    hidden = "\u034f\u061c\u115f\u1160\u180b\u180e\u2060\u206f\u3164\ufe0f\uffa0\ufff9\U000e0101\U0001d173"
    assert visible(hidden) == "".join(f"⟨U+{ord(one):04X}⟩" for one in hidden)
    assert visible("a é 木 ٣ e\u0301 🌳\u3000") == "a é 木 ٣ e\u0301 🌳\u3000", "what can be seen stays"
    assert visible("می\u200cخواهم 👩\u200d🚀") == "می\u200cخواهم 👩\u200d🚀", "joiners belong to the text"


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text.append(data)


def test_summaries_are_readable_and_inert(store, sae, byte_tokenizer):
    table = max_activating_tokens(sae, store, n=20, tokenizer=byte_tokenizer)
    assert repr(table).startswith("FeatureTable: top 20 firings of 48 latents over 1,500 tokens")
    assert len(repr(table).splitlines()) == 12
    script = next(i for i, text in enumerate(TEXTS) if "</script>" in text)
    row = int(torch.cat([store.row_docs(s) for s in range(store.n_shards)]).eq(script).nonzero()[20])
    table.rows[0, 0], table.values[0, 0] = row, 9.0
    for summary in (table.latent(0)._repr_html_(), table._repr_html_()):
        page = Elements()
        page.feed(summary)
        assert set(page.tags) <= {"p", "table", "tr", "th", "td", "b", "bdi", "code"}
    frame = table.to_frame()
    assert len(frame) == int((table.rows >= 0).sum()) and frame["value"][0] == 9.0 and frame["row"][0] == row
    assert frame["token"][0] == table.latent(0)[0].token
    assert "⟦" in repr(table.latent(0)) and "fires on" in repr(table.latent(0))
