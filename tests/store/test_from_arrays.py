"""Stores from arrays: what comes in comes out, by documents and without text, and training and analysis work
on them."""

import json
import math

import numpy as np
import pytest
import torch

import saelens_lite as sl
from saelens_lite.errors import ShardError
from saelens_lite.hashing import is_held_out
from saelens_lite.store.from_arrays import regrouped
from saelens_lite.store.reader import ActivationStore


def rows_of(n_rows=10, d_model=3):
    return torch.randn(n_rows, d_model, generator=torch.Generator().manual_seed(0))


def all_bytes(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_rows_come_back(tmp_path, dtype):
    rows = rows_of(1000, 16)
    store = ActivationStore.from_arrays(tmp_path, rows, dtype=dtype, rows_per_shard=400)
    assert (store.hook_points, store.n_rows, store.shard_rows, store.d_model()) == (
        ["acts"],
        1000,
        [400, 400, 200],
        16,
    )
    kept = store.gather(torch.arange(1000))
    if dtype == "int8":
        assert float((kept - rows).square().sum() / (rows - rows.mean(0)).square().sum()) < 1e-4
        assert store.acts(1).dtype == torch.float32
    else:
        assert torch.equal(kept, rows.to(getattr(torch, dtype)).float())
    assert torch.equal(store.acts(1, rows=slice(3, 7)).float(), kept[403:407])
    assert torch.equal(store.gather(torch.tensor([999, 0, 401])), kept[[999, 0, 401]])
    torch.testing.assert_close(torch.cat([store.norms(shard) for shard in range(3)]), kept.norm(dim=1))
    torch.testing.assert_close(store.mean(), kept.double().mean(0))
    assert store.mean_sq_norm() == pytest.approx(float(kept.double().square().sum(1).mean()), rel=1e-6)
    assert store.median_norm() == float(torch.cat([store.norms(shard) for shard in range(3)]).median())
    assert store.verify() == []


def test_the_bytes_do_not_depend_on_how_the_rows_came(tmp_path):
    rows = rows_of(9000, 4)
    ways = {
        "tensor": rows,
        "numpy": rows.numpy(),
        "list": list(rows.split(17)),
        "generator": (part.numpy() for part in rows.split(8000)),
        "mapping": {"acts": rows},
        "with empty chunks": [rows[:0], rows[:5], rows[:0], rows[5:]],
    }
    for name, arrays in ways.items():
        ActivationStore.from_arrays(tmp_path / name, arrays, dtype="int8", rows_per_shard=5000)
    for name in ways:
        assert all_bytes(tmp_path / name) == all_bytes(tmp_path / "tensor"), name


def test_the_plan_and_the_files(tmp_path):
    ActivationStore.from_arrays(tmp_path, rows_of(), hook_point="clip.visual", documents=np.arange(10) // 2)
    assert json.loads((tmp_path / "plan.json").read_bytes()) == {
        "format": "saelens_lite activation store",
        "version": 1,
        "source": {"kind": "arrays"},
        "hook_points": {"clip.visual": {"d_model": 3}},
        "dtype": "float32",
    }
    assert sorted(all_bytes(tmp_path)) == [
        "manifest.json",
        "plan.json",
        "shards/00000/clip.visual.json",
        "shards/00000/clip.visual.safetensors",
        "shards/00000/documents.safetensors",
    ]
    manifest = json.loads((tmp_path / "manifest.json").read_bytes())
    files = (tmp_path / "shards").rglob("*.safetensors")
    assert manifest["totals"] == {"rows": 10, "bytes": sum(path.stat().st_size for path in files)}


def test_documents_decide_what_is_held_out(tmp_path):
    documents = torch.arange(1000) // 10
    store = ActivationStore.from_arrays(
        tmp_path / "a", rows_of(1000), documents=documents, rows_per_shard=300
    )
    assert torch.equal(torch.cat([store.row_docs(shard) for shard in range(4)]), documents)
    assert torch.equal(store.held_out_rows(0.3), is_held_out(documents, 0.3))
    alone = ActivationStore.from_arrays(tmp_path / "b", rows_of(1000), rows_per_shard=300)
    assert torch.equal(alone.held_out_rows(0.3), is_held_out(torch.arange(1000), 0.3))


def test_several_hook_points(tmp_path):
    store = ActivationStore.from_arrays(
        tmp_path, {"early": rows_of(7, 3), "late": iter(rows_of(7, 5).split(2))}
    )
    assert (store.hook_points, store.d_model("late")) == (["early", "late"], 5)
    assert torch.equal(store.acts(0, "late"), rows_of(7, 5))


def test_what_needs_text_says_so(tmp_path):
    store = ActivationStore.from_arrays(tmp_path, rows_of())
    assert (store.has_tokens, store.model_name, store.tokenizer_name) == (False, "", "")
    for what in (lambda: store.tokens(0), lambda: store.row_positions(0), lambda: store.context_length):
        with pytest.raises(ShardError, match="holds rows without text.*harvest the text itself"):
            what()


def test_a_flipped_bit_is_found(tmp_path):
    ActivationStore.from_arrays(tmp_path, rows_of(), dtype="int8")
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        path.write_bytes(whole[:20] + bytes([whole[20] ^ 4]) + whole[21:])
        try:
            problems = "".join(ActivationStore(tmp_path).verify())
        except ShardError as error:
            problems = str(error)
        assert path.name in problems
        path.write_bytes(whole)


def test_an_attempt_that_failed_is_begun_anew_and_anything_else_is_left_alone(tmp_path):
    def breaking_off():
        yield rows_of()
        raise RuntimeError("the encoder failed")

    with pytest.raises(RuntimeError, match="the encoder failed"):
        ActivationStore.from_arrays(tmp_path / "a", breaking_off(), rows_per_shard=5)
    with pytest.raises(ShardError, match="unfinished"):
        ActivationStore(tmp_path / "a")
    store = ActivationStore.from_arrays(tmp_path / "a", rows_of(), rows_per_shard=5)
    assert torch.equal(store.gather(torch.arange(10)), rows_of())
    with pytest.raises(
        ShardError, match="holds a finished store: open it with ActivationStore, or choose another folder"
    ):
        ActivationStore.from_arrays(tmp_path / "a", rows_of())
    (tmp_path / "b").mkdir()
    (tmp_path / "b/letter.txt").write_text("dear")
    with pytest.raises(ShardError, match="is not empty"):
        ActivationStore.from_arrays(tmp_path / "b", rows_of())


def test_wrong_rows_are_refused(tmp_path):
    def refused(message, arrays, **options):
        with pytest.raises(ValueError, match=message):
            ActivationStore.from_arrays(tmp_path / "refused", arrays, **options)

    nan = rows_of()
    nan[6, 1] = float("nan")
    refused(r"row 6 of acts holds nan or infinity", nan)
    refused(r"row 16 of acts holds nan or infinity", [rows_of(), nan])
    refused(r"expected \[n_rows, d_model\] for acts.*got \[10\]", torch.zeros(10))
    refused(r"expected \[n_rows, d_model\] for acts.*got \[3\]", list(rows_of()))
    refused(r"expected \[n_rows, d_model\] for acts.*got a str", ["text"])
    refused("at least one row of acts, got none", torch.zeros(0, 3))
    refused("at least one row of acts, got none", [])
    refused("at least one hook point, got an empty mapping", {})
    refused("expected rows of width 3 as before, got 4 at row 10", [rows_of(), rows_of(2, 4)])
    refused("equally many rows of every hook point, got 10 of a, 9 of b", {"a": rows_of(), "b": rows_of(9)})
    refused(r"dtype expected one of .* got 'int4'", rows_of(), dtype="int4")
    refused("rows_per_shard expected at least 1", rows_of(), rows_per_shard=0)
    for documents in (np.arange(9), np.arange(11)):
        path = tmp_path / f"{len(documents)} documents"
        with pytest.raises(ValueError, match=f"an id for every row, got {len(documents)} ids for"):
            ActivationStore.from_arrays(path, rows_of(), documents=documents)
    refused(r"documents expected int\[n_rows\]", rows_of(), documents=np.arange(10) * 0.5)
    refused(r"documents expected int\[n_rows\]", rows_of(), documents=np.arange(10) - 1)
    with pytest.raises(ShardError, match="1 of 10 rows of acts are not finite as torch.float16"):
        ActivationStore.from_arrays(
            tmp_path / "half", torch.cat([rows_of(9), torch.full((1, 3), 1e6)]), dtype="float16"
        )


def test_arrays_that_may_not_be_written_to_and_whole_numbers(tmp_path):
    frozen = rows_of().numpy().astype(np.float64)
    frozen.flags.writeable = False
    store = ActivationStore.from_arrays(tmp_path / "frozen", frozen)
    assert torch.equal(store.acts(0), rows_of())
    store = ActivationStore.from_arrays(tmp_path / "counts", torch.arange(6).view(2, 3))
    assert store.acts(0).tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_regrouping_keeps_every_row_once():
    chunks = [torch.arange(3), torch.arange(3, 3), torch.arange(3, 10), torch.arange(10, 11)]
    assert [part.tolist() for part in regrouped(chunks, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert [len(part) for part in regrouped([torch.arange(8)], 4)] == [4, 4]


@pytest.mark.long
def test_an_sae_is_trained_and_scored_without_text(tmp_path, planted):
    """The planted directions are found again in vectors that never saw a model."""
    store = ActivationStore.from_arrays(
        tmp_path / "store", planted.acts, dtype="int8", documents=torch.arange(8192) // 8
    )
    sae = sl.train_sae(
        store, kind="topk", k=3, d_sae=48, n_steps=800, batch_size_rows=512, device="cpu", lr=0.01,
        output=str(tmp_path / "sae"), progress=False,
    )  # fmt: skip
    nearest = (sae.W_dec @ planted.directions.T).abs().amax(0)
    assert float((nearest > 0.9).float().mean()) > 0.8
    assert sae.config.hook_point == "acts"
    assert "context_size" not in sae.config.metadata
    loaded = sl.SparseAutoencoder.load(tmp_path / "sae")
    assert sl.evaluate_sae(loaded, store).rows[0].fvu == pytest.approx(
        sae.config.metadata["saelens_lite"]["held_out_fvu"], rel=0.05
    )
    firing = sl.max_activating_tokens(loaded, store, n=3).latent(0).firings[0]
    assert firing.context.document == firing.context.row // 8


@pytest.mark.parametrize("arrays", [-math.inf, 3, None, np.float64(2.5)])
def test_what_holds_no_rows_is_named(tmp_path, arrays):
    expected = r"arrays expected \[n_rows, d_model\] for acts, as array, tensor or chunks, got a \w+"
    with pytest.raises(ValueError, match=expected):
        ActivationStore.from_arrays(tmp_path / "store", arrays)
    assert not (tmp_path / "store").exists()


def test_pictures_become_rows_in_c_order_with_their_shape(tmp_path):
    """Entry (channel 1, line 0, column 2) of a picture of 2 × 3 × 4 is number 1 · 12 + 0 · 4 + 2 = 14."""
    pictures = torch.arange(5 * 24).float().view(5, 2, 3, 4)
    store = ActivationStore.from_arrays(tmp_path / "a", list(pictures.split(2)), rows_per_shard=3)
    assert store.plan["hook_points"] == {"acts": {"d_model": 24, "shape": [2, 3, 4]}}
    assert store.plan["version"] == 1 and store.verify() == []
    assert store.gather(torch.tensor([4]))[0, 14] == pictures[4, 1, 0, 2] == 110
    series = ActivationStore.from_arrays(tmp_path / "b", pictures[:, 0].numpy())
    assert series.plan["hook_points"]["acts"] == {"d_model": 12, "shape": [3, 4]}
    with pytest.raises(
        ValueError, match=r"expected rows of width \(2, 3, 4\) as before, got \(2, 4, 3\) at row 5"
    ):
        ActivationStore.from_arrays(tmp_path / "c", [pictures, pictures.transpose(2, 3)])
    with pytest.raises(ValueError, match=r"got \[5, 2, 3, 4, 1\]; images are"):
        ActivationStore.from_arrays(tmp_path / "d", pictures[..., None])
