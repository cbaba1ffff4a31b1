"""The activation-difference lens: what the mean difference of two models' rows says in words.

The mean of x_tuned − x_base over the first tokens of many texts, whatever they are about, is read through
the tuned model's unembedding. A model that was tuned narrowly, on one topic or a few facts, shows it there
even on text that has nothing to do with it.

source: Minder et al. 2025, "Narrow Finetuning Leaves Clearly Readable Traces in Activation Differences",
    arXiv:2510.13900: the first 5 positions, logit lens with the final norm, and steering along the mean.
    There, texts stand alone; here, position counts from the start of a context, as documents are packed. A
    mean over all tokens is added, and beside the norm of each mean that of the base's rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saelens_lite.lm.hooks import enters_stream
from saelens_lite.misfits import names_misfits
from saelens_lite.store.derived import difference_store
from saelens_lite.store.reader import ActivationStore
from saelens_lite.text_table import Lines, Tabular, plain, short

from ..attribution.lens import LogitLens, direction_lens
from ..latents.text_windows import visible

_SHOWN = 10


@dataclass(frozen=True, slots=True, eq=False)
class DifferenceLens(Tabular):
    """Mean differences by position, and their tokens; `print(found)`.

    names: of the rows, "token 1", …, "all tokens"; n_tokens: int64[m], behind each mean
    means: float64[m d_model], of x_tuned − x_base
    base_norms: float64[m], mean norm of the base's rows there
    lens: of `means`, in the same order
    """

    names: tuple[str, ...]
    n_tokens: Tensor
    means: Tensor
    base_norms: Tensor
    lens: LogitLens

    def to_dict(self) -> dict[str, Any]:
        """Norms and tokens, for JSON."""
        return {"rows": plain(self._records())}

    def _records(self) -> list[dict[str, Any]]:
        norms = self.means.norm(dim=1)
        return [
            {
                "of": name,
                "n_tokens": int(self.n_tokens[i]),
                "norm": float(norms[i]),
                "base_norm": float(self.base_norms[i]),
                "raised": [token for token, _ in self.lens.top(i)],
                "lowered": [token for token, _ in self.lens.bottom(i)],
            }
            for i, name in enumerate(self.names)
        ]

    def _tables(self) -> list[tuple[str, Lines]]:
        lines = [
            [
                row["of"],
                f"{row['n_tokens']:,}",
                short(row["norm"]),
                short(row["base_norm"]),
                *(
                    " ".join(repr(visible(token)) for token in row[end][:_SHOWN])
                    for end in ("raised", "lowered")
                ),
            ]
            for row in self._records()
        ]
        heads = ["mean of tuned − base", "tokens", "norm", "norm of base rows", "raises", "lowers"]
        return [("", [heads, *lines])]

    def __repr__(self) -> str:
        return self.table()


@names_misfits
def difference_lens(
    base: ActivationStore,
    tuned: ActivationStore,
    tuned_model: nn.Module,
    hook_point: str | None = None,
    *,
    n_positions: int = 5,
    n: int = 20,
    tokenizer: Any = None,
    final_norm: bool = True,
) -> DifferenceLens:
    """The tokens that the mean difference raises and lowers, at the first positions and over all tokens.

        found = difference_lens(base, tuned, tuned_model, tokenizer=tokenizer)
        with sl.edits.steer_direction(base_model, found.means[0], 1.0): base_model.generate(…)

    n_positions: of the first tokens of a context that have rows; n: tokens at either end
    final_norm: whether the means go through the weight of the final norm, as in the paper
    raises: ValueError for stores of different texts or without text, or a place that is not in the stream
    """
    store = difference_store(base, tuned, hook_point)
    point = store.hook_points[0]
    if not enters_stream(tuned_model, point):
        raise ValueError(
            f"the lens expected rows of the stream or of what a block adds to it, got {point}, which the "
            "unembedding does not read"
        )
    d_model = store.d_model()
    totals, norms = torch.zeros(n_positions + 1, d_model).double(), torch.zeros(n_positions + 1).double()
    counts = torch.zeros(n_positions + 1, dtype=torch.int64)
    for shard in range(store.n_shards):
        place = _place_in_context(store, shard).clamp_max(n_positions)
        x, y = (source.acts(shard, at).double() for source, at in store.sources)
        totals.index_add_(0, place, y - x)
        norms.index_add_(0, place, x.norm(dim=1))
        counts += torch.bincount(place, minlength=n_positions + 1)
    for of in (totals, norms, counts):
        of[-1] = of.sum(0)
    seen = counts.clamp_min(1)
    means = totals / seen[:, None]
    names = (*(f"token {i + 1}" for i in range(n_positions)), "all tokens")
    lens = direction_lens(means.float(), tuned_model, n, tokenizer, final_norm)
    return DifferenceLens(names, counts, means, norms / seen, lens)


def _place_in_context(store: ActivationStore, shard: int) -> Tensor:
    """int64[n_rows]: how many rows of its context come before each row."""
    sequences, _ = store.row_positions(shard)
    first = torch.searchsorted(sequences, sequences)
    return torch.arange(len(sequences)) - first
