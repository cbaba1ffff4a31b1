"""The pictures of the feature browser in notebooks/images/, from the embedded model.

    python tests/bench/screenshots.py [--folder DIR] [--tokens 40000] [--steps 500]

Harvests Python's standard library, trains two SAEs that differ in their seed, indexes both, and looks at them
in headless Chromium: table, feature, scatter, own text, steering, and the two beside each other. With
--folder, a second call starts from what is there.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import saelens_lite as sl  # noqa: E402
from saelens_lite.analyze.browse.answers import Answers, Comparison  # noqa: E402
from saelens_lite.analyze.browse.server import BrowseServer, serving  # noqa: E402
from saelens_lite.analyze.matching import match_indexes  # noqa: E402
from saelens_lite.demo.corpus import documents  # noqa: E402
from saelens_lite.demo.embedded import load_model  # noqa: E402
from tests.analyze.chromium import Browser, Tab  # noqa: E402

POINT = "blocks.2.hook_resid_post"
TEXT = """class Reader:
    def __init__(self, path):
        self.path = path
        raise ValueError("no file")
"""
PROMPT = "class Reader:\n    def read(self, path):\n        "


def made(folder: Path, n_tokens: int, n_steps: int) -> tuple:
    """The model, its tokenizer, and of two seeds the SAE and its index."""
    model, tokenizer = load_model()
    store = folder / "store"
    if not store.exists():
        sl.harvest_activations(model, documents(), [POINT], store, max_tokens=n_tokens, tokenizer=tokenizer)
    found = []
    for seed in (0, 1):
        sae = sl.train_sae(
            store, kind="topk", k=16, d_sae=1536, n_steps=n_steps, batch_size_rows=1024, seed=seed,
            output=str(folder / f"seed{seed}"), device="cpu",
        )  # fmt: skip
        index = sl.index_features(sae, sl.ActivationStore(store), folder / f"seed{seed}.index", model)
        found.append((sae, index))
    return model, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--tokens", type=int, default=40_000)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--images", type=Path, default=ROOT / "notebooks" / "images")
    args = parser.parse_args()
    args.images.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as tmp:
        model, [(sae, index), (other_sae, other)] = made(args.folder or Path(tmp), args.tokens, args.steps)
        evaluation = sl.evaluate_sae(
            sae, args.folder / "store" if args.folder else Path(tmp, "store"), model, max_tokens=5000
        )
        compared = Comparison(other, match_indexes(index, other, sae, other_sae))
        # a latent of one word, well told apart
        latent = index.token(" raise", n=1)[0].latent
        index.labels.set(latent, "raise, of an exception", "", True)
        browser = Browser(Path(tmp) / "profile")
        with serving(
            BrowseServer(Answers(index, model, sae, evaluation=evaluation, compared=compared))
        ) as server:
            address = f"{server.address}#{latent}"
            tab = Tab(browser, address, width=1280, height=820)

            def picture(name: str) -> None:
                tab.frame()
                tab.screenshot(args.images / f"{name}.png")

            tab.wait(f"document.querySelector('h2')?.textContent === 'Latent {latent}'", 60)
            picture("feature")
            tab.press("t")
            picture("table")
            tab.press("t", "c")
            tab.drag(".over", (0.55, 0.08), (0.8, 0.4))
            picture("scatter")
            tab.js("document.getElementById('search').value = ''")
            tab.press("m")
            tab.type(TEXT)
            tab.click("#read")
            tab.wait("document.querySelector('#text output').textContent.includes(' ms')", 60)
            tab.js(f"""document.querySelector('.latents li[data-latent="{latent}"] .heat')?.click()""")
            picture("text")
            tab.press("Escape", "g")
            tab.js(f"document.getElementById('steer-latents').value = {latent}")
            tab.js("document.getElementById('steer-where').value = 'generated'")
            tab.click("#steer-prompt")
            tab.type(PROMPT)
            tab.js("document.getElementById('steer-tokens').value = 40")
            tab.click("#continue")
            tab.wait("document.querySelector('#steer output').textContent.includes(' s')", 120)
            tab.js("document.getElementById('steer-where').value = 'all'")
            tab.click("#steer-token")
            tab.type(" raise")
            tab.click("#effect")
            tab.wait("document.querySelector('.measured svg, .measured .note') !== null", 120)
            tab.js("document.getElementById('steer').scrollTop = 0")
            picture("steering")
            tab.press("Escape", "p")
            tab.wait("document.querySelector('.match') !== null", 60)
            tab.js("document.querySelector('.kinds select').value = 'cosine'")
            tab.click('[aria-label="turn the order round"].do')
            tab.click(".match")
            tab.wait("document.querySelectorAll('.beside section').length === 2", 60)
            picture("compare")
            assert tab.complaints == [], tab.complaints
        browser.close()


if __name__ == "__main__":
    main()
