"""Latents of a crosscoder by whose they are: shared, or one model's alone, with where they fire hardest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from saelens_lite.misfits import names_misfits
from saelens_lite.sae.crosscoder import EXCLUSIVE, Crosscoder
from saelens_lite.store.derived import DerivedStore
from saelens_lite.text_table import Lines, Tabular, number, plain

from ..index.max_activating import max_activating_tokens
from ..latents.text_windows import visible
from .scaling import LatentScaling, check_pair, latent_scaling

_EXAMPLES = 3
_SIDES = ("base", "tuned")


@dataclass(frozen=True, slots=True, eq=False)
class ExclusiveLatents(Tabular):
    """What `exclusive_latents` found; `print(found)`.

    lean: float[d_sae], 0 for latents of the base alone, 1 of the tuned model alone; nan for rows of zero
    n_fired: int64[d_sae], rows on which each fires, of n_rows
    scaling: of the candidates of the tuned and of the base model: those whose lean is beyond EXCLUSIVE
    examples: by latent, texts around the rows on which it fires hardest
    """

    lean: Tensor
    n_fired: Tensor
    n_rows: int
    scaling: dict[str, LatentScaling]
    examples: dict[int, tuple[str, ...]]

    @names_misfits
    def latents(self, side: str = "tuned") -> Tensor:
        """int64[m]: latents of one model alone, by lean and by latent scaling, most frequent first."""
        found = self.scaling[side]
        chosen = found.latents[found.exclusive]
        return chosen[self.n_fired[chosen].argsort(descending=True, stable=True)]

    def to_dict(self) -> dict[str, Any]:
        return plain({"n_rows": self.n_rows, "rows": self._records()})

    def _records(self) -> list[dict[str, Any]]:
        rows = []
        for side, found in self.scaling.items():
            order = self.n_fired[found.latents].argsort(descending=True, stable=True)
            for i in order.tolist():
                latent = int(found.latents[i])
                facts = {"side": side, "latent": latent, "lean": float(self.lean[latent])}
                facts |= {"n_fired": int(self.n_fired[latent])}
                facts |= {"nu_error": float(found.nu_error[i])}
                facts |= {"nu_reconstruction": float(found.nu_reconstruction[i])}
                facts |= {"exclusive": bool(found.exclusive[i])}
                rows.append(facts | {"examples": list(self.examples.get(latent, ()))})
        return rows

    def _tables(self) -> list[tuple[str, Lines]]:
        head = ["latent", "of", "lean", "fires on", "ν error", "ν recons", "exclusive", "fires hardest on"]
        lines = [
            [
                str(row["latent"]),
                row["side"],
                f"{row['lean']:.3f}",
                f"{row['n_fired'] / self.n_rows:.2%}",
                number(row["nu_error"], ".2f"),
                number(row["nu_reconstruction"], ".2f"),
                "yes" if row["exclusive"] else "no",
                row["examples"][0] if row["examples"] else "",
            ]
            for row in self._records()
        ]
        return [("", [head, *lines])]

    def _notes(self) -> list[str]:
        said = []
        for side, found in self.scaling.items():
            said.append(
                f"{side}: {len(found.latents)} by decoder norms, {int(found.exclusive.sum())} of them"
            )
        return [
            "Latents of one model alone. "
            + "; ".join(said)
            + " by latent scaling too. The others only look so."
        ]

    def __repr__(self) -> str:
        return self.table()


@names_misfits
def exclusive_latents(
    crosscoder: Crosscoder, store: DerivedStore, tokenizer: Any = None, *, n_examples: int = 50
) -> ExclusiveLatents:
    """Latents that decoder norms call one model's alone, each checked by latent scaling.

        found = exclusive_latents(crosscoder, paired_store([base, tuned]))
        found.latents("tuned")

    store: of the base's and the tuned model's rows side by side
    n_examples: latents of each model that get texts, the most frequent ones
    raises: ValueError for a store of another width, or sides of two widths
    source: Lindsey et al. 2024; Minder et al. 2025, arXiv:2504.02922
    """
    check_pair(crosscoder, store)
    lean = crosscoder.lean().cpu()
    table = max_activating_tokens(crosscoder, store, _EXAMPLES, tokenizer=tokenizer)
    n_fired, has_text = table.n_fired, table.contexts.has_tokens and table.contexts.tokenizer is not None
    scaling, examples = {}, {}
    for side, chosen in (("tuned", lean >= EXCLUSIVE), ("base", lean <= 1 - EXCLUSIVE)):
        latents = (chosen & (n_fired > 0)).nonzero().flatten()
        of = _SIDES.index(side)
        scaling[side] = latent_scaling(crosscoder, store, latents, of=of, against=1 - of)
        shown = latents[n_fired[latents].argsort(descending=True, stable=True)][:n_examples]
        for latent in shown.tolist() if has_text else ():
            examples[latent] = tuple(
                visible(f"{firing.before}«{firing.token}»{firing.after}") for firing in table.latent(latent)
            )
    return ExclusiveLatents(lean, n_fired, store.n_rows, scaling, examples)
