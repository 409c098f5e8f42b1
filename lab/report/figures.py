"""Measurements of several runs as figures and curves, and numbers as text."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lab.compare.statistics import LEVEL, share_ends, t_interval, t_quantile
from lab.report.section import Figure, Series
from lab.settings.as_line import as_line
from lab.settings.grid_file import read_lines


def _ends(value: float, half: float | None, share: bool) -> tuple[float | None, float | None]:
    """value -+ half, of shares as `share_ends`."""
    if half is None:
        return None, None
    return share_ends(value, half) if share else (value - half, value + half)


def across(
    key: str,
    name: str,
    values: Iterable[float],
    unit: str = "",
    note: str = "",
    least: float = -math.inf,
) -> Figure:
    """The mean over runs with Student's t interval; values that are not finite are left out.

    In the unit "%" they are shares in [0, 1], see `share_ends`; differences of shares are
    "points", and their interval ends at -100 and 100. least: no value can be lower, and the
    interval ends there.
    """
    kept = [float(v) for v in values if math.isfinite(v)]
    if not kept:
        return Figure(key, name, None, runs=0, unit=unit, note=note)
    mean = statistics.fmean(kept)
    half = t_interval(kept)[1] - mean if len(kept) > 1 else None
    found = Figure(key, name, mean, *_ends(mean, half, unit == "%"), len(kept), unit, note)
    if all(v >= 0 and v.is_integer() for v in kept):
        least = max(least, 0.0)  # of a count
    most = math.inf
    if unit == "points":
        least, most = max(least, -100.0), 100.0
    if found.low is not None and found.high is not None:
        found = dataclasses.replace(found, low=max(found.low, least), high=min(found.high, most))
    return found


def over_pairs(
    key: str,
    name: str,
    values: Mapping[tuple[int, int], float],
    unit: str = "",
    note: str = "",
    share: bool = False,
) -> Figure:
    """The mean over pairs of runs, by the pair's seeds; with `share`, of shares whatever the unit.

    Pairs that share a run are not independent: the interval is the jackknife's over runs, mean +-
    t_{n-1} sqrt((n-1)/n sum_i (m_i - mean of m)^2), m_i the mean without run i; for three or more.
    Source: Arvesen, "Jackknifing U-statistics", Ann. Math. Statist. 40 (1969).
    """
    if not values:
        return Figure(key, name, None, runs=0, unit=unit, note=note)
    seeds = sorted({seed for pair in values for seed in pair})
    n, half = len(seeds), None
    if n > 2:
        without = [
            statistics.fmean(v for pair, v in values.items() if seed not in pair) for seed in seeds
        ]
        spread = (n - 1) ** 2 / n * statistics.variance(without)
        half = t_quantile(1 - LEVEL / 2, n - 1) * math.sqrt(spread)
    mean = statistics.fmean(values.values())
    return Figure(key, name, mean, *_ends(mean, half, share or unit == "%"), n, unit, note)


def number(value: float, digits: int = 4) -> str:
    """0.001, 20,000, −3, 2·10⁻⁷: powers of ten where digits would be many."""
    if not math.isfinite(value):
        return "not measured" if math.isnan(value) else "no limit"
    if value == 0:
        return "0"
    power = math.floor(math.log10(abs(value)) + 1e-9)
    if value == round(value) and abs(value) < 10.0 ** max(digits, 6):
        text = f"{value:,.0f}"
    elif -4 < power < 6:
        text = f"{value:,.{digits}g}"
        text = f"{value:,.0f}" if "e" in text else text
    else:
        raised = "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        factor = f"{value / 10.0**power:.{min(digits, 3)}g}"
        text = raised if factor == "1" else f"-{raised}" if factor == "-1" else f"{factor}·{raised}"
    return text.replace("-", "−")


def percent(share: float) -> str:
    """A share in four digits, but 100% only if it is exactly 1."""
    text = number(100 * share)
    return f"{number(100 * share, 8) if text in ('100', '1') else text}%"


def rounded(figure: Figure) -> tuple[str, str]:
    """The value with its unit, and the interval or nothing.

    Rounded to two digits of the interval's width; four digits where there is no interval.
    """
    if figure.value is None or not math.isfinite(figure.value):
        return "not measured", ""
    factor, unit = (100, "%") if figure.unit == "%" else (1, f" {figure.unit}" * bool(figure.unit))
    if figure.low is None or figure.high is None:
        return percent(figure.value) if factor == 100 else number(figure.value) + unit, ""
    value, low, high = (factor * v for v in (figure.value, figure.low, figure.high))
    digits = max(1 - math.floor(math.log10(high - low)), 0) if low < high < math.inf else 7
    if digits > 6 or abs(value) >= 1e6:
        return number(value) + unit, f"{number(low)} to {number(high)}{unit}"
    text, *ends = (
        f"{round(v, digits) + 0:,.{digits}f}".replace("-", "−") for v in (value, low, high)
    )
    return text + unit, f"{' to '.join(ends)}{unit}"


def without_interval(figure: Figure) -> str:
    """`97.43%`, in four digits."""
    return rounded(dataclasses.replace(figure, low=None, high=None))[0]


def with_interval(figure: Figure) -> str:
    """`97.43% [97.14 to 97.72%]`, `3 points [2 to 4]`; the interval where there is one."""
    value, interval = rounded(figure)
    interval = interval.removesuffix(f" {figure.unit}")
    low, _, high = interval.rstrip("%").partition(" to ")
    return f"{value} [{interval}]" if low != high else value


def listed(words: Sequence[str], last: str = "and") -> str:
    """`a, b and c`."""
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def spoken(layer: str) -> str:
    """`hidden layer 2` of h2, `the output layer` of logits; what has another name keeps it."""
    if re.fullmatch(r"h\d+", layer):
        return f"hidden layer {layer[1:]}"
    return "the output layer" if layer == "logits" else layer


def some_of(layers: Sequence[str], every: Sequence[str]) -> str:
    """Some of a network's layers, in words that fit into a sentence."""
    if len(layers) == len(every):
        return "all layers"
    return listed(layers) if len(every) <= 4 else f"{len(layers)} of {len(every)} layers"


