"""Harvest: run text through a language model and store the activations of its hook points."""

from .config import HarvestConfig
from .run import harvest_activations, run_harvest

__all__ = ["HarvestConfig", "harvest_activations", "run_harvest"]
