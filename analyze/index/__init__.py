"""The feature index: every latent's firings from one pass over a store, on disk.

build           an index made
store_tally     the pass over the store, by one process or many
folder          the files of an index
feature_index   an index opened
latent_facts    all that an index knows of one latent
tally           counts, histograms and strongest firings, as sums
kept_firings    which firings are kept
token_table     the tokens of kept firings
token_sample    tokens sampled from the store
cofiring        latents that fire together
intervals       firings by quantile of activation
unigram         latents that one token explains
output_score    what a latent promotes in the output
labels          labels and notes
search          latents by token, text, pattern, direction or number
max_activating  strongest firings without an index
feature_table   strongest firings as a table
"""

from saelens_lite.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
