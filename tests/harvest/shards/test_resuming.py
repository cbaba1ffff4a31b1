"""A resumed harvest makes a finished batch again: what no plan records is noticed before it writes."""

import json

import pytest
import torch

from saelens_lite.errors import ShardError
from saelens_lite.harvest.shards import write
from saelens_lite.harvest.shards.resuming import difference, tolerance
from saelens_lite.store.layout import encode_json

from ..test_harvest import content

TEXTS = [f"Story {i} <|eos|> of the sun and the moon" for i in range(40)]


@pytest.fixture
def stopped(harvest, monkeypatch, tmp_path):
    """stopped(**options): a harvest that ends after two shards; its folder."""

    def run(**options):
        writing = write.writing_shard

        def stopping(store, shard, *rest):
            if shard == 2:
                raise KeyboardInterrupt
            return writing(store, shard, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(write, "writing_shard", stopping)
            with pytest.raises(KeyboardInterrupt):
                harvest(TEXTS, **options)
        return tmp_path / options.get("store", "store")

    return run


def make_older(folder):
    """As the version before wrote it: no state in the plan, fewer circumstances in the log."""
    plan = json.loads((folder / "plan.json").read_text())
    del plan["state"]
    (folder / "plan.json").write_bytes(encode_json(plan))
    (folder / "log.jsonl").unlink()


def everything(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_state_that_the_plan_does_not_hold_is_refused_before_anything_is_written(harvest, stopped, gpt2):
    folder = stopped()
    before = everything(folder)
    gpt2.transformer.h[0].ln_2.eps = 1.0
    with pytest.raises(ShardError, match=r"of shard 0, computed again, differs .* \(expected equal rows\)"):
        harvest(TEXTS)
    assert everything(folder) == before


def test_the_least_difference_counts_where_nothing_else_changed(harvest, stopped, gpt2, monkeypatch):
    """A thousandth of ln_2's epsilon moves rows by 1e-9: refused on the same machine, within what another
    number of threads may do."""
    whole = content(harvest(TEXTS, store="whole").path)
    stopped()
    gpt2.transformer.h[0].ln_2.eps *= 1.05
    with pytest.raises(ShardError, match="expected equal rows"):
        harvest(TEXTS)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    assert content(harvest(TEXTS).path).keys() == whole.keys()


def test_a_store_of_the_version_before_resumes_by_the_comparison_alone(harvest, stopped, gpt2):
    whole = content(harvest(TEXTS, store="whole").path)
    folder = stopped()
    make_older(folder)
    weight = gpt2.transformer.h[0].mlp.c_fc.weight
    harvested = weight.detach().clone()
    with torch.no_grad():  # behind the first 256 values, all that older plans have of a parameter
        weight[16:] += 0.3
    with pytest.raises(ShardError, match=r"computed again, differs .* \(expected at most 0.005\)"):
        harvest(TEXTS)
    with torch.no_grad():
        weight.copy_(harvested)
    found = content(harvest(TEXTS).path)
    assert {name for name in whole if found[name] != whole[name]} == {"plan.json", "manifest.json"}
    assert "state" not in json.loads((folder / "plan.json").read_text())


def test_a_lost_plan_of_the_version_before_is_written_as_it_was(harvest, stopped):
    folder = stopped()
    plan = json.loads((folder / "plan.json").read_text())
    make_older(folder)
    harvest(TEXTS)
    older = (folder / "plan.json").read_bytes()
    (folder / "plan.json").unlink()
    harvest(TEXTS)
    assert (folder / "plan.json").read_bytes() == older != encode_json(plan)


def test_another_reading_of_the_text_is_noticed(harvest, stopped, byte_tokenizer, monkeypatch):
    folder = stopped()
    monkeypatch.setattr(byte_tokenizer, "split_special_tokens", True)
    with pytest.raises(ShardError, match="state.split_special_tokens expected False, got True"):
        harvest(TEXTS)
    make_older(folder)
    with pytest.raises(ShardError, match="the first documents have other tokens than those in shard 0"):
        harvest(TEXTS)


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_rows_are_compared_as_they_are_stored(harvest, stopped, dtype):
    whole = content(harvest(TEXTS, store="whole", dtype=dtype).path)
    stopped(dtype=dtype)
    assert content(harvest(TEXTS, dtype=dtype).path) == whole


def test_a_few_massive_rows_do_not_hide_the_others():
    """Three rows of norm 1 that are off by 1, one of norm 1000 that is equal: (1 + 1 + 1 + 0) / 4."""
    stored = torch.tensor([[1.0, 0], [0, 1], [1, 0], [1000, 0]])
    made = stored + torch.tensor([[0.0, 1], [1, 0], [0, 1], [0, 0]])
    assert difference(made, stored) == pytest.approx(0.75)
    plans = [("float32", "float32"), ("float32", "float16"), ("bfloat16", "float32"), ("int8", "float32")]
    found = [tolerance({"dtype": kept, "model": {"compute_dtype": made}}) for kept, made in plans]
    assert found == [0.005, 0.005, 0.02, 0.02]
