"""The report shows what the folders hold: finished, running, killed, foreign and hostile runs alike."""

import json
import math
from html.parser import HTMLParser

import pytest
import torch

import saelens_lite as sl
from saelens_lite.analyze.evaluation.evaluate import evaluate_sae
from saelens_lite.analyze.pages.report import report_page
from saelens_lite.analyze.pages.run_folders import find_runs

from ..conftest import make_sae

VOID = {"meta", "br", "img", "link"}


class Page(HTMLParser):
    """Elements, their balance, and the text of each table row, by heading or figure title."""

    def __init__(self, path):
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.tags, self.open, self.headings, self.rows, self.under = [], [], [], {}, None
        self.feed(self.text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("h2", "h3"):
            self.headings.append("")
        if tag == "tr":
            self.rows.setdefault(self.headings[-1], []).append([])
        if tag in ("th", "td"):
            self.rows[self.headings[-1]][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h2", "h3"):
            self.headings[-1] += data
        if self.open and self.open[-1] in ("th", "td"):
            self.rows[self.headings[-1]][-1][-1] += data

    def table(self, heading):
        """The first column of the table under a heading → its row by column name."""
        head, *rows = self.rows[heading]
        return {row[0]: dict(zip(head[1:], row[1:])) for row in rows}


def write_run(folder, lines, **settings):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if settings:
        (folder / "train_config.json").write_text(json.dumps(settings))
    return folder


def lines(n=4, **changed):
    """Metrics as training writes them, of 100 tokens a step and 50 tokens a second."""
    training = [
        {"step": s, "tokens": 100 * s, "reconstruction": 8.0 / s, "l0": 16.0, "auxk": 0.0, "dead@200": None,
         "lr": 0.01,
         "tokens_per_s": 50.0} | changed
        for s in range(1, n + 1)
    ]  # fmt: skip
    return [*training, {"step": n, "held_out_fvu": 0.25, "held_out_l0": 16.0, "held_out_delta_ce": 0.5}]


@pytest.fixture
def report(tmp_path):
    """report(*folders): the page of these runs, parsed."""
    return lambda *folders: Page(report_page(folders, tmp_path / "report.html"))


def test_a_run_by_hand(tmp_path, report):
    page = report(write_run(tmp_path / "mine", lines(), kind="batchtopk", k=16, lr=0.01))
    run = page.table("Runs")["mine"]
    assert (run["kind"], run["k"], run["steps"], run["tokens"]) == ("batchtopk", "16", "4", "400")
    assert (run["held-out fvu"], run["held-out l0"], run["seconds"], run["tokens/s"]) == (
        "0.25",
        "16",
        "8",
        "50",
    )
    assert (run["held-out ΔCE"], run["peak lr"], run["state"]) == ("0.5", "0.01", "no SAE yet")
    course = page.table("Reconstruction loss")["mine"]
    assert course == {"points": "4", "first": "8", "lowest": "2", "highest": "8", "last": "2"}
    assert page.table("Held-out fvu")["mine"]["points"] == "1"
    assert "Dead latents" not in page.headings, "a share that is not known yet has no curve"
    assert "Reconstruction against sparsity" not in page.headings
    assert "<dt>k</dt><dd>16</dd>" in page.text


def test_every_plot_has_a_title_a_description_and_a_table(tmp_path, report):
    page = report(write_run(tmp_path / "mine", lines()))
    plots = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("role") == "img"]
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert len(plots) == 8 and all(set(plot["aria-labelledby"].split()) <= ids for plot in plots)
    figures = [tag for tag, _ in page.tags if tag in ("figure", "table", "figcaption")]
    assert figures == ["table", *["figure", "figcaption", "table"] * 8]


def test_runs_stand_beside_each_other(tmp_path, report):
    a = write_run(tmp_path / "a", lines(), kind="topk", k=16, seed=0)
    b = write_run(tmp_path / "b", lines(l0=32.0), kind="topk", k=32, seed=0, freeze_decoder=True)
    page = report(a, b)
    assert page.table("Settings that differ") == {
        "a": {"k": "16", "freeze_decoder": "–"},
        "b": {"k": "32", "freeze_decoder": "true"},
    }
    assert page.table("Runs")["b"]["kind"] == "topk with frozen decoder"
    assert list(page.table("l0 in training")) == ["a", "b"]
    assert page.table("Held-out fvu against l0")["b"] == {"held-out l0": "16", "held-out fvu": "0.25"}
    assert "<dt>seed</dt><dd>0</dd>" in page.text


def test_a_folder_of_runs_is_its_members_and_names_tell_them_apart(tmp_path, report):
    for name in ("grid/k16", "grid/k32", "other/k16"):
        write_run(tmp_path / name, lines())
    (tmp_path / "grid" / "notes").mkdir()
    assert [run.name for run in find_runs([tmp_path / "grid"])] == ["k16", "k32"]
    found = find_runs([tmp_path / "grid", tmp_path / "other", tmp_path / "grid" / "k16"])
    assert [run.name for run in found] == [
        "grid/k16", "grid/k32", "other/k16"
    ]  # fmt: skip


def test_a_killed_run_is_read_up_to_its_last_whole_line(tmp_path, report):
    folder = write_run(tmp_path / "killed", lines()[:3])
    whole = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(whole[:-20])
    assert report(folder).table("Runs")["killed"]["steps"] == "2"


def test_nan_leaves_a_gap_and_unknown_columns_are_drawn(tmp_path, report):
    loss = [1.0, 2.0, math.nan, 3.0, 4.0]
    rows = [{"step": s, "tokens": s, "mine <new>": value, "note": "text"} for s, value in enumerate(loss)]
    page = report(write_run(tmp_path / "run", rows))
    assert page.table("mine <new>")["run"] == {
        "points": "4",
        "first": "1",
        "lowest": "1",
        "highest": "4",
        "last": "4",
    }
    (path,) = [
        a["d"] for tag, a in page.tags if tag == "path" and a.get("class") == "line" and len(a["d"]) > 9
    ]
    assert path.count("M") == 2
    assert "note" not in page.headings


def test_one_line_or_none_is_enough(tmp_path, report):
    page = report(write_run(tmp_path / "one", lines()[:1]), write_run(tmp_path / "none", []))
    assert set(page.table("Runs")) == {"one", "none"}
    assert any(attributes.get("class") == "dot" for _, attributes in page.tags)


def test_without_tokens_curves_are_over_steps(tmp_path, report):
    page = report(write_run(tmp_path / "run", [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]))
    assert ">steps</text>" in page.text and ">tokens</text>" not in page.text


def test_held_out_points_stand_at_the_tokens_of_their_step(tmp_path):
    (run,) = find_runs([write_run(tmp_path / "run", lines())])
    assert run.points("held_out_fvu", over_tokens=True).tolist() == [[400, 0.25]]
    assert run.points("held_out_fvu", over_tokens=False).tolist() == [[4, 0.25]]


def test_a_column_holds_the_numbers_of_its_lines_in_order(tmp_path):
    """Lines without a step are left out, whatever stretch of the file they are in; ints stay ints."""
    rows = [{"step": s, "loss": 0.5 * s, "n": 3 * s} for s in range(1, 30_001)]
    rows[2] = {"step": 3, "loss": None, "n": True, "extra": "text"}
    rows[5] = {"loss": 99.0}
    rows[6] = {"step": "7", "loss": 98.0}
    rows[29_000] = {"step": 29_001, "late": 10**400, "n": 1}
    rows.append({"step": 2, "late": 12_000, "big": 2**60})
    (run,) = find_runs([write_run(tmp_path / "run", rows)])
    metrics = run.metrics
    assert (metrics.n_lines, run.steps, metrics.names) == (29_999, 2, ["loss", "n", "late", "big"])
    loss = run.points("loss", over_tokens=False)
    assert loss[:2].tolist() == [[1, 0.5], [2, 1.0]] and math.isnan(loss[2, 1])
    assert loss[3:5].tolist() == [[4, 2.0], [5, 2.5]]
    assert (loss[5:, 1] == 0.5 * loss[5:, 0]).all() and len(loss) == 30_000 - 3
    assert metrics.of("loss").last == metrics.of("loss").highest == 15_000.0
    assert repr(metrics.of("n").last) == "90000" and repr(metrics.of("big").last) == str(2**60)
    assert repr(metrics.of("late").highest) == "12000" and metrics.of("late").lines.tolist() == [
        29_000,
        30_000,
    ]
    assert run.points("late", over_tokens=False)[0].tolist() == [2, 12_000]
    assert metrics.of("nothing").last is None


@pytest.mark.property_check(9)
def test_no_string_becomes_markup(tmp_path, report):
    nasty = "<script>alert(1)</script>\"'&\u202e"
    tame = report(
        write_run(tmp_path / "tame" / "x", [*lines(), {"step": 9, "column": 1.0}], kind="topk", note="x")
    )
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    page = report(write_run(folder, [*lines(), {"step": 9, nasty: 1.0}], kind="topk", note=nasty))

    def elements(page):
        return [(tag, sorted(attributes)) for tag, attributes in page.tags]

    assert elements(page) == elements(tame)
    assert not {"script", "img", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert "\u202e" not in page.text


@pytest.mark.property_check(9)
def test_the_page_reaches_for_nothing(tmp_path, report):
    page = report(write_run(tmp_path / "run", lines()))
    (policy,) = [attributes["content"] for _, attributes in page.tags if attributes.get("http-equiv")]
    assert policy.startswith("default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'sha256-")
    assert "script-src" not in policy and "unsafe" not in policy
    assert "http:" not in page.text and "https:" not in page.text and "url(" not in page.text
    assert not any(
        {"src", "href", "style"} & set(a) or any(n.startswith("on") for n in a) for _, a in page.tags
    )


@pytest.mark.parametrize(
    "make, got",
    [
        (lambda p: None, "nothing there"),
        (lambda p: p.mkdir(), "a folder without them"),
        (lambda p: p.write_text("x"), "a file"),
    ],
)
def test_what_holds_no_run_is_told_what_was_expected(tmp_path, make, got):
    make(tmp_path / "x")
    told = (
        rf"x expected a run \(metrics.jsonl or cfg.json\) or a folder of runs, got {got}; "
        r".*saelens-lite train"
    )
    with pytest.raises(ValueError, match=told):
        report_page(tmp_path / "x", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(ValueError, match="at least one folder"):
        find_runs([])


def test_what_cannot_be_read_is_said_and_the_rest_is_shown(tmp_path, report, caplog):
    folder = write_run(tmp_path / "run", lines())
    (folder / "cfg.json").write_text('{"d_in": 8,')
    (folder / "train_config.json").write_text("[1]")
    page = report(folder)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2 and told[0] == "run: train_config.json: expected a JSON object, got [1]"
    assert "run: cfg.json expected JSON" in told[1]
    assert page.text.count('class="problem"') == 2
    assert page.table("Runs")["run"]["steps"] == "4"


def test_damaged_weights_are_named(tmp_path, report, caplog):
    make_sae().save(tmp_path / "sae")
    (tmp_path / "sae" / "sae_weights.safetensors").write_bytes(b"short")
    page = report(tmp_path / "sae")
    assert "sae: no weights: " in caplog.text and "sae_weights.safetensors" in caplog.text
    assert page.table("Runs")["sae"]["k"] == "4"
    assert "Weights" not in page.headings


def test_an_sae_without_a_log_has_its_weights_and_firing_rates(tmp_path, report):
    sae = make_sae()
    rates = torch.full((48,), -2.0)
    rates[:3] = -10.0
    sae.save(tmp_path / "sae", log_sparsity=rates)
    page = report(tmp_path / "sae")
    assert "Training" not in page.headings
    norms = sae.W_dec.detach().norm(dim=1)
    row = page.table("Decoder norms")["sae"]
    assert row["latents"] == "48" and float(row["highest"]) == pytest.approx(float(norms.max()), rel=1e-3)
    assert page.table("Firing rates")["sae"] == {
        "latents": "45",
        "lowest": "-2",
        "median": "-2",
        "highest": "-2",
    }
    assert "Never fired: sae 3 of 48." in page.text
    assert "random sample" not in page.text


def test_histograms_are_outlines(tmp_path, report):
    """The outline of 60 bins has 2 corners each and one at each end."""
    make_sae().save(tmp_path / "sae")
    page = report(tmp_path / "sae")
    paths = [a["d"] for tag, a in page.tags if tag == "path" and a.get("class") == "line" and len(a["d"]) > 9]
    plots = [a for tag, a in page.tags if tag == "svg" and a.get("role") == "img"]
    assert len(paths) == len(plots) == 4
    for path in paths:
        heights = [float(place.split(" ")[1]) for place in path[1:].split("L")]
        assert len(heights) == 122 and heights[0] == heights[-1] == 226, "on the ground at both ends"


def test_an_evaluation_in_the_folder_is_shown_with_its_definitions(store, sae, tmp_path, report):
    sae.save(tmp_path / "sae")
    evaluation = evaluate_sae(sae, store, held_out_fraction=0.3)
    (tmp_path / "sae" / "evaluation.json").write_text(json.dumps(evaluation.to_dict()))
    (tmp_path / "sae" / "other.json").write_text("{}")
    page = report(tmp_path / "sae")
    rows = {row[1]: row for row in page.rows["Evaluation"][1:]}
    assert list(rows) == ["trained", "zero ablation", "mean ablation"]
    assert rows["trained"][2] == f"{evaluation.row('trained').fvu:.4g}"
    assert "<dt>fvu</dt><dd>fraction of variance unexplained" in page.text


def evaluation(l0, fvu, **changed):
    """What evaluate writes, by hand: an SAE, its baseline at twice the fvu, two ablations."""
    trained = {
        "name": "trained",
        "given": True,
        "fvu": fvu,
        "l0": l0,
        "delta_ce": fvu / 2,
        "dead@10k": 0.2,
        "dead@1M": None,
    }
    ablation = {"name": "mean ablation", "given": True, "fvu": 1.0, "l0": 0.0, "delta_ce": 5.0}
    rows = [
        trained | {"dead@100k": 0.1},
        trained | {"name": "baseline", "fvu": 2 * fvu, "dead@100k": 0.05},
        ablation,
    ]
    facts = {
        "hook_point": "blocks.0",
        "store": "gpt2",
        "held_out": True,
        "n_tokens": 1000,
        "n_ce_tokens": 900,
    }
    return facts | {"rows": rows, "definitions": {"fvu": "unexplained", "l0": "how many"}} | changed


def write_evaluation(folder, *args, **changed):
    folder.mkdir(parents=True, exist_ok=True)
    make_sae().save(folder)
    (folder / "evaluation.json").write_text(json.dumps(evaluation(*args, **changed)))
    return folder


def test_evaluations_stand_beside_each_other_with_their_controls(tmp_path, report):
    noise = {
        "fvu": {"mean": 0.2, "sd": 0.002, "detectable": 0.012},
        "l0": {"mean": 32, "sd": 0.0, "detectable": 0.0},
    }
    stability = {"mmcs": 0.6, "mcc": 0.5, "random_mmcs": 0.2, "random_mcc": 0.25}
    a = write_evaluation(tmp_path / "a", 32.0, 0.2, seed_noise=noise, stability=stability)
    b = write_evaluation(tmp_path / "b", 16.0, 0.3)
    page = report(a, b)
    head, *rows = page.rows["Evaluation"]
    column = head.index("fvu")
    assert [(row[0], row[1], row[column]) for row in rows] == [
        ("a", "trained", "0.2"), ("b", "trained", "0.3"), ("a", "baseline", "0.4"), ("b", "baseline", "0.6"),
        ("all", "mean ablation", "1"), ("a", "seed noise: sd", "0.002"),
        ("a", "seed noise: detectable", "0.012"),
    ]  # fmt: skip
    assert "differ by no more than two seeds" in page.text and "different text" not in page.text
    assert page.table("The same directions in several seeds")["a"]["random_mcc"] == "0.25"
    trade_off = page.table("fvu against l0")
    assert trade_off["b"] == {"l0": "16", "fvu": "0.3"} and trade_off["a baseline"]["fvu"] == "0.4"
    assert page.table("ΔCE against l0")["b"]["ΔCE"] == "0.15"
    assert page.table("Dead latents by window")["a"] == {"dead@10k": "0.2", "dead@100k": "0.1"}
    assert page.text.count("<dt>l0</dt><dd>how many</dd>") == 1


def test_evaluations_over_different_text_say_so(tmp_path, report):
    page = report(
        write_evaluation(tmp_path / "a", 32.0, 0.2), write_evaluation(tmp_path / "b", 16.0, 0.3, n_tokens=7)
    )
    assert "over different text" in page.text and "b: " in page.text and "n_tokens 7" in page.text
    assert "evaluate --seeds measures it" in page.text


def test_an_evaluation_alone_is_enough(tmp_path, report):
    files = [tmp_path / name for name in ("one.json", "two.json")]
    for i, file in enumerate(files):
        file.write_text(json.dumps(evaluation(32.0 + i, 0.2)))
    page = report(*files)
    assert list(page.table("fvu against l0")) == ["one", "one baseline", "two", "two baseline"]
    assert "2 SAEs compared" in page.text and "Weights" not in page.headings


@pytest.mark.parametrize(
    "changed",
    [
        {
            "rows": [
                {"name": name, "fvu": "<b>", "l0": [1], "dead@10k": {}, "dead@": 1}
                for name in ("trained", "baseline")
            ]
        },
        {"densities": {"log10_edges": [0, 1], "trained": {"counts": [1, 2], "never": 0}}, "seed_noise": 3},
        {"densities": {"trained": 1}, "stability": [], "definitions": ["<i>"], "seed_noise": {"fvu": 1}},
        {"rows": [{}], "store": {"a": 1}, "n_tokens": [[2]]},
    ],
)
def test_files_that_are_no_evaluations_break_nothing(tmp_path, report, changed):
    folder = write_evaluation(tmp_path / "a", 32.0, 0.2)
    (folder / "evaluation.json").write_text(json.dumps(evaluation(32.0, 0.2) | changed))
    page = report(folder)
    assert "Evaluation" in page.headings and "<b>" not in page.text and "<i>" not in page.text


def test_densities_of_an_evaluation_are_drawn(store, sae, tmp_path, report):
    sae.save(tmp_path / "sae")
    found = evaluate_sae(sae, store, baseline=make_sae(d_sae=40), held_out_fraction=0.3)
    (tmp_path / "sae" / "evaluation.json").write_text(json.dumps(found.to_dict()))
    table = report(tmp_path / "sae").table("Density of the latents")
    assert table["sae"]["never fired"] == str(found.densities["trained"].never)
    assert table["sae"]["median"] == f"{found.row('trained').density['density_q50']:.4g}"
    assert table["sae baseline"]["latents"] == "40"


@pytest.fixture
def trained(store, tmp_path):
    """trained(name, **fields): the folder of a short run."""

    def train(name, **fields):
        fields = {
            "kind": "topk",
            "k": 4,
            "d_sae": 48,
            "n_steps": 12,
            "batch_size_rows": 64,
            "log_every_steps": 2,
        } | fields
        sl.train_sae(store, output=str(tmp_path / "runs" / name), device="cpu", progress=False, **fields)
        return tmp_path / "runs" / name

    return train


@pytest.mark.long
def test_runs_of_training_are_shown_whole(store, trained, report):
    topk = trained("topk", dead_after_tokens=256)
    trained("relu", kind="relu", k=None, l1_coeff=0.5)
    page = report(topk.parent)
    runs = page.table("Runs")
    facts = sl.SparseAutoencoder.load(topk).config.metadata["saelens_lite"]
    assert runs["topk"]["held-out fvu"] == f"{facts['held_out_fvu']:.4g}"
    assert runs["topk"]["store"] == store.fingerprint[:12]
    assert (runs["topk"]["steps"], runs["topk"]["tokens"], runs["topk"]["state"]) == ("12", "768", "finished")
    assert "dead@256" in runs["topk"] and runs["relu"]["k"] == "–"
    for heading in (
        "Reconstruction loss",
        "L1 loss",
        "AuxK loss",
        "Dead latents",
        "Learning rate",
        "Tokens a second",
    ):
        assert heading in page.headings, heading
    assert list(page.table("Encoder–decoder cosine")) == ["relu", "topk"]
    assert {"kind", "l1_coeff", "dead_after_tokens"} <= set(page.table("Settings that differ")["topk"])
    logged = {name for line in (topk / "metrics.jsonl").read_text().splitlines() for name in json.loads(line)}
    plots = sum(attributes.get("role") == "img" for tag, attributes in page.tags if tag == "svg")
    assert plots == len(logged - {"step", "tokens", "dead@256", "kernels"}) + 3 + 5 + 1, (
        "two dead shares in one, L1 loss, fvu against l0; weights, leaning rows; firing rates"
    )


def test_a_run_that_was_stopped_says_so(trained, report, tmp_path, monkeypatch):
    from saelens_lite.run_log import Tracker

    log = Tracker.log

    def full_disk(self, step, metrics):
        if step > 6:
            raise OSError(28, "No space left on device")
        log(self, step, metrics)

    monkeypatch.setattr(Tracker, "log", full_disk)
    with pytest.raises(OSError, match="No space left"):
        trained("topk", checkpoint_every_steps=4)
    run = report(tmp_path / "runs").table("Runs")["topk"]
    assert run["state"] == "unfinished, SAE of step 7"
    assert run["steps"] == "6"


@pytest.mark.long
def test_a_browser_draws_it(browser, trained, report, tmp_path):
    trained("<b>bold"), trained("two", k=8)
    page = report(tmp_path / "runs")
    dom = browser(tmp_path / "report.html", tmp_path / "browser")
    assert dom.count("<figure>") == page.text.count("<figure>") > 10
    assert dom.count("<path") == page.text.count("<path"), "each line as it was written"
    assert "<b>" not in dom and "&lt;b&gt;bold" in dom


def test_a_folder_stands_for_every_run_below_it_and_no_checkpoint(tmp_path, report):
    """Runs three levels down, a baseline in its run, a link to a run; no checkpoint, no hidden folder."""
    for name in ("runs/alone", "runs/alone/frozen", "runs/grid/k=4", "runs/grid/deeper/k=8", "elsewhere"):
        write_run(tmp_path / name, lines())
    for name in ("runs/alone/state/step_3", "runs/.saving-12345678", "runs/wandb/run"):
        make_sae().save(tmp_path / name)
    (tmp_path / "runs/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs/grid/round").symlink_to(tmp_path / "runs")
    page = report(tmp_path / "runs")
    assert list(page.table("Runs")) == ["alone", "frozen", "k=8", "k=4", "elsewhere"]
    assert list(report(tmp_path / "runs/alone").table("Runs")) == ["alone", "frozen"]
