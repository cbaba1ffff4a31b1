"""An index leaves as dashboards of each format and comes back; what is written is what the SAE does."""

import gzip
import json

import numpy as np
import pytest
import torch

from saelens_lite import cli
from saelens_lite.analyze.exchange import export_index, import_index
from saelens_lite.analyze.exchange.index_dashboards import dashboards_of
from saelens_lite.analyze.index.build import IndexConfig, index_features
from saelens_lite.lm.decoder import Decoder

FORMATS = {"saedashboard-batch": "batch.json", "saedashboard-vis": "vis.json", "neuronpedia": "source"}
EACH = pytest.mark.parametrize("format", FORMATS)


@pytest.fixture
def index(sae, store, gpt2, byte_tokenizer, tmp_path):
    config = IndexConfig(n_logits=5)
    return index_features(sae, store, tmp_path / "index", gpt2, config, tokenizer=byte_tokenizer)


@pytest.fixture
def dense(store, sae):
    with torch.no_grad():
        return sae.encode_dense(store.gather(torch.arange(store.n_rows))).double()


def contents(path):
    if path.is_file():
        return {"": path.read_bytes()}
    files = [file for file in path.rglob("*") if file.is_file()]
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def batch(tmp_path, index, *given, **options):
    return json.loads(
        export_index(index, tmp_path / "b.json", "saedashboard-batch", *given, **options).read_text()
    )


@EACH
def test_export_import_export_is_equal_by_the_byte(index, sae, store, gpt2, tmp_path, format):
    index.labels.set(int(index.column("counts").argmax()), "often", "notes")
    out = export_index(index, tmp_path / FORMATS[format], format, sae, store, gpt2)
    back = import_index(out, tmp_path / "back")
    again = export_index(back, tmp_path / f"again_{FORMATS[format]}", format)
    assert contents(again) == contents(out) != {}


@pytest.mark.long
@EACH
def test_an_import_is_an_index_like_ours(index, sae, store, gpt2, dense, tmp_path, format):
    out = export_index(index, tmp_path / FORMATS[format], format, sae, store, gpt2)
    back = import_index(out, tmp_path / "back")
    latent = int(index.column("counts").argmax())
    ours, theirs = index[latent], back[latent]
    assert theirs.n_fired == ours.n_fired == int((dense[:, latent] > 0).sum())
    assert theirs.largest == pytest.approx(ours.largest, abs=1e-3)
    assert [value for value, _ in theirs.strongest] == pytest.approx(
        [value for value, _ in ours.strongest], abs=1e-3
    )
    assert [logit for _, logit in theirs.promoted] == pytest.approx([l for _, l in ours.promoted], abs=1e-3)
    if format != "saedashboard-vis":  # which holds ids only, and windows of equal sides
        assert [token for token, _ in theirs.promoted] == [token for token, _ in ours.promoted]
        firing, own = theirs.firings[0].context, ours.firings[0].context
        assert firing.token == own.token and own.before.endswith(firing.before)
        assert back.token(firing.token)[0].n_rows > 0
        assert back.density.density[latent] == pytest.approx(float(index.density.density[latent]), rel=0.2)


def test_what_is_written_is_what_the_sae_does(index, sae, store, gpt2, dense, tmp_path):
    content = batch(tmp_path, index, sae, store, gpt2, n_top=7, context_tokens=6)
    fired = (dense > 0).any(0).nonzero().flatten().tolist()
    assert [one["feature_index"] for one in content["features"]] == fired
    assert content["layer"] == 0 and content["sae_set"] == "topk-48"
    ids = torch.cat([store.tokens(s).input_ids[store.tokens(s).kept.bool()] for s in range(store.n_shards)])
    for one in content["features"]:
        latent = one["feature_index"]
        acts = dense[:, latent]
        positive = acts[acts > 0]
        assert one["frac_nonzero"] == pytest.approx(len(positive) / 1500, abs=1e-8)
        assert sum(one["freq_hist_data_bar_heights"]) == len(positive)
        assert len(one["freq_hist_data_bar_values"]) == 50
        strongest = positive.sort(descending=True).values[:7].tolist()
        top = [window for window in one["activations"] if window["bin_min"] == -1]
        at = [window["values"][window["qualifying_token_index"]] for window in top]
        assert at == pytest.approx(strongest, abs=5e-4)
        for window in one["activations"]:
            assert len(window["tokens"]) == len(window["values"]) <= 13
            value = window["values"][window["qualifying_token_index"]]
            if window["bin_min"] != -1:
                assert window["bin_min"] - 1e-3 <= value <= window["bin_max"] + 1e-3
                assert window["bin_contains"] == pytest.approx(len(positive) / 1500 / 5, abs=1e-5)
    assert len(ids) == 1500


