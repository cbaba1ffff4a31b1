"""The feature browser: one ES module for static pages, a live server and notebooks.

module          the module's text, and the elements that it fills
head            what a page says of an index as a whole
latent_table    a few numbers of every latent
latent_details  everything about some latents, as arrays
token_windows   the tokens around many rows at once
known_firings   when latents fire, as far as is known
token_texts     texts of tokens by id
payload         arrays on their way to a page
static_files    the files of a static page
steering        latents edited while the model continues a text
answers         what a live page asks and gets
server          the loopback server
widget          the browser in a notebook
"""

from saelens_lite.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
