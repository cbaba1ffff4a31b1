"""An index on disk is that of brute force, whoever made it in how many pieces; what does not belong together
is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import saelens_lite as sl
from saelens_lite import FeatureIndexError
from saelens_lite.analyze.index import build, store_tally
from saelens_lite.analyze.index.build import IndexConfig, index_features, token_entropy
from saelens_lite.analyze.index.feature_index import FeatureIndex
from saelens_lite.analyze.index.folder import identity, index_folder
from saelens_lite.analyze.index.latent_facts import LatentFacts
from saelens_lite.analyze.index.tally import Tally, add_shard
from saelens_lite.analyze.index.token_sample import TokenSample
from saelens_lite.sae.latents import SparseLatents

from ..conftest import HOOK_POINT, TEXTS, make_sae
from .test_max_activating import RoundedStore, integer_sae

CONFIG = IndexConfig(n_top=6, n_sample=8, n_contrast=3, n_neighbors=4, n_logits=5, sample_tokens=400)
ROOT = Path(__file__).parents[3]


def tensors_of(path):
    """Everything in the two files of an index."""
    facts = json.loads((path / "index.json").read_text())
    return {name: load_file(path / facts["files"][name]["file"]) for name in ("latents", "tokens")}


def assert_same(path, other):
    one, two = tensors_of(path), tensors_of(other)
    assert json.loads((path / "index.json").read_text()) == json.loads((other / "index.json").read_text())
    for file in one:
        assert one[file].keys() == two[file].keys()
        for name in one[file]:
            torch.testing.assert_close(one[file][name], two[file][name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.property_check(4)
@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_an_index_equals_brute_force(store, gpt2, byte_tokenizer, kind, tmp_path, monkeypatch):
    """Integer weights and rows: sums are exact in any order, and so is every number."""
    monkeypatch.setattr("saelens_lite.analyze.latents.store_pass.BLOCK_ROWS", 100)
    monkeypatch.setattr("saelens_lite.analyze.index.build._LENS_LATENTS", 20)
    store, sae = RoundedStore(store), integer_sae(kind)
    index = index_features(sae, store, tmp_path / "index", gpt2, CONFIG, tokenizer=byte_tokenizer)
    with torch.no_grad():
        dense = sae.encode_dense(torch.cat([store.acts(shard) for shard in range(store.n_shards)]))
    assert 0 < int((dense > 0).sum()) < dense.numel()
    whole = Tally(sae.d_sae, 6, 8)
    whole.update(SparseLatents.from_dense(dense), 0)  # itself compared with brute force in test_tally.py
    for name, tensor in whole.tensors().items():
        if name not in ("positions", "token_positions", "n_tokens"):
            assert torch.equal(index.column(name), tensor), name
    sample = TokenSample.of_block(SparseLatents.from_dense(dense), 0, 400 / 1500).smallest(400)
    assert all(
        torch.equal(index.token_sample.tensors()[name], tensor) for name, tensor in sample.tensors().items()
    )

    latent = int((index.column("counts") - 300).abs().argmin())
    view, column = index[latent], dense[:, latent]
    fired = column.nonzero().flatten()
    assert (view.n_fired, view.first_fired, view.last_fired) == (len(fired), int(fired[0]), int(fired[-1]))
    assert [firing.value for firing in view.firings] == column.sort(descending=True).values[:6].tolist()
    assert all(column[firing.row] == firing.value for firing in view.firings)
    assert sum(count for *_, count in view.histogram) == sum(view.positions) == len(fired)
    assert len(view.contrast) == 3 and not column[[context.row for context in view.contrast]].any()
    ids = torch.cat([store.tokens(s).input_ids[store.tokens(s).kept.bool()] for s in range(store.n_shards)])
    shares = ids[[firing.row for firing in view.firings]].unique(return_counts=True)[1] / 6
    assert view.token_entropy == pytest.approx(float(-(shares * shares.log()).sum()), abs=1e-6)
    unit = torch.nn.functional.normalize(sae.W_dec.detach(), dim=1)
    cosines = (unit @ unit[latent]).masked_fill(torch.arange(len(unit)) == latent, -2).sort(descending=True)
    assert [score for _, score in view.cosine] == pytest.approx(cosines.values[:4].tolist(), abs=1e-6)
    lens = sl.logit_lens(sae, gpt2, [latent], n=5, tokenizer=byte_tokenizer)
    for shown, expected in ((view.promoted, lens.top(latent)), (view.demoted, lens.bottom(latent))):
        assert [token for token, _ in shown] == [token for token, _ in expected]
        assert [logit for _, logit in shown] == pytest.approx([logit for _, logit in expected], abs=1e-5)
    for word in (f"latent {latent}", "quantiles", "token entropy", "jaccard", "cosine", "promoted"):
        assert word in repr(view)
    assert FeatureIndex.open(index.path, byte_tokenizer)[latent] == view


class Killed(Exception):
    pass


def kill_after(monkeypatch, n_shards):
    """Let a pass die when it has tallied so many shards."""
    left, real = [n_shards], add_shard

    def dying(*args, **kwargs):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return real(*args, **kwargs)

    monkeypatch.setattr(store_tally, "add_shard", dying)


@pytest.mark.parametrize("n_shards", [1, 2])
def test_a_killed_pass_goes_on_and_ends_with_the_same_index(store, sae, tmp_path, monkeypatch, n_shards):
    assert store.n_shards == 3
    index_features(sae, store, tmp_path / "whole", config=CONFIG)
    with monkeypatch.context() as patch:
        kill_after(patch, n_shards)
        with pytest.raises(Killed):
            index_features(sae, store, tmp_path / "killed", config=CONFIG, commit_every_s=0)
    with pytest.raises(FeatureIndexError, match="is unfinished: run the same command again, and it resumes"):
        FeatureIndex.open(tmp_path / "killed")
    with monkeypatch.context() as patch:  # the shards that were committed are not tallied again
        kill_after(patch, 3 - n_shards)
        index_features(sae, store, tmp_path / "killed", config=CONFIG, commit_every_s=0)
    assert_same(tmp_path / "whole", tmp_path / "killed")
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }
    assert not (tmp_path / "killed" / "parts").exists()


def test_parts_that_a_kill_left_beside_a_whole_index_go_with_the_next_call(store, sae, tmp_path, monkeypatch):
    index_features(sae, store, tmp_path / "whole", config=CONFIG)
    with monkeypatch.context() as patch:
        patch.setattr(build, "remove_parts", lambda _: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            index_features(sae, store, tmp_path / "killed", config=CONFIG, commit_every_s=0)
    assert (tmp_path / "killed/parts/00000.safetensors").exists()
    index_features(sae, store, tmp_path / "killed", config=CONFIG)
    assert not (tmp_path / "killed/parts").exists()
    assert_same(tmp_path / "whole", tmp_path / "killed")


def test_shards_that_two_parts_tally_count_once(store, sae, tmp_path, monkeypatch, caplog):
    """As where a file system has no locks, and two calls were made at once."""
    index_features(sae, store, tmp_path / "whole", config=CONFIG)
    with monkeypatch.context() as patch:
        kill_after(patch, 2)
        with pytest.raises(Killed):
            index_features(sae, store, tmp_path / "index", config=CONFIG, commit_every_s=0)
    parts = tmp_path / "index/parts"
    (parts / "00001.safetensors").write_bytes((parts / "00000.safetensors").read_bytes())
    index_features(sae, store, tmp_path / "index", config=CONFIG, commit_every_s=0)
    assert "00001.safetensors tallies shards that another part has" in caplog.text
    assert_same(tmp_path / "whole", tmp_path / "index")


def test_a_pass_that_ended_is_not_repeated_for_what_follows(store, sae, tmp_path, monkeypatch):
    index_features(sae, store, tmp_path / "whole", config=CONFIG)
    with monkeypatch.context() as patch:
        patch.setattr(build, "decoder_neighbors", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            index_features(sae, store, tmp_path / "killed", config=CONFIG, commit_every_s=0)
    kill_after(monkeypatch, 0)
    index_features(sae, store, tmp_path / "killed", config=CONFIG)
    assert_same(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.property_check(4)
def test_blocks_of_any_size_give_one_index_of_real_weights(store, sae, tmp_path, monkeypatch):
    """A product of other rows rounds otherwise: activations agree to 1e-5, and what rests on them but for
    ties."""
    index = index_features(sae, store, tmp_path / "whole", config=CONFIG)
    monkeypatch.setattr("saelens_lite.analyze.latents.store_pass.BLOCK_ROWS", 13)
    other = index_features(sae, store, tmp_path / "cut", config=CONFIG)
    torch.testing.assert_close(other.column("top_values"), index.column("top_values"), rtol=0, atol=1e-5)
    for name in ("counts", "sample_rows", "first_fired", "last_fired", "jaccard_ids", "contrast_rows"):
        assert torch.equal(other.column(name), index.column(name)), name


def test_parts_of_other_settings_do_not_count(store, sae, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_after(patch, 2)
        with pytest.raises(Killed):
            index_features(sae, store, tmp_path / "index", config=IndexConfig(n_top=3), commit_every_s=0)
    index_features(sae, store, tmp_path / "index", config=CONFIG)
    index_features(sae, store, tmp_path / "whole", config=CONFIG)
    assert_same(tmp_path / "whole", tmp_path / "index")


@pytest.mark.property_check(4)
@pytest.mark.dist
def test_three_processes_make_the_index_of_one(store, sae, tmp_path, ranks):
    sae.save(tmp_path / "sae")
    sae = sl.SparseAutoencoder.load(tmp_path / "sae")
    index_features(sae, store, tmp_path / "one")
    argv = ["-m", "saelens_lite.analyze", "--sae", tmp_path / "sae", "--store", store.path, "--device", "cpu"]
    argv += ["--index", tmp_path / "three", "--output", tmp_path / "page.html"]
    code, output = ranks(3, *argv).communicate(timeout=180)
    assert code == 0, output
    assert output.count("page: ") == 1
    assert_same(tmp_path / "one", tmp_path / "three")


def test_an_index_that_is_there_costs_no_pass_and_another_sae_or_store_is_noticed(
    store, sae, gpt2, byte_tokenizer, tmp_path, monkeypatch
):
    index = index_features(sae, store, tmp_path / "index", config=CONFIG)
    index.labels.set(3, "the sun", "and the moon")
    index_features(sae, store, tmp_path / "with lens", gpt2, CONFIG)
    with monkeypatch.context() as patch:
        kill_after(patch, 0)
        again = index_features(sae, store, tmp_path / "index", config=CONFIG)
        assert repr(again[7]) == repr(index[7])
        assert not again[5].promoted
        index_features(sae, store, tmp_path / "index", gpt2, CONFIG)  # what a model adds needs no pass either
    (tmp_path / "index" / "labels.sqlite").rename(tmp_path / "labels.sqlite")
    assert_same(tmp_path / "with lens", tmp_path / "index")
    (tmp_path / "labels.sqlite").rename(tmp_path / "index" / "labels.sqlite")

    other = make_sae(k=5)
    with pytest.raises(ValueError) as refusal:
        index_features(other, store, tmp_path / "index", config=CONFIG)
    for part in (identity(sae)["sha256"][:8], identity(other)["sha256"][:8], HOOK_POINT, "another folder"):
        assert part in str(refusal.value)
    with pytest.raises(ValueError, match="is the index of the topk SAE .* not of the topk SAE"):
        index.check(other)

    smaller = sl.harvest_activations(
        gpt2, TEXTS, HOOK_POINT, tmp_path / "smaller", max_tokens=300, tokenizer=byte_tokenizer,
        context_length=32,
        progress=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="is an index over the store .* not over"):
        sl.feature_page(sae, smaller, tmp_path / "page.html", index=index)
    renewed = index_features(sae, smaller, tmp_path / "index", config=CONFIG)
    assert renewed.n_tokens == 300 and len(list((tmp_path / "index").glob("latents-*"))) == 1
    assert renewed[3].label.notes == "and the moon" and "the sun" in repr(renewed[3]), (
        "labels outlive the index"
    )


def test_an_sae_of_another_model_or_hook_point_is_refused_with_both_named(store, tmp_path, gpt2, monkeypatch):
    with pytest.raises(ValueError, match=r"blocks\.0\.hook_resid_post.*blocks\.1\.hook_resid_post"):
        index_features(make_sae(hook_point="blocks.1.hook_resid_post"), store, tmp_path / "index")
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel.*pythia-70m"):
        index_features(make_sae(model_name="pythia-70m"), store, tmp_path / "index")
    torch.manual_seed(1)
    other = type(gpt2)(gpt2.config).eval()
    with monkeypatch.context() as patch:
        patch.setattr(sl.SparseAutoencoder, "encode", None)  # before the pass
        with pytest.raises(ValueError, match="GPT2LMHeadModel does not give the activations of .*store"):
            index_features(make_sae(), store, tmp_path / "index", other)
    broken = make_sae()
    with torch.no_grad():
        broken.W_enc[3, 4] = torch.nan
    with pytest.raises(ValueError, match="W_enc holds nan or infinity"):
        index_features(broken, store, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_activations_that_are_not_finite_are_named(store, sae, tmp_path):
    class Broken(RoundedStore):
        def acts(self, shard, hook_point=None, rows=slice(None)):
            acts = super().acts(shard, hook_point, rows)
            acts[2] = torch.nan
            return acts

    with pytest.raises(ValueError, match="row 2 holds nan or infinity"):
        index_features(sae, Broken(store), tmp_path / "index")


def test_latents_out_of_range_and_unknown_columns(store, sae, tmp_path):
    index = index_features(sae, store, tmp_path / "index", config=CONFIG)
    for latent in (-1, 48):
        with pytest.raises(ValueError, match=f"a latent from 0 to 47, got {latent}"):
            index[latent]
    with pytest.raises(ValueError, match="has no 'density': expected one of common_token, contrast_rows, "):
        index.column("density")
    assert len(index) == 48 and isinstance(next(iter(index)), LatentFacts)
    with pytest.raises(ValueError, match="expected a local folder, got s3://bucket/index"):
        FeatureIndex.open("s3://bucket/index")
    with pytest.raises(ValueError, match="output_score expected a model"):
        index_features(sae, store, tmp_path / "index", output_score=True)
    with pytest.raises(ValueError, match=r"IndexConfig\.n_top expected at least 1, got 0"):
        IndexConfig(n_top=0)


def test_a_damaged_index_is_named(store, sae, tmp_path):
    folder = tmp_path / "index"
    with pytest.raises(FeatureIndexError, match="does not exist"):
        FeatureIndex.open(folder)
    index_features(sae, store, folder, config=CONFIG)
    (latents,) = folder.glob("latents-*")
    whole = latents.read_bytes()
    latents.write_bytes(whole[:-1])
    with pytest.raises(FeatureIndexError, match=r"has \d+ bytes, index.json records \d+"):
        FeatureIndex.open(folder)
    latents.write_bytes(b"\xff" * len(whole))
    with pytest.raises(FeatureIndexError, match="no readable safetensors file"):
        FeatureIndex.open(folder)
    latents.write_bytes(whole)
    text = (folder / "index.json").read_text()
    for altered, message in (
        (text.replace('"rows": 1500', '"rows": 1501'), "was altered"),
        (text.replace('"version": 2', '"version": 1'), "version 1: .* remove that file and analyze again"),
        ("[]", "not the JSON of an index"),
        ("{", "not the JSON of an index"),
    ):
        (folder / "index.json").write_text(altered)
        with pytest.raises(FeatureIndexError, match=message):
            FeatureIndex.open(folder)


def test_a_second_process_is_refused_while_one_makes_the_index(store, sae, tmp_path):
    folder = tmp_path / "index"
    with index_folder(folder).locked() as ours:
        assert ours
        with pytest.raises(
            FeatureIndexError, match=r"another process is making the index in .*index: wait for it"
        ):
            index_features(sae, store, folder, config=CONFIG)
    index_features(sae, store, folder, config=CONFIG)
    assert not (folder / ".lock").exists()


def test_a_store_without_tokens_is_indexed_too(tmp_path, planted):
    store = sl.ActivationStore.from_arrays(
        tmp_path / "store", planted.acts[:500], documents=torch.arange(500) // 10
    )
    sae = make_sae(d_model=16, d_sae=24, hook_point="acts", model_name="")
    index = index_features(sae, store, tmp_path / "index", config=CONFIG)
    view = index[int(index.column("counts").argmax())]
    assert view.token_entropy != view.token_entropy and sum(view.positions) == 0
    assert view.firings[0].document == view.firings[0].row // 10
    assert "row" in repr(view)


def test_settings_change_what_they_say(store, sae, tmp_path):
    for name, value in (
        ("n_top", 2),
        ("n_sample", 3),
        ("n_contrast", 1),
        ("n_neighbors", 0),
        ("n_logits", 1),
    ):
        small = index_features(sae, store, tmp_path / name, config=IndexConfig(**{name: value}))
        which = {
            "n_top": "top_rows",
            "n_sample": "sample_rows",
            "n_contrast": "contrast_rows",
            "n_neighbors": "pmi_ids",
        }
        if name in which:
            assert small.column(which[name]).shape == (48, value)
    few = index_features(sae, store, tmp_path / "few", config=IndexConfig(sample_tokens=50))
    assert len(few.token_sample.rows) <= 50
    other = index_features(sae, store, tmp_path / "other", config=IndexConfig(sample_tokens=50, seed=1))
    assert other.token_sample.rows.tolist() != few.token_sample.rows.tolist()
    assert torch.equal(other.column("top_rows"), few.column("top_rows"))
    assert not torch.equal(other.column("sample_rows"), few.column("sample_rows"))


def test_entropy_by_hand(store):
    """Tokens a a b b: ln 2. Tokens a a a b: 3/4 ln 4/3 + 1/4 ln 4. One token: 0. No firing: nan."""
    ids = torch.cat([store.tokens(s).input_ids[store.tokens(s).kept.bool()] for s in range(store.n_shards)])
    a, b = (
        (ids == token).nonzero().flatten()[:4].tolist() for token in ids.unique(return_counts=True)[0][-2:]
    )
    a, b = (list(rows) + [rows[0]] * (4 - len(rows)) for rows in (a, b))
    rows = torch.tensor([[a[0], a[1], b[0], b[1]], [a[0], a[1], a[2], b[0]], [a[0], -1, -1, -1], [-1] * 4])
    by_hand = [0.693147, 0.75 * 0.287682 + 0.25 * 1.386294, 0.0, torch.nan]
    torch.testing.assert_close(
        token_entropy(store, rows), torch.tensor(by_hand), rtol=0, atol=1e-5, equal_nan=True
    )
