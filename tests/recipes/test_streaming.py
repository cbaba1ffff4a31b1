"""Training on activations as they are made: the rows of a store of the same text, and the same way on after a
kill."""

import json

import pytest
import torch

import saelens_lite as sl
from saelens_lite.harvest.streaming import activation_stream
from saelens_lite.hashing import is_held_out
from saelens_lite.train.config import TrainConfig
from saelens_lite.train.optimise.trainer import Trainer
from saelens_lite.train.rows.stream_rows import Place, StreamRows

HOOK_POINT = "blocks.0.hook_resid_post"
TEXTS = [
    f"document {i} speaks of {i * i} things, and of {chr(97 + i % 26) * (3 + i % 7)}" for i in range(100)
]
TEXT_OPTIONS = {"context_length": 32, "batch_size_seqs": 4, "documents_per_shard": 8}
OPTIONS = {
    "k": 3,
    "d_sae": 48,
    "batch_size_rows": 64,
    "buffer_rows": 512,
    "n_steps": 24,
    "device": "cpu",
    "progress": False,
}


@pytest.fixture
def train(gpt2, byte_tokenizer, tmp_path):
    """train(output, dataset=TEXTS, **fields)"""

    def run(output="sae", dataset=TEXTS, **fields):
        settings = (
            OPTIONS | TEXT_OPTIONS | {"output": str(tmp_path / output), "tokenizer": byte_tokenizer} | fields
        )
        return sl.train_streaming(gpt2, dataset, HOOK_POINT, **settings)

    return run


@pytest.fixture
def store(gpt2, byte_tokenizer, tmp_path):
    options = TEXT_OPTIONS | {"max_tokens": 10**6, "tokenizer": byte_tokenizer, "progress": False}
    return sl.harvest_activations(gpt2, TEXTS, HOOK_POINT, tmp_path / "store", **options)


@pytest.fixture
def rows(gpt2, byte_tokenizer):
    """rows(position=None, dataset=TEXTS, **fields): begun, and closed at the end."""
    opened = []

    def begin(position=None, dataset=TEXTS, **fields):
        stream = activation_stream(gpt2, dataset, HOOK_POINT, tokenizer=byte_tokenizer, **TEXT_OPTIONS)
        found = StreamRows(stream.__enter__(), TrainConfig(**OPTIONS | {"prefetch": False} | fields))
        opened.append((found, stream))
        found.begin(position)
        return found

    yield begin
    for found, stream in opened:
        found.close()
        stream.__exit__(None, None, None)


def as_set(acts):
    return {tuple(row) for row in acts.tolist()}


# the rows


