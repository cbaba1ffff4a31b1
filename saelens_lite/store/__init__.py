"""The activation store: documents packed into contexts, and their activations in shards on disk.

layout               names of the files, JSON, versions, sizes
places               which two names mean one place of a model
reader               the store as its readers see it
writer               rows into shards, commits, the manifest
codecs               how a row is stored: f32, f16, bf16, int8
folder               a local folder or a URL
mapped_files         data files mapped into memory, as many as the system allows
document_sample      which rows are scored: documents drawn by hash
covariance           mean and covariance of rows
common_mean          how large the rows' common mean is against their spread
packing              documents into contexts
event_log            a line an event, each with its checksum
verify               every byte looked at, and what is damaged moved aside
derived              stores whose rows are made of other stores' rows as they are read
from_arrays          a store from rows that come from elsewhere
saelens_activations  SAELens' cached activations, in and out
"""

from saelens_lite.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
