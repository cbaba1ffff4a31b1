"""The evaluation against numbers worked out directly, and the identities that any SAE must satisfy."""

import dataclasses
import json

import pytest
import torch
from torch import nn

import saelens_lite as sl
from saelens_lite.analyze.evaluation import evaluate
from saelens_lite.analyze.evaluation.evaluate import evaluate_sae
from saelens_lite.analyze.evaluation.result import Densities
from saelens_lite.hashing import is_held_out
from saelens_lite.lm.losses import kl_divergence, token_losses
from saelens_lite.sae.metrics import ReconstructionSums, kl_score

from ..conftest import TEXTS, make_sae

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
    assert (trained.ce, trained.kl, found.ce_clean) == (None, None, None)
    norms = sae.W_dec.norm(dim=1)
    assert trained.l1 == pytest.approx(out.latents.values.abs().sum().item() / len(rows), rel=1e-5)
    assert trained.l1_weighted == pytest.approx(
        (out.latents.to_dense().abs() @ norms).mean().item(), rel=1e-5
    )
    assert trained.relative_bias == pytest.approx(expected.relative_bias, rel=1e-6)
    cosines = torch.cosine_similarity(sae.W_enc.T, sae.W_dec, dim=1)
    assert trained.encoder_decoder_cosine == pytest.approx(cosines.mean().item(), abs=1e-6)


def test_inside_a_block_reconstruction_and_ablation_reach_the_projection(
    gpt2, byte_tokenizer, identity, tmp_path
):
    """An SAE that reconstructs every row costs nothing; zero ablation is the module called on zeros."""
    points = ["blocks.0.attn.hook_z", "blocks.1.mlp.hook_in"]
    for parameter in gpt2.parameters():  # the random model hardly uses its parts
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    size = {"max_tokens": 400, "context_length": 16, "dtype": "float32", "progress": False}
    store = sl.harvest_activations(gpt2, TEXTS, points, tmp_path / "s", tokenizer=byte_tokenizer, **size)
    for point, path in zip(points, ("h.0.attn.c_proj", "h.1.mlp")):
        identity.config = dataclasses.replace(identity.config, hook_point=point)
        found = evaluate_sae(identity, store, gpt2, held_out=False)
        assert found.hook_point == point
        assert found.row("trained").fvu < 1e-10 and abs(found.row("trained").delta_ce) < 1e-5
        # by hand: rows of real tokens but BOS are zeroed where the module takes them in
        tokens = [store.tokens(shard) for shard in range(store.n_shards)]
        losses = []
        for of in tokens:
            ids, kept = of.input_ids.long(), of.kept.bool()
            module = gpt2.transformer.get_submodule(path)
            handle = module.register_forward_pre_hook(
                lambda _m, args, kept=kept: (args[0].masked_fill(kept[..., None], 0.0), *args[1:])
            )
            nats = token_losses(gpt2, ids, of.attended.bool())
            handle.remove()
            losses.append(nats[kept[:, 1:]])
        assert found.row("zero ablation").ce == pytest.approx(torch.cat(losses).mean().item(), rel=1e-4)
        assert abs(found.row("zero ablation").delta_ce) > 0.01


def test_density_is_that_of_the_scored_rows(store, sae):
    with torch.no_grad():
        fires = sae.encode_dense(store.gather(torch.arange(store.n_rows))[store.held_out_rows(0.3)]) != 0
    rates = fires.double().mean(0)
    density = evaluate_sae(sae, store, **SPLIT).row("trained").density
    assert density["dense_1pct"] == (rates > 0.01).double().mean()
    assert density["dense_10pct"] == (rates > 0.1).double().mean()
    assert density["density_q50"] == pytest.approx(rates.quantile(0.5).item())
    assert (
        density["density_q05"]
        <= density["density_q50"]
        <= density["density_q95"]
        == pytest.approx(rates.quantile(0.95))
    )


def test_the_histogram_of_densities_by_hand():
    """Four bins a decade from 1e-8: 1e-9 is below the first, 1e-4 begins bin 16, 0.5 is in bin 30, 1 in the
    last."""
    found = Densities.of(torch.tensor([0.0, 0.0, 1e-9, 1e-4, 1.1e-4, 0.5, 1.0], dtype=torch.float64))
    assert found.never == 2 and sum(found.counts) == 5 and len(found.counts) == 32
    assert {i: n for i, n in enumerate(found.counts) if n} == {0: 1, 16: 2, 30: 1, 31: 1}


