from .transfer import pull_saes as pull_saes
from .transfer import push_saes as push_saes
