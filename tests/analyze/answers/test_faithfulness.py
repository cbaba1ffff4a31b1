"""Answers with a context: information by another way, swapped answers, verdicts in worlds where one knows."""

import gzip
import json

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from saelens_lite.analyze.answers.faithfulness import (
    Grounded,
    faithful_latents,
    mutual_information,
    overlap,
    swapped_answers,
)
from saelens_lite.analyze.probing.pooling import pooled_latents
from saelens_lite.lm.hooks import capture
from tests.analyze.conftest import HOOK_POINT, make_sae

ANIMALS = "cat dog cow hen pig fox owl bee ant rat bat eel elk emu gnu yak".split()


def test_information_is_that_of_scikit_learn_on_the_bins():
    from sklearn.metrics import mutual_info_score

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    values = rng.normal(size=(200, 12)).clip(0).astype(np.float32)
    values[:, 0] = labels  # knows it: ln 2 nearly
    values[:, 1] = 0  # silent
    values[:, 2] += labels * (values[:, 2] > 0)
    found = mutual_information(csr_matrix(values), torch.from_numpy(labels))
    for j in range(12):
        positive = np.sort(values[:, j][values[:, j] > 0])
        middle = positive[len(positive) // 2] if len(positive) else np.inf
        bins = (values[:, j] > 0).astype(int) + (values[:, j] >= middle)
        assert float(found[j]) == pytest.approx(mutual_info_score(labels, bins), abs=1e-9)
    assert found[0] > 0.68 and found[1] == 0 and found.argmax() == 0


def test_information_of_a_table_by_hand():
    """Fires on 3 of 4 with the label and on none of 4 without; equal values are all high."""
    values = np.array([[1.0], [1.0], [1.0], [0], [0], [0], [0], [0]], dtype=np.float32)
    labels = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0])
    p = [(3 / 8, 3 / 8 * 1 / 2), (1 / 8, 5 / 8 * 1 / 2), (4 / 8, 5 / 8 * 1 / 2)]
    assert float(mutual_information(csr_matrix(values), labels)[0]) == pytest.approx(
        sum(both * np.log(both / apart) for both, apart in p)
    )


def test_the_share_of_words_that_a_context_has():
    context = "The Snow-man saw the sun; it was red."
    assert overlap("a red sun", context) == 1 and overlap("The red moon!", context) == 0.5
    assert overlap("...", context) == 0 and overlap("snow man", context) == 1


def test_half_of_the_answers_are_swapped_within_their_group():
    records = [
        Grounded(context=f"c{i}", question=f"q{i}", answer=f"answer {i}", faithful=True, group=f"g{i % 20}")
        for i in range(200)
    ]
    found = swapped_answers(records)
    swapped = [(old, new) for old, new in zip(records, found) if not new.faithful]
    assert 70 < len(swapped) < 130
    for old, new in swapped:
        i = int(new.answer.split()[1])
        assert new.answer != old.answer and i % 20 == int(old.group[1:]) and new.question == old.question
    assert swapped_answers(records) == found != swapped_answers(records, seed=1)
    assert swapped_answers(records[:7]) == records[:7], "each alone in its group"
    assert swapped_answers(found[::-1][:0]) == []


def test_latents_are_pooled_over_a_part_of_each_text(gpt2, byte_tokenizer):
    texts, spans, sae = ["abc def", "xyz"], [(4, 7), (0, 2)], make_sae("relu")
    found = pooled_latents(gpt2, byte_tokenizer, texts, sae, pool="max", spans=spans)
    assert found.n_tokens.tolist() == [3, 2]
    for row, (text, (start, end)) in enumerate(zip(texts, spans)):
        with torch.no_grad(), capture(gpt2, [HOOK_POINT]) as seen:
            gpt2(torch.tensor([byte_tokenizer(text)["input_ids"]]))
            acts = seen[HOOK_POINT][0, 1 + start : 1 + end]  # behind BOS
            wanted = sae.encode(acts).to_dense().amax(0)
        np.testing.assert_allclose(found.latents[row].toarray()[0], wanted.numpy(), atol=1e-5)
        np.testing.assert_allclose(found.acts[row], acts.mean(0).numpy(), atol=1e-5)
    with pytest.raises(ValueError, match="expected texts with tokens, got 'xyz' at place 0"):
        pooled_latents(gpt2, byte_tokenizer, ["xyz"], sae, spans=[(1, 1)])
    with pytest.raises(ValueError, match="spans expected one for each of 1 texts, got 2"):
        pooled_latents(gpt2, byte_tokenizer, ["xyz"], sae, spans=spans)


def animals(i: int, answer: str, faithful: bool) -> Grounded:
    first, second = ANIMALS[i % 16], ANIMALS[(i * 7 + 3) % 16]
    context = f"{i}: a {first}, a {second}."
    return Grounded(context=context, question="who?", answer=answer, faithful=faithful)