def test_the_values_of_a_window_are_the_latent_s_on_its_tokens(index, sae, store, dense):
    latents = index.column("counts").topk(3).indices
    found = dashboards_of(index, latents, sae, store, n_top=4, context_tokens=5)
    spans = found.tokens.offsets
    for place, latent in enumerate(latents.tolist()):
        rows = index[latent].strongest[:4]
        for number, (_, row) in enumerate(rows):
            window = slice(spans[found.windows[place] + number], spans[found.windows[place] + number + 1])
            context = index.contexts.at(row)
            around = [
                r
                for r, p in zip(index.contexts.rows_of(context), context.positions)
                if abs(p - context.position) <= 5
            ]
            truth = [float(dense[r, latent]) if r >= 0 else 0.0 for r in around]
            np.testing.assert_allclose(found.acts[window], truth, atol=1e-6)


def test_tables_and_bars_equal_dense_ones(index, sae, store, gpt2, dense, tmp_path):
    content = batch(tmp_path, index, sae, store, gpt2)
    acts = store.gather(torch.arange(1500)).double()
    fired = [one["feature_index"] for one in content["features"]]
    with np.errstate(invalid="ignore"):
        correlation = np.nan_to_num(np.corrcoef(torch.cat([dense, acts], 1).T.numpy()))
    W_dec = sae.W_dec.detach()
    logits = Decoder(gpt2).head(W_dec).detach()
    logits -= logits.mean(1, keepdim=True)
    often = [i for i in fired if int((dense[:, i] > 0).sum()) > 50]
    assert len(often) > 5
    for one in (content["features"][fired.index(i)] for i in often):
        latent = one["feature_index"]
        neurons = correlation[latent, 48:]
        assert one["correlated_neurons_indices"] == np.argsort(-neurons)[:3].tolist()
        assert one["correlated_neurons_pearson"] == pytest.approx(np.sort(neurons)[::-1][:3], abs=6e-4)
        near = one["correlated_features_indices"][0]
        met = ((dense[:, latent] > 0)[:, None] & (dense > 0)).sum(0).numpy() >= 5
        met[latent] = False
        assert near == int(np.argmax(np.where(met, correlation[latent, :48], -2)))
        cosine = torch.cosine_similarity(dense[:, latent], dense[:, near], dim=0)
        assert one["correlated_features_l1"][0] == pytest.approx(float(cosine), abs=6e-4)
        best = W_dec[latent].topk(3)
        assert one["neuron_alignment_indices"] == best.indices.tolist()
        share = best.values.abs() / W_dec[latent].abs().sum()
        assert one["neuron_alignment_l1"] == pytest.approx(share.tolist(), abs=6e-4)
        heights = torch.histc(logits[latent], bins=50).tolist()
        assert np.abs(np.subtract(one["logits_hist_data_bar_heights"], heights)).sum() <= 2, (
            "rounding at edges"
        )
        assert one["pos_values"] == pytest.approx(logits[latent].topk(5).values.tolist(), abs=6e-4)


