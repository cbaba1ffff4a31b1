from .config import HarvestConfig as HarvestConfig
from .estimate import Estimate as Estimate
from .harvest import estimate_harvest as estimate_harvest
from .harvest import estimate_run as estimate_run
from .harvest import harvest_activations as harvest_activations
from .harvest import run_harvest as run_harvest
from .more_hook_points import add_hook_points as add_hook_points