@pytest.mark.long
def test_an_epoch_is_the_training_rows_of_a_store_buffer_by_buffer(store, rows):
    """Buffers are 512 rows, 8 steps, in the order of the text."""
    acts = store.gather(torch.arange(store.n_rows))
    training = acts[~store.held_out_rows()]
    n_steps = len(training) // 64
    assert n_steps > 50
    found = rows()
    for buffer in range(n_steps // 8):
        batches = torch.cat([found.batch(step) for step in range(8 * buffer, 8 * buffer + 8)])
        expected = training[512 * buffer : 512 * (buffer + 1)]
        assert not torch.equal(batches, expected)
        assert torch.equal(batches.sort(0).values, expected.sort(0).values)
    rest = torch.cat([found.batch(step) for step in range(n_steps // 8 * 8, n_steps)])
    assert as_set(rest) <= as_set(training[n_steps // 8 * 512 :]) and len(rest) < 512


@pytest.mark.long
def test_held_out_rows_are_those_of_a_store_and_never_trained_on(store, rows):
    found = rows(held_out_fraction=0.3, eval_rows=100)
    acts, held_out = store.gather(torch.arange(store.n_rows)), store.held_out_rows(0.3)
    assert torch.equal(found.held_out(), acts[held_out][:100])
    seen = torch.cat([found._buffers[found._place(step)].doc_ids.flatten() for step in range(0, 100, 8)])
    assert len(seen.unique()) > 50 and not is_held_out(seen, 0.3).any()
    assert len(rows(held_out_fraction=0.0).held_out()) == 0


def test_of_few_shards_all_held_out_rows_are_taken(store, rows):
    """The first buffer needs 2 shards of 8 documents; more held-out rows are not looked for."""
    found = rows(held_out_fraction=0.3, eval_rows=10**6)
    first = store.held_out_rows(0.3)[: sum(store.shard_rows[: found._held_out_shards])]
    assert 0 < found._held_out_shards < 5 and len(found.held_out()) == int(first.sum())


def test_the_scale_is_that_of_the_first_buffer(rows):
    found = rows()
    first = torch.cat([found.batch(step) for step in range(8)])
    distances = (first - first.mean(0)).square().sum(1)
    assert float(distances.mean()) * found.scale**2 == pytest.approx(32, rel=1e-5)
    assert rows(scale_input=False).scale == 1
    assert as_set(found.sample(100)) <= as_set(first) and len(found.sample(100)) == 100


@pytest.mark.long
def test_batches_are_a_function_of_seed_and_step(rows):
    forwards = [rows().batch(step) for step in range(0, 200, 25)]
    again = rows()
    for i in (7, 3, 5, 0):
        assert torch.equal(again.batch(25 * i), forwards[i])
    assert not torch.equal(rows(seed=1).batch(0), forwards[0])


@pytest.mark.long
def test_the_next_epoch_has_the_same_rows_in_another_order(rows):
    found = rows(dataset=TEXTS[:20], buffer_rows=10**6)
    found.batch(40)
    n = found._places[1].first_step
    first, second = (torch.cat([found.batch(step) for step in range(e * n, (e + 1) * n)]) for e in (0, 1))
    assert found._places[1] == Place(epoch=1, first_step=n)
    assert not torch.equal(first, second)
    assert len(as_set(first) & as_set(second)) > len(as_set(first)) - 64


@pytest.mark.long
def test_it_goes_on_where_it_was(rows):
    whole = rows()
    for step in (1, 7, 8, 9, 23, 60, 100, 130):
        expected = [whole.batch(step + i) for i in range(10)]
        before = rows()
        before.batch(step - 1)
        position = json.loads(json.dumps(before.position(step)))
        found = rows(position)
        assert [torch.equal(found.batch(step + i), batch) for i, batch in enumerate(expected)] == [True] * 10
        assert found.scale == whole.scale and torch.equal(found.held_out(), whole.held_out())


@pytest.mark.long
def test_buffers_made_ahead_are_the_same(rows):
    steps, alone = (*range(0, 150, 5), 3, 149), rows(n_steps=150)
    expected = [alone.batch(step) for step in steps]
    ahead = rows(n_steps=150, prefetch=True)
    assert ahead._buffers._next is not None and alone._buffers._next is None
    assert all(torch.equal(ahead.batch(step), batch) for step, batch in zip(steps, expected, strict=True))
    assert torch.equal(alone.held_out(), ahead.held_out())


def test_a_row_that_is_not_finite_is_named_by_its_document(rows, gpt2):
    found = rows(held_out_fraction=0.0)
    found._buffers[Place()].acts[3, 5] = torch.nan
    document = int(found._buffers[Place()].doc_ids[3, 5])
    with pytest.raises(FloatingPointError, match=rf"loss: a row of document {document} \(from 0\) holds NaN"):
        found.check_steps(0, 8, "loss")


def test_what_a_stream_cannot_do_is_said(rows, train, monkeypatch):
    for fields, message in (
        ({"n_steps": None}, "expected n_steps, as its length is not known"),
        ({"max_norm_ratio": 10.0}, "max_norm_ratio needs the median"),
        (
            {"end_to_end": "kl", "init_from": "an SAE", "d_sae": None},
            "end_to_end learns from the contexts of a store",
        ),
        ({"store_weights": (1.0,)}, "no field 'store_weights'"),
        ({"context_lenght": 8}, "no field 'context_lenght' .did you mean 'context_length'"),
        (
            {"dataset": TEXTS[:1], "held_out_fraction": 0.0},
            "at least one batch of 64 rows, the dataset has [0-9]+ outside",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            train(**fields)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="expected one process, got several"):
        train()


# the run


@pytest.mark.long
def test_the_sae_is_trained_saved_and_recorded(train, tmp_path):
    sae = train(n_steps=100)
    facts = sae.config.metadata["saelens_lite"]
    assert facts["steps"] == 100 and facts["held_out_fvu"] < 0.8
    assert len(facts["stream"]) == 64 and "store" not in facts
    loaded = sl.SparseAutoencoder.load(tmp_path / "sae")
    assert torch.equal(loaded.W_dec, sae.W_dec)
    assert (loaded.config.hook_point, loaded.config.metadata["context_size"]) == (HOOK_POINT, 32)
    assert not list(tmp_path.rglob("plan.json"))


def test_a_finished_run_is_returned_and_of_other_text_refused(train, monkeypatch):
    first = train()
    monkeypatch.setattr(Trainer, "update", lambda *_: pytest.fail("it trains again"))
    assert torch.equal(train().W_dec, first.W_dec)
    with pytest.raises(ValueError, match="holds another run, finished: stream expected 'content "):
        train(dataset=TEXTS[1:])


class Killed(BaseException):
    """Ends a run as a kill would: nothing catches it."""


@pytest.mark.long
@pytest.mark.parametrize("prefetch", [False, True])
def test_killed_it_goes_on_and_ends_with_the_same_bits(train, tmp_path, monkeypatch, prefetch):
    whole = train("whole", n_steps=80)
    update = Trainer.update
    for killed_before in (13, 37, 70):

        def dying(self, acts, at=killed_before):
            if self.steps_done == at:
                raise Killed
            return update(self, acts)

        monkeypatch.setattr(Trainer, "update", dying)
        with pytest.raises(Killed):
            train("killed", n_steps=80, checkpoint_every_steps=8, prefetch=prefetch)
    monkeypatch.undo()
    sae = train("killed", n_steps=80, checkpoint_every_steps=8, prefetch=prefetch)
    assert torch.equal(sae.W_enc, whole.W_enc) and torch.equal(sae.W_dec, whole.W_dec)
    numbers = []
    for output in ("whole", "killed"):
        lines = [json.loads(line) for line in (tmp_path / output / "metrics.jsonl").read_text().splitlines()]
        numbers.append(
            [{key: value for key, value in line.items() if key != "tokens_per_s"} for line in lines]
        )
    assert numbers[0] == numbers[1]


def test_another_text_is_another_run(train, monkeypatch):
    update = Trainer.update
    monkeypatch.setattr(
        Trainer, "update", lambda self, acts: 1 / 0 if self.steps_done == 13 else update(self, acts)
    )
    with pytest.raises(ZeroDivisionError):
        train(checkpoint_every_steps=4)
    with pytest.raises(ValueError, match="holds another run, stopped at step 12: stream expected 'content"):
        train(dataset=TEXTS[1:])


def test_another_state_of_the_model_is_another_run(train, gpt2, monkeypatch):
    update = Trainer.update
    with monkeypatch.context() as patch:
        patch.setattr(
            Trainer, "update", lambda self, acts: 1 / 0 if self.steps_done == 13 else update(self, acts)
        )
        with pytest.raises(ZeroDivisionError):
            train(checkpoint_every_steps=4)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ValueError, match="state.autocast expected None, got 'bfloat16'"):
            train(checkpoint_every_steps=4)


@pytest.mark.long
def test_a_run_of_a_version_that_recorded_no_state_resumes(train, monkeypatch):
    update, identity = Trainer.update, StreamRows.identity.fget
    with monkeypatch.context() as patch:
        patch.setattr(
            StreamRows,
            "identity",
            property(lambda rows: {name: part for name, part in identity(rows).items() if name != "state"}),
        )
        patch.setattr(
            Trainer, "update", lambda self, acts: 1 / 0 if self.steps_done == 13 else update(self, acts)
        )
        with pytest.raises(ZeroDivisionError):
            train(checkpoint_every_steps=4)
    first = train(checkpoint_every_steps=4)
    assert torch.equal(first.W_dec, train("whole").W_dec)


def test_forward_passes_have_the_precision_of_the_steps(train, monkeypatch):
    seen, update, fill = [], Trainer.update, StreamRows._fill

    def noted(call):
        def run(*args):
            seen.append((call.__name__, torch.get_float32_matmul_precision()))
            return call(*args)

        return run

    monkeypatch.setattr(Trainer, "update", noted(update))
    monkeypatch.setattr(StreamRows, "_fill", noted(fill))
    before = torch.get_float32_matmul_precision()
    train(matmul_precision="medium", n_steps=2)
    assert set(seen) == {("_fill", "medium"), ("update", "medium")}
    assert torch.get_float32_matmul_precision() == before
