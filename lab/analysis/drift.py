"""Question 5: how the weights leave their start: by what law, how straight, and to what end."""

from __future__ import annotations

import dataclasses

import numpy as np

_ROUNDING = 1e-12  # residuals below this share of the largest distance


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """One fitted law. parameters: (a, b) of a + b log t, or (c, p) of c t^p, log natural.

    rms: root mean square residual, in the distance's unit. r2: share of variance explained.
    ahead: rms error over the last third of the points (in log t) of the fit to those before.
    """

    parameters: tuple[float, float]
    rms: float
    r2: float
    ahead: float


@dataclasses.dataclass(frozen=True, eq=False)
class GrowthFit:
    """Both laws, and which of them the data prefer.

    aic_difference: AIC(logarithm) - AIC(power law): above 0 speaks for the power law. samples:
    the number of independent points that it was counted with. verdict: logarithm, power law,
    neither (the better one explains under 95% of the variance) or undecided.
    """

    logarithm: Fit
    power: Fit
    aic_difference: float
    samples: float
    verdict: str


def thin(steps: np.ndarray, points: int = 60) -> np.ndarray:
    """Indices of about `points` of the rising steps, from 1 on, evenly spaced in log t."""
    steps = np.asarray(steps)
    start = int(np.searchsorted(steps, 1))
    if start == len(steps):
        return np.empty(0, int)
    return np.unique(np.searchsorted(steps, np.geomspace(steps[start], steps[-1], points)))


def growth_fit(steps: np.ndarray, distances: np.ndarray, points: int = 60) -> GrowthFit:
    """Fits a + b log t and c t^p to ||W_t - W_0||, and says whether the data tell them apart.

    Both by least squares of the distance itself, at steps evenly spaced in log t: they have two
    parameters each and the same unit, so that AIC = n log(RSS / n) + const compares them. The
    residuals of a path are not independent: n is the number of points times (1 - r)/(1 + r),
    with r the better fit's lag-1 autocorrelation, at least 1. One law is preferred only if the
    AICs differ by more than 10 and it also predicts the last third better from the rest. A power
    near 0 is a logarithm: then nothing is decided.

    Args:
      steps: rising integers; those below 1 are left out.
      distances: of the same length, in the weights' unit.

    Raises:
      ValueError: fewer than 8 points are left.

    Source: Burnham and Anderson, "Model Selection and Multimodel Inference", 2002, 2.6 (AIC).
    """
    chosen = thin(steps, points)
    if len(chosen) < 8:
        raise ValueError(f"{len(chosen)} distances at steps from 1 on: a fit wants 8 or more")
    t, d = np.float64(steps)[chosen], np.float64(distances)[chosen]
    early = len(t) - len(t) // 3
    fits, residuals = [], []
    for fit, value in ((_fit_logarithm, _logarithm), (_fit_power, _power)):
        parameters, begun = fit(t, d), fit(t[:early], d[:early])
        rest = d - value(t, *parameters)
        ahead = _rms(d[early:] - value(t[early:], *begun))
        spread = np.var(d)
        r2 = float(1 - np.mean(rest**2) / spread) if spread > 0 else float("nan")
        fits.append(Fit(parameters, _rms(rest), r2, ahead))
        residuals.append(rest)
    logarithm, power = fits
    better = int(power.rms < logarithm.rms)
    rest = residuals[better] - residuals[better].mean()
    r = float(rest[1:] @ rest[:-1] / (rest @ rest)) if rest.any() else 0.0
    samples = max(len(t) * (1 - max(r, 0)) / (1 + max(r, 0)), 1.0)
    least = _ROUNDING * np.abs(d).max() or 1.0
    difference = 2 * samples * np.log(max(logarithm.rms, least) / max(power.rms, least))
    ahead_better = int(power.ahead < logarithm.ahead)
    if not fits[better].r2 >= 0.95:
        verdict = "neither"
    elif abs(difference) > 10 and ahead_better == better:
        verdict = ("logarithm", "power law")[better]
    else:
        verdict = "undecided"
    return GrowthFit(logarithm, power, float(difference), samples, verdict)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _logarithm(t: np.ndarray, a: float, b: float) -> np.ndarray:
    return a + b * np.log(t)


def _power(t: np.ndarray, c: float, p: float) -> np.ndarray:
    return c * t**p


def _fit_logarithm(t: np.ndarray, d: np.ndarray) -> tuple[float, float]:
    a, b = np.linalg.lstsq(np.stack([np.ones_like(t), np.log(t)], axis=1), d, rcond=None)[0]
    return float(a), float(b)


def _fit_power(t: np.ndarray, d: np.ndarray) -> tuple[float, float]:
    # For a given p the best c is linear least squares: a search over p alone is left.
    from scipy.optimize import minimize_scalar

    def factor(p: float) -> float:
        powers = t**p
        return float(powers @ d / (powers @ powers))

    def loss(p: float) -> float:
        return float(np.sum((d - factor(p) * t**p) ** 2))

    p = float(minimize_scalar(loss, bounds=(-1, 3), method="bounded", options={"xatol": 1e-9}).x)
    return factor(p), p


def local_slope(
    steps: np.ndarray, distances: np.ndarray, points: int = 60
) -> tuple[np.ndarray, np.ndarray]:
    """(steps, d log ||W_t - W_0|| / d log t) at steps evenly spaced in log t.

    1 is a straight way at constant speed, 1/2 a random walk; a power law has it constant, under a
    logarithm it falls as 1 / log t. Distances of 0 are left out.
    """
    chosen = thin(steps, points)
    chosen = chosen[np.asarray(distances)[chosen] > 0]
    t = np.asarray(steps)[chosen]
    if len(t) < 2:
        return t, np.full(len(t), np.nan)
    return t, np.gradient(np.log(np.float64(distances)[chosen]), np.log(np.float64(t)))


def drift_ratio(distance: float, update_norms: np.ndarray) -> float:
    """||W_T - W_0|| / sqrt(sum_t ||dW_t||^2), the updates of every step: nan if none moved.

    1 is a random walk, sqrt(T) a straight line of T equal steps; below 1 the path turns back.
    """
    path2 = float(np.sum(np.square(np.float64(update_norms))))
    return float(distance) / float(np.sqrt(path2)) if path2 > 0 else float("nan")


@dataclasses.dataclass(frozen=True)
class Trend:
    """A least-squares line over the last part of a series.

    first_step, last_step: what it covers. mean: of the values. slope: per step, in the values'
    unit. change: slope times the steps covered, over the mean.
    """

    first_step: int
    last_step: int
    mean: float
    slope: float
    change: float


def late_trend(steps: np.ndarray, values: np.ndarray, part: float = 1 / 3) -> Trend:
    """Does a series still rise at the end? Of ||W_t||, with the losses' trends beside it.

    On separable data the norm goes on growing, as log t, after the training error is 0 (Soudry
    et al., JMLR 2018).

    Raises:
      ValueError: fewer than two steps in the last `part` of the steps' range.
    """
    steps, values = np.asarray(steps), np.float64(values)
    last = steps >= steps[-1] - part * (steps[-1] - steps[0])
    t, v = np.float64(steps[last]), values[last]
    if len(t) < 2:
        raise ValueError(f"{len(t)} value in the last {part:.0%} of the steps: a trend wants two")
    deviations = t - t.mean()
    slope, mean = float(deviations @ v / (deviations @ deviations)), float(v.mean())
    change = slope * (t[-1] - t[0]) / mean if mean else float("nan")
    return Trend(int(t[0]), int(t[-1]), mean, slope, float(change))
