"""Question 5: how the weights leave their start: how fast, how straight, and to what end."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

JOLT = 10.0  # times the median step, from which a step is part of the jolt
FALLEN = 0.75  # of its way, which the loss has then made
PARTS = 30  # of a run, over which the loss is averaged


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


class Phases(NamedTuple):
    """Of a run: the last step of the jolt, 0 where there is none, and the last step of the fall of
    the loss; the rest of the run comes after it."""

    jolt: int
    fall: int


def phases(update_norms: np.ndarray, losses: np.ndarray) -> Phases:
    """The phases of a run, from its record at every step, of all weights together.

    The jolt ends with the last step of the first tenth that is ten times as long as the run's
    median step, or longer. The fall ends with the first of thirty equal parts of the run in which
    the mean loss has made three quarters of its way from the first step's to the lowest part's.
    """
    steps = len(losses)
    long = update_norms[: steps // 10] >= JOLT * np.median(update_norms)
    jolt = int(np.flatnonzero(long)[-1]) + 1 if long.any() else 0
    ends = np.linspace(0, steps, PARTS + 1).round().astype(int)
    if steps < PARTS or not np.isfinite(losses).all():
        return Phases(jolt, steps)
    means = np.array([losses[a:b].mean() for a, b in itertools.pairwise(ends)])
    lowest = means.min()
    if lowest >= losses[0]:
        return Phases(jolt, steps)
    low = means <= lowest + (1 - FALLEN) * (losses[0] - lowest)
    return Phases(jolt, max(int(ends[1 + int(low.argmax())]), jolt))


MOST = 8  # stretches at most that are measured after the fall

Span = tuple[int, int]  # of steps: after the first, up to the second


def spans(found: Phases, steps: int) -> dict[str, list[Span]]:
    """The stretches of a run over which its phases are measured, by phase.

    The ratio to a random walk grows with the number of steps wherever they keep a direction at all:
    what comes after the fall is measured over stretches as long as that, evenly spread.
    """
    jolt, fall = found
    length = fall - jolt
    count = min((steps - fall) // length, MOST) if length else 0
    starts = np.linspace(fall, steps - length, count).round().astype(int).tolist()
    return {
        "jolt": [(0, jolt)] if jolt else [],
        "fall": [(jolt, fall)] if length > 1 else [],
        "after": [(start, start + length) for start in starts],
    }


def span_ratio(
    weights: Mapping[int, np.ndarray], update_norms: np.ndarray, stretches: Sequence[Span]
) -> float:
    """The mean `drift_ratio` over stretches; nan without any, or without weights at both ends.

    weights: of one layer, by step. update_norms: of every step.
    """
    if not stretches or not {step for span in stretches for step in span} <= weights.keys():
        return float("nan")
    ratios = [
        drift_ratio(float(np.linalg.norm(np.float64(weights[b]) - weights[a])), update_norms[a:b])
        for a, b in stretches
    ]
    return float(np.mean(ratios))


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
