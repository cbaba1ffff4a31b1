from .page_of_features import feature_page as feature_page
from .report import report_page as report_page
from .report_study import study_page as study_page
