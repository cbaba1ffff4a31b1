"""Answers of a model: how probable, how sure, right among several.

continuations  log probabilities of texts behind prompts
choices        multiple choice, such as TruthfulQA's
confidence     how sure the output says it is
faithfulness   answers with a context, told from unfaithful ones
normal_forms   texts as they are compared
"""

from saelens_lite.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
