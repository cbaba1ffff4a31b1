"""A harvest against the model run by hand; what goes wrong, and what is kept then."""

import copy
import dataclasses
import errno
import gzip
import json
import logging
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from saelens_lite.errors import HookError, SaelensLiteError, ShardError
from saelens_lite.harvest import HarvestConfig, add_hook_points, harvest_activations, run_harvest
from saelens_lite.harvest.shards import write
from saelens_lite.lm import hooks
from saelens_lite.store import writer
from saelens_lite.store.reader import ActivationStore
from saelens_lite.store.writer import writing_shard

ROOT = Path(__file__).parents[2]
BOTH = ["blocks.0.hook_resid_post", "blocks.1.hook_mlp_out"]


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a store but its log."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "log.jsonl")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# rows and the model


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float32", 1e-5), ("float16", 2**-10), ("bfloat16", 2**-7)],
    ids=lambda value: str(value),
)
def test_rows_are_the_models_hidden_states(harvest, gpt2, dtype, tolerance):
    """hidden_states[1] is the stream after block 0, at the positions that row_positions names.

    The tolerance is the type's rounding: float16 has 11 bits of mantissa, bfloat16 has 8.
    """
    store = harvest(dtype=dtype)
    for shard in range(store.n_shards):
        ids = store.tokens(shard).input_ids.long()
        with torch.no_grad():
            hidden = gpt2(input_ids=ids, output_hidden_states=True).hidden_states[1]
        sequence, position = store.row_positions(shard)
        rows = store.acts(shard, "blocks.0.hook_resid_post")
        assert rows.dtype == getattr(torch, dtype)
        torch.testing.assert_close(rows.float(), hidden[sequence, position], rtol=tolerance, atol=tolerance)


def test_rows_of_a_second_hook_point_come_from_the_same_tokens(harvest, gpt2):
    store = harvest()
    ids = store.tokens(1).input_ids.long()
    with torch.no_grad():
        acts = hooks.run_to(gpt2, ["blocks.1.hook_mlp_out"], input_ids=ids)["blocks.1.hook_mlp_out"]
    torch.testing.assert_close(
        store.acts(1, "blocks.1.hook_mlp_out"), acts[store.row_positions(1)], rtol=1e-5, atol=1e-5
    )


def test_documents_are_found_again_from_the_rows(harvest, texts):
    """The kept tokens of each document, decoded, are its text; BOS and separators have no row."""
    store = harvest(max_tokens=100_000)
    found = {}
    for shard in range(store.n_shards):
        tokens = store.tokens(shard)
        rows = tokens.input_ids[store.row_positions(shard)]
        for document, token in zip(store.row_docs(shard).tolist(), rows.tolist(), strict=True):
            found.setdefault(document, []).append(token)
    spelled = {i: list(text.encode()) for i, text in enumerate(texts)}
    assert {document: len(ids) for document, ids in found.items()} == {i: len(b) for i, b in spelled.items()}
    assert len(
        {(byte, token) for i in found for byte, token in zip(spelled[i], found[i], strict=True)}
    ) == len({byte for spelling in spelled.values() for byte in spelling})


def test_max_tokens_is_met_exactly_and_counts_rows(harvest):
    store = harvest(max_tokens=777)
    assert (
        store.n_rows
        == sum(store.shard_rows)
        == len(store.gather(torch.arange(777), "blocks.0.hook_resid_post"))
        == 777
    )
    last = store.n_shards - 1
    assert (
        store.tokens(last).kept.sum()
        == len(store.row_docs(last))
        == len(store.acts(last, "blocks.1.hook_mlp_out"))
    )
    longer = harvest(max_tokens=1000, store="longer")
    for row in (0, 400, 776):
        both = [s.gather(torch.tensor([row]), "blocks.0.hook_resid_post") for s in (store, longer)]
        torch.testing.assert_close(*both, rtol=0, atol=0)


