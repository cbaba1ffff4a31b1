"""Texts as they are compared: the normal forms of two question-answering benchmarks."""

from __future__ import annotations

import re
import string

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_SQUAD = str.maketrans("", "", string.punctuation)
_TRIVIAQA = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))


def squad_normal(text: str) -> str:
    """Lower case, without ASCII punctuation, articles and surplus white space.

    source: the evaluation script of SQuAD 1.1, Rajpurkar et al. 2016, arXiv:1606.05250
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_SQUAD)).split())


def triviaqa_normal(text: str) -> str:
    """Lower case, with a space for each underscore and mark of punctuation, without articles and surplus
    white space: "Campbell-Bannerman" is two words here and one in SQuAD.

    source: the evaluation script of TriviaQA, Joshi et al. 2017, arXiv:1705.03551
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_TRIVIAQA)).split())


NORMAL_FORMS = {"squad": squad_normal, "triviaqa": triviaqa_normal}
