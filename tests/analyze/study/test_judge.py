"""The judge of free answers: refusals, matches, normal forms, and agreement with labels given by others."""

import gzip
import json

import pytest

from saelens_lite.analyze.answers.normal_forms import squad_normal, triviaqa_normal
from saelens_lite.analyze.study.judge import Judge

REFUSED = """
I don't know.
I don’t know the answer to that.
I do not have access to real-time information, therefore I cannot answer this question.
I'm sorry, but I can't provide that information.
I am unable to access personal information.
I'm not sure.
I am not familiar with this person.
I have no information about this film.
Unknown.
unknown
No idea!
As an AI language model, I don't have opinions on that.
It is not possible to say who that was.
The question cannot be answered from the text.
The context does not mention the name of the actor.
The exact location is not specified in the context.
There is no evidence or record of Roger Federer winning in 2003.
The premise of the question is incorrect. Nobody of that name was king.
This statement contains a false premise.
There is no eighth studio album by David Bowie released in 1974.
""".strip().splitlines()

ATTEMPTED = """
The capital is Paris.
I'm not sure, but I think it is Paris.
The Man Who Knew Too Much
He could not swim, and does not know the way.
"I Can't Get No" was a hit of 1965.
The Unknown was a film of 1927.
She is a fictional character in a children's book.
He was sorry that there is no place like home.
The question was asked by Turing.
Nobody knows who shot him; Oswald was accused.
The town does not have a harbour.
""".strip().splitlines()


@pytest.mark.parametrize("answer", REFUSED)
def test_a_refusal_is_refused_even_where_it_names_the_answer(answer):
    assert Judge().verdict(answer, ["know", "name", "Paris", "question", "evidence"]) == "refused"


@pytest.mark.parametrize("answer", ATTEMPTED)
def test_an_attempt_is_no_refusal(answer):
    assert Judge().verdict(answer, "Xanadu") == "wrong"


def test_normal_forms_are_those_of_the_two_scripts():
    text = " The  Campbell-Bannerman_Act, an   ‘Era’ (1905)!"
    assert squad_normal(text) == "campbellbannermanact ‘era’ 1905"  # straight marks go, nothing stands there
    assert triviaqa_normal(text) == "campbell bannerman act era 1905"  # a space for each, curly ones too
    assert squad_normal("The A an") == triviaqa_normal("The A an") == ""
    assert triviaqa_normal("Theatre") == "theatre"


@pytest.mark.parametrize(
    "answer, right, contained, whole",
    [
        ("It was written by Jane Austen.", ["Austen, Jane", "Jane Austen"], "correct", "wrong"),
        ("  The Hague!", "hague", "correct", "correct"),
        ("The Beatles", "The Hague", "wrong", "wrong"),
        ("It is in Parisian style", "Paris", "wrong", "wrong"),  # words, not letters
        ("Jane wrote to Mr Austen", "Jane Austen", "wrong", "wrong"),  # side by side
        ("by The The in 1986", "The The", "correct", "wrong"),  # nothing is left of the name
        ("the the", "The The", "correct", "correct"),
        ("They saw the end", "The The", "wrong", "wrong"),
        ("Sir Henry Campbell-Bannerman", "Campbell Bannerman", "correct", "wrong"),
        ("", "Paris", "wrong", "wrong"),
        ("Paris", [], "wrong", "wrong"),  # nobody knows it
    ],
)
def test_a_right_answer_is_contained_or_the_whole(answer, right, contained, whole):
    assert Judge().verdict(answer, right) == contained
    assert Judge(match="whole").verdict(answer, right) == whole


def test_an_answer_ends_where_it_is_told_to():
    answer = "\nLondon.\nQuestion: What is the capital of France?\nAnswer: Paris"
    assert Judge().verdict(answer, "Paris") == "correct"
    assert Judge(until=["\nQuestion:", "\n"]).verdict(answer, "Paris") == "wrong"
    assert Judge(until=["\n"]).verdict(answer, "London") == "correct"


def test_squad_makes_one_word_where_triviaqa_makes_two():
    answer, right = "Henry Campbell-Bannerman", "Bannerman"
    assert Judge().verdict(answer, right) == "correct"
    assert Judge(normal="squad").verdict(answer, right) == "wrong"
    assert Judge(normal=lambda text: text[-1]).verdict("Ivan", "Jan") == "correct"