def test_a_dataset_that_ends_early_is_said(harvest, caplog):
    store = harvest(max_tokens=10**6)
    assert store.n_rows == sum(len(store.row_docs(shard)) for shard in range(store.n_shards)) < 10**6
    assert "the dataset ended after" in caplog.text


def test_the_callers_model_is_left_as_it_was(harvest, gpt2):
    """In training mode, whose dropout must not touch the rows."""
    quiet = content(harvest(store="quiet").path)
    gpt2.train()
    gpt2.transformer.h[1].eval()
    before = {name: value.clone() for name, value in gpt2.state_dict().items()}
    assert content(harvest(store="noisy").path) == quiet
    assert gpt2.training and not gpt2.transformer.h[1].training
    assert len(gpt2.transformer.h) == 2
    assert all(torch.equal(value, before[name]) for name, value in gpt2.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in gpt2.modules())


def test_special_tokens_get_rows_when_asked(harvest, texts):
    store = harvest(keep_special_tokens=True, max_tokens=100_000)
    tokens = store.tokens(0)
    assert torch.equal(tokens.kept, tokens.attended)
    n_text = sum(len(text.encode()) for text in texts)
    n_bos = sum(store.tokens(shard).input_ids.eq(1).sum() for shard in range(store.n_shards))
    assert store.n_rows == n_text + n_bos


def test_a_model_by_folder_gives_the_same_rows(harvest, gpt2, byte_tokenizer, tmp_path):
    """Loaded by us, its unused layers are dropped; on a CPU it is loaded in float32."""
    gpt2.save_pretrained(tmp_path / "model")
    byte_tokenizer.save_pretrained(tmp_path / "model")
    options = {"hook_points": ["blocks.0.hook_resid_post"], "tokenizer": None}
    by_folder = harvest(model=str(tmp_path / "model"), store="by_folder", **options)
    by_object = harvest(store="by_object", hook_points=options["hook_points"])
    torch.testing.assert_close(by_folder.acts(0), by_object.acts(0), rtol=1e-6, atol=1e-6)
    assert by_folder.model_name == by_folder.tokenizer_name == str(tmp_path / "model")


