"""Growth from inside: norms and probes that grow for many steps before the loss feels it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lab.diagnosis.chain import Chain

_TIMES = 3.0  # so many times a series has grown, at least
_SMALL = 0.1  # of the median norm: tensors below do not count, nor do those that began at 0
_BACK = 200  # steps in which it may have grown, at most
_LEAST = 32  # and at least
_SLOPE = 16  # steps of a slope


class Growth(NamedTuple):
    """A series that grew.

    Attributes:
      name: of the tensor or probe.
      what: it was that grew, in words.
      since: the step from which on it grows at half its rate or more.
      times: as large at the end as half of the steps before.
      rate: a step, as a share of the series.
      known, due: from its growth up to step `known`, the step at which it was due to be as large as
        it was at the end; due is None where it had not grown long by then.
    """

    name: str
    what: str
    since: int
    times: float
    rate: float
    known: int
    due: float | None


def grown(chain: Chain, step: int) -> Growth | None:
    """The norm or probe that grew most, and steadily, before a step; None if none did so."""
    row = int(np.searchsorted(chain.steps, step))
    start = max(row - _BACK, 0)
    if row - start < _LEAST:
        return None
    weights = chain.weight[row - 1][np.isfinite(chain.weight[row - 1])]
    least = _SMALL * float(np.median(weights)) if len(weights) else 0.0
    large = (chain.weight[row - 1] >= least) & ~chain.began_at_0
    found = [_growth(chain.steps[start:row], chain.tensors[i], f"norm of {chain.tensors[i]}",
                     chain.weight[start:row, i]) for i in np.flatnonzero(large)]  # fmt: skip
    probes = zip(chain.probes, chain.probe[start:row].T, strict=True)
    found += [_growth(chain.steps[start:row], name, name, column) for name, column in probes]
    return max((one for one in found if one), key=lambda one: one.times, default=None)


def _growth(steps: np.ndarray, name: str, what: str, values: np.ndarray) -> Growth | None:
    if not (np.isfinite(values) & (values > 0)).all():
        return None
    logs = np.log(values)
    half = len(logs) // 2
    rise = float(logs[-1] - logs[half])  # in the latter half alone
    steady = np.mean(np.diff(logs[half:]) > 0)
    if rise < np.log(_TIMES) or steady < 0.6:
        return None
    rate = rise / (len(logs) - 1 - half)
    slopes = (logs[_SLOPE:] - logs[:-_SLOPE])[: half - _SLOPE] / _SLOPE
    slow = np.flatnonzero(slopes < rate / 2)  # it grows since the last of these
    back = half - (int(slow[-1]) + _SLOPE // 2 if len(slow) else 0)
    due = None
    if back > 2:  # steps of growth that foretell the rest
        due = float(steps[half] + rise * back / (logs[half] - logs[half - back]))
    return Growth(name, what, int(steps[half - back]), float(np.exp(rise)),
                  float(np.expm1(rate)), int(steps[half]), due)  # fmt: skip
