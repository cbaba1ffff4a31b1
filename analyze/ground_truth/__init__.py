"""Scores against features that were planted.

recovery    how well planted features are found
absorption  how far a planted hierarchy is absorbed
"""

from saelens_lite.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
