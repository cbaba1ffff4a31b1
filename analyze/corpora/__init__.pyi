from .differing_latents import CorpusDifference as CorpusDifference
from .differing_latents import compare_corpora as compare_corpora
