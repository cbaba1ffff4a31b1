"""What differs between two models that read one text: cheap baselines first, then crosscoders.

row_differences  how far rows are apart, and along which directions
predictions      how far predictions are apart, token by token
scaling          whether a latent of one model is in the other after all
exclusive        latents of one model alone, and where they fire
one_side         the SAE of one side of a crosscoder
mean_difference  what the mean difference says in words
page             all of it as a page
"""

from saelens_lite.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
