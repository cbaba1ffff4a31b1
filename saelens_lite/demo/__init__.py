"""The embedded language model, the text that it was trained on, and a small world to study.

embedded  the model of 2.4 million parameters as a Hugging Face folder
corpus    the source of Python's standard library, as documents
world     people whom a small model is taught to know or not to know
"""

from saelens_lite.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
