"""The browser in a real JupyterLab, driven in a real Chromium; test_widget.py has its small twin."""

import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from saelens_lite.analyze.browse.module import widget_module
from saelens_lite.analyze.index.build import index_features

from ..chromium import Browser, Tab, installed

MAKE = """
from saelens_lite.analyze.browse import FeatureBrowser
from transformers import AutoModelForCausalLM
from saelens_lite import FeatureIndex, SparseAutoencoder
from transformers import AutoTokenizer
index = FeatureIndex.open("index", AutoTokenizer.from_pretrained("model"))
browser = FeatureBrowser(index, AutoModelForCausalLM.from_pretrained("model"), SparseAutoencoder.load("sae"))
browser
"""
SAY = "open('selected', 'w').write(str(browser.selected)); browser.select(7)"
FIND = "[...document.querySelectorAll('*')].find(e => e.shadowRoot?.getElementById('browser'))?.shadowRoot"
AT = """(e => { e.scrollIntoView({ block: 'center' }); const r = e.getBoundingClientRect();
    return [r.x + r.width / 2, r.y + r.height / 2]; })"""


def cell(source):
    return {
        "cell_type": "code",
        "metadata": {},
        "source": source,
        "outputs": [],
        "execution_count": None,
        "id": secrets.token_hex(4),
    }


@pytest.mark.slow
def test_a_notebook_in_jupyterlab(store, sae, gpt2, byte_tokenizer, tmp_path):
    if installed() is None:
        pytest.skip("no Chromium: the page is tried in a real browser where there is one")
    if importlib.util.find_spec("jupyterlab") is None:
        pytest.skip("JupyterLab absent: pip install jupyterlab, to see the widget in a real one")
    folder = tmp_path / "work"
    folder.mkdir()
    index = index_features(sae, store, folder / "index", gpt2, tokenizer=byte_tokenizer)
    sae.save(folder / "sae")
    gpt2.save_pretrained(folder / "model")
    byte_tokenizer.save_pretrained(folder / "model")
    cells = [cell(MAKE.strip()), cell(SAY)]
    notebook = {"cells": cells, "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}}}
    (folder / "look.ipynb").write_text(json.dumps(notebook | {"nbformat": 4, "nbformat_minor": 5}))
    before = (folder / "look.ipynb").stat().st_size
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    state = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    kernels = tmp_path / "DATA" / "kernels" / "python3"
    kernels.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel = {"argv": argv, "display_name": "Python 3", "language": "python"}
    (kernels / "kernel.json").write_text(json.dumps(kernel))
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser",
        f"--ServerApp.port={port}", "--ServerApp.ip=127.0.0.1", f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={folder}", "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    paths = {"PYTHONPATH": os.getcwd(), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log = (tmp_path / "log").open("w")
    lab = subprocess.Popen(command, cwd=folder, env=os.environ | state | paths, stdout=log, stderr=log)
    browser = Browser(tmp_path / "browser")
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}", timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        page = Tab(browser, f"http://127.0.0.1:{port}/lab/tree/look.ipynb?token={token}")
        page.wait("globalThis.jupyterapp?.shell?.currentWidget?.sessionContext?.isReady === true", 120)
        page.js("jupyterapp.commands.execute('notebook:run-cell')")
        page.wait(f"{FIND}?.getElementById('browser')?.dataset.ready === 'yes'", 180)
        strongest = int(index.column("top_values")[:, 0].argmax())
        page.wait(f"{FIND}.querySelector('h2')?.textContent === 'Latent {strongest}'")

        def click(selector):
            x, y = page.js(f"{AT}({FIND}.querySelector({json.dumps(selector)}))")
            for kind in ("mousePressed", "mouseReleased"):
                page.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
            page.frame()

        other = int(page.js(f"{FIND}.querySelectorAll('#rows button')[2].dataset.latent"))
        click(f'#rows button[data-latent="{other}"]')
        page.wait(f"{FIND}.querySelector('h2').textContent === 'Latent {other}'")
        click("#label")
        page.type("from the notebook")
        for _ in range(500):
            if (mark := index.labels.get(other)) is not None and mark.label == "from the notebook":
                break
            time.sleep(0.02)
        assert mark is not None and mark.label == "from the notebook"
        click('[data-view="steer"]')
        click("#steer-prompt")
        page.type("Story")
        page.js(
            f"Object.assign({FIND}.querySelector('#steer-tokens'), {{value: '40'}}).value"
        )  # of 64 positions
        click("#continue")
        page.wait(f"Number({FIND}.querySelector('#steer .rows').dataset.tokens) >= 3", 60)
        click("#stop")
        page.wait(f"{FIND}.querySelector('#steer output').textContent.startsWith('stopped after')", 2)
        tokens = f"Number({FIND}.querySelector('#steer .rows').dataset.tokens)"
        shown = page.js(tokens)
        time.sleep(0.5)
        assert page.js(tokens) == shown < 40
        page.js("jupyterapp.commands.execute('notebook:move-cursor-down')")
        page.js("jupyterapp.shell.currentWidget.content.activeCellIndex = 1")
        page.js("jupyterapp.commands.execute('notebook:run-cell')")
        page.wait(f"{FIND}.querySelector('h2').textContent === 'Latent 7'", 60)
        assert (folder / "selected").read_text() == str(other)
        page.js("jupyterapp.commands.execute('docmanager:save')")
        for _ in range(200):
            if (folder / "look.ipynb").stat().st_size != before:
                break
            time.sleep(0.05)
        assert before < (folder / "look.ipynb").stat().st_size < before + 500_000
        assert "<table" in (folder / "look.ipynb").read_text(), "without widgets there is an inert table"
        here = (f"http://127.0.0.1:{port}/", f"ws://127.0.0.1:{port}/", "data:", "blob:")
        assert [url for url in page.requests if not url.startswith(here)] == []
    finally:
        browser.close()
        lab.terminate()
        lab.wait(30)
        log.close()
        shutil.rmtree(tmp_path / "browser", ignore_errors=True)


def test_the_widget_needs_nothing_from_elsewhere():
    module = widget_module().replace("http://www.w3.org/2000/svg", "")
    assert "http:" not in module and "https:" not in module and "\nimport " not in module
