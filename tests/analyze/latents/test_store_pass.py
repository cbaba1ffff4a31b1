"""Blocks of a store through an SAE: in order, from any row, of any storage type."""

import pytest
import torch

import saelens_lite as sl
from saelens_lite.analyze.latents.store_pass import blocks

from ..conftest import HOOK_POINT, TEXTS


def test_rows_come_in_order_from_any_start(store, sae, monkeypatch):
    monkeypatch.setattr("saelens_lite.analyze.latents.store_pass.BLOCK_ROWS", 64)
    everything = store.gather(torch.arange(store.n_rows))
    for start in (0, 1, store.shard_rows[0], 1499):
        seen = list(blocks(sae, store, HOOK_POINT, start))
        assert seen[0].first_row == start
        assert torch.equal(torch.cat([block.acts for block in seen]), everything[start:])


def test_rows_that_are_not_finite_are_named(store, sae):
    class Broken:
        path, shard_rows = store.path, [3]

        def acts(self, shard, hook_point, rows):
            return torch.tensor([[0.0], [float("nan")], [1.0]])[rows]

    with pytest.raises(ValueError, match="row 1 holds nan or infinity"):
        list(blocks(sae, Broken(), HOOK_POINT))


@pytest.mark.long
def test_int8_stores_are_analysed_and_scored_like_any_other(gpt2, byte_tokenizer, sae, tmp_path):
    """Harvested twice from the same model, in float32 and in int8: the same rows but for 5e-5 of their
    variance."""
    exact, small = (
        sl.harvest_activations(
            gpt2, TEXTS, HOOK_POINT, tmp_path / dtype, max_tokens=1500, tokenizer=byte_tokenizer,
            context_length=32,
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
