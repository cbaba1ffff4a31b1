"""Training: rows of an activation store in, a sparse autoencoder out.

single          one SAE
grid            many SAEs from one pass over the rows
crosscoders     one crosscoder
transcoders     one transcoder
l0_choice       how many latents a token, by how decoder rows lie
refit           what the penalty shrank in an SAE that exists, fitted again
config          what the training of an SAE is asked for
run_config      what any run is: rows, seeds, steps, files and clocks
presets         defaults from published recipes
random_streams  a generator for each purpose
comm            what a step exchanges with other processes: alone, nothing
latent_shards   the same where rows and latents are divided among processes
"""

from saelens_lite.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
