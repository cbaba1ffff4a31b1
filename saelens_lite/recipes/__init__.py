"""Rooms put together: what needs harvest, train and analyze at once.

streaming    train on activations as they are made
of_decoders  train an SAE on the decoder rows of another
"""

from saelens_lite.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
