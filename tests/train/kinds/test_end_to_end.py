"""Fine-tuning through the model: what it minimises, what it leaves alone, and that it helps."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

import saelens_lite as sl
from saelens_lite.hashing import is_held_out
from saelens_lite.kernels.reference import remove_parallel
from saelens_lite.lm.losses import kl_divergence
from saelens_lite.lm.replacement import splice
from saelens_lite.lm.store_losses import scored_contexts
from saelens_lite.train.config import TrainConfig
from saelens_lite.train.kinds.choice import kind_class, settled
from saelens_lite.train.kinds.end_to_end import EndToEnd
from saelens_lite.train.optimise.schedules import Schedule
from saelens_lite.train.rows.store_contexts import StoreContexts

POINT = "blocks.0.hook_resid_post"
OPTIONS = {"batch_size_rows": 128, "device": "cpu", "progress": False}
KINDS = ["topk", "batchtopk", "relu", "jumprelu"]
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def model():
    """Sharper than at the start, so that its predictions depend on what the SAE loses."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=259, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


@pytest.fixture(scope="module")
def store(model, byte_tokenizer, tmp_path_factory):
    texts = [f"document {i} speaks of {i * i} things, and of {chr(97 + i % 26) * 5}" for i in range(200)]
    options = {"context_length": 32, "max_tokens": 6000, "dtype": "float32", "progress": False}
    folder = tmp_path_factory.mktemp("rows") / "store"
    return sl.harvest_activations(model, texts, [POINT], folder, tokenizer=byte_tokenizer, **options)


@pytest.fixture(scope="module")
def source(store, tmp_path_factory):
    """source(kind): folder of an SAE trained on the rows for a while."""
    folder = tmp_path_factory.mktemp("source")

    def train(kind):
        if not (folder / kind).exists():
            own = {"relu": {"l1_coeff": 0.5}, "jumprelu": {}}.get(kind, {"k": 4})
            sl.train_sae(store, output=folder / kind, kind=kind, d_sae=96, n_steps=60, **OPTIONS, **own)
        return str(folder / kind)

    return train


