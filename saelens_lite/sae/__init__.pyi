from .autoencoder import SAEOutput as SAEOutput
from .autoencoder import SparseAutoencoder as SparseAutoencoder
from .config import SAEConfig as SAEConfig
from .latents import SparseLatents as SparseLatents
from .metrics import FiringSums as FiringSums
from .metrics import ReconstructionSums as ReconstructionSums
from .nonlinearity import geometric_median as geometric_median
