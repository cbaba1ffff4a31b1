from .of_decoders import meta_sae as meta_sae
from .streaming import train_streaming as train_streaming
