"""The hallucination study: latents of what a model knows, edited, beside controls.

study          the study from selection to effect
questions      questions with entities and answers
records        files of questions, checked
answers        how an answer is judged
judge          free answers judged by text
half           one half of the questions, answered
planned_edits  which edits are made, at which dose
result         effects as a table
"""

from saelens_lite.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