def test_the_command_is_the_function(harvest, gpt2, byte_tokenizer, texts, tmp_path):
    gpt2.save_pretrained(tmp_path / "model")
    byte_tokenizer.save_pretrained(tmp_path / "model")
    with gzip.open(tmp_path / "texts.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"body": text}) + "\n" for text in texts)
    config = HarvestConfig(
        model=str(tmp_path / "model"),
        dataset=(str(tmp_path / "texts.jsonl.gz"),),
        hook_points=("blocks.0.hook_resid_post",),
        store=str(tmp_path / "by_names"),
        max_tokens=1000,
        text_column="body",
        context_length=32,
        batch_size_seqs=4,
        documents_per_shard=8,
        dtype="float32",
        progress=False,
    )
    by_names = run_harvest(config)
    by_objects = harvest(hook_points=config.hook_points)
    assert torch.equal(by_names.tokens(1).input_ids, by_objects.tokens(1).input_ids)
    torch.testing.assert_close(by_names.acts(1), by_objects.acts(1), rtol=1e-6, atol=1e-6)


# going on


@pytest.mark.parametrize("after_batches", [0, 1, 7, 11])
def test_stopped_and_run_again_gives_the_same_bytes(harvest, monkeypatch, after_batches):
    whole = content(harvest(store="whole").path)
    left = iter(range(after_batches))
    run_to = hooks.run_to

    def stop(model, names, **inputs):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return run_to(model, names, **inputs)

    with monkeypatch.context() as patch:
        patch.setattr(hooks, "run_to", stop)
        with pytest.raises(KeyboardInterrupt):
            harvest(store="stopped")
    assert content(harvest(store="stopped").path) == whole


def test_finished_shards_are_not_made_again(harvest, monkeypatch):
    made = []
    inner = writing_shard

    def note(store, shard, *rest):
        made.append(shard)
        if len(made) == 3:
            raise KeyboardInterrupt
        return inner(store, shard, *rest)

    monkeypatch.setattr(write, "writing_shard", note)
    with pytest.raises(KeyboardInterrupt):
        harvest()
    harvest()
    assert made == [0, 1, 2, *range(2, len(made) - 1)]


def test_a_finished_harvest_does_nothing_and_says_so(harvest, monkeypatch, caplog):
    before = content(harvest().path)
    monkeypatch.setattr(write, "writing_shard", None)
    with caplog.at_level(logging.INFO):
        again = harvest()
    assert "is finished (1,000 rows): nothing to do" in caplog.text
    assert content(again.path) == before


KILLED = """
import json, sys
from saelens_lite.harvest import HarvestConfig, run_harvest
run_harvest(HarvestConfig(**json.loads(sys.argv[1])))
"""


@pytest.mark.long
def test_killed_and_run_again_gives_the_same_bytes(gpt2, byte_tokenizer, tmp_path, forked_python):
    """A real SIGKILL of another process, once the third shard is begun, at whatever instant of it."""
    gpt2.save_pretrained(tmp_path / "model")
    byte_tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text(
        "".join(f"Story {i}: {'the sun and the moon. ' * (1 + i % 7)}\n" for i in range(600))
    )
    options = {
        "model": str(tmp_path / "model"),
        "dataset": [str(tmp_path / "texts.txt")],
        "hook_points": BOTH,
        "max_tokens": 6_000,
        "context_length": 64,
        "batch_size_seqs": 2,
        "documents_per_shard": 12,
        "progress": False,
    }
    whole = content(run_harvest(HarvestConfig(store=str(tmp_path / "whole"), **options)).path)

    killed = options | {"store": str(tmp_path / "killed")}
    process = forked_python.start("-c", KILLED, json.dumps(killed))
    while process.poll() is None and not (tmp_path / "killed/shards/00002").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(ShardError, match="unfinished"):
        ActivationStore(tmp_path / "killed")
    assert content(run_harvest(HarvestConfig(**killed)).path) == whole


def test_another_plan_is_refused_and_its_difference_named(harvest):
    before = content(harvest().path)
    with pytest.raises(ShardError, match="another plan: context_length expected 32, got 16"):
        harvest(context_length=16)
    with pytest.raises(ShardError, match=r"hook_points.blocks.1.hook_resid_post expected None, got {"):
        harvest(hook_points=["blocks.1.hook_resid_post"])
    with pytest.raises(ShardError, match="dataset.first_documents_sha256"):
        harvest(dataset=["another text"] * 40)
    assert content(harvest().path) == before


def test_other_weights_are_another_plan(harvest, gpt2):
    harvest()
    with torch.no_grad():
        gpt2.transformer.h[0].mlp.c_fc.weight[0, 0] += 1
    with pytest.raises(ShardError, match="model.weights_sha256"):
        harvest()


PLAIN = {"hook_points": ["blocks.0.hook_resid_post"], "max_tokens": 300}


@pytest.mark.long
@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 200},
        {"context_length": 16},
        {"batch_size_seqs": 3},
        {"documents_per_shard": 4},
        {"documents_per_shard": None},
        {"dtype": "bfloat16"},
        {"separator": "eos"},
        {"separator": "none"},
        {"keep_special_tokens": True},
    ],
    ids=lambda change: "-".join(f"{k}={v}" for k, v in change.items()),
)
def test_every_setting_of_the_rows_is_in_the_plan(harvest, change):
    harvest(**PLAIN)
    with pytest.raises(ShardError, match="another plan"):
        harvest(**(PLAIN | change))
    assert content(harvest(store="other", **(PLAIN | change)).path) != content(harvest(**PLAIN).path)


# what goes wrong


