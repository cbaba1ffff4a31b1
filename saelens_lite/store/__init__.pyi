from .packing import PackedContexts as PackedContexts
from .packing import pack as pack
from .reader import ActivationStore as ActivationStore
from .saelens_activations import read_saelens_activations as read_saelens_activations
from .saelens_activations import write_saelens_activations as write_saelens_activations
from .verify import Problem as Problem
from .verify import repair_store as repair_store
from .verify import verify_store as verify_store
