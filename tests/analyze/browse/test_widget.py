"""The browser in a notebook: what goes over the widget's comm, and what a notebook without widgets shows."""

import builtins
import json
import threading
import time

import pytest
from safetensors import safe_open
from safetensors.numpy import load

from saelens_lite.analyze.browse import widget
from saelens_lite.analyze.browse.module import module, widget_module
from saelens_lite.analyze.browse.widget import FeatureBrowser
from saelens_lite.analyze.index.build import index_features


@pytest.fixture
def index(store, sae, gpt2, byte_tokenizer, tmp_path):
    return index_features(sae, store, tmp_path / "index", gpt2, tokenizer=byte_tokenizer)


class Page:
    """What a page does: it asks, and hears what comes back."""

    def __init__(self, browser):
        self.widget, self.heard, self._came = browser.widget, [], threading.Condition()
        self.widget.send = self._hear

    def _hear(self, content, buffers=None):
        json.dumps(content)  # what a comm can carry
        with self._came:
            self.heard.append((content, buffers))
            self._came.notify_all()

    def say(self, **content):
        self.widget._handle_custom_msg(content, [])

    def ask(self, name, ask="1", **params):
        self.say(ask=ask, name=name, params=params)

    def until(self, test, timeout_s=20):
        with self._came:
            assert self._came.wait_for(lambda: any(test(*one) for one in self.heard), timeout_s), self.heard
        return next(one for one in self.heard if test(*one))


def test_a_page_asks_and_gets_arrays_as_buffers(index, tmp_path):
    page = Page(FeatureBrowser(index))
    page.ask("start")
    content, [buffer] = page.heard.pop()
    assert content == {"ask": "1"} and len(load(buffer)["fired"]) == 48
    (tmp_path / "start").write_bytes(buffer)
    with safe_open(tmp_path / "start", "np") as file:
        head = json.loads(file.metadata()["json"])
    assert head["can"] == ["mark", "search"] and head["tokens"] == 1500
    page.ask("latents", latents=[5])
    assert load(page.heard.pop()[1][0])["latents"].tolist() == [5]
    page.ask("mark", latent=5, label="five", notes="", starred=True)
    assert page.heard.pop() == ({"ask": "1", "json": {}}, None)
    assert index.labels.get(5).label == "five"
    page.ask("shell", text="rm")
    assert "expected a question of" in page.heard.pop()[0]["error"]


def test_selection_goes_both_ways(index):
    browser = FeatureBrowser(index)
    assert browser.selected is None
    browser.select(7)
    browser.search("density<0.5")
    page = Page(browser)
    page.ask("start")
    commands = [content for content, _ in page.heard if "command" in content]
    assert commands == [{"command": "select", "value": 7}, {"command": "search", "value": "density<0.5"}], (
        "a page that comes later hears what it missed"
    )
    page.say(selected=11)
    assert browser.selected == 11
    page.say(selected=48)
    page.say(selected="7")
    assert browser.selected == 11
    with pytest.raises(ValueError, match="a latent from 0 to 47, got 48"):
        browser.select(48)


def steering(index):
    latent = int(index.column("counts").argmax())
    edit = {"latents": [latent], "mode": "add", "dose": 1, "where": "all"}
    return edit | {"prompt": "Story", "temperature": 1, "max_new_tokens": 40}


def lines_of(page, ask):
    return [content["line"] for content, _ in page.heard if content["ask"] == ask and "line" in content]


def test_generation_runs_beside_and_stops_within_two_tokens(index, sae, gpt2, monkeypatch):
    """Whatever the page hears, the model is at most AHEAD = 2 lines further when Stop comes."""
    monkeypatch.setattr(widget, "_PATIENCE_S", 60.0)
    made = []
    real = gpt2.forward
    monkeypatch.setattr(gpt2, "forward", lambda *given, **named: made.append(1) or real(*given, **named))
    page = Page(FeatureBrowser(index, gpt2, sae))
    page.ask("steer", "long", **steering(index))
    page.until(lambda content, _: "pieces" in content.get("line", {}))
    time.sleep(0.2)
    assert len(lines_of(page, "long")) == 2 and len(made) == 1, "the names of the rows, and a token of each"
    for n in range(3):
        page.say(heard="long")
        page.until(lambda *_, n=n: len(lines_of(page, "long")) == 3 + n)
    time.sleep(0.1)
    assert len(made) == 4, "four tokens, of which the page has drawn two"
    page.say(stop="long")
    page.until(lambda content, _: content == {"ask": "long", "json": {}})
    assert len(made) == 4 and len(lines_of(page, "long")) == 5
    page.ask("text", "after", text="sun moon")
    _, buffers = page.until(lambda content, _: content["ask"] == "after")
    assert set(load(buffers[0])) == {"act", "at", "latent"}, "the model is free again"


def test_generation_ends_where_nobody_hears(index, sae, gpt2, monkeypatch):
    """As beside a cell that runs for long: after a while it no longer waits."""
    monkeypatch.setattr(widget, "_PATIENCE_S", 0.05)
    page = Page(FeatureBrowser(index, gpt2, sae))
    page.ask("steer", "long", **steering(index))
    page.until(lambda content, _: content == {"ask": "long", "json": {}})
    pieces = [line["pieces"] for line in lines_of(page, "long")[1:]]
    assert len(pieces) == 40 or all(piece is None for piece in pieces[-1])


def test_the_widget_holds_its_module_and_no_data(index):
    browser = FeatureBrowser(index)
    state = browser.widget.get_state()
    assert len(json.dumps(state, default=str)) < 500_000
    assert [key for key in state if not key.startswith("_")] in ([], ["layout", "tabbable", "tooltip"])
    assert widget_module().endswith(module()) and "import " not in widget_module().split("\n//")[0]


def test_without_widgets_it_is_an_inert_table(index, monkeypatch):
    html = FeatureBrowser(index)._repr_html_()
    assert "<script" not in html and "<table" in html
    bundle = FeatureBrowser(index)._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert data["text/html"] == html and "application/vnd.jupyter.widget-view+json" in data

    real = builtins.__import__

    def without(name, *args, **options):
        if name == "anywidget":
            raise ImportError(name)
        return real(name, *args, **options)

    widget._widget_class.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    bundle = FeatureBrowser(index)._repr_mimebundle_()
    assert bundle["text/html"] == html and len(bundle) == 2
    with pytest.raises(ImportError, match="pip install 'saelens_lite\\[notebooks\\]'"):
        _ = FeatureBrowser(index).widget
    widget._widget_class.cache_clear()
