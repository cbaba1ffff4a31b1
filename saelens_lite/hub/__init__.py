"""SAEs on the Hugging Face hub: what of a run is published, its model card, and the way there and back.

published  the files of SAEs that are published, without what is of this machine
card       the model card
transfer   push and pull
"""

from saelens_lite.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
