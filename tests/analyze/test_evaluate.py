"""The evaluation against numbers worked out directly, and the identities that any SAE must satisfy."""

import json

import pytest
import torch
from torch import nn

from saelens_lite.analyze import evaluate_sae
from saelens_lite.metrics import ReconstructionSums
from saelens_lite.tokens import is_held_out

from .conftest import make_sae

SPLIT = {"held_out_fraction": 0.3}


@pytest.fixture
def identity():
    """A ReLU SAE that reconstructs every row: latents are ±x."""
    sae = make_sae("relu", d_sae=64)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([torch.eye(32), -torch.eye(32)], dim=1))
        sae.W_dec.copy_(sae.W_enc.T)
        sae.b_enc.zero_()
    return sae


def test_reconstruction_is_that_of_the_held_out_rows(store, sae):
    rows = store.gather(torch.arange(store.n_rows))[store.held_out_rows(0.3)]
    assert 0 < len(rows) < store.n_rows
    expected = ReconstructionSums(32)
    with torch.no_grad():
        out = sae(rows)
    expected.update(rows, out.recons)
    found = evaluate_sae(sae, store, **SPLIT)
    trained = found.row("trained")
    assert found.n_tokens == len(rows) and found.held_out
    assert trained.fvu == pytest.approx(expected.fvu, rel=1e-6)
    assert trained.explained_variance == pytest.approx(1 - expected.fvu, rel=1e-6)
    assert trained.l0 == pytest.approx(out.latents.l0().mean().item())
    assert (trained.ce, found.ce_clean) == (None, None)


def test_the_split_is_the_one_that_training_recorded(store, sae):
    import dataclasses

    trained = {"saelens_lite": {"train": {"held_out_fraction": 0.3}}}
    sae.config = dataclasses.replace(sae.config, metadata=trained)
    assert evaluate_sae(sae, store).n_tokens == int(store.held_out_rows(0.3).sum())
    assert evaluate_sae(sae, store, held_out_fraction=0.6).n_tokens == int(store.held_out_rows(0.6).sum())


def test_a_baseline_of_another_hook_point_is_refused(store, sae, monkeypatch):
    baseline = make_sae("topk")
    monkeypatch.setattr(
        "saelens_lite.analyze.evaluate.matching_hook_point", lambda one, *_: "there" if one is baseline else "here"
    )
    with pytest.raises(ValueError, match="the baseline is of there and the SAE of here"):
        evaluate_sae(sae, store, baseline=baseline)


def test_ablation_rows_by_their_definition(store, sae):
    rows = store.gather(torch.arange(store.n_rows)).double()
    found = evaluate_sae(sae, store, held_out=False)
    spread = (rows - rows.mean(0)).square().sum()
    assert found.n_tokens == 1500
    assert found.row("mean ablation").fvu == pytest.approx(1.0, abs=1e-6)
    assert found.row("zero ablation").fvu == pytest.approx((rows.square().sum() / spread).item(), rel=1e-6)
    assert found.row("zero ablation").l0 == 0


def test_an_identity_costs_nothing(store, gpt2, identity):
    found = evaluate_sae(identity, store, gpt2, **SPLIT)
    row = found.row("trained")
    assert row.fvu < 1e-10
    assert row.delta_ce == pytest.approx(0.0, abs=1e-5)
    assert row.ce_score_mean == pytest.approx(1.0, abs=1e-3)
    assert found.row("mean ablation").ce_score_mean == 0.0
    assert found.row("zero ablation").ce_score_zero == 0.0


def test_an_sae_of_zeros_is_the_zero_ablation(store, gpt2):
    sae = make_sae("relu")
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.zero_()
    found = evaluate_sae(sae, store, gpt2, **SPLIT)
    zero = found.row("zero ablation")
    assert found.row("trained").ce == pytest.approx(zero.ce, abs=1e-6)
    assert found.row("trained").fvu == zero.fvu


def test_cross_entropy_worked_out_directly(store, gpt2, sae):
    """Every context by itself, the reconstruction put in by hand, losses of held-out tokens only."""
    total = {"clean": 0.0, "spliced": 0.0}
    n_tokens = 0
    for shard in range(store.n_shards):
        tokens = store.tokens(shard)
        held_out = is_held_out(tokens.doc_id.long() + tokens.first_doc, 0.3) & tokens.kept.bool()
        for ids, attended, kept, counts in zip(tokens.input_ids.long(), tokens.attended, tokens.kept.bool(), held_out):

            def put_in(module, args, output, kept=kept):
                acts = output[0] if isinstance(output, tuple) else output
                acts = torch.where(kept[None, :, None], sae(acts).recons, acts)
                return (acts, *output[1:]) if isinstance(output, tuple) else acts

            for name in total:
                handle = gpt2.transformer.h[0].register_forward_hook(put_in) if name == "spliced" else None
                with torch.no_grad():
                    logits = gpt2(input_ids=ids[None], attention_mask=attended[None].long()).logits[0]
                if handle:
                    handle.remove()
                losses = nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
                total[name] += losses[counts[1:]].double().sum().item()
            n_tokens += int(counts[1:].sum())
    found = evaluate_sae(sae, store, gpt2, max_tokens=None, batch_size_seqs=3, **SPLIT)
    assert found.n_ce_tokens == n_tokens
    assert found.ce_clean == pytest.approx(total["clean"] / n_tokens, abs=1e-5)
    assert found.row("trained").ce == pytest.approx(total["spliced"] / n_tokens, abs=1e-5)
    assert found.row("trained").delta_ce == pytest.approx((total["spliced"] - total["clean"]) / n_tokens, abs=1e-5)


