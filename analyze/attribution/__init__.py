"""Which latents and parts a prediction comes from, and which tokens a latent's direction promotes.

lens          the tokens that a latent promotes
logits        direct logit attribution
gradients     attribution by gradients
edges         attribution from latents to latents
stream_parts  the stream as a sum of contributions
final_norm    the last normalisation as a linear map
"""

from saelens_lite.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
