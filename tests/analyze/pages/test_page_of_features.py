"""The page is inert: what it shows is right, whatever the tokens hold, in text and in a real
browser."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import pytest
import torch

from saelens_lite.analyze.browse.payload import as_text, packed
from saelens_lite.analyze.browse.static_files import page_text
from saelens_lite.analyze.evaluation.evaluate import evaluate_sae
from saelens_lite.analyze.evaluation.result import EvaluationRow
from saelens_lite.analyze.index.build import IndexConfig, index_features
from saelens_lite.analyze.index.feature_index import FeatureIndex
from saelens_lite.analyze.index.labels import FORMAT
from saelens_lite.analyze.index.max_activating import max_activating_tokens
from saelens_lite.analyze.index.tally import activation_bins, bin_edges
from saelens_lite.analyze.latents.text_windows import invisible_in_js, visible
from saelens_lite.analyze.pages.page_of_features import feature_page
from saelens_lite.analyze.render.html import inert_json

from ..chromium import Tab
from ..conftest import make_sae
from ..page_reader import parts_of, read_page

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
    "<" * 1_000_000,
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


def nasty_page(path, tokens=NASTY, n=2):
    """A page with every nasty string wherever a string of the model, the corpus or a reader can stand: of
    latents 0 to n - 1, whose examples hold all the tokens."""
    ids = torch.arange(len(tokens), dtype=torch.int32)
    window = torch.nn.functional.pad(ids, (0, max(0, 37 - len(ids))), value=-1)[:37]
    ones = torch.ones(n, 1, dtype=torch.int32)
    block = {
        "latents": torch.arange(n, dtype=torch.int32), "first": torch.full((n,), 3.0).double(),
        "last": torch.full((n,), 800.0).double(), "quantiles": torch.tensor([[1.0, 1.5]] * n),
        "histogram": torch.nn.functional.pad(torch.tensor([[4, 0, 5]] * n, dtype=torch.int32), (33, 60)),
        "positions": torch.nn.functional.pad(torch.tensor([[1, 0, 8]] * n, dtype=torch.int32), (0, 13)),
        **{f"{name}_ids": ones for name in ("cosine", "jaccard", "pmi")},
        **dict.fromkeys(("cosine", "jaccard", "pmi"), 500 * ones.short()),
        **{f"{end}_ids": ids.repeat(n, 1) for end in ("promoted", "demoted")},
        **{f"{end}_logits": torch.full((n, len(ids)), 0.5) for end in ("promoted", "demoted")},
        "sampled": torch.full((n,), 9, dtype=torch.int32), "common": ids[:5].repeat(n, 1),
        "common_n": torch.ones(n, 5, dtype=torch.int32), "within": torch.tensor([[5, 4, 0, 0, 0]] * n).int(),
        "low": torch.tensor([[1.0, 0, 0, 0, 0]] * n), "high": torch.tensor([[1.5, 1, 0, 0, 0]] * n),
    }  # fmt: skip
    for kind, m, width in (("far", 3, 37), ("near", 30, 37)):
        block |= {
            f"{kind}_row": torch.ones(n, m, dtype=torch.int32),
            f"{kind}_value": torch.full((n, m), 2.0),
            f"{kind}_document": torch.full((n, m), 3, dtype=torch.int32),
            f"{kind}_position": torch.full((n, m), 4, dtype=torch.int32),
            f"{kind}_tokens": window[:width].repeat(n, m, 1),
            f"{kind}_firings": torch.full((n, m), 2, dtype=torch.uint8),
            f"{kind}_place": torch.tensor([0, 1] * n * m, dtype=torch.int16),
            f"{kind}_act": torch.tensor([torch.nan, 2.0] * n * m),
        }
    block["near_row"][:, [i for i in range(30) if i not in (0, 5, 25)]] = -1
    fired, column = torch.full((n,), 9.0), torch.full((n,), 0.5)
    table = {
        "fired": fired.double(),
        "max": torch.arange(n).float().flip(0) + 2,
        "unigram": torch.ones(n).byte(),
    }
    table |= {"entropy": column, "share": column, "gist": ids[:8].repeat(n, 1)}
    head = {
        "title": tokens[0],
        "facts": [["model", token] for token in tokens],
        "rule": tokens[2],
        "tokens": 900,
        "top": 20,
        "sampled": 500,
        "positions": [100, 100, 700],
        "bos": True,
        "edges": bin_edges(),
        "invisible": invisible_in_js(),
        "labels": {"format": FORMAT, "version": 1, "sae": tokens[0]},
        "marks": [[0, tokens[0], tokens[2], True]],
        "texts": dict(enumerate(tokens)),
    }
    head |= {"wide": False, "before": 1, "before_near": 1, "can": [], "panels": None, "chunk": n}
    head |= {"embedded": n < 9, "files": "", "exact": False}
    parts = {
        "table": as_text(packed(table, False, planes=True)),
        "0": as_text(packed(block, False, planes=True)),
    }
    path.write_text(page_text("static", head, parts), encoding="utf-8")
    return head


@pytest.mark.property_check(9)
def test_no_string_can_end_the_data():
    text = inert_json(NASTY)
    assert text.isascii()
    assert not set(text) & set("<>&\u2028\u2029\x00")
    assert json.loads(text) == NASTY, "and every string comes back whole, lone surrogates included"


@pytest.mark.property_check(9)
def test_no_element_comes_from_a_string_and_the_page_reaches_for_nothing(tmp_path):
    def elements(page):
        return [(tag, sorted(attributes)) for tag, attributes in page.tags]

    head = nasty_page(tmp_path / "nasty.html")
    nasty_page(tmp_path / "tame.html", ["a"] * len(NASTY))
    text = (tmp_path / "nasty.html").read_text(encoding="utf-8")
    page, tame = Page(text), Page((tmp_path / "tame.html").read_text(encoding="utf-8"))
    assert elements(page) == elements(tame)
    assert len(page.scripts) == 4 and page.scripts[3] == tame.scripts[3]
    assert json.loads(page.scripts[0])["facts"] == head["facts"]
    assert page.policy.startswith("default-src 'none'; base-uri 'none'")
    assert "unsafe" not in page.policy
    shell = text.replace(page.scripts[0], "").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(
        r"https?:|[^:]//\w|url\(|@import|innerHTML|insertAdjacentHTML|document\.write|eval\(", shell
    )
    assert not any(
        {"src", "href"} & set(attributes) or any(a.startswith("on") for a in attributes)
        for _, attributes in page.tags
    )


def shown(text):
    """A text of the page, bytes spelled."""
    return text if isinstance(text, str) else "".join(f"⟨0x{byte:02X}⟩" for byte in text)


@pytest.fixture
def page_data(store, sae, gpt2, byte_tokenizer, tmp_path):
    """page_data(**options): the data of a page made from the small store."""

    def make(model=gpt2, **options):
        return read_page(
            feature_page(
                sae, store, tmp_path / "new folder" / "page.html", model, tokenizer=byte_tokenizer, **options
            )
        )

    return make


@pytest.fixture
def speaking(dense):
    """The latents that fire at all, most frequent first."""
    counts = (dense > 0).sum(0)
    order = counts.argsort(descending=True, stable=True)
    return order[counts[order] > 0].tolist()


@pytest.fixture
def dense(store, sae):
    """float32[rows d_sae], every activation of the small store."""
    with torch.no_grad():
        return sae.encode_dense(store.gather(torch.arange(store.n_rows)))


def act_at(example):
    """The activation that an example's window has at the row's own token."""
    return example["acts"].get(example["at"], 0.0)


def test_the_data_is_that_of_brute_force(store, sae, dense, speaking, byte_tokenizer, page_data):
    latents = [speaking[9], speaking[2], speaking[-1]]
    data = page_data(latents=latents, n_examples=4)
    table = max_activating_tokens(sae, store, n=4, tokenizer=byte_tokenizer)
    assert [feature["id"] for feature in data["features"]] == latents
    for feature in data["features"]:
        acts, view = dense[:, feature["id"]], table.latent(feature["id"])
        fires = acts > 0
        rows = fires.nonzero().flatten().tolist()
        assert (feature["fired"], feature["first"], feature["last"]) == (len(rows), rows[0], rows[-1])
        first, counts = feature["bins"]
        expected = torch.bincount(activation_bins(acts[fires]), minlength=96)
        assert [0] * first + counts == expected[: first + len(counts)].tolist(), "every firing, no zero"
        assert sum(counts) == sum(feature["positions"]) == len(rows)
        assert feature["quantiles"][0] == pytest.approx(acts[fires].quantile(0.5).item(), rel=0.2)
        assert [one["row"] for one in feature["examples"]] == [firing.row for firing in view]
        for one, firing in zip(feature["examples"], view, strict=True):
            row, at, found = one["row"], one["at"], one["acts"]
            assert one["value"] == pytest.approx(acts[row].item(), rel=1e-3)
            assert (one["document"], one["position"]) == (firing.context.document, firing.context.position)
            for i in range(at, len(one["ids"])):
                if i in found and found[i] is None:
                    break  # a token without a row: what follows is another context
                assert found.get(i, 0) == pytest.approx(acts[row + i - at].item(), rel=1e-3, abs=1e-6)
        assert len(feature["top"]) == len(feature["bottom"]) == 10
        strongest = feature["examples"][0]
        assert shown(data["texts"][strongest["ids"][strongest["at"]]]) == visible(view[0].token)


def test_interval_examples_lie_inside_and_contrast_is_silent(dense, speaking, page_data):
    """Property check 7 of the analysis reference, on the page."""
    data = page_data(latents=speaking)
    for feature in data["features"]:
        acts = dense[:, feature["id"]]
        lows, highs = ([one[end] for one in feature["intervals"]] for end in (0, 1))
        assert lows == sorted(lows, reverse=True) and highs[1:] == lows[:-1], "strongest first, without gaps"
        assert (
            highs[0] == pytest.approx(acts.max().item(), rel=1e-3)
            and lows[-1] <= acts[acts > 0].min() * 1.001
        )
        for low, high, fired, examples in feature["intervals"]:
            if feature["fired"] <= IndexConfig().n_sample:
                inside = (acts >= low * 0.9995) & (acts <= high * 1.0005) & (acts > 0)
                assert 0 <= fired <= int(inside.sum())
            assert len(examples) == min(5, fired)
            for example in examples:
                value = example["value"]
                assert low * 0.999 <= value <= high * 1.001 and value > 0
                assert value == pytest.approx(acts[example["row"]].item(), rel=1e-3) == act_at(example)
        if feature["fired"] <= IndexConfig().n_sample:
            assert sum(one[2] for one in feature["intervals"]) == feature["fired"], (
                "each firing is in one interval"
            )
        assert all(acts[example["row"]] == 0 and act_at(example) == 0 for example in feature["contrast"])
        assert len(feature["contrast"]) == 5 or feature["fired"] > 700


@pytest.mark.long
def test_common_tokens(store, dense, speaking, page_data):
    data = page_data(latents=speaking)
    ids = torch.cat([store.tokens(i).input_ids[store.tokens(i).kept.bool()] for i in range(store.n_shards)])
    some = [feature for feature in data["features"] if feature["fired"] <= IndexConfig().n_sample]
    assert some
    for feature in some:
        n, common = feature["tokens"]
        counts = torch.bincount(ids[dense[:, feature["id"]] > 0])
        assert n == feature["fired"]
        assert [count for _, count in common] == counts.sort(descending=True).values[: len(common)].tolist()
        assert all(counts[token] == count for token, count in common)
        assert data["table"]["share"][feature["id"]] == pytest.approx(common[0][1] / n, rel=1e-3)


def test_an_index_gives_neighbours_lens_score_and_labels(
    store, sae, gpt2, speaking, byte_tokenizer, page_data, tmp_path
):
    one, other = speaking[:2]
    index = index_features(sae, store, tmp_path / "index", gpt2, tokenizer=byte_tokenizer, output_score=True)
    index.labels.set(one, "five <b>", "\u202enotes", starred=True)
    data = page_data(
        model=None, latents=[one, other], index=FeatureIndex.open(tmp_path / "index", byte_tokenizer)
    )
    five, _two = data["features"]
    view = index[one]
    for name in ("cosine", "jaccard", "pmi"):
        assert five[name] == [(near, pytest.approx(score, abs=6e-4)) for near, score in getattr(view, name)]
    assert [shown(data["texts"][token]) for token, _ in five["top"]] == [
        visible(token) for token, _ in view.promoted
    ]
    assert data["table"]["score"][one] == pytest.approx(view.output_score, rel=1e-3)
    assert data["marks"] == [[one, "five <b>", "\u202enotes", True]]
    assert data["labels"]["sae"] == index.sae["sha256"]
    with pytest.raises(ValueError, match="is the index of"):
        feature_page(make_sae(d_sae=64), store, tmp_path / "p.html", index=index)
    index.plan["hook_point"] = "blocks.1.hook_mlp_out"
    with pytest.raises(
        ValueError, match="an index over blocks.1.hook_mlp_out, not over blocks.0.hook_resid_post"
    ):
        feature_page(sae, store, tmp_path / "p.html", index=index)
    assert not (tmp_path / "p.html").exists()


@pytest.mark.long
def test_an_index_for_the_time_of_the_call_gives_the_same_page(
    store, sae, gpt2, byte_tokenizer, page_data, tmp_path
):
    index = index_features(sae, store, tmp_path / "index", gpt2, tokenizer=byte_tokenizer)
    path = tmp_path / "new folder" / "page.html"
    page_data(n_latents=5)
    first = path.read_bytes()
    page_data(n_latents=5, index=index)
    assert path.read_bytes() == first


def test_rows_without_text_are_shown_as_rows(tmp_path):
    from saelens_lite import ActivationStore

    rows = torch.randn(400, 32, generator=torch.Generator().manual_seed(0))
    store = ActivationStore.from_arrays(tmp_path / "store", {"x": rows.numpy()})
    path = feature_page(make_sae(hook_point="x"), store, tmp_path / "page.html", n_latents=3)
    data = read_page(path)
    assert "entropy" not in data["table"]
    for feature in data["features"]:
        assert feature["tokens"] == [0, []] and not any(feature["positions"])
        assert all(one["ids"] == [] and one["document"] >= 0 for one in feature["examples"])


@pytest.mark.long
def test_a_page_of_many_latents_is_small(page_data, tmp_path):
    page_data(latents=range(48))
    _, parts = parts_of(tmp_path / "new folder" / "page.html")
    assert sum(map(len, parts.values())) < 5_000 * 48


def test_the_rule_of_selection_is_said_and_kept(page_data, store, sae):
    data = page_data(n_latents=6)
    assert data["rule"].startswith(
        "Selected by: density from 1e-05 to 0.05 and at least 10 firings in 1,500 tokens"
    )
    assert "not a random sample" in data["rule"]
    features = data["features"]
    assert 0 < len(features) <= 6
    assert all(10 <= feature["fired"] <= 0.05 * 1500 for feature in features)
    strongest = [feature["max"] for feature in features]
    assert strongest == sorted(strongest, reverse=True)


@pytest.mark.long
def test_the_head_says_what_the_page_rests_on(page_data, store, sae, gpt2, tmp_path):
    evaluation = evaluate_sae(sae, store, gpt2, held_out_fraction=0.3)
    facts = dict(page_data(evaluation=evaluation)["facts"])
    assert facts["SAE"] == "topk, k=4, 48 latents, width 32"
    assert facts["tokens seen"] == "1,500"
    assert (
        facts["fvu"].startswith(f"{evaluation.row('trained').fvu:.4f} (")
        and "held-out tokens" in facts["fvu"]
    )
    assert facts["ΔCE"].startswith(f"{evaluation.row('trained').delta_ce:.4f} nats")
    ours, frozen = evaluation.row("trained"), EvaluationRow(name="baseline", fvu=0.75, delta_ce=1.5)
    beside = dataclasses.replace(evaluation, rows=(ours, frozen))
    (tmp_path / "evaluation.json").write_text(json.dumps(beside.to_dict()))
    from_file = dict(page_data(evaluation=tmp_path / "evaluation.json")["facts"])
    n, n_ce = evaluation.n_tokens, evaluation.n_ce_tokens
    assert from_file["fvu"] == f"{ours.fvu:.4f}, 0.7500 with a frozen decoder ({n:,} held-out tokens)"
    assert from_file["ΔCE"] == (
        f"{ours.delta_ce:.4f} nats, 1.5000 with a frozen decoder ({n_ce:,} held-out tokens)"
    )
    without = page_data(model=None)
    assert "fvu" not in dict(without["facts"])
    assert without["title"] == "Features of GPT2LMHeadModel at blocks.0.hook_resid_post"
    assert all("top" not in feature for feature in without["features"])


H2 = "document.querySelector('h2').textContent"


# In a browser -------------------------------------------------------------------------------------


@pytest.fixture
def tab(chromium):
    """tab(path, **options): a page in Chromium, closed at the end: it complained of nothing and asked for
    nothing."""
    tabs = []

    def opened(path, **options):
        tabs.append(Tab(chromium, path, **options))
        tabs[-1].wait("document.getElementById('browser').dataset.ready")
        return tabs[-1]

    yield opened
    for one in tabs:
        one.js("1")
        one.close()
        assert one.complaints == []
        assert all(url.startswith(("file://", "blob:")) for url in one.requests), one.requests


@pytest.mark.long
def test_a_browser_draws_it(tab, speaking, page_data, tmp_path):
    shown = max(page_data(latents=speaking[-5:])["features"], key=lambda feature: feature["max"])
    page = tab(tmp_path / "new folder" / "page.html")
    count = lambda selector: page.js(f"document.querySelectorAll({selector!r}).length")  # noqa: E731
    assert page.js(H2) == f"Latent {shown['id']}"
    in_intervals = sum(len(one[3]) for one in shown["intervals"])
    assert count("#feature .example") == len(shown["examples"]) + in_intervals + len(shown["contrast"])
    assert count(".peak") == len(shown["examples"]) + in_intervals, "the strongest token is marked in each"
    assert count(".here") == len(shown["contrast"]) == 5
    assert count("#rows button") == 5
    assert count(".bar") == sum(1 for n in shown["bins"][1] if n)
    assert count(".interval") == 5
    assert page.js("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.long
def test_keys_move_search_and_star(tab, page_data, tmp_path):
    page_data(latents=range(8))
    page = tab(tmp_path / "new folder" / "page.html")
    latents = page.js("[...document.querySelectorAll('#rows button')].map(b => Number(b.dataset.latent))")
    now = "Number(document.querySelector('h2').textContent.slice(7))"
    page.press("j", "j")
    assert page.js(now) == latents[2]
    page.press("k")
    assert page.js(now) == latents[1] and page.js("location.hash") == f"#{latents[1]}"
    page.press("s")
    assert page.js("document.getElementById('star').textContent") == "★"
    page.press("/")
    page.type(f"{latents[4]}")
    assert page.js("document.getElementById('search').value") == str(latents[4]), (
        "the key that opens it is not typed"
    )
    page.press("s")
    assert page.js("document.getElementById('search').value") == f"{latents[4]}s", (
        "in the search box, keys are text"
    )
    assert page.js("document.querySelectorAll('#rows button').length") == 0
    assert page.js("document.getElementById('export').textContent") == "Download 1 change", (
        "that s starred nothing"
    )
    page.js("document.getElementById('search').value = ''")
    page.type("is:starred")
    assert page.js("[...document.querySelectorAll('#rows button')].map(b => Number(b.dataset.latent))") == [
        latents[1]
    ]
    page.press("Escape")
    page.press("t")
    assert page.js("getComputedStyle(document.querySelector('main')).display") == "none"
    page.press("t")
    assert page.js("getComputedStyle(document.querySelector('main')).display") == "block"


@pytest.mark.long
def test_what_a_reader_writes_is_downloaded_and_imported(tab, store, sae, gpt2, byte_tokenizer, tmp_path):
    index = index_features(sae, store, tmp_path / "index", tokenizer=byte_tokenizer)
    path = feature_page(
        sae, store, tmp_path / "page.html", latents=[3, 4, 5], tokenizer=byte_tokenizer, index=index
    )
    page = tab(path)
    page.downloads_to(tmp_path / "down")
    latents = page.js("[...document.querySelectorAll('#rows button')].map(b => Number(b.dataset.latent))")
    assert page.js("document.getElementById('export').hidden")
    page.click("#label")
    page.type("</script> \u202e said")
    page.click("#notes")
    page.type("a 'note'")
    page.press("Escape", "j", "s")
    assert page.js("document.getElementById('export').textContent") == "Download 2 changes"
    page.click("#export")
    assert "⟨U+202E⟩ said" in page.js("document.getElementById('rows').textContent")
    page.press("k")
    assert "⟨U+202E⟩ said" in page.js("document.querySelector('.markings').textContent")
    # Jupyter's sandbox drops the file, which no page can see: the changes stay on offer, as text too
    assert page.js("document.getElementById('export').textContent") == "Download 2 changes"
    text = json.loads(page.js("document.getElementById('exported').value"))
    assert [one["latent"] for one in text["labels"]] == sorted(latents[:2])
    assert page.js("document.getElementById('exported').checkVisibility()")
    file = tmp_path / "down" / "labels.json"
    for _ in range(200):
        if file.exists():
            break
        page.frame()
    assert index.labels.import_json(file) == 2
    assert (
        index.labels.get(latents[0]).label == "</script> \u202e said"
        and index.labels.get(latents[0]).notes == "a 'note'"
    )
    assert index.labels.get(latents[1]).starred and not index.labels.get(latents[0]).starred


@pytest.mark.long
def test_five_thousand_rows_scroll_and_sort(tab, tmp_path):
    nasty_page(tmp_path / "page.html", ["sun", "moon", "star"] * 3, n=5000)
    page = tab(tmp_path / "page.html")
    page.press("t")
    drawn = "document.querySelectorAll('#rows button').length"
    assert 10 < page.js(drawn) < 100, "only what is in view is in the page"
    page.js("document.getElementById('list').scrollTop = 30 * 5600")
    page.frame()
    first = "Number(document.querySelector('#rows button').dataset.latent)"
    assert page.js(first) > 4000 and page.js(drawn) < 100
    for column, expected in (("latent", 0), ("max", 0)):
        page.click(f'#heads button[data-by="{column}"]')
        assert page.js(first) == expected, column
    page.click('#heads button[data-by="max"]')
    assert page.js(first) == 4999, "a second click turns the order round"
    page.press("/")
    page.type("max>5000 density<0.5 latent<4990")
    assert page.js("document.getElementById('shown').textContent") == "1 of 5,000", "max is 5001 - latent"
    page.press("Escape", "Escape")
    page.wait(f"{H2} === 'Latent 0'")
    page.click(".neighbour")
    page.wait(f"{H2} === 'Latent 1'")
    assert page.js("document.getElementById('search').value") == "", (
        "a latent that the filter hides is listed again"
    )


@pytest.mark.long
def test_nothing_is_wider_than_the_window(tab, page_data, tmp_path):
    page_data(latents=range(3))
    page = tab(tmp_path / "new folder" / "page.html")
    wide = (
        "[...document.querySelectorAll('main *')]"
        ".filter(e => e.getBoundingClientRect().right > innerWidth + 1).length"
    )
    for width in (1600, 1000, 420, 320):
        page.resize(width, 800)
        page.frame()
        assert page.js("document.documentElement.scrollWidth") <= width
        assert page.js(wide) == 0, width
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.js(colour)
    page.resize(1000, 800, dark=True)
    assert light == "rgb(251, 250, 248)" and page.js(colour) == "rgb(23, 22, 20)"


@pytest.mark.long
def test_a_browser_runs_nothing_that_came_from_a_token(tab, tmp_path):
    """Property check 9 of the analysis reference: raw strings, lone surrogates among them, as if `visible`
    did not exist."""
    nasty, tame = tmp_path / "page.html", tmp_path / "tame.html"
    nasty_page(nasty)
    nasty_page(tame, ["a"] * len(NASTY))
    kinds = "JSON.stringify([...document.querySelectorAll('*')].map(e => e.tagName).sort())"
    found = []
    for path in (nasty, tame):
        page = tab(path)
        page.press("j", "k", "t", "t", "s")
        page.press("/")
        page.type("<img")
        page.press("Enter")
        assert page.js("document.title") != "broken"
        assert page.js("document.querySelectorAll('img, iframe, link, object').length") == 0
        assert page.js("document.scripts.length") == 4
        found.append(json.loads(page.js(kinds)) if path == tame else page)
    page = found[0]
    assert page.js(H2) == "Latent 0"
    assert "<img src=x" in page.js("document.querySelector('.context').textContent"), "the token is text"
    fits = "[...document.querySelectorAll('html, main')].every(e => e.scrollWidth <= e.clientWidth)"
    assert page.js(fits), "a long token is broken"
    count = page.js("document.querySelectorAll('.context span').length")
    assert count == len(NASTY) * (3 + 2 + 1)
