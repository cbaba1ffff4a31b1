"""How good an SAE is, beside its controls.

evaluate          the scores of an SAE on held-out documents
family            SAEs and relatives of them on the same rows, beside principal components
code_scores       what a code is worth: bits, dead units, classes, likeness, a map, noise taken away
side_by_side      several SAEs scored on the same rows
result            the scores as a table
recorded          the scores as plain values, from a result or its file
seed_noise        how scores differ between seeds
meta              scores of an SAE trained on decoder rows
library_variants  the same scores as other libraries define them
"""

from saelens_lite.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
