"""The range of a series from its own past, and from which deviation on a value leaves it.

All series are looked at as logarithms, so that a deviation is a factor.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy  # its parts load when they are first used

CENTRE, WINDOW = 32, 64  # steps of the past that the centre is taken from, and the scale
FIRST = 24  # steps that a range needs, and as many again for its limit
FALSE_ALARMS = 0.05  # expected in a whole run, over all series and all steps
_FLOOR = 0.02  # of a scale: two per cent, so that series that hardly vary do not alarm on rounding
_LEAST = 0.4  # mean excess of a tail, in scales: that of a normal distribution
_PEAKS = 0.9  # quantile from which on a deviation belongs to the tail
_SHAPE, _PRIOR = 0.1, 30  # of a tail, and how many exceedances it is worth: few tell no shape
_GROWTH = 1.25  # steps from one fit of the tail to the next, as a factor


class Ranges(NamedTuple):
    """The deviations of some series of one link.

    Attributes:
      z: float64 [steps, series], log(value) less its centre, over its scale; 0 where no range is
        known yet, or where the value is 0 or not finite.
      limits: float64 [steps], the z from which on a value is out of range: inf before 2 FIRST.
    """

    z: np.ndarray
    limits: np.ndarray

    @property
    def out(self) -> np.ndarray:
        """Whether a value is above its range: bool [steps, series]."""
        return self.z > self.limits[:, None]


def ranges(values: np.ndarray, links: int = 1) -> Ranges:
    """The deviations of series of one link, and their limits.

    The centre is the median of the last CENTRE values of log(value), the scale 1.4826 times the
    median absolute deviation of the last WINDOW values from their own centres: by how much a step
    was off before. A steady trend or a schedule is thereby part of the scale.

    The limit follows from FALSE_ALARMS by extreme value theory (Siffer et al., "Anomaly detection
    in streams with extreme value theory", KDD 2017): deviations above a high quantile follow a
    generalized Pareto distribution (Balkema and de Haan 1974, Pickands 1975), here fitted by its
    moments (Hosking and Wallis, Technometrics 29, 1987) to the deviations of all series of the
    link together. Its shape, which few values do not tell, is drawn towards that of a Student t
    with ten degrees of freedom; for heavier tails than with eight the stated rate does not hold. A
    fit to the steps before t holds from t on to the next fit, so that no step is judged by itself
    or by later ones.

    Args:
      values: float64 [steps, series]; what is not above 0 or not finite is skipped.
      links: how many links share the false alarms.
    """
    steps, count = values.shape
    if not steps or not count:
        return Ranges(np.zeros((steps, count)), np.full(steps, np.inf))
    known = np.isfinite(values) & (values > 0)
    logs = _held(np.log(np.where(known, values, 1.0)), known)
    error = logs - _running_median(logs, CENTRE, 1)
    scale = 1.4826 * _running_median(np.abs(error), WINDOW, FIRST // 3)
    z = np.where(known, error / np.maximum(scale, _FLOOR), 0.0)
    z[:FIRST] = 0
    limits = np.full(steps, np.inf)
    risk = FALSE_ALARMS / (links * steps * count)
    first, own = 2 * FIRST, known.any(axis=0)
    while first < steps and own.any():
        limits[first:] = _limit(z[FIRST:first, own].ravel(), risk)
        first = int(first * _GROWTH)
    return Ranges(z, limits)


def _held(logs: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The series with the last known value where one is unknown; the first known at the start."""
    place = np.where(known, np.arange(len(logs))[:, None], -1)
    place = np.maximum.accumulate(place, axis=0)
    start = known.argmax(axis=0)
    return np.take_along_axis(logs, np.where(place < 0, start, place), axis=0)


def _running_median(values: np.ndarray, window: int, least: int) -> np.ndarray:
    """The median of up to `window` values before each, an even number, and of `least` at the start:
    [steps, series]."""
    found, half = np.empty_like(values), window // 2
    for t in range(min(window, len(values))):
        found[t] = np.median(values[: max(t, least)], axis=0)
    if len(values) > window:
        for series, column in enumerate(values.T.copy()):
            middle = (scipy.ndimage.rank_filter(column, rank, window) for rank in (half - 1, half))
            found[window:, series] = sum(middle)[half:-half] / 2  # from [t - half, t + half)
    return found


def _limit(sample: np.ndarray, risk: float) -> float:
    """The deviation that is exceeded with probability `risk`, by the tail of a sample."""
    start = float(np.quantile(sample, _PEAKS))
    excess = sample[sample > start] - start
    mean, shape = _LEAST, 0.0
    if len(excess) > 1:
        mean = max(float(excess.mean()), _LEAST)
        shape = min(max((1 - mean**2 / max(float(excess.var()), 1e-12)) / 2, 0.0), 0.3)
    weight = len(excess) / (len(excess) + _PRIOR)
    shape = weight * shape + (1 - weight) * _SHAPE
    scale, times = mean * (1 - shape), max((1 - _PEAKS) / risk, 1.0)
    if shape < 1e-3:
        return start + scale * math.log(times)
    return start + scale / shape * (times**shape - 1)
