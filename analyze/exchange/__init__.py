"""What goes to other tools and comes from them: labels as files, and dashboards.

label_files  labels as JSON and CSV, and Neuronpedia's explanations
"""

from saelens_lite.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
