from .corpus import documents as documents
from .embedded import MODEL_DIR as MODEL_DIR
from .embedded import load_model as load_model
