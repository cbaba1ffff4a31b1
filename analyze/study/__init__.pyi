from .answers import Answers as Answers
from .answers import NextToken as NextToken
from .judge import Judge as Judge
from .questions import Question as Question
from .records import read_questions as read_questions
from .result import StudyResult as StudyResult
from .result import StudyRow as StudyRow
from .study import HallucinationStudy as HallucinationStudy
