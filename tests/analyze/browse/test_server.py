"""The live page: what it refuses, and what a reader does with it in a real browser."""

import http.client
import json
import threading
import time

import pytest
import torch
from safetensors.numpy import load

from saelens_lite.analyze.browse.answers import Answers, Comparison
from saelens_lite.analyze.browse.server import BrowseServer, serving
from saelens_lite.analyze.browse.steering import SteeringPlan, continuations, probability_change
from saelens_lite.analyze.edits.controls import matched_latents
from saelens_lite.analyze.edits.latents import steer
from saelens_lite.analyze.index.build import index_features
from saelens_lite.analyze.index.feature_index import FeatureIndex
from saelens_lite.analyze.latents.text_latents import encode_text
from saelens_lite.analyze.matching import match_indexes
from saelens_lite.demo.corpus import stdlib_documents
from saelens_lite.demo.embedded import load_model
from saelens_lite.harvest import harvest_activations
from saelens_lite.train import train_sae

from ..chromium import Tab
from ..conftest import HOOK_POINT, TEXTS, make_sae

POINT = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def embedded():
    return load_model()


@pytest.fixture(scope="module")
def sae_and_index(embedded, tmp_path_factory):
    """An SAE of 256 latents of the embedded model after a few steps, and its index with the logit lens."""
    model, tokenizer = embedded
    folder = tmp_path_factory.mktemp("live")
    texts = [module["text"][:4000] for module in list(stdlib_documents("all"))[:30]]
    store = harvest_activations(
        model, texts, [POINT], folder / "store", max_tokens=4000, tokenizer=tokenizer, progress=False
    )
    sae = train_sae(
        store,
        kind="topk",
        k=8,
        d_sae=256,
        n_steps=30,
        batch_size_rows=512,
        device="cpu",
        progress=False,
        output=str(folder / "sae"),
    )
    index = index_features(sae, store, folder / "index", model, tokenizer=tokenizer)
    return sae, index


