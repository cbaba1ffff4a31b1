"""Interventions on the live model: latents and directions changed, directions to compare with, and doses.

latents         ablate, clamp, scale, steer, and the reconstruction in the stream's place
directions      a direction ablated or added
stream_edit     how an edit reaches the stream, and at which tokens
controls        latents and directions to compare an edit with
continued_text  what a model writes under an edit
doses           the effect of an edit by its strength
neutral_text    what an edit does to neutral text
refusal_logit   a constant on the logit of refusal
"""

from saelens_lite.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
