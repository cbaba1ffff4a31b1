"""What a sparse autoencoder is: its facts, its forward pass, its folder on disk, its streaming scores.

config          the facts of an SAE, and which kinds there are
autoencoder     encode, decode and forward
crosscoder      the same of rows side by side, with a decoder for each side
transcoder      the same, which reads one place of a model and writes another
any_kind        whichever of these a folder holds
centred         SAEs of a model whose writing weights were centred
biases          an encoder that subtracts b_dec, and one that does not
nonlinearity    ReLU, TopK, JumpReLU and Gated
pruning         codes without the latents that the others make up for
latents         the latents of many tokens, kept sparse
folder          the folder on disk, whole or absent
registry        the releases that people know by name, and which open
source          where the files of an SAE are: a path, a release, or a repository
decoder_cosine  how much decoder rows lean on each other
metrics         fvu, l0 and dead latents, as streaming sums
"""

from saelens_lite.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