def test_the_baseline_has_its_row_or_says_that_it_has_none(store, sae):
    assert "not given" in evaluate_sae(sae, store, **SPLIT).table()
    found = evaluate_sae(sae, store, baseline=sae, **SPLIT)
    assert found.row("baseline").fvu == found.row("trained").fvu
    assert "not given" not in found.table()


def test_dead_share_is_named_by_its_window(store, sae):
    found = evaluate_sae(sae, store, windows_tokens=(100, 1000, 10_000), **SPLIT)
    with torch.no_grad():
        fires = sae.encode_dense(store.gather(torch.arange(store.n_rows))) != 0
    dead = found.row("trained").dead
    assert dead[1000] == (~fires[-1000:].any(0)).double().mean()
    assert dead[10_000] is None
    head, trained = found.table().splitlines()[:2]
    assert "dead@100 " in head and "dead@1k" in head and "dead@10k" in head
    assert "n/a" in trained


def test_table_and_dictionary(store, gpt2, sae):
    found = evaluate_sae(sae, store, gpt2, **SPLIT)
    lines = found.table().splitlines()
    assert [line.split("  ")[0] for line in lines[1:5]] == ["trained", "baseline", "zero ablation", "mean ablation"]
    assert len(lines[0]) == len(lines[1]), "aligned"
    assert f"over {found.n_tokens:,} tokens of held-out documents" in lines[6]
    assert f"CE in nats over {found.n_ce_tokens:,} predicted tokens" in lines[7]
    assert "not every SAE records this store" in lines[8] and not found.same_store
    plain = found.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["rows"][0]["fvu"] == found.row("trained").fvu
    assert plain["rows"][0]["dead@10k"] is None


def test_shards_without_a_held_out_document_are_passed_over(store, gpt2, sae):
    by_shard = [rows.any() for rows in store.held_out_rows(0.05).split(store.shard_rows)]
    assert any(by_shard) and not all(by_shard), "what this test needs of the split"
    assert evaluate_sae(sae, store, gpt2, held_out_fraction=0.05).n_ce_tokens > 0


def test_max_tokens_is_kept(store, gpt2, sae):
    found = evaluate_sae(sae, store, gpt2, held_out=False, max_tokens=100, batch_size_seqs=2)
    assert found.n_tokens == 100
    assert 100 <= found.n_ce_tokens <= 100 + 2 * 31


def test_the_model_is_as_before(store, gpt2, sae):
    gpt2.train()
    weights = {name: tensor.clone() for name, tensor in gpt2.state_dict().items()}
    evaluate_sae(sae, store, gpt2, **SPLIT)
    assert gpt2.training
    assert all(torch.equal(tensor, weights[name]) for name, tensor in gpt2.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in gpt2.modules())


def test_what_does_not_belong_together_is_refused(store, gpt2, sae):
    with pytest.raises(ValueError, match=r"blocks.1.hook_mlp_out, but .* holds blocks.0.hook_resid_post"):
        evaluate_sae(make_sae(hook_point="blocks.1.hook_mlp_out"), store)
    with pytest.raises(ValueError, match="d_model=16, but .* has width 32"):
        evaluate_sae(sae, store, baseline=make_sae(d_model=16))
    with pytest.raises(ValueError, match="no rows of held-out documents.*held_out=False"):
        evaluate_sae(sae, store, held_out_fraction=0.0)

    from transformers import GPT2LMHeadModel

    other = GPT2LMHeadModel(type(gpt2.config)(**gpt2.config.to_dict() | {"n_embd": 16}))
    with pytest.raises(ValueError, match="GPT2LMHeadModel has width 16, but .* width 32"):
        evaluate_sae(sae, store, other, **SPLIT)
    torch.manual_seed(5)
    other = GPT2LMHeadModel(gpt2.config).eval()
    with pytest.raises(ValueError, match="does not give the activations of .* pass the model that was harvested"):
        evaluate_sae(sae, store, other, **SPLIT)


@pytest.mark.parametrize("kind", ["jumprelu", "gated"])
def test_every_kind(store, gpt2, kind):
    row = evaluate_sae(make_sae(kind), store, gpt2, **SPLIT).row("trained")
    assert row.fvu > 0 and row.ce > 0


def test_the_json_defines_each_of_its_numbers(store, sae, gpt2):
    found = json.loads(json.dumps(evaluate_sae(sae, store, gpt2, **SPLIT).to_dict()))
    numbers = {name.partition("@")[0] for row in found["rows"] for name in row} - {"name", "given"}
    assert numbers == found["definitions"].keys()
