"""Question 5: how the weights leave their start: how fast, how straight, and to what end."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import optimize, stats


def thin(steps: np.ndarray, points: int = 60) -> np.ndarray:
    """Indices of about `points` of the rising steps, from 1 on, evenly spaced in log t."""
    steps = np.asarray(steps)
    start = int(np.searchsorted(steps, 1))
    if start == len(steps):
        return np.empty(0, int)
    return np.unique(np.searchsorted(steps, np.geomspace(steps[start], steps[-1], points)))


def growth_exponent(steps: np.ndarray, distances: np.ndarray) -> float:
    """p of the power law c t^p nearest to ||W_t - W_0||: 1 is straight, 1/2 a random walk.

    By least squares of the distance itself, at steps from 1 on, evenly spaced in log t.
    """
    chosen = thin(steps)
    t, d = np.float64(steps)[chosen], np.float64(distances)[chosen]
    if len(t) < 2 or not d.any():
        return float("nan")

    def loss(p: float) -> float:
        power = t**p
        return float(np.sum((d - power * (power @ d) / (power @ power)) ** 2))  # with the best c

    return float(optimize.minimize_scalar(loss, bounds=(-1, 3), options={"xatol": 1e-9}).x)


def drift_ratio(distance: float, update_norms: np.ndarray) -> float:
    """||W_T - W_0|| / sqrt(sum_t ||dW_t||^2), the updates of every step: nan if none moved.

    1 is a random walk, sqrt(T) a straight line of T equal steps; below 1 the path turns back.
    """
    path = float(np.linalg.norm(np.float64(update_norms)))
    return float(distance) / path if path > 0 else float("nan")


class Trend(NamedTuple):
    """A least-squares line: slope per step, and change: what it rises by, over the values' mean."""

    slope: float
    change: float


def late_trend(steps: np.ndarray, values: np.ndarray, part: float = 1 / 3) -> Trend:
    """Does a series still rise in the last `part` of its steps?

    The weights' norm on separable data does, as log t, after the training error is 0 (Soudry et
    al., JMLR 2018).

    Raises:
      ValueError: fewer than two steps in that part.
    """
    steps, values = np.asarray(steps), np.float64(values)
    last = steps >= steps[-1] - part * (steps[-1] - steps[0])
    t, v = np.float64(steps[last]), values[last]
    if len(t) < 2:
        raise ValueError(f"{len(t)} value in the last {part:.0%} of the steps: 2 are required")
    slope, mean = float(stats.linregress(t, v).slope), float(v.mean())
    return Trend(slope, slope * float(t[-1] - t[0]) / mean if mean else float("nan"))
