"""What happens slowly: the loss's level over a run, and norms and probes that grow before it."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from lab.diagnosis.chain import Chain
from lab.diagnosis.ranges import FALSE_ALARMS

_BLOCK, _BLOCKS = 16, 64  # steps of a level at least, and levels of a run at most
_FEWEST = 8  # levels that say something of a run
_LAST = 4  # levels that are the end of a run
_TIMES = 3.0  # so many times a series has grown, at least, without its largest jump
_SMALL = 0.1  # of the median norm: tensors below do not count, nor do those that began at 0
_BACK = 200  # steps in which it may have grown
_BEGUN = 0.1  # share of a growth, in logarithms, at which it has begun


class Course(NamedTuple):
    """How the loss went, by its levels.

    Attributes:
      left: the step after the last level that differs from the lowest by chance, those of the end
        apart.
      rise: of the end above the lowest level, in logarithms; 0 where it may be chance.
      since: the first step at whose level the loss was as low as at the end.
      share: of the run that lies behind `since`.
      length: steps of a level, by which `left` and `since` may be off.
    """

    left: int
    rise: float
    since: int
    share: float
    length: int


class Growth(NamedTuple):
    """A series that grew.

    Attributes:
      name: of the tensor or probe.
      what: it was that grew, in words.
      since: the step at which a tenth of the growth, in logarithms, is done.
      times: as large at the end as at the start.
      rate: a step since then, as a share of the series.
    """

    name: str
    what: str
    since: int
    times: float
    rate: float


def course(chain: Chain) -> Course | None:
    """How the loss went; None if the record is too short, or has values that have no logarithm.

    A level is the median of a block of steps (the method of batch means: noise of single steps, and
    how it carries on from one to the next, is averaged out within a block). The levels' own noise
    comes from their successive differences (von Neumann et al., Annals of Mathematical Statistics
    12, 1941; here by their median), which a trend hardly touches. A rise is chance where it would
    come about in FALSE_ALARMS of the runs whose levels are independent and normal: any of them may
    be the lowest, so that the risk is divided among them (Bonferroni).
    """
    loss = chain.loss
    if not (np.isfinite(loss) & (loss > 0)).all():
        return None
    level, rows, length = _levels(np.log(loss), _BLOCK)
    count = len(level)
    if count < _FEWEST:
        return None
    noise = 1.4826 * float(np.median(np.abs(np.diff(level))))  # of a difference of two
    limit = noise * NormalDist().inv_cdf(1 - FALSE_ALARMS / count)
    low, end = float(level[:-_LAST].min()), float(np.median(level[-_LAST:]))
    left = int(np.flatnonzero(level[:-_LAST] <= low + limit)[-1]) + 1
    since = int((level <= end).argmax())
    rise = end - low if end - low > limit else 0.0
    step, first = (int(chain.steps[rows[place]]) for place in (left, since))
    return Course(step, rise, first, 1 - since / count, length)


def grown(chain: Chain, step: int) -> Growth | None:
    """The norm or probe that grew most, and steadily, before a step; None if none did so.

    It is looked for in the _BACK steps before, or in all since the loss was as low as at the end.
    It grew steadily if its levels have an upward trend by the test of Mann (Econometrica 13, 1945)
    and Kendall, with FALSE_ALARMS shared by all series, and do not owe it to a single jump.
    """
    end = int(np.searchsorted(chain.steps, step))
    start, path = max(end - _BACK, 0), course(chain)
    if path:
        start = min(start, int(np.searchsorted(chain.steps, path.since)))
    values = np.hstack([chain.weight, chain.probe])[start:end]
    if not len(values):
        return None
    counted = (np.isfinite(values) & (values > 0)).all(axis=0)
    weights = values[-1, : len(chain.tensors)]
    if len(known := weights[np.isfinite(weights)]):
        large = weights >= _SMALL * float(np.median(known))
        counted[: len(weights)] &= large & ~chain.began_at_0
    risk = FALSE_ALARMS / max(counted.sum(), 1)
    names = [*((tag, f"norm of {tag}") for tag in chain.tensors), *((n, n) for n in chain.probes)]
    found = [_growth(chain.steps[start:end], *names[column], values[:, column], risk)
             for column in np.flatnonzero(counted)]  # fmt: skip
    return max((one for one in found if one), key=lambda one: one.times, default=None)


def _growth(
    steps: np.ndarray, name: str, what: str, values: np.ndarray, risk: float
) -> Growth | None:
    level, rows, _ = _levels(np.log(values), _BLOCK // 2)
    count = len(level)
    if count < 2:
        return None
    total = float(level[-1] - level[0])
    if total - np.diff(level).max() < math.log(_TIMES):
        return None
    pairs = np.sign(level[None, :] - level[:, None])  # of an earlier and a later level
    upward, spread = np.triu(pairs).sum(), math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    if (upward - 1) / spread < NormalDist().inv_cdf(1 - risk):
        return None
    first = int(np.flatnonzero(level <= level[0] + _BEGUN * total)[-1])
    rate = float(level[-1] - level[first]) / (rows[-1] - rows[first])
    return Growth(name, what, int(steps[rows[first]]), math.exp(total), math.expm1(rate))


def _levels(logs: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray, int]:
    """The medians of blocks of `least` steps, or of as many as make _BLOCKS, that end with the last
    one; the row that each block begins at; and how many steps it has."""
    length = max(least, -(-len(logs) // _BLOCKS))
    rows = np.arange(len(logs) % length, len(logs), length)
    return np.median(logs[len(logs) % length :].reshape(-1, length), axis=1), rows, length
