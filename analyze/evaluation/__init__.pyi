from .evaluate import evaluate_sae as evaluate_sae
from .library_variants import LibraryVariants as LibraryVariants
from .meta import Decomposition as Decomposition
from .result import Evaluation as Evaluation
from .result import EvaluationRow as EvaluationRow
from .side_by_side import Evaluations as Evaluations
from .side_by_side import evaluate_saes as evaluate_saes
