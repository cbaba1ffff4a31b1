from .choices import Choice as Choice
from .choices import MultipleChoice as MultipleChoice
from .choices import multiple_choice as multiple_choice
from .choices import read_choices as read_choices
from .confidence import answer_confidence as answer_confidence
from .confidence import semantic_entropy as semantic_entropy
