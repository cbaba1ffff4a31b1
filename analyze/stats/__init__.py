"""Ground: intervals, tests and splits that every claim uses.

bootstrap       cluster bootstrap, rank p-values, corrections for many tests
ranks           AUROC and Spearman's correlation
rivals          scores beside what the surface of the items says
rival_report    verdicts on scores as a table
calibration     thresholds of a false-alarm rate, errors of probabilities
surface         lengths, places and frequencies of texts
raters          two raters compared
attempts        answers that were tried, and their risk
power           items that an effect needs
logistic        logistic regression on standardised rows
interval_plots  estimates with their intervals as pictures
document_split  selection and test on different documents
"""

from saelens_lite.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