def test_full_disk_leaves_a_store_that_goes_on(harvest, monkeypatch, tmp_path):
    whole = content(harvest(store="whole").path)
    row_writer = writer.RowWriter

    class Full(row_writer):
        n_appended = 0

        def append(self, rows):
            Full.n_appended += 1
            if Full.n_appended == 12:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().append(rows)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "RowWriter", Full)
        with pytest.raises(
            ShardError, match="could not be written: No space left on device .* finished shards are kept"
        ):
            harvest(store="full")
    left = content(tmp_path / "full")
    assert left and not any(name.endswith(".tmp") for name in left)
    assert all(whole[name] == data for name, data in left.items())
    assert content(harvest(store="full").path) == whole


@pytest.mark.long
def test_a_dataset_that_fails_on_the_way_is_no_fault_of_the_store(harvest, texts):
    class Failing:
        works = False

        def __iter__(self):
            yield from 2 * texts
            if not self.works:
                raise ConnectionResetError("reset by peer")
            yield from texts

    dataset, options = Failing(), {"max_tokens": 10**6}
    with pytest.raises(
        SaelensLiteError, match=r"dataset could not be read further \(reset by peer\); finished shards are"
    ):
        harvest(dataset, **options)
    dataset.works = True
    assert content(harvest(dataset, **options).path) == content(
        harvest(dataset, store="whole", **options).path
    )


def test_a_truncated_shard_is_named_and_made_again(harvest):
    store = harvest()
    whole = content(store.path)
    file = store.path / "shards/00001/blocks.0.hook_resid_post.safetensors"
    size = file.stat().st_size
    with open(file, "r+b") as handle:
        handle.truncate(size - 5)
    with pytest.raises(
        ShardError, match=rf"00001/blocks.0.hook_resid_post.safetensors has {size - 5} bytes, .* {size} bytes"
    ):
        harvest()
    for damaged in (store.path / "shards/00001").iterdir():
        damaged.unlink()
    (store.path / "manifest.json").unlink()
    assert content(harvest().path) == whole


def test_two_harvests_of_one_store_at_once_are_refused(harvest, gpt2, monkeypatch):
    inner, other = writing_shard, copy.deepcopy(gpt2)

    def again(*args):
        monkeypatch.setattr(write, "writing_shard", inner)
        with pytest.raises(ShardError, match="another harvest is writing"):
            harvest(model=other)
        return inner(*args)

    monkeypatch.setattr(write, "writing_shard", again)
    assert harvest().n_rows == 1000


