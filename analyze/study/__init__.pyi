from .answers import Answers as Answers
from .answers import NextToken as NextToken
from .questions import Record as Record
from .questions import read_records as read_records
from .result import StudyResult as StudyResult
from .result import StudyRow as StudyRow
from .study import HallucinationStudy as HallucinationStudy
