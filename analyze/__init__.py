"""What an SAE learnt and what its latents do: features with their tokens, scores with controls, edits.

anomaly   how unlike the normal rows a row is
surprise  how surprising the code of a row is
matching  latents of two indexes matched one to one
"""

from saelens_lite.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
