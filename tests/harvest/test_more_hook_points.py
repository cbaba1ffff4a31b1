"""Hook points added to a store later: the bytes of a joint harvest, whatever happens between."""

import pytest
import torch

from saelens_lite.errors import HookError, ShardError
from saelens_lite.harvest import add_hook_points, more_hook_points
from saelens_lite.harvest.shards.shard_claims import Claims
from saelens_lite.harvest.shards.write import _last_cursor, write_shards
from saelens_lite.store.folder import LocalFolder
from saelens_lite.store.layout import encode_json
from saelens_lite.store.reader import ActivationStore
from saelens_lite.store.verify import repair_store
from saelens_lite.store.writer import write_manifest

from .conftest import BOTH
from .test_harvest import content

TEXTS = [f"{i}: the sun, the moon {'and the stars ' * (i % 4)}" for i in range(30)]


@pytest.fixture
def stores(harvest):
    """(a store of the first hook point, the bytes of a store of both)."""
    return harvest(TEXTS, BOTH[:1], "first"), content(harvest(TEXTS, store="joint").path)


@pytest.mark.parametrize("order", [0, 1])
def test_the_bytes_of_a_joint_harvest(harvest, gpt2, order):
    first = harvest(TEXTS, BOTH[order], "first", max_tokens=600)
    joint = content(harvest(TEXTS, store="joint", max_tokens=600).path)
    store = add_hook_points(first, BOTH[1 - order], model=gpt2, progress=False)
    assert store.hook_points == BOTH
    assert content(store.path) == joint
    assert store.verify() == []


def test_what_is_there_costs_nothing(stores, gpt2, monkeypatch, caplog):
    first, _ = stores
    monkeypatch.setattr(more_hook_points, "write_shards", None)
    caplog.set_level("INFO")
    assert add_hook_points(first, BOTH[:1], model=gpt2).hook_points == BOTH[:1]
    assert "nothing to do" in caplog.text


def test_the_model_is_loaded_by_its_recorded_name(harvest, gpt2, byte_tokenizer, tmp_path):
    gpt2.save_pretrained(tmp_path / "model")
    byte_tokenizer.save_pretrained(tmp_path / "model")
    options = {"model": str(tmp_path / "model"), "tokenizer": None, "dataset": TEXTS}
    joint = content(harvest(store="joint", **options).path)
    harvest(hook_points=BOTH[:1], store="first", **options)
    assert content(add_hook_points(tmp_path / "first", BOTH[1], progress=False).path) == joint