@pytest.fixture(scope="module")
def small_index(byte_tokenizer, tmp_path_factory):
    """The index of an SAE with random weights over a few tokens of a tiny model."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 259, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2, pad_token_id=0)).eval()
    folder = tmp_path_factory.mktemp("small")
    options = {"max_tokens": 600, "tokenizer": byte_tokenizer, "context_length": 32, "progress": False}
    store = harvest_activations(model, TEXTS, [HOOK_POINT], folder / "store", dtype="float32", **options)
    return index_features(make_sae(), store, folder / "index", tokenizer=byte_tokenizer)


@pytest.fixture(scope="module")
def read_only(small_index):
    with serving(BrowseServer(Answers(small_index))) as running:
        yield running


@pytest.fixture(scope="module")
def server(embedded, sae_and_index):
    sae, index = sae_and_index
    compared = Comparison(index, match_indexes(index, index))
    with serving(BrowseServer(Answers(index, embedded[0], sae, compared=compared))) as running:
        yield running


def asked(server, name="search", params=None, method="POST", path=None, body=None, **headers):
    """Status, headers and body of a request with everything right but what is given; None leaves a header
    out."""
    port = server.server_address[1]
    body = json.dumps({"text": "sun"} if params is None else params).encode() if body is None else body
    found = {
        "Host": f"127.0.0.1:{port}",
        "Content-Type": "application/json",
        "X-Saelens-Lite-Token": server.token,
        "Content-Length": str(len(body)),
    } | {key.replace("_", "-"): value for key, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest(method, path or f"/ask/{name}", skip_host=True, skip_accept_encoding=True)
    for key, value in found.items():
        if value is not None:
            connection.putheader(key, value)
    connection.endheaders(body if method == "POST" and len(body) <= 10**6 else None)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.headers), content


@pytest.mark.parametrize(
    "status, changed",
    [
        (403, {"X_Saelens_Lite_Token": None}),
        (403, {"X_Saelens_Lite_Token": "guess"}),
        (403, {"X_Saelens_Lite_Token": "\xe9"}),
        (403, {"Host": "evil.example"}),
        (403, {"Host": "127.0.0.1.evil.example"}),
        (403, {"Host": "evil.example", "Origin": "http://evil.example"}),
        (403, {"Host": None}),
        (403, {"Origin": "http://evil.example"}),
        (403, {"Origin": "null"}),
        (403, {"Origin": "https://127.0.0.1"}),
        (415, {"Content_Type": "text/plain"}),
        (415, {"Content_Type": None}),
        (413, {"body": b" " * 1_000_001}),
        (411, {"Content_Length": None}),
        (411, {"Content_Length": "-1"}),
        (400, {"body": b"{"}),
        (400, {"body": b"\xff"}),
        (400, {"body": b'{"text": 3}'}),
        (400, {"name": "start", "params": []}),
        (400, {"name": "shell"}),
        (400, {"name": "latents", "params": {"latents": [48]}}),
        (404, {"path": "/../../etc/passwd"}),
        (404, {"method": "GET", "path": "/ask/start"}),
        (404, {"method": "GET", "path": "/index.json"}),
        (403, {"method": "GET", "path": "/", "Host": "evil.example"}),
    ],
)
def test_it_refuses(read_only, status, changed):
    assert asked(read_only, **changed)[0] == status


def test_it_answers_on_any_port_of_a_loopback_name_and_says_how_it_may_be_used(read_only):
    for host in ("127.0.0.1", "localhost:8888", "[::1]:1"):
        status, headers, body = asked(read_only, Host=host, Origin=f"http://{host}")
        assert status == 200 and json.loads(body)["latents"]
        assert headers["Cache-Control"] == "no-store" and headers["Referrer-Policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert not [name for name in headers if name.lower().startswith("access-control")]
    status, _, page = asked(read_only, method="GET", path="/?token=x")
    assert status == 200 and read_only.token.encode() not in page
    assert read_only.server_address[0] == "127.0.0.1"
    assert asked(read_only, method="OPTIONS")[0] == 501, "no site learns that it may ask"


def test_labels_that_no_text_can_be_are_refused_in_a_line(read_only, small_index):
    mark = {"latent": 3, "label": "\ud800", "notes": "", "starred": False}
    status, _, said = asked(read_only, "mark", mark)
    assert status == 400 and b"surrogate" in said and b"\n" not in said
    assert small_index.labels.get(3) is None


def test_without_a_model_it_reads_and_labels_only(small_index):
    answers = Answers(small_index)
    assert answers.can == ["mark", "search"]
    for name in ("text", "steer", "effect"):
        with pytest.raises(ValueError, match="has an answer here"):
            answers.answer(name, {"text": "a"})
    with pytest.raises(ValueError, match="or neither"):
        Answers(small_index, sae=object())


@pytest.mark.long
def test_own_text_is_that_of_encode_text(embedded, sae_and_index):
    (model, tokenizer), (sae, index) = embedded, sae_and_index
    text = "class A:\n    def f(self): return é"
    found = load(Answers(index, model, sae).answer("text", {"text": text}))
    expected = encode_text(model, tokenizer, sae, text)
    dense = torch.zeros(len(expected), 256)
    dense[torch.from_numpy(found["at"]).long(), torch.from_numpy(found["latent"]).long()] = torch.from_numpy(
        found["act"]
    )
    torch.testing.assert_close(dense, torch.stack([expected[i] for i in range(256)], 1))


# Steering ----------------------------------------------------------------------------------------


@pytest.fixture
def plan(sae_and_index):
    _, index = sae_and_index
    latent = int(index.column("counts").argmax())
    most, rates = index.column("top_values")[:, 0].float(), index.density.density
    return SteeringPlan(latents=(latent,), dose=1.5, max_act=most, rates=rates)


def greedy(model, ids, n):
    for _ in range(n):
        with torch.no_grad():
            ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
    return ids


@pytest.mark.long
def test_each_row_of_a_continuation_is_that_of_the_edit_alone(embedded, sae_and_index, plan):
    """Greedy, without a cache, one text at a time: clean, under `steer`, under `steer` along the control."""
    (model, tokenizer), (sae, _) = embedded, sae_and_index
    prompt = "import os\n\ndef main("
    found = list(continuations(model, tokenizer, sae, plan, prompt, hook_point=POINT, max_new_tokens=6))
    assert found[0]["rows"] == ["clean", "steered", "control"] and len(found) == 7
    ids = [tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False).input_ids]
    options = {"unit": "max_act", "max_act": plan.max_act}
    control = matched_latents(sae, [*plan.latents], plan.rates, n_draws=99)
    assert found[0]["control"] == control.latents[0].tolist() != [*plan.latents]
    expected = [greedy(model, ids, 6)]
    for directions in (None, control.directions[0]):
        with steer(model, sae, plan.latents, 1.5, directions=directions, **options):
            expected.append(greedy(model, ids, 6))
    for row, tokens in enumerate(expected):
        text = "".join(step["pieces"][row] or "" for step in found[1:])
        assert text == tokenizer.decode(tokens[len(ids) :])
    assert len({tuple(tokens) for tokens in expected}) > 1, "the edit does something"


@pytest.mark.long
def test_rows_share_their_noise(embedded, sae_and_index, plan):
    import dataclasses

    (model, tokenizer), (sae, _) = embedded, sae_and_index
    nothing = dataclasses.replace(plan, dose=0.0)
    options = {"hook_point": POINT, "max_new_tokens": 8, "temperature": 1.0}
    found = [
        list(continuations(model, tokenizer, sae, nothing, "class A", seed=seed, **options))
        for seed in (0, 0, 1)
    ]
    assert all(len(set(step["pieces"])) == 1 for steps in found for step in steps[1:])
    assert found[0] == found[1] and found[0][1:] != found[2][1:]


@pytest.mark.long
def test_the_rank_of_a_change_is_that_of_a_hundred_forwards(embedded, sae_and_index, plan):
    (model, tokenizer), (sae, _) = embedded, sae_and_index
    prompt, token = "import os\n\ndef main(", int(tokenizer("self", add_special_tokens=False).input_ids[0])
    found = probability_change(model, tokenizer, sae, plan, prompt, token, hook_point=POINT)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False).input_ids]])
    controls = matched_latents(sae, [*plan.latents], plan.rates, n_draws=99)

    def chance(directions=None, dose=1.5):
        options = {"unit": "max_act", "max_act": plan.max_act, "directions": directions}
        with torch.no_grad(), steer(model, sae, plan.latents, dose, **options):
            return float(model(input_ids=ids).logits[0, -1].softmax(-1)[token])

    clean, steered = chance(dose=0.0), chance()
    others = [chance(directions) for directions in controls.directions[:5]]
    assert found["clean"] == pytest.approx(clean, rel=1e-3)
    assert found["steered"] == pytest.approx(steered, rel=1e-3)
    assert found["controls"][:5] == pytest.approx(others, rel=1e-3)
    larger = sum(abs(one - found["clean"]) >= abs(steered - clean) for one in found["controls"])
    assert (found["rank"], found["of"]) == (larger + 1, 100)


@pytest.mark.long
def test_a_reader_who_leaves_ends_the_work(server):
    """Its connection is closed after the first pieces of a long continuation: the model is free soon."""
    port = server.server_address[1]
    params = {
        "latents": [1],
        "mode": "scale",
        "dose": 2,
        "where": "all",
        "prompt": "def",
        "max_new_tokens": 200,
    }
    body = json.dumps(params | {"temperature": 1})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Content-Type": "application/json", "X-Saelens-Lite-Token": server.token}
    connection.request("POST", "/ask/steer", body, headers)
    answer = connection.getresponse()
    assert json.loads(answer.readline())["rows"][0] == "clean"
    assert "pieces" in json.loads(answer.readline())
    threads = threading.active_count()
    answer.close()
    connection.close()
    began = time.monotonic()
    assert asked(server, "text", {"text": "def f"})[0] == 200
    assert time.monotonic() - began < 5
    assert threading.active_count() <= threads + 1


# In a browser ------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_reader_searches_labels_types_steers_and_compares(
    server, chromium, sae_and_index, embedded, monkeypatch
):
    _, index = sae_and_index
    steps = []
    forward = embedded[0].forward

    def counted(*given, **named):
        steps.extend([1] * bool(named.get("use_cache")))
        return forward(*given, **named)

    monkeypatch.setattr(embedded[0], "forward", counted)
    page = Tab(chromium, server.address)
    text = lambda selector: page.js(f"document.querySelector({selector!r}).textContent")  # noqa: E731
    page.wait("document.getElementById('browser').dataset.ready")
    assert "token" not in page.js("location.href")
    strongest = int(index.column("top_values")[:, 0].argmax())
    page.wait(f"document.querySelector('h2')?.textContent === 'Latent {strongest}'")

    page.click("#label")
    page.type("</script> said")
    page.press("Escape", "s")
    page.wait("document.getElementById('said').textContent === ''")
    for _ in range(100):
        mark = index.labels.get(strongest)
        if mark is not None and mark.starred and mark.label:
            break
        page.frame()
    assert (mark.label, mark.starred) == ("</script> said", True)

    page.press("c")
    page.drag(".over", (0.5, 0.05), (0.98, 0.5))
    query = page.js("document.getElementById('search').value")
    assert query.startswith("density>=") and "max>=" in query
    counts, most = index.column("counts"), index.column("top_values")[:, 0]
    bounds = {part.split("=")[0]: float(part.split("=")[1]) for part in query.split()}
    inside = (counts / index.n_tokens >= bounds["density>"]) & (most >= bounds["max>"])
    if "density<" in bounds:
        inside &= counts / index.n_tokens <= bounds["density<"]
    if "max<" in bounds:
        inside &= most <= bounds["max<"]
    assert text("#shown") == f"{int(inside.sum())} of 256" and inside.any()

    page.press("m")
    page.type("class A:\n    def f(self): return 1")
    page.click("#read")
    page.wait("document.querySelector('#text output').textContent.includes(' ms')")
    page.click(".own .piece:nth-of-type(3)")
    assert text("#text h3").startswith("Latents on")
    shown = int(page.js("document.querySelector('.latents li').dataset.latent"))
    page.click(".latents li .neighbour")
    page.wait(f"document.querySelector('h2').textContent === 'Latent {shown}'")

    page.press("Escape", "g")
    assert page.js("document.getElementById('steer-latents').value") == str(shown)
    page.click("#steer-prompt")
    page.type("def f(")
    page.click("#continue")
    page.wait("document.querySelector('#steer .rows').dataset.tokens >= 3")
    tokens = "document.querySelector('#steer .rows').dataset.tokens"
    at_click = page.js(f"(() => {{ document.querySelector('#stop').click(); return Number({tokens}) }})()")
    page.wait("document.querySelector('#steer output').textContent.startsWith('stopped after')")
    assert text("#steer output") == f"stopped after {at_click} tokens"
    assert asked(server, "text", {"text": "def f"})[0] == 200, "which waits for the model"
    assert at_click <= len(steps) <= at_click + 2 and int(page.js(tokens)) == at_click
    assert page.js("[...document.querySelectorAll('#steer [data-row]')].map(e => e.dataset.row)") == [
        "clean", "steered", "control",
    ]  # fmt: skip
    page.click("#steer-token")
    page.type("self")
    page.click("#effect")
    page.wait("document.querySelector('.measured svg') !== null")
    assert "of 100" in text(".measured")

    page.press("Escape", "Escape", "p")
    page.wait("document.querySelector('.match') !== null")
    assert text('[data-kind="pairs"]').startswith(f"{len(match_indexes(index, index))} ")
    assert match_indexes(index, index).in_words() in text("#compare .note")
    page.click(".match")
    page.wait("document.querySelectorAll('.beside section').length === 2")
    page.js("1")
    assert page.complaints == []
    assert all(url.startswith(f"http://127.0.0.1:{server.server_address[1]}/") for url in page.requests)
    page.close()


@pytest.mark.long
def test_hostile_labels_and_texts_run_nothing_in_the_live_page(server, chromium, sae_and_index):
    """500 labels, and a text of the same strings, of what could end an element or start one."""
    _, index = sae_and_index
    seeds = [
        "</script><script>document.title='broken'</script>",
        "<img src=x onerror=\"document.title='b'\">",
    ]
    seeds += [
        "<!--",
        "]]>",
        "\u202etxet",
        "\x00\x1b[31m",
        "&lt;b&gt;",
        "javascript:alert(1)",
        "`${1}",
        "\u2028",
    ]
    hostile = [f"{seeds[i % 10]}{'<' * (i % 7)}{i}" for i in range(500)]
    before = {one.latent: one for one in index.labels.all()}
    for latent in range(250):
        index.labels.set(latent, hostile[latent], hostile[latent + 250])
    page = Tab(chromium, server.address)
    page.wait("document.getElementById('browser').dataset.ready")
    page.press("t", "t", "c", "m")
    page.type(" ".join(hostile[:40]))
    page.click("#read")
    page.wait("document.querySelector('#text output').textContent.includes(' ms')")
    page.press("Escape", "p")
    page.wait("document.querySelector('.match') !== null")
    assert page.js("document.title").startswith("Features of")
    assert page.js("document.querySelectorAll('img, iframe, object, a[href]').length") == 0
    assert page.js("document.scripts.length") == 1
    assert page.complaints == []
    page.close()
    for latent in range(250):
        index.labels.remove(latent)
    for one in before.values():
        index.labels.set(one.latent, one.label, one.notes, one.starred)


def test_an_index_opened_anew_has_the_labels(small_index):
    small_index.labels.set(9, "kept")
    assert FeatureIndex.open(small_index.path).labels.get(9).label == "kept"
