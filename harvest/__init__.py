"""Harvest: run text through a language model and store the activations of its hook points.

harvest           the public calls
prepare           all that can be wrong, looked at first
config            what a harvest is asked for
estimate          rows, bytes and time of a harvest, before it
more_hook_points  further hook points for a finished store
streaming         shards of activations that are not stored
"""

from saelens_lite.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
