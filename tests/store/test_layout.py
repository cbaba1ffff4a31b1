"""Names of hook points: none leads out of a store, whoever chose it."""

import hashlib

import numpy as np
import pytest

import saelens_lite as sl
from saelens_lite.errors import ShardError
from saelens_lite.store.layout import check_names, encode_json

ROWS = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "/x",
        "a/b",
        "a\\b",
        "C:x",
        "a\0b",
        "a\nb",
        " a",
        "tokens",
        "Documents",
        "x" * 201,
    ],
)
def test_a_store_is_not_made_with_a_name_that_is_no_file_name(name, tmp_path):
    with pytest.raises(ValueError, match="a hook point expected a name such as"):
        sl.ActivationStore.from_arrays(tmp_path / "store", {name: ROWS})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_names_of_modules_and_of_older_stores_stay_possible():
    check_names(["blocks.3.hook_resid_post", "model.layers.0.mlp.down_proj", "acts é", "h.0 (a)"])
    check_names(["a/b", "tokens", "x\n y"], new=False)


@pytest.mark.parametrize("name", ["../../../outside", "/outside", "a/../../../../outside"])
@pytest.mark.parametrize("place", ["{}/store", "memory://leads-out-{}"])
def test_a_store_that_names_a_file_outside_is_not_opened(name, place, tmp_path, monkeypatch):
    monkeypatch.setenv("SAELENS_LITE_CACHE", str(tmp_path / "cache"))
    folder = sl.ActivationStore.from_arrays(place.format(tmp_path), ROWS).folder
    plan, manifest = sl.ActivationStore(folder).plan, sl.ActivationStore(folder)._manifest
    plan["hook_points"] = {name: plan["hook_points"]["acts"]}
    manifest["shards"][0]["hook_points"] = {name: manifest["shards"][0]["hook_points"]["acts"]}
    manifest["plan_sha256"] = hashlib.sha256(encode_json(plan)).hexdigest()
    del manifest["sha256"]
    manifest["sha256"] = hashlib.sha256(encode_json(manifest)).hexdigest()
    folder.write("plan.json", encode_json(plan))
    folder.write("manifest.json", encode_json(manifest))
    with pytest.raises(ShardError, match="leads out of the store"):
        sl.ActivationStore(folder)
    assert not (tmp_path / "cache").exists()