def test_bars_keep_the_number_of_firings_where_the_index_knows_bins_only():
    """Firings 1, 1.1, 1.3 lie in bins [1, 1.25) and [1.25, 1.3]; steps of .006 cut the first evenly."""
    from saelens_lite.analyze.exchange.index_dashboards import _activation_bars
    from saelens_lite.analyze.index.tally import N_BINS, activation_bins

    histogram = torch.bincount(activation_bins(torch.tensor([1.0, 1.1, 1.3])), minlength=N_BINS)[None]
    bars = _activation_bars(histogram, torch.tensor([3]), torch.tensor([1.3], dtype=torch.float64))
    heights, values = (bars[f"freq_hist_data_bar_{of}"].values for of in ("heights", "values"))
    assert heights.sum() == 3 and values[0] == pytest.approx(1.003) and values[-1] == pytest.approx(1.297)
    below = heights[values < 1.25].sum()
    assert below == 2 and heights[values > 1.25].sum() == 1


def test_an_index_that_knows_some_firings_only_asks_for_sae_and_store(sae, store, byte_tokenizer, tmp_path):
    index = index_features(
        sae, store, tmp_path / "index", config=IndexConfig(sample_tokens=700), tokenizer=byte_tokenizer
    )
    with pytest.raises(
        ValueError, match=r"knows all firings on [67]\d\d of 1,500 tokens: give the SAE and the store"
    ):
        export_index(index, tmp_path / "b.json", "saedashboard-batch")
    whole = index_features(sae, store, tmp_path / "whole", tokenizer=byte_tokenizer)
    some, all_ = (batch(tmp_path, one, sae, store)["features"] for one in (index, whole))
    assert [one["activations"] for one in some] == [one["activations"] for one in all_]


def test_neuronpedia_s_rows_have_the_columns_it_publishes(index, sae, store, gpt2, tmp_path):
    latent = int(index.column("counts").argmax())
    index.labels.set(latent, "often")
    place = export_index(index, tmp_path / "out", "neuronpedia", sae, store, gpt2)
    assert place.name == "0-topk-48"
    rows = {
        kind: [
            *map(json.loads, gzip.decompress((place / kind / "batch-0.jsonl.gz").read_bytes()).splitlines())
        ]
        for kind in ("features", "activations", "explanations")
    }
    assert PUBLISHED["features"] <= rows["features"][0].keys()
    assert PUBLISHED["activations"] <= rows["activations"][0].keys()
    assert [(row["index"], row["description"]) for row in rows["explanations"]] == [(str(latent), "often")]
    for row in rows["activations"][:50]:
        assert row["maxValue"] == max(row["values"]) == row["values"][row["maxValueTokenIndex"]]
        assert row["layer"] == "0-topk-48" and row["index"].isdecimal()
    assert len({row["id"] for row in rows["activations"]}) == len(rows["activations"])
    labels = import_index(tmp_path / "out", tmp_path / "back").labels.all()
    assert [(label.latent, label.label) for label in labels] == [(latent, "often")]


PUBLISHED = {
    "features": set(
        """modelId layer index maxActApprox creatorId frac_nonzero freq_hist_data_bar_heights
        freq_hist_data_bar_values logits_hist_data_bar_heights logits_hist_data_bar_values
        neuron_alignment_indices neuron_alignment_l1 neuron_alignment_values correlated_neurons_indices
        correlated_neurons_l1 correlated_neurons_pearson decoder_weights_dist neg_str neg_values pos_str
        pos_values sourceSetName topkCosSimIndices topkCosSimValues vector vectorLabel hookName
        vectorDefaultSteerStrength hasVector""".split()
    ),
    "activations": set(
        """id modelId layer index creatorId dataSource tokens maxValue minValue values maxValueTokenIndex
        dfaValues dfaMaxValue dfaTargetIndex binContains binMin binMax""".split()
    ),
}
"""The columns that neuronpedia.org's own exporter writes (hijohnnylin/neuronpedia, export of a source)."""


