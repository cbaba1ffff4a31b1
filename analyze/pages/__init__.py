"""Pages to look at: features of an SAE, and runs beside each other.

page_of_features    the feature page
metric_columns      the numbers of a run, by column
report              the report of training runs
report_evaluations  evaluations in the report
report_study        a hallucination study on one page
run_folders         the folders of runs, read for the report
"""

from saelens_lite.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