def test_rows_beyond_float16_are_refused(harvest, gpt2):
    with torch.no_grad():
        gpt2.transformer.wte.weight.mul_(1e7)
    # named at the first batch: all rows of it, not of the shard
    said = r"\d+ of \d+ rows of blocks.0.hook_resid_post are not finite as torch.float16 .100% of a batch"
    with pytest.raises(ShardError, match=said):
        harvest(dtype="float16", hook_points=["blocks.0.hook_resid_post"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"hook_points": ["blocks.7.hook_resid_post"]}, HookError, r"blocks\.7\.hook_resid_post.*blocks\.1"),
        ({"context_length": 65}, ValueError, "beyond the model's 64 positions: choose at most 64"),
        ({"dataset": []}, ValueError, "holds no documents"),
        ({"dataset": ["", ""]}, ValueError, "hold no tokens"),
        ({"dataset": [{"txt": "a"}]}, ValueError, "no column 'text' .did you mean 'txt'.*columns are txt"),
        ({"dataset": [{"text": 3}]}, ValueError, "document 0 expected text, a chat or token ids, got int"),
        ({"dataset": {"train": ["a"]}, "split": "tran"}, ValueError, "no split 'tran' .did you mean 'train'"),
        (
            {"split": "test"},
            ValueError,
            "split says how to read a dataset by name, and this one is an object",
        ),
        ({"dataset": 3}, ValueError, "dataset expected names, texts or rows, got int"),
        ({"dataset": "One text, not a name."}, ValueError, "to harvest texts, pass a list"),
        ({"dataset": "missing/file.jsonl"}, FileNotFoundError, "there is none at"),
        ({"tokenizer": None}, ValueError, "no tokenizer could be loaded"),
        ({"device": "cpu"}, ValueError, "leave device out"),
        ({"batch_size": 4}, ValueError, "unknown key 'batch_size' .did you mean 'batch_size_seqs'"),
        ({"max_tokens": 0}, ValueError, "max_tokens expected at least 1, got 0"),
        ({"dtype": "int4"}, ValueError, "dtype expected one of"),
        ({"hook_points": []}, ValueError, "hook_points expected a sequence of at least one name"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_wrong_input_is_refused_before_anything_is_written(harvest, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        harvest(**options)
    assert not (tmp_path / "store/shards/00000/blocks.0.hook_resid_post.json").exists() or options[
        "dataset"
    ] == ["", ""]


def test_a_folder_with_other_files_is_not_used(harvest, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store/thesis.tex").write_text("mine")
    with pytest.raises(ShardError, match="is not empty and holds no plan.json"):
        harvest()
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["thesis.tex"]


def test_a_store_that_cannot_be_made_is_named(harvest, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ShardError, match=r"store/plan.json could not be written: File exists"):
        harvest(store="file/store")


def test_a_tokenizer_of_another_model_is_refused(harvest, byte_tokenizer):
    tokenizer = type(byte_tokenizer)(tokenizer_object=byte_tokenizer.backend_tokenizer, bos_token="<|bos|>")
    tokenizer.add_tokens(["elsewhere"])
    with pytest.raises(ValueError, match="gave id 259, the model has embeddings for 0 to 258"):
        harvest(dataset=["to elsewhere"], tokenizer=tokenizer)


def test_config_is_frozen_and_complete(tmp_path):
    config = HarvestConfig(model="m", dataset=("d",), hook_points=("h",), store="s", max_tokens=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.max_tokens = 2
    with pytest.raises(ValueError, match="dataset expected a sequence"):
        dataclasses.replace(config, dataset="d")


@pytest.mark.long
def test_real_model_twin(shared_data, tmp_path):
    """The tests above on real weights and text: rows equal hidden_states[4] of the 3M-parameter model."""
    from transformers import AutoModelForCausalLM

    folder = str(shared_data / "models/stories3m-llama")
    sources = [
        shared_data / "corpora/tinystories/train_v1.jsonl.gz",
        shared_data / "corpora/fairytaleqa/stories.jsonl.gz",
    ]
    store = harvest_activations(
        folder,
        sources,
        "blocks.3.hook_resid_post",
        tmp_path / "store",
        max_tokens=3000,
        dtype="float32",
        progress=False,
    )
    assert (store.n_rows, store.d_model(), store.context_length) == (3000, 192, 256)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        hidden = model(input_ids=store.tokens(0).input_ids.long(), output_hidden_states=True).hidden_states[4]
    torch.testing.assert_close(store.acts(0), hidden[store.row_positions(0)], rtol=1e-4, atol=1e-4)


def test_compile_compiles_the_blocks_and_is_part_of_the_plan(
    gpt2, byte_tokenizer, texts, tmp_path, monkeypatch
):
    """torch.compile is stood in for by one that counts: every block up to the hook point, for full batches
    alone."""
    gpt2.save_pretrained(tmp_path / "model")
    compiled, batches = [], []

    def compile_(forward, dynamic):
        def counted(hidden_states, *args, **kwargs):
            batches.append(len(hidden_states))
            return forward(hidden_states, *args, **kwargs)

        compiled.append(forward)
        return counted

    monkeypatch.setattr(torch, "compile", compile_)
    options = {"tokenizer": byte_tokenizer, "max_tokens": 300, "context_length": 32, "batch_size_seqs": 4}
    options |= {"documents_per_shard": 8, "progress": False, "compile": True}
    model, hook_point = str(tmp_path / "model"), "blocks.1.hook_resid_post"
    store = harvest_activations(model, texts, hook_point, tmp_path / "store", **options)
    assert store.plan["model"]["compiled"] and len(compiled) == 2
    assert set(batches) == {4}
    with pytest.raises(ShardError, match="model.compiled expected True, got None"):
        harvest_activations(model, texts, hook_point, tmp_path / "store", **options | {"compile": False})


def test_a_module_without_a_vector_for_each_token_is_refused(harvest):
    with pytest.raises(HookError, match=r"transformer.wpe expected \[batch, seq, d_model\]"):
        harvest(hook_points=["transformer.wpe"])


def test_a_finished_store_with_further_hook_points_is_still_this_harvests(harvest, gpt2):
    first = harvest(**PLAIN)
    before = content(add_hook_points(first, "blocks.1.hook_mlp_out", model=gpt2, progress=False).path)
    assert harvest(**PLAIN).hook_points == BOTH
    assert content(first.path) == before
    with pytest.raises(ShardError, match="max_tokens expected 300, got 200"):
        harvest(**(PLAIN | {"max_tokens": 200}))


# models that see to the right


def bidirectional_models():
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        LlamaConfig,
        LlamaForCausalLM,
        ModernBertConfig,
        ModernBertForMaskedLM,
        T5Config,
        T5EncoderModel,
    )

    shape = {
        "vocab_size": 259,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    t5 = {"vocab_size": 259, "d_model": 32, "d_ff": 48, "num_layers": 3, "num_heads": 4, "d_kv": 8}
    marks = {"cls_token_id": 1, "sep_token_id": 2}
    return {
        "bert": (BertForMaskedLM(BertConfig(**shape)), "bert.encoder.layer.1"),
        "llama": (LlamaForCausalLM(LlamaConfig(**shape, is_causal=False)), "blocks.1.hook_resid_post"),
        "t5": (T5EncoderModel(T5Config(**t5)), "encoder.block.1"),
        "modernbert": (
            ModernBertForMaskedLM(ModernBertConfig(**shape, **marks, local_attention=8)),
            "model.layers.1",
        ),
    }


@pytest.mark.parametrize("name", ["bert", "llama", "t5", "modernbert"])
def test_padding_changes_no_row_of_a_model_that_sees_to_the_right(harvest, name):
    torch.manual_seed(0)
    model, point = bidirectional_models()[name]
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    model.eval()
    store = harvest(hook_points=[point], model=model, max_tokens=400)
    assert store.plan["attention_mask"] is True
    module = point if name != "llama" else "model.layers.1"
    for shard in range(store.n_shards):
        tokens, rows = store.tokens(shard), store.acts(shard)
        n = int(tokens.attended[-1].sum())
        assert shard == store.n_shards - 1 or n < 32  # the last context is padded
        alone = hooks.run_to(model, [module], input_ids=tokens.input_ids[-1:, :n].long())[module]
        kept = tokens.kept[-1, :n].bool()
        torch.testing.assert_close(rows[len(rows) - int(kept.sum()) :], alone[0][kept], rtol=1e-4, atol=1e-4)


def test_causal_models_get_no_mask(harvest):
    assert "attention_mask" not in harvest().plan


def test_padding_that_no_mask_hides_is_refused(harvest, gpt2):
    """A block that mixes in the mean of all positions, whatever the mask says."""
    gpt2.transformer.h[0].register_forward_hook(lambda module, args, out: out + out.mean(1, keepdim=True))
    with pytest.raises(HookError, match="expected tokens that do not see padding after them, and GPT2LMHead"):
        harvest(hook_points=["blocks.1.hook_resid_post"])


# documents apart, token ids, positions


def test_rows_of_documents_apart_are_those_of_each_document_alone(harvest, gpt2, byte_tokenizer):
    """Joined, a document's rows depend on the one before it."""
    first, second = "the sun", "the moon and the stars"
    ids = torch.tensor([[1, *byte_tokenizer(second, add_special_tokens=False).input_ids]])
    alone = hooks.run_to(gpt2, ["blocks.1.hook_mlp_out"], input_ids=ids)["blocks.1.hook_mlp_out"][0, 1:]
    for apart in (True, False):
        store = harvest(
            [first, second], ["blocks.1.hook_mlp_out"], store=f"apart {apart}", documents_apart=apart
        )
        rows = store.acts(0)[store.row_docs(0) == 1]
        assert torch.allclose(rows, alone, atol=1e-5) == apart
        assert store.plan["packing"] == ("documents apart" if apart else "continuous")


def test_documents_apart_run_no_wider_than_they_are(harvest, gpt2):
    widths = []
    gpt2.transformer.h[0].register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[1]))
    harvest(["abc", "abcdefg"], ["blocks.1.hook_resid_post"], documents_apart=True)
    assert widths[-1] == 8  # BOS and 7 bytes


@pytest.mark.parametrize("named", [False, True])
def test_token_ids_need_no_tokenizer(harvest, gpt2, tmp_path, named, caplog):
    """Ten games of 31 moves, as Othello's: 310 rows, the ids as they are."""
    games = [[(7 * i + 3 * j) % 61 for j in range(31)] for i in range(10)]
    model = gpt2
    if named:
        gpt2.save_pretrained(tmp_path / "model")
        model = str(tmp_path / "model")
    store = harvest(games, model=model, tokenizer=None, context_length=31)
    assert store.n_rows == 310 and store.tokens(0).input_ids[3].tolist() == games[3]
    assert "token ids are harvested as they are, without BOS and separators" in caplog.text
    assert (store.tokenizer_name, store.plan["bos_id"]) == ("NoTokenizer", None)


def test_text_needs_a_tokenizer_wherever_it_stands(harvest):
    with pytest.raises(ValueError, match="no tokenizer could be loaded from '': pass one as tokenizer="):
        harvest(["text"], tokenizer=None)
    games = [[1, 2, 3]] * 70 + ["text"]
    with pytest.raises(
        ValueError, match="documents expected token ids, as there is no tokenizer, got text, 't"
    ):
        harvest(games, tokenizer=None)


@pytest.mark.parametrize("name", ["whisper", "roberta", "opt", "bert"])
def test_a_context_beyond_the_usable_positions_is_refused(harvest, name):
    """32 positions in each: RoBERTa's 34 rows begin behind the padding's number 1, OPT's 34 behind two."""
    import transformers

    shape = {"vocab_size": 259, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    bert = shape | {"intermediate_size": 24}
    whisper = {"vocab_size": 259, "d_model": 16, "pad_token_id": 0, "decoder_start_token_id": 1}
    for side in ("decoder", "encoder"):
        whisper |= {f"{side}_layers": 2, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 24}
    model, point = {
        "whisper": lambda: (
            transformers.WhisperForCausalLM(transformers.WhisperConfig(**whisper, max_target_positions=32)),
            "blocks.1.hook_resid_post",
        ),
        "roberta": lambda: (
            transformers.RobertaForMaskedLM(
                transformers.RobertaConfig(**bert, max_position_embeddings=34, pad_token_id=1)
            ),
            "roberta.encoder.layer.1",
        ),
        "opt": lambda: (
            transformers.OPTForCausalLM(
                transformers.OPTConfig(
                    **shape, ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=32, pad_token_id=0
                )
            ),
            "blocks.1.hook_resid_post",
        ),
        "bert": lambda: (
            transformers.BertForMaskedLM(transformers.BertConfig(**bert, max_position_embeddings=32)),
            "bert.encoder.layer.1",
        ),
    }[name]()
    options = {"hook_points": [point], "model": model.eval(), "max_tokens": 100}
    with pytest.raises(ValueError, match="is beyond the model.s 32 positions: choose at most 32"):
        harvest(context_length=33, **options)
    assert harvest(context_length=32, **options).n_rows == 100
