from .label_files import export_labels as export_labels
from .label_files import import_labels as import_labels
from .whole_index import export_index as export_index
from .whole_index import import_index as import_index