def test_interrupted_it_goes_on_and_the_store_stays_readable(stores, gpt2, monkeypatch):
    first, joint = stores
    inner = write_shards

    def stop_at_two(model, packed, *rest, **options):
        def stopping():
            for shard in packed:
                if shard.index == 2:
                    raise KeyboardInterrupt
                yield shard

        inner(model, stopping(), *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(more_hook_points, "write_shards", stop_at_two)
        with pytest.raises(KeyboardInterrupt):
            add_hook_points(first, BOTH[1], model=gpt2, progress=False)
    assert ActivationStore(first.path).hook_points == BOTH[:1]
    assert content(add_hook_points(first, BOTH[1], model=gpt2, progress=False).path) == joint


@pytest.mark.long
@pytest.mark.parametrize("crash_at", range(5))
def test_killed_between_the_last_steps_it_goes_on(stores, harvest, gpt2, monkeypatch, crash_at):
    """The steps are: manifest moved, plan written, manifest written, end logged, old manifest removed."""
    first, joint = stores
    steps = iter(range(100))

    def counted(inner):
        def step(*args, **options):
            if next(steps) == crash_at:
                raise KeyboardInterrupt
            return inner(*args, **options)

        return step

    adopt = more_hook_points._adopt

    def crashing(*args):
        with monkeypatch.context() as patch:
            for name in ("move", "write", "append_line", "remove"):
                patch.setattr(LocalFolder, name, counted(getattr(LocalFolder, name)))
            adopt(*args)

    with monkeypatch.context() as patch:
        patch.setattr(more_hook_points, "_adopt", crashing)
        with pytest.raises(KeyboardInterrupt):
            add_hook_points(first, BOTH[1], model=gpt2, progress=False)
    there = ActivationStore(first.path)
    assert there.hook_points == (BOTH[:1] if crash_at < 3 else BOTH) and there.verify() == []
    assert harvest(TEXTS, BOTH[:1], "first").hook_points == there.hook_points
    assert there.acts(0, BOTH[0]).shape == (there.shard_rows[0], 32)
    assert content(add_hook_points(first.path, BOTH[1], model=gpt2, progress=False).path) == joint


def test_damage_to_a_store_that_was_being_added_to_is_repaired_by_its_harvest(
    harvest, gpt2, monkeypatch, tmp_path
):
    first, joint = harvest(TEXTS, BOTH[:1], "first"), content(harvest(TEXTS, store="joint").path)
    with monkeypatch.context() as patch:
        patch.setattr(more_hook_points, "seal", stopped)
        with pytest.raises(KeyboardInterrupt):
            add_hook_points(first, BOTH[1], model=gpt2, progress=False)
    (tmp_path / "first/log.jsonl").unlink()  # the manifest before is what vouches for the plan
    assert first.verify() == []
    data = tmp_path / f"first/shards/00001/{BOTH[1]}.safetensors"
    data.write_bytes(data.read_bytes()[:-1])
    assert repair_store(first.path) == [f"shards/00001/{BOTH[1]}.json", f"shards/00001/{data.name}"]
    data = tmp_path / f"first/shards/00001/{BOTH[0]}.safetensors"
    data.write_bytes(data.read_bytes()[:-1])
    assert "manifest.json.before" in repair_store(first.path)
    harvest(TEXTS, BOTH, "first")
    assert {name: of for name, of in content(first.path).items() if not name.startswith("damaged")} == joint


def test_of_two_additions_at_once_none_loses_the_other(stores, gpt2, monkeypatch):
    first, joint = stores
    inner = more_hook_points.hook_point_facts

    def meanwhile(model, points):
        monkeypatch.setattr(more_hook_points, "hook_point_facts", inner)
        add_hook_points(first.path, BOTH[1], model=gpt2, progress=False)
        return inner(model, points)

    monkeypatch.setattr(more_hook_points, "hook_point_facts", meanwhile)
    with pytest.raises(ShardError, match="was given hook points meanwhile: run the same command again"):
        add_hook_points(first.path, "blocks.0.hook_mlp_out", model=gpt2, progress=False)
    assert content(first.path) == joint


def stopped(*_):
    raise KeyboardInterrupt


def test_another_model_is_refused(stores, gpt2):
    first, _ = stores
    with torch.no_grad():
        gpt2.transformer.h[0].mlp.c_fc.weight[0, 0] += 1
    with pytest.raises(ShardError, match="activations of another model: model.weights_sha256 expected"):
        add_hook_points(first, BOTH[1], model=gpt2, progress=False)


def test_what_no_fingerprint_sees_is_noticed(stores, gpt2):
    """An attribute of a module is in no list of numbers."""
    first, _ = stores
    before = content(first.path)
    gpt2.transformer.h[0].ln_2.eps = 1.0
    with pytest.raises(
        ShardError,
        match=r"hook_resid_post of shard 0, computed again, differs from its stored rows by [\d.]+%",
    ):
        add_hook_points(first, BOTH[1], model=gpt2, progress=False)
    assert {name: data for name, data in content(first.path).items() if not name.startswith("shards")} == {
        name: data for name, data in before.items() if not name.startswith("shards")
    }


def test_a_flipped_token_is_not_harvested_from(stores, gpt2):
    first, _ = stores
    tokens = first.path / "shards/00001/tokens.safetensors"
    content = bytearray(tokens.read_bytes())
    content[-first.contexts(1).input_ids.size] ^= 1
    tokens.write_bytes(content)
    with pytest.raises(
        ShardError, match="shards/00001/tokens.safetensors was altered: it has another sha256"
    ):
        add_hook_points(ActivationStore(first.path), BOTH[1], model=gpt2, progress=False)


def test_unknown_hook_points_are_refused(stores, gpt2):
    with pytest.raises(HookError, match=r"blocks\.7\.hook_resid_post"):
        add_hook_points(stores[0], "blocks.7.hook_resid_post", model=gpt2)


def test_positions_in_the_source_outlive_an_addition(stores, gpt2):
    """What adds a hook point reads no source: its log lines have no position, and those of the harvest still
    count."""
    first, _ = stores
    add_hook_points(first, BOTH[1], model=gpt2, progress=False)
    there = {shard: rows for shard, rows in enumerate(first.shard_rows) if shard != 2}
    assert _last_cursor(first.folder, Claims(there, 1000)) == (2, 16)


def test_a_store_with_tokens_that_was_not_harvested_here_is_refused(stores):
    first, _ = stores
    plan = {key: first.plan[key] for key in ("format", "version", "context_length", "hook_points", "dtype")}
    plan["model"] = {"name": ""}
    first.folder.write("plan.json", encode_json(plan))
    write_manifest(first.folder, plan, first.n_shards, "dataset")
    with pytest.raises(ShardError, match="was not harvested by saelens_lite.*harvest anew"):
        add_hook_points(first, BOTH[1])