def test_refusals_are_told_by_patterns_token_ids_or_a_function():
    assert Judge(refusal=[r"^pass\b"]).verdict("Pass.", "x") == "refused"
    assert Judge(refusal=[r"^pass\b"]).verdict("I don't know", "x") == "wrong"
    by_token = Judge(refusal=frozenset({7}))
    assert by_token.verdict("No", "No", first_token=7) == "refused"
    assert by_token.verdict("No", "No", first_token=8) == "correct"
    with pytest.raises(ValueError, match="expected the answer's first token, got none"):
        by_token.verdict("No", "No")
    assert Judge(refusal=lambda answer: len(answer) < 3).verdict("No", "No") == "refused"
    assert Judge(match=lambda answer, right: answer[::-1] in right).verdict("siraP", "Paris") == "correct"


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"match": "contains"}, "match expected 'contained' or 'whole', or a function, got 'contains'"),
        ({"normal": "Squad"}, "normal expected 'squad' or 'triviaqa', or a function, got 'Squad'"),
        ({"refusal": "I cannot"}, r"refusal expected several texts, got 'I cannot': write \['I cannot'\]"),
        ({"refusal": ["(no"]}, "refusal expected regular expressions, or a set of token ids, got '\\(no'"),
        ({"refusal": [3]}, "refusal expected regular expressions, or a set of token ids, got 3"),
        ({"until": [""]}, "until expected texts that end an answer, got an empty one"),
    ],
)
def test_a_judge_that_cannot_be_says_what_it_expected(fields, message):
    with pytest.raises(ValueError, match=message):
        Judge(**fields)


def test_an_empty_right_answer_is_refused():
    with pytest.raises(ValueError, match="a right answer expected text"):
        Judge().verdict("Paris", ["Paris", " "])


LABELLED = [
    ("Jane Austen wrote it.", ["Jane Austen", "Austen"], "correct"),
    ("It was Emily Brontë.", ["Jane Austen", "Austen"], "wrong"),
    ("I do not know who wrote it.", ["Jane Austen", "Austen"], "refused"),
    ("The answer is **42**.", ["42", "forty-two"], "correct"),
    ("Forty-two, I think", ["42", "forty two"], "correct"),
    ("There is no such number.", ["42"], "refused"),
    ("43", ["42"], "wrong"),
    ("1942", ["42"], "wrong"),
    ("Mount Everest (8,849 m)", ["Everest", "Mt. Everest"], "correct"),
    ("K2", ["Everest", "Mt. Everest"], "wrong"),
    ("I cannot answer this question from the provided context.", ["Everest"], "refused"),
    ("The context does not name Everest.", ["Everest"], "refused"),  # the judge has no pattern for "name"
]


def test_agreement_with_labels_is_the_share_and_kappa_by_hand():
    answers, right, labels = zip(*LABELLED)
    found = Judge().agreement(answers, right, labels)
    assert found.differing == (11,) and found.counts["correct", "refused"] == 1
    assert found.share == 11 / 12
    # judged 5 correct, 4 wrong, 3 refused; labelled 4, 4, 4: by chance (5·4 + 4·4 + 3·4) / 144 = 1/3
    assert found.kappa == pytest.approx((11 / 12 - 1 / 3) / (2 / 3))
    with pytest.raises(ValueError, match="labels expected to be of correct, wrong, refused, got 'error'"):
        Judge().agreement(["a"], ["a"], ["error"])
    with pytest.raises(ValueError, match="as many answers, right answers and labels, got 2, 1 and 1"):
        Judge().agreement(["a", "b"], ["a"], ["wrong"])


@pytest.mark.long
def test_ninety_five_of_a_hundred_answers_of_gemma_to_triviaqa_are_judged_as_labelled(shared_data):
    """9,961 answers; tests/bench/judge_agreement.py lists those judged otherwise."""
    with gzip.open(
        shared_data / "corpora/triviaqa_gemma2b/answers.jsonl.gz", "rt", encoding="utf-8"
    ) as lines:
        rows = [json.loads(line) for line in lines]
    verdict = {"error": "wrong", "correct": "correct", "refusal": "refused"}
    labels = [verdict[row["label"]] for row in rows]
    found = Judge().agreement([row["completion"] for row in rows], [row["answers"] for row in rows], labels)
    assert len(rows) == 9961
    assert found.share >= 0.95 and found.kappa >= 0.9, found