@pytest.mark.long
@pytest.mark.parametrize("block_rows", [1, 97, 300])
def test_no_number_but_those_of_other_libraries_depends_on_the_blocks(
    store, sae, gpt2, monkeypatch, block_rows
):
    asked = {"held_out": False, "max_tokens": 300}
    whole = evaluate_sae(sae, store, **asked).row("trained").numbers()
    monkeypatch.setattr(evaluate, "BLOCK_ROWS", block_rows)
    parts = evaluate_sae(sae, store, **asked).row("trained").numbers()
    for name, value in whole.items():
        if not name.startswith("ev_") and value is not None:
            assert parts[name] == pytest.approx(value, rel=1e-6), name


def test_the_split_is_the_one_that_training_recorded(store, sae):
    import dataclasses

    trained = {"saelens_lite": {"train": {"held_out_fraction": 0.3}}}
    sae.config = dataclasses.replace(sae.config, metadata=trained)
    assert evaluate_sae(sae, store).n_tokens == int(store.held_out_rows(0.3).sum())
    assert evaluate_sae(sae, store, held_out_fraction=0.6).n_tokens == int(store.held_out_rows(0.6).sum())


def test_a_baseline_of_another_hook_point_is_refused(store, sae, monkeypatch):
    baseline = make_sae("topk")
    monkeypatch.setattr(
        "saelens_lite.analyze.evaluation.evaluate.places_in_store",
        lambda one, *_: ("there", "there") if one is baseline else ("here", "here"),
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


@pytest.mark.property_check(2)
def test_an_identity_costs_nothing(store, gpt2, identity):
    found = evaluate_sae(identity, store, gpt2, **SPLIT)
    row = found.row("trained")
    assert row.fvu < 1e-10
    assert row.delta_ce == pytest.approx(0.0, abs=1e-5)
    assert row.ce_score_mean == pytest.approx(1.0, abs=1e-3) and row.ce_score_zero == pytest.approx(
        1.0, abs=1e-3
    )
    assert row.kl == pytest.approx(0.0, abs=1e-7)
    assert row.kl_score_mean == pytest.approx(1.0, abs=1e-6)
    assert (row.relative_bias, row.cosine) == (pytest.approx(1), pytest.approx(1))
    assert found.row("mean ablation").ce_score_mean == 0.0
    assert found.row("zero ablation").ce_score_zero == 0.0


@pytest.mark.property_check(2)
def test_an_sae_of_zeros_is_the_zero_ablation(store, gpt2):
    sae = make_sae("relu")
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.zero_()
    found = evaluate_sae(sae, store, gpt2, **SPLIT)
    zero, trained = found.row("zero ablation").numbers(), found.row("trained").numbers()
    for name, value in zero.items():
        if value is not None:
            assert trained[name] == pytest.approx(value, abs=1e-6, nan_ok=True), name
    assert zero["l0"] == 0 and zero["kl"] > 0 and zero["kl_score_zero"] == 0


def test_cross_entropy_worked_out_directly(store, gpt2, sae):
    """Every context by itself, the reconstruction put in by hand, losses of held-out tokens only."""
    total = {"clean": 0.0, "spliced": 0.0}
    kl, n_tokens = 0.0, 0
    for shard in range(store.n_shards):
        tokens = store.tokens(shard)
        held_out = is_held_out(tokens.doc_id.long() + tokens.first_doc, 0.3) & tokens.kept.bool()
        for ids, attended, kept, counts in zip(
            tokens.input_ids.long(), tokens.attended, tokens.kept.bool(), held_out
        ):

            def put_in(module, args, output, kept=kept):
                acts = output[0] if isinstance(output, tuple) else output
                acts = torch.where(kept[None, :, None], sae(acts).recons, acts)
                return (acts, *output[1:]) if isinstance(output, tuple) else acts

            logits_of = {}
            for name in total:
                handle = gpt2.transformer.h[0].register_forward_hook(put_in) if name == "spliced" else None
                with torch.no_grad():
                    logits = gpt2(input_ids=ids[None], attention_mask=attended[None].long()).logits[0]
                if handle:
                    handle.remove()
                logits_of[name] = logits
                losses = nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
                total[name] += losses[counts[1:]].double().sum().item()
            kl += (
                kl_divergence(logits_of["clean"], logits_of["spliced"])[:-1][counts[1:]].double().sum().item()
            )
            n_tokens += int(counts[1:].sum())
    found = evaluate_sae(sae, store, gpt2, max_tokens=None, batch_size_seqs=3, **SPLIT)
    assert found.n_ce_tokens == n_tokens
    assert found.ce_clean == pytest.approx(total["clean"] / n_tokens, abs=1e-5)
    assert found.row("trained").ce == pytest.approx(total["spliced"] / n_tokens, abs=1e-5)
    assert found.row("trained").delta_ce == pytest.approx(
        (total["spliced"] - total["clean"]) / n_tokens, abs=1e-5
    )
    row, mean = found.row("trained"), found.row("mean ablation")
    assert row.kl == pytest.approx(kl / n_tokens, abs=1e-6) and row.kl > 0
    assert row.kl_score_mean == kl_score(row.kl, mean.kl) and mean.kl_score_mean == 0


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
    assert [line.split("  ")[0] for line in lines[1:5]] == [
        "trained",
        "baseline",
        "zero ablation",
        "mean ablation",
    ]
    assert len(lines[0]) == len(lines[1]), "aligned"
    assert f"over {found.n_tokens:,} tokens of held-out documents" in lines[6]
    assert f"CE in nats over {found.n_ce_tokens:,} predicted tokens" in lines[7]
    n = found.n_documents
    assert lines[8].startswith(f"trained, 95 % over {n} documents: fvu ") and "ΔCE" in lines[8]
    assert "an SAE here records no store: it may have been" in lines[9] and found.same_store is None
    plain = found.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["rows"][0]["fvu"] == found.row("trained").fvu
    frame = found.to_frame().set_index("name")
    assert frame["l0"].dropna().to_dict() == {row.name: row.l0 for row in found.rows if row.given}
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
    with pytest.raises(
        ValueError,
        match=r"expected one of blocks.0.hook_resid_post, got .* "
        r"blocks.1.hook_mlp_out",
    ):
        evaluate_sae(make_sae(hook_point="blocks.1.hook_mlp_out"), store)
    with pytest.raises(ValueError, match="expected one of d_model=32, got one of d_model=16"):
        evaluate_sae(sae, store, baseline=make_sae(d_model=16))
    with pytest.raises(ValueError, match="max_tokens expected 1 or more, or None for all, got 0"):
        evaluate_sae(sae, store, max_tokens=0)
    with pytest.raises(ValueError, match="no rows of held-out documents.*held_out=False"):
        evaluate_sae(sae, store, held_out_fraction=0.0)

    from transformers import GPT2LMHeadModel

    other = GPT2LMHeadModel(type(gpt2.config)(**gpt2.config.to_dict() | {"n_embd": 16}))
    with pytest.raises(ValueError, match="GPT2LMHeadModel has width 16 at .*, but .* width 32"):
        evaluate_sae(sae, store, other, **SPLIT)
    torch.manual_seed(5)
    other = GPT2LMHeadModel(gpt2.config).eval()
    with pytest.raises(
        ValueError, match="does not give the activations of .* pass the model that was harvested"
    ):
        evaluate_sae(sae, store, other, **SPLIT)


@pytest.mark.parametrize("kind", ["jumprelu", "gated"])
def test_every_kind(store, gpt2, kind):
    row = evaluate_sae(make_sae(kind), store, gpt2, **SPLIT).row("trained")
    assert row.fvu > 0 and row.ce > 0


def reseeded(seed, **fields):
    """The SAE of `make_sae` with other weights."""
    sae = make_sae(**fields)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    return sae


@pytest.mark.long
def test_seeds_give_every_number_its_noise(store, gpt2, sae):
    others = [reseeded(1), reseeded(2)]
    found = evaluate_sae(sae, store, gpt2, seeds=others, **SPLIT)
    alone = [evaluate_sae(one, store, gpt2, **SPLIT).row("trained").numbers() for one in (sae, *others)]
    assert found.row("trained").numbers() == alone[0]
    assert [row.numbers() for row in found.seeds] == alone[1:]
    noise = found.seed_noise
    assert noise.keys() == {name for name, value in alone[0].items() if value is not None}
    fvus = torch.tensor([one["fvu"] for one in alone], dtype=torch.float64)
    assert (
        noise["fvu"].sd == pytest.approx(fvus.std().item())
        and noise["fvu"].detectable > 4 * noise["fvu"].sd > 0
    )
    assert 0 < found.stability.random_mcc < found.stability.mcc < 1
    table = found.table()
    lines = {line[:22].strip(): line for line in table.splitlines()}
    assert f"{noise['delta_ce'].sd:.2g}" in lines["seed noise: sd"]
    assert f"{noise['fvu'].detectable:.2g}" in lines["seed noise: detectable"]
    assert "seed noise over 3 SAEs" in table and f"mcc {found.stability.mcc:.3f} (random" in table
    assert "seed sd" in found.table(every_number=True).splitlines()[0]


def test_seeds_of_another_configuration_are_refused(store, sae):
    with pytest.raises(ValueError, match="seed 1 is not as trained: d_sae expected 48, got 64"):
        evaluate_sae(sae, store, seeds=[reseeded(1, d_sae=64)])
    with pytest.raises(
        ValueError, match="expected one of blocks.0.hook_resid_post, got .* blocks.1.hook_mlp_out"
    ):
        evaluate_sae(sae, store, seeds=[reseeded(1, hook_point="blocks.1.hook_mlp_out")])


def test_every_number_has_a_line_in_the_long_table(store, gpt2, sae):
    found = evaluate_sae(sae, store, gpt2, baseline=reseeded(1), windows_tokens=(100, 10_000), **SPLIT)
    lines = found.table(every_number=True).splitlines()
    assert [word.strip() for word in lines[0].split("  ") if word.strip()] == [row.name for row in found.rows]
    numbers = found.row("trained").numbers()
    shown = {line.split()[0]: line.split()[1:] for line in lines[1 : len(numbers) + 1]}
    assert shown.keys() == numbers.keys()
    assert shown["fvu"] == [f"{row.fvu:.4g}" for row in found.rows]
    assert shown["dead@10k"] == ["n/a", "n/a"]
    assert len(shown["l1"]) == 2 and len(shown["ev_overcomplete"]) == 4


def test_windows_beyond_the_first_that_is_too_long_are_in_the_json_alone(store, sae):
    found = evaluate_sae(sae, store, windows_tokens=(100, 1000, 10_000, 100_000), **SPLIT)
    head = found.table().splitlines()[0]
    assert "dead@10k" in head and "dead@100k" not in head
    assert "dead@1k: a rate < 3e-03 (95 %)" in found.table()
    plain = found.to_dict()
    assert "dead@100k" in plain["rows"][0]
    assert plain["dead_rate_bounds"] == {"dead@100": 0.03, "dead@1k": 0.003}


def test_what_is_not_finite_is_refused(store, gpt2, sae, monkeypatch):
    gather = type(store).gather

    def with_nan(self, rows, point=None):
        acts = gather(self, rows, point)
        acts[rows == 77] = torch.nan
        return acts

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="row 77 holds nan or infinity"):
        patch.setattr(type(store), "gather", with_nan)
        evaluate_sae(sae, store, held_out=False)
    broken = make_sae()
    with torch.no_grad():
        broken.W_dec.fill_(3e38)  # finite, its sums are not
    with pytest.raises(ValueError, match="the trained SAE reconstructs finite rows as nan or infinity"):
        evaluate_sae(broken, store, held_out=False)
    with torch.no_grad():
        gpt2.transformer.ln_f.bias[0] = torch.nan
    with pytest.raises(ValueError, match="the unedited model gives losses that are not finite"):
        evaluate_sae(sae, store, gpt2, held_out=False)