@pytest.mark.long
@pytest.mark.parametrize("objective", ["kl", "ce"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_loss_written_out(model, store, source, kind, objective):
    """The model run by hand on the reconstruction, by a forward hook of its own, and autograd over
    everything."""
    config = TrainConfig(
        kind=kind, init_from=source(kind), end_to_end=objective, l1_coeff=0.7, batch_size_rows=128
    )
    rows = StoreContexts(store, config)
    batch, scale = rows.batch(3), 1.7
    sae = sl.SparseAutoencoder.load(source(kind))
    kind_ = EndToEnd(kind_class(kind)(sae, config), model, POINT, scale)
    model.zero_grad()
    stats, fired = kind_.gradients(batch, None, 0.5)
    assert all(parameter.grad is None for parameter in model.parameters())

    leaves = {name: p.detach().clone().requires_grad_() for name, p in sae.named_parameters()}
    with torch.no_grad():
        clean = model(batch.input_ids, attention_mask=batch.attended.long()).logits
    parts = {}

    def on_reconstruction(_module, _args, output):
        acts = (output[0] if isinstance(output, tuple) else output).detach()
        x = acts[batch.kept] * scale
        pre = (x - leaves["b_dec"]) @ leaves["W_enc"] + leaves["b_enc"]
        if kind == "topk":
            on = torch.zeros_like(pre).scatter_(1, pre.topk(sae.config.k).indices, 1.0)
        else:
            on = pre > (sae.threshold if sae.kind == "jumprelu" else 0)
        z = pre.relu() * on
        recons = z @ leaves["W_dec"] + leaves["b_dec"]
        parts.update(mse=(recons - x).square().sum(1).mean(), z=z)
        new = acts.clone()
        new[batch.kept] = recons / scale
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = model.transformer.h[0].register_forward_hook(on_reconstruction)
    logits = model(batch.input_ids, attention_mask=batch.attended.long()).logits
    handle.remove()
    if objective == "kl":
        divergence = kl_divergence(clean, logits)[:, :-1][batch.targets].mean()
    else:
        divergence = torch.nn.functional.cross_entropy(
            logits[:, :-1][batch.targets], batch.input_ids[:, 1:][batch.targets]
        )
    loss = (parts["mse"] + (parts["mse"] / divergence).detach() * divergence) / 2
    if kind == "relu":
        loss = loss + 0.5 * 0.7 * parts["z"].sum() / len(parts["z"])
    loss.backward()

    assert float(stats.reconstruction) == pytest.approx(float(parts["mse"].detach()), rel=1e-5)
    assert float(stats.sparsity) == pytest.approx(float(divergence.detach()), rel=1e-3)
    assert torch.equal(fired, (parts["z"] > 0).any(0))
    expected = {name: leaf.grad for name, leaf in leaves.items() if name != "threshold"}
    expected["W_dec"] = remove_parallel(expected["W_dec"], sae.W_dec.detach())
    for name, grad in expected.items():
        assert_close(sae.get_parameter(name).grad, grad, atol=2e-4 * float(grad.abs().max()), rtol=1e-3)
    assert sae.W_enc.grad.stride() == (1, sae.d_model)


@pytest.mark.parametrize("objective", ["kl", "ce"])
def test_a_padded_vocabulary_changes_no_gradient(model, store, source, objective):
    """Three more logits of −∞, which no token has."""
    config = TrainConfig(kind="topk", init_from=source("topk"), end_to_end=objective, batch_size_rows=128)
    batch, found = StoreContexts(store, config).batch(3), []
    for n_padded in (0, 3):
        sae = sl.SparseAutoencoder.load(source("topk"))
        handle = model.lm_head.register_forward_hook(
            lambda module, args, logits, n=n_padded: torch.nn.functional.pad(logits, (0, n), value=-torch.inf)
        )
        stats, _ = EndToEnd(kind_class("topk")(sae, config), model, POINT, 1.0).gradients(batch, None, 0.0)
        handle.remove()
        found.append([stats.sparsity, sae.W_enc.grad, sae.W_dec.grad, sae.b_enc.grad])
    for plain, padded in zip(*found):
        assert plain.any()
        assert_close(padded, plain, rtol=1e-4, atol=1e-5 * float(plain.detach().abs().max()))


def held_out_kl(folder, store, model):
    """Mean KL from the clean predictions over held-out documents, nats a token."""
    total, n_tokens, sae = 0.0, 0, sl.SparseAutoencoder.load(folder)
    with torch.no_grad():
        for batch in scored_contexts(store, 0.2, None, 8):
            inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attended.long()}
            clean = model(**inputs).logits
            with splice(model, sae, positions=batch.kept):
                kl = kl_divergence(clean, model(**inputs).logits)
            total, n_tokens = (
                total + float(kl[:, :-1][batch.targets].sum()),
                n_tokens + int(batch.targets.sum()),
            )
    return total / n_tokens


def test_there_is_no_refit_phase(model, store, source):
    """Through the model magnitudes are learned as predictions need them, which least squares would undo."""
    config = TrainConfig(kind="relu", init_from=source("relu"), end_to_end="kl")
    kind = kind_class("relu")(sl.SparseAutoencoder.load(source("relu")), config)
    assert Schedule.of(config, kind, 100).refit_steps == 20
    assert Schedule.of(config, EndToEnd(kind, model, POINT, 1.0), 100).refit_steps == 0
    with pytest.raises(ValueError, match="refit_fraction expected None with end_to_end, got 0.2"):
        settled(replace(config, refit_fraction=0.2))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["topk", *(pytest.param(k, marks=SLOW) for k in KINDS if k != "topk")])
def test_predictions_on_held_out_documents_come_closer_than_by_more_training_on_rows(
    model, store, source, tmp_path, kind
):
    own = {"l1_coeff": 0.5} if kind == "relu" else {}
    options = {
        **OPTIONS,
        **own,
        "kind": kind,
        "init_from": source(kind),
        "n_steps": 60,
        "lr": 3e-3,
        "held_out_fraction": 0.2,
    }
    sl.train_sae(store, output=tmp_path / "rows", **options)
    sl.train_sae(store, output=tmp_path / "kl", model=model, end_to_end="kl", **options)
    before, rows, kl = (
        held_out_kl(folder, store, model) for folder in (source(kind), tmp_path / "rows", tmp_path / "kl")
    )
    assert kl < rows and kl < before


def test_batches_are_contexts_of_documents_not_held_out_each_once_an_epoch(store):
    config = TrainConfig(init_from="there", end_to_end="kl", batch_size_rows=128, held_out_fraction=0.2)
    rows = StoreContexts(store, config)
    batches = [rows.batch(step) for step in range(rows.steps_per_epoch)]
    assert {len(batch.input_ids) for batch in batches} == {4}
    seen = [tuple(ids.tolist()) for batch in batches for ids in batch.input_ids]
    assert len(set(seen)) == len(seen)
    assert torch.equal(rows.batch(2).input_ids, StoreContexts(store, config).batch(2).input_ids)
    assert not torch.equal(rows.batch(2).input_ids, rows.batch(2 + rows.steps_per_epoch).input_ids)
    every = [store.tokens(shard) for shard in range(store.n_shards)]
    ids = torch.cat([tokens.input_ids for tokens in every]).tolist()
    held_out = torch.cat([is_held_out(tokens.doc_id.long() + tokens.first_doc, 0.2) for tokens in every])
    trained = dict(
        zip(map(tuple, ids), torch.cat([tokens.kept.bool() for tokens in every]) & ~held_out, strict=True)
    )
    kept = torch.cat([batch.kept for batch in batches])
    assert torch.equal(kept, torch.stack([trained[context] for context in seen]))
    assert torch.equal(torch.cat([batch.targets for batch in batches]), kept[:, 1:])
    assert 0 < int(kept.sum()) <= store.n_rows - int(store.held_out_rows(0.2).sum())
    assert (held_out.any(1) & (~held_out).any(1)).any(), "no context has tokens of both"


