"""The statistics of repeated runs: intervals, paired comparisons, letters."""

from __future__ import annotations

import functools
import itertools
import math
import statistics
import string
from collections.abc import Iterable, Sequence

import numpy as np
import scipy  # its parts load when they are first used

LEVEL = 0.05  # the family-wise level of the tests; intervals cover 1 - LEVEL
POWER = 0.8  # the probability with which a test sees a difference that it is said to see


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's t interval of the mean, in their units.

    Raises statistics.StatisticsError for fewer than two values.
    """
    spread, mean = statistics.stdev(values), statistics.fmean(values)
    half = t_quantile(1 - LEVEL / 2, len(values) - 1) * spread / len(values) ** 0.5
    return mean - half, mean + half


def share_ends(mean: float, half: float) -> tuple[float, float]:
    """The ends of an interval mean -+ half of shares; of a mean in (0, 1) on the logit scale, where
    no end is beyond 0 or 1.

    Source: logit(p) -+ half / (p (1 - p)), the delta method, as in Korn and Graubard, Survey
    Methodology 24 (1998), and in Stata's `proportion`.
    """
    if not 0 < mean < 1:
        return mean - half, mean + half
    middle, reach = scipy.special.logit(mean), half / (mean * (1 - mean))
    return float(scipy.special.expit(middle - reach)), float(scipy.special.expit(middle + reach))


@functools.cache
def t_quantile(p: float, df: float) -> float:
    """The t with P(T <= t) = p for Student's T with df degrees of freedom."""
    return float(scipy.special.stdtrit(df, p))


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion correct / total: the p with |correct / total - p| at
    most z sqrt(p (1 - p) / total). Each run ends with it: scipy.stats, which has it, takes 50 MB.

    Source: Wilson, J. Am. Stat. Assoc. 22 (1927).
    """
    z, share = float(scipy.special.ndtri(1 - LEVEL / 2)), correct / total
    middle = share + z**2 / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2)
    low, high = ((middle + end) / (1 + z**2 / total) for end in (-half, half))
    return (low if correct else 0.0), (high if correct < total else 1.0)


def paired_p(differences: Sequence[float]) -> float:
    """Two-sided p-value of the paired t test.

    Without any spread p is 1 if the differences are 0, else 0. Raises
    statistics.StatisticsError for fewer than two differences.
    """
    if statistics.stdev(differences) == 0:
        return float(statistics.fmean(differences) == 0)
    return float(scipy.stats.ttest_1samp(differences, 0.0).pvalue)


@functools.cache
def detectable(n: int, level: float) -> float:
    """The smallest true difference that a two-sided paired t test of n differences sees at a level
    with a probability of `POWER`, in their standard deviations.

    The power is the normal one, averaged over the standard deviation that is found: SciPy's
    noncentral t has no values where the level is small.
    """
    places = (np.arange(10_000) + 0.5) / 10_000
    found = np.sqrt(scipy.stats.chi2.ppf(places, n - 1) / (n - 1))
    ends = t_quantile(1 - level / 2, n - 1) * found

    def excess(far: float) -> float:
        tails = scipy.special.ndtr(far - ends) + scipy.special.ndtr(-far - ends)
        return float(tails.mean()) - POWER

    return float(scipy.optimize.brentq(excess, 0.0, ends[-1] + 10)) / n**0.5


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: in ascending order max_{j<=k} min(1, (m-j+1) p_(j)).

    Reject where it is at most the family-wise level. Source: Holm, Scand. J. Statist. 6 (1979).
    """
    values, order = np.array(p_values), np.argsort(p_values)
    factors = np.arange(len(values), 0, -1)
    values[order] = np.maximum.accumulate(np.minimum(1.0, factors * values[order]))
    return [float(value) for value in values]


def letter_display(n: int, different: Iterable[tuple[int, int]]) -> list[str]:
    """Compact letter display: 0..n-1 share a letter just where their pair is not in `different`.

    A letter stands for a set of items no two of which differ and to which none can be added
    (Piepho, J. Comput. Graph. Statist. 13 (2004)). Piepho's insert-and-absorb finds all such
    sets, exponentially many at worst: forty rows can get five hundred letters each. Sets that
    cover every pair that does not differ say the same (Ennis, Fayle and Ennis, ACM J. Exp.
    Algorithmics 17 (2012)), so each pair not covered yet is grown into a set, in order of the
    items. Item 0 has "a"; past "Z" letters are numbers in brackets.
    """
    apart = {frozenset(pair) for pair in different}
    columns: list[set[int]] = []
    # With the pairs (i, i), an item that differs from all others gets a letter of its own.
    for pair in map(set, itertools.combinations_with_replacement(range(n), 2)):
        if frozenset(pair) not in apart and not any(pair <= column for column in columns):
            columns.append(pair)
            for i in range(n):
                if not any(frozenset((i, j)) in apart for j in pair):
                    pair.add(i)
    columns.sort(key=sorted)
    names = [*string.ascii_letters, *(f"({k})" for k in range(53, len(columns) + 1))]
    return ["".join(x for x, c in zip(names, columns, strict=False) if i in c) for i in range(n)]