WHOLE = "{context} {question} {answer}"


def test_where_the_words_of_the_context_say_it_no_latent_is_beyond_them(gpt2, byte_tokenizer):
    records = []
    for i in range(160):
        faithful = i % 2 == 0
        there, absent = ANIMALS[i % 16], ANIMALS[(i + 5 + i // 16 % 4) % 16]
        records.append(animals(i, there if faithful else absent, faithful))
    found = faithful_latents(
        gpt2, byte_tokenizer, make_sae("relu"), records, n=5, template=WHOLE, n_resamples=400
    )
    rivals = {rival.name: rival.auroc for rival in found.guard.rivals}
    assert rivals["overlap with the context"] > 0.9
    assert [row.name for row in found.guard.scores][-1] == "5 latents together" and len(found.latents) == 5
    assert all(row.verdict != "beyond the rivals" for row in found.guard.scores)
    assert [row.name for row in found.guard.beside] == ["DiffMean"]
    assert found.information.tolist() == sorted(found.information.tolist(), reverse=True)
    assert "overlap with the context" in str(found)
    assert found.to_dict()["latents"] == found.latents.tolist()


def test_a_latent_that_reads_what_no_rival_counts_is_beyond_them(gpt2, byte_tokenizer):
    """Unfaithful answers end with "q", others with "j": bytes as common as each other."""
    records = [animals(i, "so j" if i % 2 else "so q", i % 2 == 1) for i in range(160)]
    found = faithful_latents(
        gpt2, byte_tokenizer, make_sae("relu"), records, n=3, template=WHOLE, n_resamples=400
    )
    assert found.guard["3 latents together"].auroc > 0.95
    assert found.guard.scores[0].verdict == "beyond the rivals"


def test_what_cannot_be_read_is_refused(gpt2, byte_tokenizer):
    records = [animals(i, "cat", i % 2 == 0) for i in range(40)]
    sae = make_sae("relu")
    long = [*records, Grounded(context="x" * 90, question="?", answer="y", faithful=True)]
    with pytest.raises(ValueError, match="1 of 41 records are longer than the model's 64 tokens: cut their"):
        faithful_latents(gpt2, byte_tokenizer, sae, long, template=WHOLE)
    with pytest.raises(ValueError, match="{context} and {question} once, and {answer} last, got '{context}'"):
        faithful_latents(gpt2, byte_tokenizer, sae, records, template="{context}")
    with pytest.raises(ValueError, match="1 to 48 latents, got 40 and n=49"):
        faithful_latents(gpt2, byte_tokenizer, sae, records, template=WHOLE, n=49)
    alike = [animals(i, "cat", True) for i in range(40)]
    with pytest.raises(ValueError, match="faithful and other answers on the selecting side, got one label"):
        faithful_latents(gpt2, byte_tokenizer, sae, alike, template=WHOLE)
    with pytest.raises(ValueError, match="a record expected a context and an answer"):
        Grounded(context=" ", question="?", answer="x", faithful=True)


def fairy_tales(folder, n: int, room: int = 500) -> list[Grounded]:
    """Questions whose answer stands in the story word for word, with the passage around it."""
    with gzip.open(folder / "stories.jsonl.gz", "rt", encoding="utf-8") as lines:
        stories = {story["id"]: story["text"] for story in map(json.loads, lines)}
    found = []
    with gzip.open(folder / "questions.jsonl.gz", "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            answer, text = row["answers"][0], stories[row["story"]]
            place = text.find(answer)
            if place >= 0 and len(answer) > 3:
                passage = text[max(0, place - room // 2) : place + len(answer) + room // 2]
                record = {"context": passage, "question": row["question"], "answer": answer}
                found.append(Grounded(**record, faithful=True, group=row["story"]))
    return found[:n]


@pytest.mark.slow
def test_fairy_tales_with_swapped_answers_are_told_by_overlap(shared_data):
    """A model of children's stories with random latents: the words of the passage tell all that they do."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared_data / "models/stories3m-llama"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    records = swapped_answers(fairy_tales(shared_data / "corpora/fairytaleqa", 300))
    assert len(records) == 300 and 90 < sum(record.faithful for record in records) < 210
    fields = {"d_model": 192, "d_sae": 768, "k": 16, "hook_point": "blocks.3.hook_resid_post"}
    sae = make_sae("topk", **fields, model_name="LlamaForCausalLM")
    found = faithful_latents(model, tokenizer, sae, records, hook_point="blocks.3.hook_resid_post")
    print(found)
    rivals = {rival.name: rival.auroc for rival in found.guard.rivals}
    assert rivals["overlap with the context"] > 0.9
    assert all(row.verdict != "beyond the rivals" for row in found.guard.scores)
