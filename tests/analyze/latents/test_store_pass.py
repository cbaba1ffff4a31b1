"""An SAE that does not belong to a store is refused with both named."""

import pytest
import torch

import saelens_lite as sl
from saelens_lite.analyze.latents.compatibility import fits
from saelens_lite.analyze.latents.store_pass import blocks

from ..conftest import HOOK_POINT, TEXTS, make_sae


def test_rows_come_in_order_from_any_start(store, sae, monkeypatch):
    monkeypatch.setattr("saelens_lite.analyze.latents.store_pass.BLOCK_ROWS", 64)
    everything = store.gather(torch.arange(store.n_rows))
    for start in (0, 1, store.shard_rows[0], 1499):
        seen = list(blocks(sae, store, HOOK_POINT, start))
        assert seen[0].first_row == start
        assert torch.equal(torch.cat([block.acts for block in seen]), everything[start:])


def test_the_sae_of_the_store_is_accepted(store, sae):
    assert fits(sae, store, None) == HOOK_POINT
    assert fits(make_sae(hook_point="", model_name=""), store, None) == HOOK_POINT
    assert fits(make_sae(model_name="someone/GPT2LMHeadModel"), store, None) == HOOK_POINT


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"d_model": 16}, ["d_model=16", "d_model=32", HOOK_POINT]),
        ({"hook_point": "blocks.1.hook_resid_post"}, ["blocks.1.hook_resid_post", HOOK_POINT, "hook_point="]),
        ({"model_name": "pythia-70m"}, ["pythia-70m", "GPT2LMHeadModel", "hook_point="]),
    ],
)
def test_another_sae_is_refused_with_both_named(store, fields, named):
    with pytest.raises(ValueError) as refusal:
        fits(make_sae(**fields), store, None)
    for part in named:
        assert part in str(refusal.value)


def test_a_named_hook_point_is_vouched_for_by_the_caller(store):
    assert fits(make_sae(model_name="pythia-70m"), store, HOOK_POINT) == HOOK_POINT
    with pytest.raises(ValueError, match="has no hook point 'blocks.0.hook_resid_pst'.*did you mean"):
        fits(make_sae(), store, "blocks.0.hook_resid_pst")


def test_rows_that_are_not_finite_are_named(store, sae):
    class Broken:
        path, shard_rows = store.path, [3]

        def acts(self, shard, hook_point, rows):
            return torch.tensor([[0.0], [float("nan")], [1.0]])[rows]

    with pytest.raises(ValueError, match="row 1 holds nan or infinity"):
        list(blocks(sae, Broken(), HOOK_POINT))


def test_int8_stores_are_analysed_and_scored_like_any_other(gpt2, byte_tokenizer, sae, tmp_path):
    """Harvested twice from the same model, in float32 and in int8: the same rows but for 5e-5 of their
    variance."""
    exact, small = (
        sl.harvest_activations(
            gpt2, TEXTS, HOOK_POINT, tmp_path / dtype, max_tokens=1500, tokenizer=byte_tokenizer, context_length=32,
            documents_per_shard=16, dtype=dtype, progress=False,
        )
        for dtype in ("float32", "int8")
    )  # fmt: skip
    assert small.verify() == []
    rows = torch.cat([block.acts for block in blocks(sae, small, HOOK_POINT)])
    assert torch.equal(rows, small.gather(torch.arange(1500)))
    norms = torch.cat([small.norms(shard) for shard in range(small.n_shards)])
    torch.testing.assert_close(norms, rows.norm(dim=1))
    truth = exact.gather(torch.arange(1500))
    assert float((rows - truth).square().sum() / (truth - truth.mean(0)).square().sum()) < 1e-4
    scores = [sl.evaluate_sae(sae, store, gpt2, held_out=False).rows[0] for store in (exact, small)]
    assert scores[1].fvu == pytest.approx(scores[0].fvu, rel=0.01)
    assert scores[1].ce == pytest.approx(scores[0].ce, rel=0.01)
    firing = sl.max_activating_tokens(sae, small, n=1, tokenizer=byte_tokenizer)
    assert firing.latent(int(firing.n_fired.argmax())).firings[0].token
