"""The hallucination study: latents of what a model knows, edited, beside controls.

study          the study from selection to effect
questions      questions with entities and answers, also as chats
records        files of questions, checked
answers        how an answer is judged
judge          free answers judged by text
generation     answers of any length
kept           what an interrupted run has done
monitor        scores of not knowing, read while a model writes
half           one half of the questions, answered
planned_edits  which edits are made, at which dose
effects        every edit, with controls and rivals
fixed_outcomes  two outcomes named before a run
surface        latents beside the surface of questions
result         effects as a table
labels         who is known
"""

from saelens_lite.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
