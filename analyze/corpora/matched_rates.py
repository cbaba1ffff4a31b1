"""Rates of two groups compared: exactly as they are, and within strata of what else differs between them."""

from __future__ import annotations

import numpy as np

Z95 = 1.959963984540054


def fisher_p(in_a: np.ndarray, in_b: np.ndarray, n_a: int, n_b: int) -> np.ndarray:
    """Two-sided p of Fisher's exact test for each of m latents, twice the smaller tail: float64[m].

    in_a, in_b: int64[m], documents of either corpus in which the latent fires, of n_a and n_b
    """
    from scipy.stats import hypergeom

    drawn = hypergeom(n_a + n_b, in_a + in_b, n_a)
    return np.minimum(1.0, 2 * np.minimum(drawn.cdf(in_a), drawn.sf(in_a - 1)))


def newcombe(in_a: np.ndarray, in_b: np.ndarray, n_a: int, n_b: int) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of rate A − rate B: low and high, float64[m] each.

    source: Newcombe 1998, method 10, doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I
    """
    (p_a, low_a, high_a), (p_b, low_b, high_b) = _wilson(in_a, n_a), _wilson(in_b, n_b)
    difference = p_a - p_b
    return (
        difference - np.sqrt((p_a - low_a) ** 2 + (high_b - p_b) ** 2),
        difference + np.sqrt((high_a - p_a) ** 2 + (p_b - low_b) ** 2),
    )


def _wilson(hits: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rate, square = hits / n, Z95**2 / n
    centre = (rate + square / 2) / (1 + square)
    half = np.sqrt(rate * (1 - rate) * square + square**2 / 4) / (1 + square)
    return rate, centre - half, centre + half


def mantel_haenszel(hits_a: np.ndarray, hits_b: np.ndarray, n_a: np.ndarray, n_b: np.ndarray) -> np.ndarray:
    """Rate A − rate B within strata, with the ends of its 95 % interval: float64[3 m]; nan without a stratum
    of both.

    hits_a, hits_b: float64[s m], documents by stratum in which each latent fires; n_a, n_b: int64[s]
    source: Greenland and Robins 1985, doi:10.2307/2530643
    """
    both = (n_a > 0) & (n_b > 0)
    if not both.any():
        return np.full((3, hits_a.shape[1]), np.nan)
    a, b, n_a, n_b = hits_a[both], hits_b[both], n_a[both, None], n_b[both, None]
    n = n_a + n_b
    weight = (n_a * n_b / n).sum()
    difference = ((a * n_b - b * n_a) / n).sum(0) / weight
    spread = (a * (n_a - a) * n_b**3 + b * (n_b - b) * n_a**3) / (n_a * n_b * n**2)
    half = Z95 * np.sqrt(spread.sum(0)) / weight
    return np.stack([difference, difference - half, difference + half])
