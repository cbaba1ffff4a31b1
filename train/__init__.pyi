from .autoencoders.config import AutoencoderConfig as AutoencoderConfig
from .autoencoders.single import train_autoencoder as train_autoencoder
from .config import TrainConfig as TrainConfig
from .grid import train_grid as train_grid
from .l0_choice import L0Choice as L0Choice
from .l0_choice import choose_l0 as choose_l0
from .refit import refit_sae as refit_sae
from .single import train_sae as train_sae
