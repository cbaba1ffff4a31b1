"""The page is one inert file: what it shows is right, whatever the tokens hold, in text and in a real browser."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch

from saelens_lite.analyze import evaluate_sae, feature_page, max_activating_tokens
from saelens_lite.analyze.context import visible
from saelens_lite.analyze.inert import inert_json
from saelens_lite.analyze.page import render

NASTY = [
    "</script><script>document.title='broken'</script>",
    "<!--<script>",
    "<img src=x onerror=\"document.title='broken'\">",
    "]]><![CDATA[",
    "\u202etxet desrever",
    "\ud800 lone \udfff",
    "\u2028\u2029\x00\x1b[31m",
    "{{data}}{{script}}",
    "&lt;b&gt;&amp;",
    "'\"`${1}\\u003c",
    "<" * 10_000,
]


class Page(HTMLParser):
    """Tags with attributes, and the text of each script."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.policy = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")
        if tag == "meta" and "content" in dict(attributes) and dict(attributes).get("http-equiv"):
            self.policy = dict(attributes)["content"]

    def handle_data(self, data):
        if self.lasttag == "script" and self.scripts:
            self.scripts[-1] += data


def nasty_data(tokens=NASTY):
    """A page's data with every nasty string wherever a string of the model or the corpus can stand."""
    example = {"value": 2.0, "row": 1, "document": 3, "position": 4, "at": 1, "tokens": tokens, "acts": [1.0] * len(tokens)}
    lens = [[token, 0.5] for token in tokens]
    feature = {
        "id": 7,
        "max": 2.0,
        "fired": 9,
        "density": 0.01,
        "norm": 1.0,
        "bins": [[1, 1.2, 4], [1.2, 1.4, 0], [1.4, 1.7, 5]],
    }
    feature |= {"top": lens, "bottom": lens, "examples": [example]}
    return {
        "title": tokens[0],
        "facts": [["model", token] for token in tokens],
        "rule": tokens[2],
        "tokens": 900,
        "features": [feature],
    }


def test_no_string_can_end_the_data():
    text = inert_json(nasty_data())
    assert text.isascii()
    assert not set(text) & set("<>&\u2028\u2029\x00")
    assert json.loads(text) == nasty_data(), "and every string comes back whole, lone surrogates included"


def test_no_element_comes_from_a_string():
    def elements(page):
        return [(tag, sorted(attributes)) for tag, attributes in page.tags]

    page, tame = Page(render(nasty_data())), Page(render(nasty_data(tokens=["a"] * len(NASTY))))
    assert elements(page) == elements(tame)
    assert len(page.scripts) == 2 and page.scripts[1] == tame.scripts[1]
    assert json.loads(page.scripts[0]) == nasty_data()
    render(nasty_data()).encode("utf-8")


def test_the_page_reaches_for_nothing():
    text = render(nasty_data())
    page = Page(text)
    assert page.policy.startswith("default-src 'none'; base-uri 'none'")
    assert "unsafe" not in page.policy
    shell = text.replace(page.scripts[0], "").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//\w|url\(|@import|innerHTML|insertAdjacentHTML|document\.write|eval\(", shell)
    assert not any(
        {"src", "href"} & set(attributes) or any(a.startswith("on") for a in attributes) for _, attributes in page.tags
    )


@pytest.fixture
def page_data(store, sae, gpt2, byte_tokenizer, tmp_path):
    """page_data(**options): the data of a page made from the small store."""

    def make(model=gpt2, **options):
        path = feature_page(sae, store, tmp_path / "new folder" / "page.html", model, tokenizer=byte_tokenizer, **options)
        return json.loads(Page(path.read_text(encoding="utf-8")).scripts[0])

    return make


