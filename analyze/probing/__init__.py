"""Labelled texts told apart by latents.

pooling         latents pooled over each text
labelled_texts  texts with labels, from a file
probes          sparse probes with their controls
fit             one probe fitted
labelled_items  labelled items seen through an SAE
clusters        groups of texts that are split as one
report          probes as a table
splitting       one feature in several latents
absorption      a feature that others absorb
"""

from saelens_lite.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
