"""What goes to other tools and comes from them: labels as files, and dashboards.

whole_index         an index out to other tools and in from them
dashboards          what a dashboard says, as columns
index_dashboards    the dashboards of an index
imported_index      an index made of dashboards
saedashboard_batch  SAEDashboard's batches
saedashboard_vis    SAEDashboard's SaeVisData
neuronpedia         Neuronpedia's export of a source
label_files         labels as JSON and CSV, and Neuronpedia's explanations
"""

from saelens_lite.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
