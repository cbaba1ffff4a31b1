"""The embedded language model: its size, its tokenizer, and that it predicts text it has not seen."""

import math
import re

import pytest
import torch

from saelens_lite.demo.corpus import stdlib_documents
from saelens_lite.demo.embedded import MODEL_DIR

from ..bench.train_lm import SCORED_PER_WINDOW, held_out_windows, nats_and_tokens


def test_it_has_two_to_four_million_parameters_and_at_most_eight_megabytes(embedded):
    model, tokenizer = embedded
    assert 2_000_000 <= sum(p.numel() for p in model.parameters()) <= 4_000_000
    assert (MODEL_DIR / "model.safetensors").stat().st_size <= 8_000_000
    assert len(tokenizer) == model.config.vocab_size == 4096
    assert model.dtype == torch.float32 and not model.training


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n    return x\n",
        "\ttabs\t and  spaces   \n\n\n  \r\n trailing  ",
        " leading space",
        "emoji 🦉👩‍👩‍👧, 漢字かな, naïve, \u00a0\u2028\u200b\x00\x7f",
        "",
    ],
)
def test_the_tokenizer_gives_a_text_back_unchanged(embedded, text):
    _, tokenizer = embedded
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and tokenizer.bos_token_id not in ids[1:]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@pytest.mark.long
def test_the_tokenizer_gives_source_back_unchanged(embedded):
    _, tokenizer = embedded
    for document in list(stdlib_documents("held_out"))[::4]:
        ids = tokenizer(document["text"], verbose=False)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == document["text"], document["name"]


def test_left_padding_keeps_a_batch_in_step(embedded):
    model, tokenizer = embedded
    batch = tokenizer(
        ["import os", "class Queue:\n    def put(self, item"], return_tensors="pt", padding=True
    )
    assert batch["input_ids"][0, 0] == tokenizer.pad_token_id
    out = model.generate(**batch, max_new_tokens=8, do_sample=False)
    alone = model.generate(**tokenizer(["import os"], return_tensors="pt"), max_new_tokens=8, do_sample=False)
    assert out[0, batch["input_ids"].shape[1] :].tolist() == alone[0, -8:].tolist()


@pytest.fixture(scope="module")
def held_out(embedded):
    """Token ids without BOS of the held-out modules."""
    _, tokenizer = embedded
    texts = [document["text"] for document in stdlib_documents("held_out")]
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


@pytest.mark.slow
def test_held_out_loss_is_near_the_card_and_far_below_counting_tokens(embedded, held_out):
    """The bound: the model card's loss on all held-out windows, and 5 % for taking every eighth and for
    another Python."""
    model, tokenizer = embedded
    card = (MODEL_DIR / "README.md").read_text()
    stated = float(re.search(r"\*\*([\d.]+) nats per token", card)[1])
    windows = held_out_windows(held_out, tokenizer.bos_token_id)[::8]
    nats, n_tokens = nats_and_tokens(model, windows)
    assert nats / n_tokens < 1.05 * stated

    # Unigram with add-one smoothing, counted on training text: -mean log((count + 1) / (total + vocabulary)).
    train = tokenizer(
        [d["text"] for d in stdlib_documents("train")][::10], add_special_tokens=False, verbose=False
    )
    ids = torch.tensor([i for document in train["input_ids"] for i in document])
    counts = ids.bincount(minlength=4096).double() + 1
    scored = windows[:, 1:][windows[:, 1:] >= 0]
    unigram = -(counts / counts.sum()).log()[scored].mean()
    assert nats / n_tokens < 0.6 * unigram
    assert unigram < math.log(4096)


@pytest.mark.long
def test_all_512_positions_predict(embedded, held_out):
    """Trained in contexts of 256 and then 512: the second half of a long context is no worse than the
    first."""
    model, tokenizer = embedded
    bos = tokenizer.bos_token_id
    rows = torch.tensor(
        [[bos, *ids[start : start + 511]] for ids in held_out for start in range(0, len(ids) - 511, 511 * 24)]
    )
    with torch.inference_mode():
        logits = model(input_ids=rows).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none").mean(0)
    assert losses[SCORED_PER_WINDOW:].mean() < losses[:SCORED_PER_WINDOW].mean() + 0.05
