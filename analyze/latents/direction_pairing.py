"""Two sets of directions compared: cosines, the best pairing of one with the other, MMCS and MCC."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from saelens_lite.misfits import names_misfits

PAIRED = 4096
"""The most latents that mcc pairs with as many others; of more, it compares PAIRED² pairs."""
_CHUNK_VALUES = 2**24


def abs_cosines(directions: Tensor, others: Tensor) -> Tensor:
    """|cos| of every pair of float[n d] and float[m d]: float32[n m], 0 for a zero row."""
    return (unit(directions) @ unit(others).T).abs()


def unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows.detach().float(), dim=1)


def _check_width(directions: Tensor, others: Tensor) -> None:
    one, other = list(directions.shape), list(others.shape)
    if len(one) != 2 or len(other) != 2 or one[1] != other[1] or 0 in one + other:
        raise ValueError(f"expected directions[n d] and others[m d], got {one} and {other}")


@names_misfits
def mmcs(directions: Tensor, others: Tensor) -> float:
    """Mean over float[n d] of the largest cosine with one of float[m d]: not symmetric, and it grows with m.

    source: Sharkey, Braun and Millidge 2022, "Taking features out of superposition with sparse autoencoders"
    """
    _check_width(directions, others)
    chunks, other_unit = unit(directions).split(max(1, _CHUNK_VALUES // len(others))), unit(others)
    return torch.cat([(rows @ other_unit.T).amax(1) for rows in chunks]).cpu().double().mean().item()


@names_misfits
def mcc(directions: Tensor, others: Tensor) -> float:
    """Mean |cos| over the pairs of the best one-to-one pairing of float[n d] with float[m d].

    Beyond PAIRED² pairs, a draw of `directions` (seed 0) is paired with all of `others`. Fewer then
    compete, so the mean is rather too large than too small.
    source: arXiv:2505.20254, of dictionaries from several seeds
    """
    _check_width(directions, others)
    n_rows = max(1, PAIRED**2 // len(others))
    if len(directions) > n_rows:
        chosen = torch.randperm(len(directions), generator=torch.Generator().manual_seed(0))[:n_rows]
        directions = directions[chosen.to(directions.device)]
    similarity = abs_cosines(directions, others).cpu()
    pairs = best_pairing(similarity)
    return similarity[pairs[:, 0], pairs[:, 1]].double().mean().item()


@names_misfits
def best_pairing(similarity: Tensor) -> Tensor:
    """The one-to-one pairing of rows with columns whose similarities have the largest sum, exactly.

    similarity: float[n m]
    returns: int64[min(n, m), 2], (row, column) of each pair in order of the row (of the column where n > m)
    source: shortest augmenting paths, Kuhn 1955 and Jonker and Volgenant 1987; time n² · m at worst and far
        less where most rows have a column of their own
    """
    if similarity.ndim != 2:
        raise ValueError(f"best_pairing expected similarity[n m], got {list(similarity.shape)}")
    if similarity.shape[0] > similarity.shape[1]:
        return best_pairing(similarity.T).flip(1)
    cost = -similarity.detach().cpu().double().contiguous().numpy()
    n, m = cost.shape
    row_price, column_price = cost.min(axis=1, initial=np.inf), np.zeros(m)
    row_of, column_of = np.full(m, -1), np.full(n, -1)
    for start in range(n):
        # Dijkstra over reduced costs, from an unpaired row to the nearest unpaired column.
        distance, via, reached = np.full(m, np.inf), np.full(m, -1), np.zeros(m, dtype=bool)
        row, travelled, path = start, 0.0, []
        while True:
            through = travelled + cost[row] - row_price[row] - column_price
            closer = (through < distance) & ~reached
            distance[closer], via[closer] = through[closer], row
            column = int(np.where(reached, np.inf, distance).argmin())
            travelled = distance[column]
            if row_of[column] < 0:
                break
            reached[column] = True
            path.append(column)
            row = row_of[column]
        row_price[start] += travelled
        for passed in path:
            row_price[row_of[passed]] += travelled - distance[passed]
            column_price[passed] -= travelled - distance[passed]
        while column >= 0:  # every row on the path takes the column by which it was left
            row = via[column]
            row_of[column] = row
            column_of[row], column = column, column_of[row]
    return torch.from_numpy(np.stack([np.arange(n), column_of], axis=1))
