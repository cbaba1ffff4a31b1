"""Ground: a store through an SAE, whether the two fit, plain facts of latents, and two SAEs' latents paired.

store_pass         blocks of a store through an SAE
compatibility      whether an SAE fits a model, a store and a place
density            how often latents fire, and which are dead
pruned_codes       how far to prune an SAE's codes for a wanted l0
moments            mean and largest activation of each latent
geometry           angles and norms of encoder and decoder
direction_pairing  two sets of directions paired
text_windows       tokens around a firing, as text
text_latents       the latents of a text of one's own
"""

from saelens_lite.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
