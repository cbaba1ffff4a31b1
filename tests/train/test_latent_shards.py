"""Shards of the latents without processes: how they are cut and put together, and one selection by hand.

That processes with a shard each train what one would is shown in test_distributed.py.
"""

from typing import get_args

import pytest
import torch
from torch.testing import assert_close

import saelens_lite as sl
from saelens_lite import distributed
from saelens_lite.sae.config import SAEConfig
from saelens_lite.train.comm import Alone
from saelens_lite.train.config import KindName, TrainConfig
from saelens_lite.train.kinds.choice import kind_class
from saelens_lite.train.latent_shards import LatentShards, communication
from saelens_lite.train.optimise import initial
from saelens_lite.train.optimise.initial import initial_sae, random_rows
from saelens_lite.train.optimise.trainer import Trainer

D, N = 6, 32


@pytest.fixture
def shard(monkeypatch):
    """shard(r, n): from now on this process has shard r of n; what it would exchange with others must not be
    needed."""

    def at(r, n):
        monkeypatch.setattr(distributed, "world_size", lambda axis=None: 1 if axis == "data" else n)
        monkeypatch.setattr(distributed, "rank", lambda axis=None: 0 if axis == "data" else r)

    return at


def trainer_of(kind):
    sae_kind = kind_class(kind).sae_kind
    config = SAEConfig(d_model=D, d_sae=N, kind=sae_kind, k=3 if sae_kind == "topk" else None)
    gen = torch.Generator().manual_seed(1)
    sae = initial_sae(config, torch.randn(64, D, generator=gen), 0, comm=communication())
    return trainer_on(sae, TrainConfig(kind=kind, k=3, lr=1e-3), 20)


def trainer_on(sae, config, n_steps):
    return Trainer(sae, config, n_steps, kind_class(config.kind)(sae, config, communication()))


@pytest.mark.parametrize("kind", get_args(KindName))
@pytest.mark.parametrize("n", [2, 4])
def test_a_state_goes_over_to_any_number_of_shards_to_the_bit(kind, n, shard):
    alone = trainer_of(kind)
    for seed in range(3):
        alone.update(torch.randn(64, D, generator=torch.Generator().manual_seed(seed)))
    state = {
        name: value.clone() if isinstance(value, torch.Tensor) else value
        for name, value in alone.whole_state().items()
    }
    parts = []
    for r in range(n):
        shard(r, n)
        trainer = trainer_of(kind)
        trainer.load_state(state)
        parts.append(trainer.state())
    assert parts[0].pop("steps_done") == state.pop("steps_done") == 3 and parts[0].keys() == state.keys()
    divided = {name for name in state if parts[0][name].shape != state[name].shape}
    assert {name for name in state if N in state[name].shape} == divided
    for name, value in state.items():
        values = [part[name] for part in parts]
        together = torch.cat(values, 1 if name == "sae.W_enc" else 0) if name in divided else values[-1]
        assert torch.equal(together, value), name


def test_shards_begin_with_the_rows_of_one_process(shard):
    whole = trainer_of("topk").sae
    for r in range(4):
        shard(r, 4)
        own, latents = trainer_of("topk").sae, slice(8 * r, 8 * r + 8)
        assert communication().first_latent(own) == 8 * r
        assert torch.equal(own.W_dec, whole.W_dec[latents]) and torch.equal(
            own.W_enc, whole.W_enc[:, latents]
        )
        assert torch.equal(own.b_dec, whole.b_dec)


def test_what_follows_from_the_width_follows_from_that_of_the_whole(shard):
    def facts():
        sae = initial_sae(
            SAEConfig(d_model=D, d_sae=N, kind="jumprelu"), torch.randn(64, D), 0, comm=communication()
        )
        config = TrainConfig(kind="matryoshka", k=2, batch_size_rows=64)
        short, long = trainer_on(sae, config, 2), trainer_on(sae, config, 10**6)
        kind, dead_after = short.kind, short.dead_tracker.dead_after_tokens
        return long.schedule.lr, dead_after, kind.widths.tolist(), kind.d_sae

    whole = facts()
    shard(1, 2)
    assert facts() == whole


