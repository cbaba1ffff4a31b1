"""A page of many latents: its data in scripts beside it say what one file says, with and without the SAE."""

import pytest
import torch

from saelens_lite.analyze.browse import static_files
from saelens_lite.analyze.browse.known_firings import KnownFirings, encoded_firings
from saelens_lite.analyze.browse.latent_table import latent_table
from saelens_lite.analyze.index.build import index_features
from saelens_lite.analyze.pages.page_of_features import feature_page

from ..chromium import Browser, Tab, installed
from ..conftest import HOOK_POINT
from ..page_reader import read_page


@pytest.fixture
def index(store, sae, gpt2, byte_tokenizer, tmp_path):
    return index_features(sae, store, tmp_path / "index", gpt2, tokenizer=byte_tokenizer)


@pytest.fixture
def in_files(monkeypatch):
    """Pages of more than 10 latents stand in files of 7, looked up 14 at a time."""
    monkeypatch.setattr(static_files, "EMBEDDED", 10)
    monkeypatch.setattr(static_files, "CHUNK", 7)
    monkeypatch.setattr(static_files, "_AT_ONCE", 14)


@pytest.mark.long
def test_scripts_beside_the_page_say_the_same(
    store, sae, index, byte_tokenizer, tmp_path, monkeypatch, in_files
):
    options = {"latents": [*range(40, 10, -1)], "index": index, "tokenizer": byte_tokenizer}
    many = read_page(feature_page(sae, store, tmp_path / "many.html", **options))
    names = sorted(file.name for file in (tmp_path / "many.data").iterdir())
    assert names == ["0.js", "1.js", "2.js", "3.js", "4.js"]
    monkeypatch.setattr(static_files, "EMBEDDED", 1000)
    one = read_page(feature_page(sae, store, tmp_path / "one.html", **options))
    assert not (tmp_path / "one.data").exists() and one["embedded"] and not many["embedded"]
    assert [feature["id"] for feature in many["features"]] == [*range(40, 10, -1)] == many["panels"]
    assert repr(many["features"]) == repr(one["features"]) and many["texts"] == one["texts"]
    feature_page(sae, store, tmp_path / "many.html", **options | {"latents": [1, 2]})
    assert not [*(tmp_path / "many.data").iterdir()], "what an earlier page had beyond goes"


def test_a_folder_of_something_else_is_left_alone(store, sae, index, tmp_path, in_files):
    (tmp_path / "many.data").mkdir()
    (tmp_path / "many.data" / "0.js").write_text("mine")
    with pytest.raises(ValueError, match="expected a page's scripts or nothing"):
        feature_page(sae, store, tmp_path / "many.html", index=index, latents=range(48))
    assert (tmp_path / "many.data" / "0.js").read_text() == "mine" and not (tmp_path / "many.html").exists()


def test_an_index_whose_sample_is_everything_knows_every_firing(store, sae, index):
    assert len(index.token_sample.rows) == index.n_tokens == 1500
    latents = torch.tensor([7, 3, 21, 22, 23])
    known = KnownFirings(index)(latents, torch.zeros(0, dtype=torch.int64))
    encoded = encoded_firings(sae, store, HOOK_POINT, latents, torch.arange(1500))
    assert torch.equal(known[0], encoded[0]) and len(known[0])
    torch.testing.assert_close(known[1], encoded[1])


def test_the_table_is_that_of_the_index(index):
    table = latent_table(index)
    for latent in (3, 7, 40):
        of = index[latent]
        assert (table["fired"][latent], table["max"][latent]) == (of.n_fired, pytest.approx(of.largest))
        assert table["cosine"][latent] == pytest.approx(of.cosine[0][1])
        tokens = [firing.context.token for firing in of.firings]
        gist = [
            index.contexts.tokenizer.decode([token]) for token in table["gist"][latent].tolist() if token >= 0
        ]
        assert gist[:3] == [*dict.fromkeys(tokens)][: len(gist)][:3] or "�" in "".join(gist)
    assert table["unigram"].sum() == len(index.unigram.flagged.nonzero())


@pytest.mark.long
def test_a_browser_loads_what_is_looked_at(store, sae, index, byte_tokenizer, tmp_path, in_files):
    if installed() is None:
        pytest.skip("no Chromium: the page is tried in a real browser where there is one")
    path = feature_page(
        sae, store, tmp_path / "p.html", index=index, latents=range(40), tokenizer=byte_tokenizer
    )
    browser = Browser(tmp_path / "browser")
    page = Tab(browser, path)
    page.wait("document.getElementById('browser').dataset.ready")
    loaded = lambda: {url.rpartition("/")[2] for url in page.requests if url.endswith(".js")}  # noqa: E731
    page.js("location.hash = '#38'")
    page.wait("document.querySelector('h2')?.textContent === 'Latent 38'")
    assert "5.js" in loaded() and len(loaded()) <= 2, "the strongest latent's script, and that of 38"
    page.js("location.hash = '#45'")
    page.wait("document.querySelector('h2').textContent === 'Latent 45'")
    assert "not on this page" in page.js("document.getElementById('feature').textContent")
    assert page.js("document.getElementById('shown').textContent") == "48 of 48", "it is listed among all"
    unread = next(i for i in range(6) if f"{i}.js" not in loaded())
    (tmp_path / "p.data" / f"{unread}.js").unlink()
    page.js(f"location.hash = '#{7 * unread}'")
    page.wait(f"document.getElementById('feature').textContent.includes('{unread}.js')")
    assert all(url.startswith("file://") for url in page.requests)
    browser.close()
