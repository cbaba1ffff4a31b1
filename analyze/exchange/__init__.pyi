from .label_files import export_labels as export_labels
from .label_files import import_labels as import_labels