def test_tokens_that_a_model_rules_out_do_not_spoil_the_divergence(store, gpt2, sae):
    """Logits of −∞, as a padded vocabulary has."""
    plain = evaluate_sae(sae, store, gpt2, max_tokens=200, **SPLIT).row("trained").kl
    handle = gpt2.lm_head.register_forward_hook(
        lambda module, args, logits: torch.cat([logits, torch.full_like(logits[..., :3], -torch.inf)], dim=-1)
    )
    assert evaluate_sae(sae, store, gpt2, max_tokens=200, **SPLIT).row("trained").kl == pytest.approx(
        plain, rel=1e-6
    )
    handle.remove()


def test_the_json_defines_each_of_its_numbers(store, sae, gpt2):
    found = evaluate_sae(sae, store, gpt2, seeds=[reseeded(1)], **SPLIT).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    rows = [*found["rows"], *found["seeds"]]
    numbers = {name.partition("@")[0] for row in rows for name in row} - {"name", "given"}
    tables = {name for name, value in found.items() if isinstance(value, dict)} - {"definitions"}
    assert numbers | tables == found["definitions"].keys()
    assert tables == {"dead_rate_bounds", "seed_noise", "stability", "densities", "intervals"}
    assert "seed_noise" not in evaluate_sae(sae, store, **SPLIT).to_dict()["definitions"]


