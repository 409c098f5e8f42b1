"""The statistics of repeated runs: intervals, paired comparisons, letters; functions of numbers.

Without scipy, since the table is part of every installation; the tests hold them against it.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
import string
from collections.abc import Iterable, Iterator, Sequence

LEVEL = 0.05  # the family-wise level of the tests; intervals cover 1 - LEVEL


def _beta_fraction(a: float, b: float, x: float) -> Iterator[float]:
    """Partial numerators d_1, d_2, ... of the continued fraction DLMF 8.17.22."""
    for m in itertools.count():
        if m:
            yield m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        yield -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularized incomplete beta function I_x(a, b); a, b > 0, 0 <= x <= 1.

    I_x = x^a (1-x)^b / (a B(a,b)) / (1 + d_1/(1 + d_2/(1 + ...))), the fraction by Lentz's method.
    Source: DLMF 8.17.22 and 3.10(iii).
    """
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side only
        return 1.0 - incomplete_beta(b, a, 1.0 - x)
    tiny = 1e-300  # stands in for a vanishing denominator
    value, c, d = 1.0, 1.0, 0.0
    for term in itertools.islice(_beta_fraction(a, b, x), 10_000):
        d = 1.0 / ((1.0 + term * d) or tiny)
        c = (1.0 + term / c) or tiny
        value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta) / (a * value)


def t_two_sided(t: float, df: float) -> float:
    """P(|T| >= |t|) for Student's T with df > 0 degrees of freedom.

    It is I_x(df/2, 1/2) at x = df/(df + t^2). Source: Abramowitz and Stegun 26.5.27.
    """
    if math.isinf(t):
        return 0.0
    if abs(t) < 1:  # x may be rounded next to 1: take the other side, whose argument is exact
        return 1.0 - incomplete_beta(0.5, df / 2, t * t / (df + t * t))
    return incomplete_beta(df / 2, 0.5, df / (df + t * t))


@functools.cache
def t_quantile(p: float, df: float) -> float:
    """The t with P(T <= t) = p, by bisection. Raises ValueError unless 0 < p < 1 and df > 0."""
    if not (0 < p < 1 and df > 0):
        raise ValueError(f"t_quantile needs 0 < p < 1 and df > 0, not p={p!r}, df={df!r}")
    if p < 0.5:
        return -t_quantile(1 - p, df)
    tail = 2 * (1 - p)  # bisect the two-sided tail: it keeps its digits where the CDF nears 1
    low, high = 0.0, 1.0
    while t_two_sided(high, df) > tail:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if t_two_sided(middle, df) > tail else (low, middle)
    return high if tail < 1 else 0.0


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Interval of the mean, mean +- t_{1-LEVEL/2, n-1} s/sqrt(n) (Student 1908), in their units.

    Raises statistics.StatisticsError for fewer than two values.
    """
    n, mean = len(values), statistics.fmean(values)
    standard_error = statistics.stdev(values) / math.sqrt(n)
    half = t_quantile(1 - LEVEL / 2, n - 1) * standard_error
    return mean - half, mean + half


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Score interval of a proportion correct/total; total > 0.

    (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n). Source: Wilson, JASA 22 (1927).
    """
    z = statistics.NormalDist().inv_cdf(1 - LEVEL / 2)
    p, z2n = correct / total, z * z / total
    half = z * math.sqrt(p * (1 - p) / total + z2n / (4 * total))
    low, high = (p + z2n / 2 - half) / (1 + z2n), (p + z2n / 2 + half) / (1 + z2n)
    return max(low, 0.0), min(high, 1.0)  # only rounding can take them past 0 or 1


def paired_p(differences: Sequence[float]) -> float:
    """Two-sided p of the paired t test (Student 1908): t = mean/(s/sqrt(n)), n - 1 degrees.

    Without any spread p is 1 if the differences are 0, else 0. Raises
    statistics.StatisticsError for fewer than two differences.
    """
    spread, mean = statistics.stdev(differences), statistics.fmean(differences)
    if spread == 0:
        return 1.0 if mean == 0 else 0.0
    return t_two_sided(mean / (spread / math.sqrt(len(differences))), len(differences) - 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: in ascending order max_{j<=k} min(1, (m-j+1) p_(j)).

    Reject where it is at most the family-wise level. Source: Holm, Scand. J. Statist. 6 (1979).
    """
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


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
