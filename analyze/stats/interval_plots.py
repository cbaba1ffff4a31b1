"""Estimates with their intervals as pictures, by matplotlib, which loads when one is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from saelens_lite.misfits import described


def new_axes(ax: Any = None, *, height: float = 3.5) -> Any:
    """The matplotlib axes given, or those of a new figure. height: inches

    raises: TypeError for what is none; ImportError without matplotlib
    """
    try:
        import matplotlib.axes
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "plot expected matplotlib, which is not installed: pip install 'saelens_lite[notebooks]'"
        ) from error
    if ax is not None:
        if not isinstance(ax, matplotlib.axes.Axes):
            raise TypeError(
                f"plot expected ax as matplotlib axes, got {described(ax)}: plt.subplots() makes one"
            )
        return ax
    return plt.subplots(figsize=(6, height), layout="constrained")[1]


def interval_plot(
    names: Sequence[str],
    estimates: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    label: str,
    ax: Any = None,
) -> Any:
    """Axes with a line for each name, from the top: its estimate as a point, its interval as a bar."""
    ax = new_axes(ax, height=1 + 0.25 * len(names))
    places = range(len(names))[::-1]
    ax.hlines(list(places), lows, highs, color="tab:blue", alpha=0.5, linewidth=4)
    ax.plot(estimates, list(places), "o", color="tab:blue")
    ax.set_yticks(list(places), names)
    ax.set_xlabel(label)
    return ax