@pytest.mark.long
@pytest.mark.parametrize("kind", ["topk", *(pytest.param(k, marks=SLOW) for k in ("batchtopk", "jumprelu"))])
def test_a_killed_run_goes_on_bit_for_bit(model, store, source, tmp_path, killed_before, kind):
    """With the thresholds that it started with, whatever was calibrated for the SAE of a checkpoint."""
    options = {**OPTIONS, "kind": kind, "init_from": source(kind), "end_to_end": "kl", "n_steps": 12}
    sl.train_sae(store, output=tmp_path / "at once", model=model, checkpoint_every_steps=12, **options)
    options["checkpoint_every_steps"] = 4
    sl.train_sae(store, output=tmp_path / "whole", model=model, **options)
    with killed_before(6):
        sl.train_sae(store, output=tmp_path / "killed", model=model, **options)
    sl.train_sae(store, output=tmp_path / "killed", model=model, **options)
    weights = [
        (tmp_path / name / "sae_weights.safetensors").read_bytes() for name in ("whole", "killed", "at once")
    ]
    assert weights[0] == weights[1] == weights[2]


def test_what_cannot_be_is_refused(model, store, source, tmp_path, planted):
    options = {**OPTIONS, "n_steps": 3, "output": tmp_path / "sae"}
    with pytest.raises(
        ValueError, match="init_from expected the folder of a trained SAE with end_to_end, got None"
    ):
        sl.train_sae(store, model=model, end_to_end="kl", **options)
    with pytest.raises(ValueError, match="kind expected another one with end_to_end"):
        sl.train_sae(store, model=model, end_to_end="kl", kind="gated", init_from=source("topk"), **options)
    for fields in (
        {"kind": "matryoshka"}, {"multi_topk_coeff": 0.1}, {"k_anneal_fraction": 0.1},
        {"store_weights": (1.0,)}, {"max_norm_ratio": 9.0}, {"jumprelu_penalty": "tanh", "kind": "jumprelu"},
        {"l0_coeff": 1.0, "kind": "jumprelu"}, {"target_l0": 8.0, "kind": "jumprelu"},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{next(iter(fields))} expected .* with end_to_end"):
            sl.train_sae(store, model=model, end_to_end="kl", init_from=source("topk"), **options, **fields)
    with pytest.raises(ValueError, match="end_to_end expected model="):
        sl.train_sae(store, end_to_end="kl", init_from=source("topk"), **options)
    with pytest.raises(ValueError, match="does not give the activations"):
        other = type(model)(model.config)
        sl.train_sae(store, model=other, end_to_end="kl", init_from=source("topk"), **options)
    bare = sl.ActivationStore.from_arrays(tmp_path / "bare", planted.acts)
    with pytest.raises(sl.errors.ShardError, match="holds rows without text"):
        sl.train_sae(bare, model=model, end_to_end="kl", init_from=source("topk"), **options)
    assert not (tmp_path / "sae").exists()


@pytest.mark.long
def test_tokens_are_the_rows_that_were_learned_from(model, store, source, tmp_path, killed_before):
    options = {**OPTIONS, "init_from": source("topk"), "end_to_end": "kl", "n_steps": 5}
    options |= {"checkpoint_every_steps": 2, "log_every_steps": 1, "held_out_fraction": 0.2}
    with killed_before(3):
        sl.train_sae(store, output=tmp_path, model=model, **options)
    sae = sl.train_sae(store, output=tmp_path, model=model, **options)
    rows = StoreContexts(store, TrainConfig(end_to_end="kl", batch_size_rows=128, held_out_fraction=0.2))
    learned = [int(rows.batch(step).kept.sum()) for step in range(5)]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["tokens"] for line in lines if "tokens" in line] == list(itertools.accumulate(learned))
    assert sae.config.metadata["saelens_lite"]["tokens"] == sum(learned) != 5 * 128