def test_the_data_is_that_of_the_index(store, sae, byte_tokenizer, page_data):
    data = page_data(latents=[5, 2, 9], n_examples=4)
    table = max_activating_tokens(sae, store, n=4, tokenizer=byte_tokenizer)
    rows = store.gather(torch.arange(store.n_rows))
    with torch.no_grad():
        dense = sae.encode_dense(rows)
    assert [feature["id"] for feature in data["features"]] == [5, 2, 9]
    for feature in data["features"]:
        view = table.latent(feature["id"])
        assert feature["fired"] == view.n_fired
        assert sum(count for _, _, count in feature["bins"]) == view.n_fired, "every firing is in the histogram, no zero is"
        assert [one["row"] for one in feature["examples"]] == [firing.row for firing in view]
        for one, firing in zip(feature["examples"], view):
            assert one["value"] == pytest.approx(firing.value, rel=1e-3)
            assert one["acts"][one["at"]] == pytest.approx(firing.value, rel=1e-3)
            known = [(act, row) for act, row in zip(one["acts"], table.contexts.rows_of(firing.context)) if row >= 0]
            for i, act in enumerate(one["acts"][one["at"] :]):
                if act is not None and firing.row + i < len(dense) and firing.context.position + i < 32:
                    assert act == pytest.approx(dense[firing.row + i, feature["id"]].item(), rel=1e-3, abs=1e-6)
            assert known
        assert len(feature["top"]) == len(feature["bottom"]) == 10


def test_the_rule_of_selection_is_said_and_kept(page_data, store, sae):
    data = page_data(n_latents=6)
    assert data["rule"].startswith("Selected by: density from 1e-05 to 0.05 and at least 10 firings in 1,500 tokens")
    assert "not a random sample" in data["rule"]
    features = data["features"]
    assert 0 < len(features) <= 6
    assert all(10 <= feature["fired"] <= 0.05 * 1500 for feature in features)
    strongest = [feature["max"] for feature in features]
    assert strongest == sorted(strongest, reverse=True)


def test_the_head_says_what_the_page_rests_on(page_data, store, sae, gpt2):
    evaluation = evaluate_sae(sae, store, gpt2, held_out_fraction=0.3)
    facts = dict(page_data(evaluation=evaluation)["facts"])
    assert facts["SAE"] == "topk, k=4, 48 latents, width 32"
    assert facts["tokens seen"] == "1,500"
    assert facts["fvu"].startswith(f"{evaluation.row('trained').fvu:.4f} (") and "held-out tokens" in facts["fvu"]
    assert facts["ΔCE"].startswith(f"{evaluation.row('trained').delta_ce:.4f} nats")
    without = page_data(model=None)
    assert "fvu" not in dict(without["facts"])
    assert without["title"] == "Features of GPT2LMHeadModel at blocks.0.hook_resid_post"
    assert all("top" not in feature for feature in without["features"])


def test_a_browser_draws_it(browser, store, sae, gpt2, byte_tokenizer, tmp_path):
    path = feature_page(sae, store, tmp_path / "page.html", gpt2, n_latents=5, tokenizer=byte_tokenizer)
    data = json.loads(Page(path.read_text(encoding="utf-8")).scripts[0])
    dom = browser(path, tmp_path / "browser")
    drawn = Page(dom).tags
    classes = [attributes.get("class") for _, attributes in drawn]
    shown = data["features"][0]
    assert f"<h2>Latent {shown['id']}</h2>" in dom
    assert classes.count("example") == len(shown["examples"])
    assert classes.count("peak") == len(shown["examples"]), "the strongest token is marked in each"
    assert sum(1 for tag, attributes in drawn if tag == "button" and "data-id" in attributes) == len(data["features"])
    assert classes.count("bar") == sum(1 for _, _, count in shown["bins"] if count)


def test_a_browser_runs_nothing_that_came_from_a_token(browser, tmp_path):
    path = tmp_path / "page.html"
    # As feature_page gives them: with what cannot be seen spelled out (a lone surrogate makes --dump-dom itself crash).
    path.write_text(render(nasty_data([visible(token) for token in NASTY])), encoding="utf-8")
    dom = browser(path, tmp_path / "browser")
    drawn = Page(dom)
    assert "<title>broken</title>" not in dom
    assert not any(tag == "img" for tag, _ in drawn.tags)
    assert len(drawn.scripts) == 2
    assert "<h2>Latent 7</h2>" in dom and "&lt;img src=x" in dom, "the page is drawn, the token is text in it"
