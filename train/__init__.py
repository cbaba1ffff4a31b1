"""Training: rows of an activation store in, a sparse autoencoder out."""

from .config import TrainConfig
from .grid import train_grid
from .loop import train_sae

__all__ = ["TrainConfig", "train_grid", "train_sae"]
