"""The widget's page in a real browser, without a notebook: hostile strings run nothing, and it does what it
should. test_jupyterlab.py does the same in a real JupyterLab."""

import base64
import json
import time
import urllib.request

import pytest
from safetensors.numpy import load

from saelens_lite.analyze.browse.module import widget_module
from saelens_lite.analyze.browse.widget import FeatureBrowser
from saelens_lite.analyze.exchange import import_index

from ..chromium import Tab
from ..widget_page import widget_page

ROOT = "document.getElementById('cell').shadowRoot"
SEEDS = [
    "</script><script>document.title='broken'</script>",
    "<img src=x onerror=\"document.title='broken'\">",
    "<!--<script>",
    "]]><![CDATA[",
    "\u202etxet desrever",
    "\ud800 lone",
    "\u2028\u2029\x00\x1b[31m",
    "&lt;b&gt;",
    "'\"`${document.title='broken'}\\u003c",
    "javascript:document.title='broken'",
]
HOSTILE = [f"{SEEDS[i % 10]}{'<' * (i % 7)}{i}" for i in range(250)]


@pytest.fixture
def hostile(tmp_path):
    """An index of 25 latents whose tokens are hostile, and so is each label that a reader may write."""
    lists = (
        "neg_str", "neg_values", "neuron_alignment_indices", "decoder_weights_dist", "vector",
        "neuron_alignment_values", "neuron_alignment_l1", "correlated_neurons_indices",
        "correlated_neurons_l1", "correlated_neurons_pearson", "correlated_features_indices",
        "correlated_features_l1", "correlated_features_pearson", "freq_hist_data_bar_values",
        "freq_hist_data_bar_heights", "logits_hist_data_bar_heights", "logits_hist_data_bar_values",
    )  # fmt: skip
    features = []
    for latent in range(25):
        tokens = HOSTILE[10 * latent : 10 * latent + 10]
        window = {"bin_min": -1, "bin_max": 2.0, "bin_contains": -1, "qualifying_token_index": latent % 10}
        window |= {"tokens": tokens, "values": [2.0 if i == latent % 10 else 0.0 for i in range(10)]}
        feature = {name: [] for name in lists} | {"pos_str": tokens, "pos_values": [1.0] * 10}
        feature |= {"feature_index": latent, "frac_nonzero": 0.1, "activations": [window]}
        features.append(feature | {"n_prompts_total": 10, "n_tokens_in_prompt": 10, "dataset": HOSTILE[0]})
    batch = {"model_id": HOSTILE[1], "layer": 1, "sae_set": HOSTILE[2], "features": features}
    (tmp_path / "batch-0.json").write_text(json.dumps(batch))
    index = import_index(tmp_path / "batch-0.json", tmp_path / "index")
    for latent in range(0, 25, 2):
        label, notes = (HOSTILE[latent + i].replace("\ud800", "") for i in range(2))
        index.labels.set(latent, label, notes)
    return index


def shown(page, latent):
    page.wait(f"{ROOT}?.querySelector('h2')?.textContent === 'Latent {latent}'")
    return page.js(f"{ROOT}.getElementById('feature').innerText")


@pytest.mark.long
def test_hostile_tokens_and_labels_run_nothing_in_the_widget(hostile, chromium):
    browser = FeatureBrowser(hostile)
    with widget_page(browser) as address:
        page = Tab(chromium, address)
        page.wait(f"{ROOT}?.getElementById('browser')?.dataset.ready === 'yes'")
        texts = []
        for latent in range(25):
            browser.select(latent)
            texts.append(shown(page, latent))
        page.press("t", "t", "c")
        assert page.js("document.title") == "notebook"
        assert page.js(f"{ROOT}.querySelectorAll('img, iframe, object, script, a[href]').length") == 0
        assert page.js("document.scripts.length") == 1
        # what was meant as markup stands there as text, and what is not seen by its number
        assert "</script><script>document.title='broken'</script>" in texts[0]
        assert "<img src=x onerror=" in texts[1]
        assert "⟨U+202E⟩txet desrever" in texts[4] and "\u202e" not in "".join(texts)
        assert "⟨U+2028⟩⟨U+2029⟩⟨U+0000⟩⟨U+001B⟩[31m" in texts[6]
        assert page.complaints == []
        assert [url for url in page.requests if not url.startswith(address)] == []
        page.close()


@pytest.mark.long
def test_a_label_written_in_the_widget_is_in_the_index(hostile, chromium):
    browser = FeatureBrowser(hostile)
    with widget_page(browser) as address:
        page = Tab(chromium, address)
        page.wait(f"{ROOT}?.getElementById('browser')?.dataset.ready === 'yes'")
        browser.select(7)
        shown(page, 7)
        page.js(f"{ROOT}.getElementById('label').focus()")
        page.type(HOSTILE[0])
        for _ in range(300):
            if (mark := hostile.labels.get(7)) is not None and mark.label == HOSTILE[0]:
                break
            time.sleep(0.02)
        assert mark is not None and mark.label == HOSTILE[0]
        assert page.js("document.title") == "notebook" and page.complaints == []
        page.js(f"{ROOT}.querySelector('#rows button[data-latent=\"3\"]').click()")
        shown(page, 3)
        assert browser.selected == 3
        page.close()


def test_the_page_has_the_widgets_module_and_a_comm(hostile):
    browser = FeatureBrowser(hostile)
    with widget_page(browser) as address:
        with urllib.request.urlopen(f"{address}widget.js") as answer:
            assert answer.read().decode() == widget_module()
        asked = json.dumps({"ask": "1", "name": "latents", "params": {"latents": [3]}}).encode()
        urllib.request.urlopen(f"{address}say", data=asked).close()
        with urllib.request.urlopen(f"{address}hear") as answer:
            [[content, [buffer]]] = json.loads(answer.read())
        assert content == {"ask": "1"} and load(base64.b64decode(buffer))["latents"].tolist() == [3]