@pytest.mark.parametrize(("n_rows", "d_model"), [(16, 8), (31, 7), (32, 5), (50, 3), (100, 16), (5, 1)])
def test_random_rows_in_pieces_are_those_of_one_piece(n_rows, d_model, monkeypatch):
    monkeypatch.setattr(initial, "_PIECE_ROWS", 16)
    whole = torch.randn(n_rows, d_model, generator=torch.Generator().manual_seed(3))
    assert torch.equal(random_rows(n_rows, d_model, 3, 0, n_rows), whole)
    assert torch.equal(
        random_rows(n_rows, d_model, 3, n_rows // 3, n_rows // 2), whole[n_rows // 3 :][: n_rows // 2]
    )


def test_the_largest_of_all_shards_by_hand(shard, monkeypatch):
    """k = 3, two latents shown by each of two shards.

    token 0: 5 and 1 here (latents 7 and 2), 4 and 3 there: 5, 4 and 3 are the largest, of which 5 is here
    token 1: 2 and 2 here, 2 and 2 there: of equal ones the first shard's stay, so both here and one there
    token 2: 0 and 0 here, 1 and 0 there: only what is above 0 is a pair
    """
    here, latents = torch.tensor([[5.0, 1.0], [2.0, 2.0], [0.0, 0.0]]), torch.tensor([[7, 2], [4, 0], [1, 3]])
    there = torch.tensor([[4.0, 3.0], [2.0, 2.0], [1.0, 0.0]])
    pairs = []
    for r, (own, other) in enumerate([(here, there), (there, here)]):
        shard(r, 2)
        monkeypatch.setattr(
            distributed,
            "gathered",
            lambda x, axis, r=r, other=other: torch.stack([x, other] if r == 0 else [other, x]),
        )
        pairs.append(communication().largest(own, latents if r == 0 else torch.tensor([[0, 1]] * 3), 3))
    for (values, indices, offsets), expected in zip(
        pairs,
        [([5.0, 2.0, 2.0], [7, 0, 4], [0, 1, 3, 3]), ([4.0, 3.0, 2.0, 1.0], [0, 1, 0, 0], [0, 2, 3, 4])],
        strict=True,
    ):
        assert (values.tolist(), indices.tolist(), offsets.tolist()) == expected


def test_alone_everything_is_the_kernel_itself():
    alone, values, indices = communication(), torch.rand(5, 3), torch.randint(N, (5, 3))
    assert type(alone) is Alone
    assert alone.largest(values, indices, 3) == (values, indices)
    assert alone.sum(values) is values and alone.part(values, 1) is values
    W_dec, b_dec = torch.randn(3, D), torch.randn(D)
    assert torch.equal(alone.decode(values, W_dec, b_dec), torch.addmm(b_dec, values, W_dec))
    sae, acts = trainer_of("topk").sae, torch.randn(5, D)
    assert alone.whole_sae(sae, sae.config) is sae
    assert_close(alone.forward(sae, acts, 3).recons, sae(acts).recons)


def test_what_cannot_be_divided_is_refused(shard, planted, tmp_path):
    store = sl.ActivationStore.from_arrays(tmp_path / "store", planted.acts)
    fields = {
        "output": tmp_path / "sae",
        "n_steps": 2,
        "k": 3,
        "batch_size_rows": 128,
        "progress": False,
        "device": "cpu",
    }
    with pytest.raises(
        ValueError,
        match="latent_shards expected a divisor of 1, the number of processes, got 2: start `torchrun",
    ):
        sl.train_sae(store, latent_shards=2, **fields)
    with pytest.raises(ValueError, match="latent_shards expected at least 1, got 0"):
        TrainConfig(latent_shards=0)
    shard(0, 3)
    with pytest.raises(
        ValueError, match="latent_shards expected a divisor of d_sae=64, got 3: choose d_sae=66"
    ):
        LatentShards().shard_config(SAEConfig(d_model=D, d_sae=64, kind="relu"))
