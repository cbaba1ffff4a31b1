"""Harvest: run text through a language model and store the activations of its hook points."""

from .add import add_hook_points
from .config import HarvestConfig
from .estimate import Estimate
from .run import estimate_harvest, estimate_run, harvest_activations, run_harvest

__all__ = [
    "Estimate",
    "HarvestConfig",
    "add_hook_points",
    "estimate_harvest",
    "estimate_run",
    "harvest_activations",
    "run_harvest",
]
