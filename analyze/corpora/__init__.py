"""What differs between two corpora: latents that fire in more documents of one, and what explains it.

differing_latents  rates of documents compared, crude and matched, and judged beside surface rivals
matched_rates      the difference of two rates within strata
difference_page    the same as a page
text_starts        texts cut to what a model reads of them
examples           the strongest firings of a latent in texts
"""

from saelens_lite.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
