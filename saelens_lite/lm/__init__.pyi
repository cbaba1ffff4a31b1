from .hooks import HookPoint as HookPoint
from .hooks import capture as capture
from .hooks import edit as edit
from .hooks import hook_points as hook_points
from .hooks import run_to as run_to
from .losses import kl_divergence as kl_divergence
from .losses import token_losses as token_losses
from .positions import span_mask as span_mask
