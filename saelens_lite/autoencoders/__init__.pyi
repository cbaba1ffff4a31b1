from .autoencoder import Autoencoder as Autoencoder
from .autoencoder import Loss as Loss
from .autoencoder import Reconstruction as Reconstruction
from .fields import Relative as Relative
