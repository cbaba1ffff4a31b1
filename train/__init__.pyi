from .config import TrainConfig as TrainConfig
from .grid import train_grid as train_grid
from .single import train_sae as train_sae
