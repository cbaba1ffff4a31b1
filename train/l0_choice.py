"""choose_l0: how many latents a token, by the l0 at which decoder rows lean on each other least.

Three grids, each around the least of the one before: coarse (powers of two), then steps of √2, then of at
most 5 %. Each member is a whole run of train_grid in its own folder below `output`, so that the chosen one
needs no further training and a killed search resumes. It costs 12 to 30 runs for one.

The statistic is that of decoder_cosine.py. It has a least value where the SAE has at least as many latents as
there are features and the features are nearly orthogonal. Where they are in superposition it keeps falling
with l0: then nothing is chosen, which the result says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from saelens_lite.config import takes_fields, to_mapping
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.decoder_cosine import mean_decoder_cosine
from saelens_lite.sae.folder import NEVER_FIRED, load_log_sparsity
from saelens_lite.text_table import Lines, Tabular

from .config import TrainConfig
from .grid import train_grid
from .kinds.choice import filled, kind_class
from .single import Store, configured, opened

FLAT = 0.05
"""The least mean |cosine| stands out if those at both ends of the coarse grid are larger by this share."""


@dataclass(frozen=True, slots=True)
class L0Choice(Tabular):
    """The curve of mean |cosine| by l0, and what it chose.

    field: "k" or "target_l0"; values: of it, ascending
    l0, fvu: of each SAE on held-out rows; cosine: mean |cosine| of its decoder rows
    chosen: a value, None where the curve chooses none; why: the reason, as a sentence
    output: the folder above the runs, each named after its value
    """

    field: str
    values: tuple[int, ...]
    l0: tuple[float, ...]
    cosine: tuple[float, ...]
    fvu: tuple[float, ...]
    chosen: int | None
    why: str
    output: str

    @property
    def folder(self) -> Path | None:
        """The run of the chosen value."""
        return None if self.chosen is None else Path(self.output) / f"{self.field}={self.chosen}"

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    def _tables(self) -> list[tuple[str, Lines]]:
        lines = [[self.field, "l0", "mean |cosine|", "fvu", ""]]
        for value, l0, cosine, fvu in zip(self.values, self.l0, self.cosine, self.fvu, strict=True):
            mark = "chosen" if value == self.chosen else ""
            lines.append([str(value), f"{l0:.1f}", f"{cosine:.5f}", f"{fvu:.4f}", mark])
        return [("", lines)]

    def _notes(self) -> list[str]:
        return [self.why]

    __repr__ = Tabular.table


@takes_fields(TrainConfig)
@names_misfits
def choose_l0(
    store: Store | Sequence[Store],
    config: TrainConfig | None = None,
    *,
    lowest: int = 2,
    highest: int | None = None,
    **fields: Any,
) -> L0Choice:
    """Choose k (of the kinds that keep k) or target_l0 (of relu, gated and jumprelu) for a store.

        choice = choose_l0("store/", kind="batchtopk", expansion=8, n_steps=2000, output="runs/l0")
        sae = SparseAutoencoder.load(choice.folder) if choice.chosen else …

    store, config, fields: as for train_sae, without the l0 that is looked for; `output` is the folder above
        the runs. An early stop is repeated by the same call
    lowest, highest: the ends of the coarse grid; None: the smaller of d_model and d_sae / 4
    returns: the curve and what it chose; nothing where no value stands out
    raises: ValueError as train_grid, and for ends between which there are not three powers of two
    source: Chanin and Garriga-Alonso 2025, arXiv:2508.16560
    """
    stores = opened([store] if isinstance(store, Store) else store)
    given = (to_mapping(config) if config else {}) | fields
    whole = configured(config, fields, stores)
    field = l0_field(whole)
    if asked := [name for name in ("k", "target_l0") if given.get(name) is not None]:
        raise ValueError(f"choose_l0 expected no {asked[0]}, as it looks for one, got {given[asked[0]]}")
    d_model = stores[0].d_model(whole.hook_point)
    highest = highest or min(d_model, (whole.d_sae or whole.expansion * d_model) // 4)
    coarse = [v for v in (2**i for i in range(31)) if lowest <= v <= highest]
    if len(coarse) < 3:
        raise ValueError(
            f"choose_l0 expected three powers of two from lowest={lowest} to highest={highest}, got {coarse}"
        )
    found: dict[int, _Point] = {}

    def measure(values: Iterable[int]) -> None:
        if missing := sorted({v for v in values if lowest <= v <= highest} - found.keys()):
            saes = train_grid(stores, {field: missing}, config, **fields)
            folders = (Path(whole.output) / name for name in saes)
            found.update(zip(missing, map(_point, saes.values(), folders), strict=True))

    measure(coarse)
    least, why = stands_out({v: found[v].cosine for v in coarse})
    chosen = None
    if least is not None:
        measure(round(least * 2 ** (half / 2)) for half in (-1, 1))
        centre = min(found, key=lambda v: found[v].cosine)
        measure(steps_around(centre))
        chosen = min(found, key=lambda v: found[v].cosine)
        why = f"The mean |cosine| of decoder rows is least at {field} {chosen}."
    values = tuple(sorted(found))
    l0, cosine, fvu = zip(*(found[v] for v in values), strict=True)
    return L0Choice(field, values, l0, cosine, fvu, chosen, why, whole.output)


def l0_field(config: TrainConfig) -> str:
    """The field that says how many latents a token has, of the configuration's kind: k or target_l0."""
    return "k" if kind_class(str(filled(config).kind)).keeps_k else "target_l0"


class _Point(NamedTuple):
    l0: float
    cosine: float
    fvu: float


def _point(sae: SparseAutoencoder, folder: Path) -> _Point:
    rates, facts = load_log_sparsity(folder), sae.config.metadata["saelens_lite"]
    fires = None if rates is None else rates > NEVER_FIRED
    return _Point(facts["held_out_l0"], mean_decoder_cosine(sae.W_dec, fires), facts["held_out_fvu"])


def stands_out(curve: Mapping[int, float]) -> tuple[int | None, str]:
    """The value with the least mean |cosine| of a coarse grid, if it stands out, and why or why not."""
    values = sorted(curve)
    least = min(values, key=curve.__getitem__)
    if least in (values[0], values[-1]):
        end = "lowest" if least == values[0] else "highest"
        return None, (
            f"No l0 stands out: the mean |cosine| of decoder rows is least at the {end} value, {least:g}. "
            "Widen the ends, or choose l0 by fvu and by what the latents say."
        )
    rise = min(curve[values[0]], curve[values[-1]]) / curve[least] - 1
    if rise < FLAT:
        return None, (
            f"No l0 stands out: the mean |cosine| of decoder rows rises by {rise:.1%} towards the ends, and "
            f"{FLAT:.0%} are asked for. Choose l0 by fvu and by what the latents say."
        )
    return least, ""


def steps_around(centre: int) -> list[int]:
    """Whole values within a factor √2 of the centre, in steps of at most 5 % where whole numbers allow it."""
    steps = math.ceil(math.log(math.sqrt(2)) / math.log(1.05))
    return sorted({round(centre * 2 ** (i / (2 * steps))) for i in range(-steps, steps + 1)})
