"""The script that made the embedded model, on small input."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ..bench import train_lm
from ..bench.train_lm import LMConfig, Stream, held_out_windows, nats_and_tokens

BOS = 1


def tiny_model():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=512, tie_word_embeddings=True,
        )
    )  # fmt: skip


def documents(n=40, length=100):
    return [
        [BOS, *torch.randint(3, 50, (length,), generator=torch.Generator().manual_seed(i)).tolist()]
        for i in range(n)
    ]


def test_rows_begin_with_bos_and_are_pieces_of_the_stream():
    stream = Stream(documents(), BOS, seed=3)
    rows = stream.rows(step=0, batch_tokens=1024, context=256)
    assert rows.shape == (4, 257) and (rows[:, 0] == BOS).all()
    text = " ".join(map(str, stream._joined.tolist()))
    for row in rows:
        assert " ".join(map(str, row[1:].tolist())) in text


def test_an_epoch_shows_each_block_once_and_the_next_one_another_order():
    stream = Stream(documents(), BOS, seed=3)  # 4040 tokens: 6 blocks of 512, 3 steps of 1024
    first = torch.cat([stream.rows(step, 1024, 512) for step in range(3)])
    assert len({tuple(row.tolist()) for row in first}) == 6
    assert not torch.equal(first[:2], stream.rows(3, 1024, 512))


def test_rows_are_a_function_of_seed_and_step():
    direct = Stream(documents(), BOS, seed=3).rows(5, 1024, 256)
    walked = Stream(documents(), BOS, seed=3)
    for step in range(6):
        rows = walked.rows(step, 1024, 256)
    assert torch.equal(rows, direct)
    assert not torch.equal(Stream(documents(), BOS, seed=4).rows(5, 1024, 256), direct)


def test_held_out_windows_by_hand():
    windows = held_out_windows([[7] * 256, [8, 9]], BOS)
    assert windows.shape == (3, 256)
    assert windows[0].tolist() == [BOS] + [7] * 255
    assert windows[1].tolist() == [BOS, 7] + [-100] * 254
    assert windows[2].tolist() == [BOS, 8, 9] + [-100] * 253


def test_a_model_without_an_opinion_loses_log_of_the_vocabulary():
    model = tiny_model()
    torch.nn.init.zeros_(model.model.embed_tokens.weight)  # tied with the head: all logits are zero
    nats, n_tokens = nats_and_tokens(model, held_out_windows([[7] * 256, [8, 9]], BOS))
    assert n_tokens == 258
    assert nats / n_tokens == pytest.approx(math.log(50), rel=1e-5)


def test_learning_rate_by_hand(tmp_path):
    config = LMConfig(out=tmp_path, n_steps=100, warmup_steps=20, lr=1.0)
    assert config.lr_at(0) == pytest.approx(1 / 21)
    assert config.lr_at(20) == 1.0
    assert config.lr_at(60) == 0.5
    assert config.lr_at(99) == pytest.approx(1 / 80)
    assert [config.context(step) for step in (0, 84, 85, 99)] == [256, 256, 512, 512]


def test_bad_steps_are_refused(tmp_path):
    with pytest.raises(ValueError, match="multiple of 512, got 1000"):
        LMConfig(out=tmp_path, batch_tokens=1000)
    with pytest.raises(ValueError, match="warmup_steps expected less than n_steps=50, got 100"):
        LMConfig(out=tmp_path, n_steps=50)


class Interrupted(Exception):
    pass


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, monkeypatch):
    config = LMConfig(
        out=tmp_path, n_steps=7, warmup_steps=2, batch_tokens=512, long_share=0.3, checkpoint_every_steps=2
    )
    sample = held_out_windows([[7, 8, 9]], BOS)
    whole = tiny_model()
    train_lm.fit(whole, Stream(documents(), BOS, 0), sample, config, tmp_path / "whole")

    class Stops(Stream):
        def rows(self, step, batch_tokens, context):
            if step == 5:
                raise Interrupted
            return super().rows(step, batch_tokens, context)

    with pytest.raises(Interrupted):
        train_lm.fit(tiny_model(), Stops(documents(), BOS, 0), sample, config, tmp_path / "parts")
    resumed = tiny_model()
    train_lm.fit(resumed, Stream(documents(), BOS, 0), sample, config, tmp_path / "parts")
    for (name, expected), actual in zip(whole.state_dict().items(), resumed.state_dict().values()):
        assert torch.equal(actual, expected), name
    assert not torch.equal(whole.model.embed_tokens.weight, tiny_model().model.embed_tokens.weight)
