"""Unigram flags by hand: a latent of one token, one whose weak firings are elsewhere, one of a pair, one that
is rare."""

import math

import pytest
import torch

import saelens_lite as sl
from saelens_lite.analyze.index.build import IndexConfig, index_features
from saelens_lite.analyze.index.search import by_number, unigram_latents
from saelens_lite.analyze.index.token_table import token_ids
from saelens_lite.analyze.index.unigram import commonest, is_unigram
from saelens_lite.cli.search import SearchConfig, answer
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig
from saelens_lite.store.reader import ActivationStore

from ..conftest import HOOK_POINT


def test_the_commonest_number_of_a_row_and_its_share():
    ids = torch.tensor([[7, 5, 7, 7], [5, 9, 9, 5], [4, -1, -1, -1], [-1, -1, -1, -1], [2, 3, 3, -1]])
    found, shares = commonest(ids)
    assert found.tolist() == [7, 5, 4, -1, 3]
    torch.testing.assert_close(shares, torch.tensor([0.75, 0.5, 1.0, math.nan, 2 / 3]), equal_nan=True)
    found, shares = commonest(torch.zeros(2, 0, dtype=torch.int64))
    assert found.tolist() == [-1, -1] and shares.isnan().all()


def test_both_shares_and_the_number_of_firings_decide():
    n_fired = torch.tensor([10, 9, 100, 100, 100])
    token, top = torch.tensor([1.0, 1, 0.89, 0.9, math.nan]), torch.tensor([0.9, 1, 1, 0.89, 1])
    assert is_unigram(n_fired, token, top).tolist() == [True, False, False, False, False]


def test_the_token_before(store):
    rows = torch.tensor([-1, 0, 1, 700, store.n_rows - 1])
    by_row = []
    for shard in range(store.n_shards):
        tokens = store.tokens(shard)
        places = tokens.kept.nonzero().tolist()
        by_row += [tokens.input_ids[s, p - 1].item() if p else -1 for s, p in places]
    assert token_ids(store, rows, back=1).tolist() == [-1, *(by_row[row] for row in rows[1:].tolist())]
    assert (token_ids(store, rows, back=32) == -1).all(), "a context has 32 tokens"


class OneHot(ActivationStore):
    """A store whose rows are one-hot tokens, each beside the one before it: SAEs of tokens can be made by
    hand."""

    def __init__(self, store):
        vars(self).update(vars(store))

    def d_model(self, hook_point=None):
        return 2 * 259

    def acts(self, shard, hook_point=None, rows=slice(None)):
        tokens = self.tokens(shard)
        kept, ids = tokens.kept.bool(), tokens.input_ids.long()
        before = torch.nn.functional.pad(ids, (1, 0))[:, :-1]
        one_hot = torch.nn.functional.one_hot
        return torch.cat([one_hot(ids[kept], 259), one_hot(before[kept], 259)], 1)[rows].float()


@pytest.fixture
def index(store, byte_tokenizer, tmp_path):
    """Latent 0 fires on every 'o'; 1 on 't' strongly and on 'o' weakly; 2 on 't' after 'S'; 3 on '7', seldom;
    4 never."""
    ids = {c: byte_tokenizer(c, add_special_tokens=False).input_ids[0] for c in "Sto7"}
    sae = SparseAutoencoder(SAEConfig(d_model=518, d_sae=5, kind="relu", hook_point=HOOK_POINT))
    with torch.no_grad():
        sae.W_enc[ids["o"], 0] = 1
        sae.W_enc[ids["t"], 1], sae.W_enc[ids["o"], 1] = 2, 1
        sae.W_enc[ids["t"], 2], sae.W_enc[259 + ids["S"], 2], sae.b_enc[2] = 1, 1, -1
        sae.W_enc[ids["7"], 3] = 1
    return index_features(sae, OneHot(store), tmp_path / "index", tokenizer=byte_tokenizer)


def test_flags_of_an_index_by_hand(index, byte_tokenizer):
    assert [index[latent].common_token for latent in (0, 2, 3, 4)] == ["o", "t", "7", ""]
    assert [index[latent].unigram for latent in range(5)] == [
        True,
        False,
        True,
        index[3].n_fired >= 10,
        False,
    ]
    one = index[1]
    assert one.top_token_share == 1 and one.token_entropy == 0, "its strongest firings are one token"
    assert 0.3 < one.token_share < 0.7 and "of the strongest" in repr(one)
    assert index[2].token_share == index[2].pair_share == 1, "always the same token before"
    assert index[0].token_share == 1 and index[0].pair_share < 1
    assert repr(index[0]).count("'o' has 100% of its firings, 100% of the strongest: unigram") == 1
    assert math.isnan(index[4].token_share) and "of its firings" not in repr(index[4])
    flagged = index.unigram
    assert flagged.flagged.tolist() == [index[latent].unigram for latent in range(5)]
    counts = index.column("counts")
    assert flagged.share == int(flagged.flagged.sum()) / int((counts >= 10).sum())
    assert f"{int(flagged.flagged.sum())} of {int((counts >= 10).sum())} latents" in repr(flagged)


def test_an_index_without_samples_flags_none_and_says_so(store, sae, tmp_path):
    index = index_features(sae, store, tmp_path / "index", config=IndexConfig(n_sample=0))
    assert index[0].common_token == "" and not index[0].unigram
    with pytest.raises(ValueError, match="sampled no firings"):
        _ = index.unigram


def test_search_for_them(index):
    found = unigram_latents(index)
    assert [latent.latent for latent in found] == sorted(
        index.unigram.flagged.nonzero().flatten().tolist(), key=lambda i: -index[i].n_fired
    )
    assert [latent.latent for latent in unigram_latents(index, "O")] == [0], "in any case"
    assert len(unigram_latents(index, n=1)) == 1 and unigram_latents(index, "no such") == []
    first, *lines = answer(SearchConfig(index="", unigram="o"), index).lines
    assert first.startswith("unigram: ") and lines[0].startswith("latent       0  'o'")
    pairs = dict(by_number(index, "pair_share", low=1, n=5))
    assert 2 in pairs and 0 not in pairs
    assert 1 not in dict(by_number(index, "token_share", low=0.9, n=5))


def test_rows_without_text_have_no_tokens_to_fire_on(tmp_path, planted):
    store = sl.ActivationStore.from_arrays(tmp_path / "store", planted.acts[:100])
    sae = SparseAutoencoder(SAEConfig(d_model=16, d_sae=4, kind="relu"))
    index = index_features(sae, store, tmp_path / "index")
    assert index.column("token_share").isnan().all() and not index[0].unigram
    with pytest.raises(ValueError, match="rows without text"):
        _ = index.unigram
