from .mean_difference import DifferenceLens as DifferenceLens
from .mean_difference import difference_lens as difference_lens
from .predictions import TokenDivergence as TokenDivergence
from .predictions import token_divergence as token_divergence
from .row_differences import RowDifferences as RowDifferences
from .row_differences import compare_rows as compare_rows
