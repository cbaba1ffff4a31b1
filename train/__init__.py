"""Training: rows of an activation store in, a sparse autoencoder out."""

from .config import TrainConfig
from .loop import train_sae

__all__ = ["TrainConfig", "train_sae"]