def points(name: str, x: Sequence[Any], figures: Sequence[Figure], style: str = "line") -> Series:
    """A series of figures that have values, with their intervals where they have any."""
    kept = [(place, f) for place, f in zip(x, figures, strict=True) if f.value is not None]
    some = any(f.low is not None for _, f in kept)
    return Series(
        name,
        [place for place, _ in kept],
        [f.value for _, f in kept if f.value is not None],
        [f.low for _, f in kept] if some else None,
        [f.high for _, f in kept] if some else None,
        style,
    )


def curve(name: str, x: Sequence[float], runs: Sequence[Any], unit: str = "") -> Series:
    """The mean over runs of a curve each, with its interval place by place, of three runs or more:
    that of two would hide all curves."""
    columns = np.array(runs, dtype=float).T
    found = points(name, x, [across("", "", column, unit) for column in columns])
    return found if len(runs) > 2 else dataclasses.replace(found, low=None, high=None)


def command(logdir: str, config: Mapping[str, Any] | None = None, **more: Any) -> str:
    """The bin/train command of a config, with the flags that differ from their defaults.

    It writes into `logdir`, or if that is a run directory, into its parent.

    Args:
      more: flags in place of the config's; None stands for the default. What the lines of a `grid`
        say is left to them.
    """
    if os.path.exists(os.path.join(logdir, "config.json")):
        logdir = os.path.normpath(os.path.join(logdir, os.pardir))
    lines = read_lines(more["grid"]) if "grid" in more else ()
    of_grid = {match[1] for _, words in lines for match in map(_FLAG.match, words) if match}
    left = dict.fromkeys(["seed", *of_grid])
    return as_line(config or {}, **left | more | {"logdir": logdir})


_FLAG = re.compile(r"--(?:no)?(\w+)")


def above(figure: Figure, limit: float = 0.0) -> bool | None:
    """Whether the mean is above a limit; None where the interval holds both, or there is none."""
    if figure.low is None or figure.high is None:
        return None
    return True if figure.low > limit else False if figure.high <= limit else None


def all_of(found: Sequence[bool | None]) -> bool | None:
    """Whether all are true, None if that cannot be said."""
    return False if False in found else None if None in found else True
