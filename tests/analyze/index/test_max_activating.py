"""One pass over a store gives what brute force on the dense matrix gives, and its table leads back to rows
and text."""

import pytest
import torch

from saelens_lite.analyze.index.max_activating import index_latents, max_activating_tokens
from saelens_lite.analyze.index.tally import position_bins

from ..conftest import make_sae

N = 5


def brute_force(dense, n=N):
    """(values, rows) [d_sae n] by sorting every column: strongest first, then the lower row."""
    values, rows = dense.T.sort(dim=1, descending=True, stable=True)
    values, rows = values[:, :n], rows[:, :n]
    return values, torch.where(values > 0, rows, -1)


def integer_sae(kind):
    sae = make_sae(kind)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_((parameter * 10).round())
    return sae


class RoundedStore:
    """The store's rows rounded to integers, so that sums are exact in any order."""

    def __init__(self, store):
        self._store = store

    def __getattr__(self, name):
        return getattr(self._store, name)

    def acts(self, shard, hook_point=None, rows=slice(None)):
        return (self._store.acts(shard, hook_point, rows) * 20).round()


@pytest.mark.property_check(4)
@pytest.mark.parametrize("kind", ["relu", "topk"])
@pytest.mark.parametrize("block_rows", [5, 100, 4096])
def test_end_to_end_equals_brute_force_for_any_block(store, kind, block_rows, monkeypatch):
    monkeypatch.setattr("saelens_lite.analyze.latents.store_pass.BLOCK_ROWS", block_rows)
    store, sae = RoundedStore(store), integer_sae(kind)
    index = index_latents(sae, store, N)
    with torch.no_grad():
        dense = sae.encode_dense(torch.cat([store.acts(shard) for shard in range(store.n_shards)]))
    assert torch.equal(index.top.values, brute_force(dense)[0])
    assert torch.equal(index.top.rows, brute_force(dense)[1])
    assert torch.equal(index.counts, (dense != 0).sum(0))
    assert index.n_tokens == store.n_rows
    positions = torch.cat([store.row_positions(shard)[1] for shard in range(store.n_shards)])
    digits = (dense != 0).T.float() @ torch.nn.functional.one_hot(position_bins(positions).long(), 16).float()
    assert torch.equal(index.positions, digits.int())


def test_table_leads_back_to_rows_and_text(store, sae, byte_tokenizer):
    table = max_activating_tokens(sae, store, n=4, tokenizer=byte_tokenizer, context_tokens=6)
    assert len(table) == sae.d_sae and table.values.shape == (48, 4)
    rows = store.gather(torch.arange(store.n_rows))
    with torch.no_grad():
        dense = sae.encode_dense(rows)
    latent = int(table.n_fired.argmax())
    view = table.latent(latent)
    assert [firing.value for firing in view] == pytest.approx(
        brute_force(dense, 4)[0][latent].tolist(), abs=1e-5
    )
    docs = torch.cat([store.row_docs(shard) for shard in range(store.n_shards)])
    ids = torch.cat([store.tokens(s).input_ids[store.tokens(s).kept.bool()] for s in range(store.n_shards)])
    for firing in view:
        assert firing.document == docs[firing.row]
        assert (
            firing.token in ("", byte_tokenizer.decode([int(ids[firing.row])])) or not firing.token.isascii()
        )


def test_latents_can_be_chosen(store, sae, byte_tokenizer):
    everything = max_activating_tokens(sae, store, n=3, tokenizer=byte_tokenizer)
    some = max_activating_tokens(sae, store, n=3, latents=[5, 2], tokenizer=byte_tokenizer)
    assert some.latents.tolist() == [5, 2]
    assert torch.equal(some.rows, everything.rows[[5, 2]])
    assert some.latent(2) == everything.latent(2)
    with pytest.raises(ValueError, match="latent 7 is not in this table of 2 latents"):
        some.latent(7)
    with pytest.raises(ValueError, match=r"indices from 0 to 47, got \[48\]"):
        max_activating_tokens(sae, store, latents=[3, 48])
    with pytest.raises(ValueError, match="n >= 1"):
        max_activating_tokens(sae, store, n=0)
