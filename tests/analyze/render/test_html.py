"""Views of an index in a notebook: right numbers, no script, no element that came from a token or a label."""

from html.parser import HTMLParser

import pytest

from saelens_lite.analyze.index.build import index_features
from saelens_lite.analyze.index.feature_index import FeatureIndex
from saelens_lite.analyze.latents.text_windows import visible

NASTY = [
    "</td></script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\u202edesrever",
    "]]><!--",
    "\ud800",
    "'\"&lt;",
]


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, tuple(attributes)))
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


class Spelling:
    """A tokenizer whose tokens are these strings in turn."""

    def __init__(self, strings):
        self.strings = strings

    def decode(self, ids, **_):
        return "".join(self.strings[i % len(self.strings)] for i in ids)


@pytest.fixture
def opened(store, sae, gpt2, byte_tokenizer, tmp_path):
    """opened(tokenizer): the index of the small store."""
    index = index_features(sae, store, tmp_path / "index", gpt2, tokenizer=byte_tokenizer, output_score=True)
    index.labels.set(int(index.column("counts").argmax()), NASTY[0], NASTY[1], starred=True)
    return lambda tokenizer=byte_tokenizer: FeatureIndex.open(tmp_path / "index", tokenizer)


def test_the_index_shows_its_strongest_latents(opened):
    index = opened()
    shown = Elements(index._repr_html_())
    assert sum(tag == "tr" for tag, _ in shown.tags) == 11
    strongest = int(index.column("top_values")[:, 0].argmax())
    assert str(strongest) in shown.words and f"{index[strongest].density:.3%}" in shown.words
    assert {"largest", "output score", "raises"} <= set(shown.words)


def test_a_latent_shows_its_text_its_intervals_and_its_neighbours(opened):
    index = opened()
    view = index[int(index.column("counts").argmax())]
    words = "".join(Elements(view._repr_html_()).words)
    assert f"Latent {view.latent}" in words and f"fires on {view.n_fired:,} of 1,500 tokens" in words
    assert f"{view.firings[0].value:.4g}" in words and view.firings[0].token in words
    assert f"{view.intervals[-1].low:.3g} to {view.intervals[-1].high:.3g}" in words and "q80–q100" in words
    weakest = view.contexts.at(view.intervals[0].rows[0])
    assert "".join(map(visible, (weakest.before, weakest.token, weakest.after))) in words
    assert f"{view.cosine[0][0]} {view.cosine[0][1]:.2f}" in words
    silent = index[int(index.column("counts").argmin())]
    assert silent.n_fired == 0
    shown = silent._repr_html_()
    assert "fires on 0 of 1,500 tokens" in shown and "quantile" not in shown


def test_no_string_becomes_markup(opened):
    nasty, tame = opened(Spelling(NASTY)), opened(Spelling(["a", "b", "c", "d", "e", "f"]))
    for latent in (None, int(nasty.column("counts").argmax())):
        pages = [(index if latent is None else index[latent])._repr_html_() for index in (nasty, tame)]
        found, expected = map(Elements, pages)
        assert found.tags == expected.tags
        assert not {"script", "style", "img", "link"} & {tag for tag, _ in found.tags}
        assert not any(
            name.startswith("on") or name in ("src", "href")
            for _, attributes in found.tags
            for name, _ in attributes
        )
        pages[0].encode("utf-8")
        assert "\u202e" not in pages[0]
