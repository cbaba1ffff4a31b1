"""The relatives of the sparse autoencoder: rows in, a code, rows out; what each is, its loss, its file.

autoencoder    what all share: units, encode, decode, forward, loss
fields         the facts of a relative, and which kinds have which
kinds          the class of each kind
folder         the file on disk
network        fully connected layers around a code
penalties      what losses add to the error: contraction, sparse codes, decay
pca            principal components, the linear reference
dense          one hidden layer
multilayer     several, of which any can be the code
denoising      rows restored from spoilt ones
contractive    codes that change little with the row
variational    codes with a prior, to sample from
convolutional  images and series
deep_belief    restricted Boltzmann machines, unrolled
"""

from saelens_lite.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