@pytest.mark.long
def test_rows_of_massive_norm_are_told_from_the_others(tmp_path, caplog):
    rows = torch.randn(2000, 32, generator=torch.Generator().manual_seed(0))
    rows[::100] *= 300
    store = sl.ActivationStore.from_arrays(tmp_path / "store", rows, rows_per_shard=25)  # 80 shards
    sae = make_sae("relu", d_sae=64)
    with caplog.at_level("WARNING", logger="saelens_lite.analyze"):
        found = evaluate_sae(sae, store, held_out=False, max_tokens=None, hook_point="acts")
    few = rows.norm(dim=1) <= 10 * rows.norm(dim=1).median()
    expected = ReconstructionSums(32)
    with torch.no_grad():
        expected.update(rows[few], sae(rows[few]).recons)
    trained = found.row("trained")
    assert trained.fvu_within_10x == pytest.approx(expected.fvu, rel=1e-6)
    assert trained.share_within_10x == 0.99
    assert "--max-norm-ratio 10" in caplog.text
    assert f"fvu of the 99.00% of rows within 10 times the median norm: {expected.fvu:.4f}" in str(found)


def test_a_sample_of_two_corpora_is_of_both_and_its_intervals_hold_the_whole(tmp_path):
    """100 documents of 10 rows of length near 1, then 100 of length near 10: 400 rows are of both, and the
    interval of their fvu holds that of all rows. By hand: predicting 0 for every row, with W and b of 0,
    Σ‖x‖² / Σ‖x − mean‖² of the rows is the fvu."""
    generator = torch.Generator().manual_seed(0)
    length = torch.tensor([1.0, 10.0]).repeat_interleave(1000)[:, None]
    rows = (1 + torch.randn(2000, 8, generator=generator)) * length
    documents = torch.arange(200).repeat_interleave(10)
    store = sl.ActivationStore.from_arrays(tmp_path, rows, documents=documents, rows_per_shard=300)
    sae = sl.SparseAutoencoder(sl.SAEConfig(d_model=8, d_sae=4, kind="relu", hook_point="acts"))
    some = evaluate_sae(sae, store, held_out=False, max_tokens=400)
    whole = evaluate_sae(sae, store, held_out=False, max_tokens=None)
    by_hand = float(rows.square().sum() / (rows - rows.mean(0)).square().sum())
    assert whole.row("trained").fvu == pytest.approx(by_hand, rel=1e-6)
    assert (some.n_tokens, some.n_documents, some.sampled) == (400, 40, True)
    assert (whole.n_tokens, whole.n_documents, whole.sampled) == (2000, 200, False)
    low, high = some.intervals["trained"]["fvu"]
    assert low < by_hand < high and high - low < 0.4
    narrow = whole.intervals["trained"]["fvu"]
    assert narrow[0] < by_hand < narrow[1] and narrow[1] - narrow[0] < high - low
    assert "400 tokens of 40 documents drawn by hash" in str(some)


@pytest.mark.long
def test_intervals_of_the_cost_hold_it_and_are_those_of_its_documents(store, gpt2, sae):
    found = evaluate_sae(sae, store, gpt2, held_out=False, max_tokens=None)
    of, row = found.intervals["trained"], found.row("trained")
    for name in ("fvu", "ce", "delta_ce"):
        low, high = of[name]
        assert low < getattr(row, name) < high
    docs = {doc for shard in range(store.n_shards) for doc in store.row_docs(shard).tolist()}
    assert found.n_documents == len(docs)