def test_tokens_of_any_kind_come_back(index, tmp_path):
    content = batch(tmp_path, index)
    hostile = ["</script>", "\ud800", "\ufffd", "", "\u202e", "x" * 10_000]
    for one in content["features"]:
        for window in one["activations"]:
            window["tokens"] = [hostile[i % 6] for i in range(len(window["tokens"]))]
    (tmp_path / "hostile.json").write_text(json.dumps(content))
    back = import_index(tmp_path / "hostile.json", tmp_path / "back")
    export_index(back, tmp_path / "again.json", "saedashboard-batch")
    assert json.loads((tmp_path / "again.json").read_text()) == content
    assert back.token("</script>") != [] and "\ud800" not in repr(
        back[content["features"][0]["feature_index"]]
    )


def test_names_from_data_lead_nowhere_else(index, tmp_path):
    content = batch(tmp_path, index) | {"model_id": "../../up", "sae_set": "..", "sae_id_suffix": "/root"}
    (tmp_path / "hostile.json").write_text(json.dumps(content))
    back = import_index(tmp_path / "hostile.json", tmp_path / "back")
    place = export_index(back, tmp_path / "deep/er/out", "neuronpedia")
    assert place == tmp_path / "deep/er/out/_.._up/0-..___root"
    assert [*(tmp_path / "deep/er").iterdir()] == [tmp_path / "deep/er/out"]


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda c: c["features"][0].pop("frac_nonzero"), r"features\[0\].frac_nonzero is missing"),
        (lambda c: c["features"][0]["activations"][0]["values"].pop(), "expected a value for each token"),
        (lambda c: c["features"].clear(), "with features, it has none"),
        (lambda c: c.update(layer="3"), "layer expected int, got '3'"),
        (lambda c: c["features"][0].update(pos_values=["x"]), r"pos_values\[0\] expected float, got 'x'"),
    ],
)
def test_a_batch_that_does_not_fit_is_named(index, tmp_path, change, told):
    content = batch(tmp_path, index)
    change(content)
    (tmp_path / "b.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=told):
        import_index(tmp_path / "b.json", tmp_path / "back")
    assert not (tmp_path / "back" / "index.json").exists()


def test_what_cannot_be_done_is_named(index, sae, store, byte_tokenizer, gpt2, tmp_path):
    with pytest.raises(ValueError, match="a format of saedashboard-vis, .*, got 'html'"):
        export_index(index, tmp_path / "x.json", "html")
    plain = index_features(sae, store, tmp_path / "plain", tokenizer=byte_tokenizer)
    with pytest.raises(ValueError, match="with the logit lens, which its viewer relies on"):
        export_index(plain, tmp_path / "x.json", "saedashboard-vis")
    with pytest.raises(ValueError, match="expected the SAE beside the model"):
        export_index(index, tmp_path / "x.json", "saedashboard-batch", model=gpt2)
    with pytest.raises(ValueError, match="does not exist"):
        import_index(tmp_path / "none", tmp_path / "back")
    out = export_index(index, tmp_path / "b.json", "saedashboard-batch")
    with pytest.raises(ValueError, match="holds an index already"):
        import_index(out, index.path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="the export of one source of Neuronpedia"):
        import_index(tmp_path / "empty", tmp_path / "back")


def test_several_batches_are_one_index(index, tmp_path):
    content = batch(tmp_path, index)
    folder = tmp_path / "batches"
    folder.mkdir()
    for number, part in ((0, content["features"][:5]), (1, content["features"][5:])):
        (folder / f"batch-{number}.json").write_text(json.dumps(content | {"features": part}))
    back = import_index(folder, tmp_path / "back")
    assert batch(tmp_path, back) == content
    (folder / "batch-2.json").write_text(json.dumps(content | {"layer": 7}))
    with pytest.raises(ValueError, match="expected a batch of the SAE of"):
        import_index(folder, tmp_path / "other")


def test_the_commands(index, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", str(index.path), "--format", "neuronpedia"]) == 0
    assert capsys.readouterr().out.startswith("neuronpedia: dashboards")
    assert cli.main(["import", "dashboards", "--index", "back.index"]) == 0
    told = capsys.readouterr().out
    assert "index: back.index\nnext: saelens-lite search back.index --by max\n" in told
    assert cli.main(["search", "back.index", "--by", "max"]) == 0
