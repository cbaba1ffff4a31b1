"""The model that a harvest loads, and what tells one model from another."""

import json

import pytest
import torch

from saelens_lite.harvest.shards.model import (
    drop_unused,
    load_model,
    load_tokenizer,
    model_facts,
    tokenizer_facts,
)
from saelens_lite.lm import hooks
from saelens_lite.lm.decoder import evaluation_mode
from saelens_lite.store.writer import writing_shard


def test_unused_layers_and_head_are_freed_without_a_change_of_rows(gpt2):
    ids = torch.tensor([[1, 50, 60, 70]])
    name = "blocks.0.hook_mlp_out"
    before = hooks.run_to(gpt2, [name], input_ids=ids)[name]
    drop_unused(gpt2, [hooks.resolve(gpt2, name)])
    assert len(gpt2.transformer.h) == 1
    assert not any("h.1." in parameter or "lm_head" in parameter for parameter, _ in gpt2.named_parameters())
    torch.testing.assert_close(hooks.run_to(gpt2, [name], input_ids=ids)[name], before, rtol=0, atol=0)


def test_nothing_is_dropped_for_a_module_outside_the_blocks(gpt2):
    drop_unused(gpt2, [hooks.resolve(gpt2, "transformer.ln_f")])
    assert len(gpt2.transformer.h) == 2


def test_compute_dtype_is_what_the_model_is_loaded_in(gpt2, tmp_path):
    gpt2.to(torch.float16).save_pretrained(tmp_path)
    assert load_model(str(tmp_path), device="cpu").dtype == torch.float32
    model = load_model(str(tmp_path), device="cpu", compute_dtype="bfloat16")
    assert model.dtype == torch.bfloat16 and not model.training
    assert model_facts(model)["compute_dtype"] == "bfloat16"


def test_facts_know_the_weights_and_not_the_folder(gpt2, tmp_path):
    for name in ("a", "b"):
        gpt2.save_pretrained(tmp_path / name)
    a, b = (model_facts(load_model(str(tmp_path / name), device="cpu")) for name in ("a", "b"))
    assert a.pop("name") != b.pop("name")
    assert a == b
    with torch.no_grad():
        gpt2.transformer.h[1].ln_2.bias += 1
    assert model_facts(gpt2)["weights_sha256"] != a["weights_sha256"]


def test_modes_come_back_after_an_error(gpt2):
    gpt2.train()
    gpt2.transformer.h[0].eval()
    before = [module.training for module in gpt2.modules()]
    with pytest.raises(KeyError), evaluation_mode(gpt2):
        assert not any(module.training for module in gpt2.modules())
        raise KeyError
    assert [module.training for module in gpt2.modules()] == before


def test_tokenizer_facts_do_not_depend_on_how_it_was_called(byte_tokenizer):
    before = tokenizer_facts(byte_tokenizer)
    byte_tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert tokenizer_facts(byte_tokenizer) == before


def test_a_folder_that_is_not_there():
    for name in ("../models/none", "/models/none", "models/of/none"):
        with pytest.raises(ValueError, match=f"model expected a hub id or an existing folder, got {name}"):
            load_model(name)


def test_a_folder_without_a_tokenizer(gpt2, tmp_path):
    gpt2.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no tokenizer could be loaded from .*: pass one as tokenizer="):
        load_tokenizer(str(tmp_path))


def test_other_circumstances_are_said(harvest, monkeypatch, caplog):
    from saelens_lite.harvest.shards import write

    inner = writing_shard

    def stop_at_two(store, shard, *rest):
        if shard == 2:
            raise KeyboardInterrupt
        return inner(store, shard, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(write, "writing_shard", stop_at_two)
        patch.setattr(torch, "get_num_threads", lambda: 99)
        with pytest.raises(KeyboardInterrupt):
            harvest()
    store = harvest()
    assert "threads 99 then" in caplog.text
    events = [json.loads(line)["event"] for line in (store.path / "log.jsonl").read_text().splitlines()]
    assert events[:4] == ["start", "shard", "shard", "start"]
    assert events[-1] == "end"
