"""What several questions use."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from lab.analysis.drift import thin
from lab.analysis.runs import Group
from lab.analysis.study import Evidence, load_data
from lab.report.draft import SEEDS, Draft
from lab.report.figures import above, listed, number
from lab.report.section import Figure, Section

POINT = 0.01  # of accuracy
_AT_CHANCE = 0.05  # of the way from chance to 1: an accuracy up to that is at chance

T = TypeVar("T")


def about_reference(answer: Callable[[Draft, Group], Section]) -> Callable[[Evidence], Section]:
    """Makes a section about the reference group of a function of a draft and that group.

    The function's name is the section's slug. Where no run has completed it is not called.
    """

    @functools.wraps(answer)
    def section(evidence: Evidence) -> Section:
        draft, group = Draft(answer.__name__, evidence), evidence.reference
        if group is None:
            draft.command("run")
            return draft.section("no_run")
        if len(group.completed) < 3:
            draft.command("seeds", group, seeds=SEEDS)
        return answer(draft, group)

    return section


def chance(evidence: Evidence, group: Group) -> float:
    """The accuracy of always predicting the most frequent class of the test set."""
    labels = load_data(evidence.runs.folders[group.data])[0].y_test
    return float(np.bincount(labels).max() / len(labels))


def at_chance(figure: Figure, floor: float) -> bool | None:
    """Whether an accuracy is no more than chance, whose share is `floor`; None where its interval
    holds both."""
    limit = floor + _AT_CHANCE * (1 - floor)
    higher = above(figure, limit) if figure.low is not None else (figure.value or 0) > limit
    return None if higher is None else not higher


def windows(values: np.ndarray, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """(last steps, means) of `count` windows of about equal width in log t, of a value per step."""
    edges = thin(np.arange(1, len(values) + 1), count)
    starts = np.concatenate([[0], edges[:-1] + 1])
    return edges + 1, np.add.reduceat(values, starts) / np.diff([*starts, edges[-1] + 1])


def over_draws(
    draft: Draft, key: str, name: str, draws: Sequence[np.ndarray], unit: str = "", note: str = ""
) -> Figure:
    """Adds the mean of a random control, of every run's draws [draws].

    The interval is Student's t over the runs' means. Where y = mean + run + draw, with m draws in
    each of n runs, their mean has the variance s_run^2/n + s_draw^2/(n m), which is just what the
    variance of the runs' means over n estimates without bias: it holds both spreads. Source:
    Searle, Casella and McCulloch, "Variance Components", 1992, on the balanced nested design.
    The note adds the spread over draws, pooled within runs.
    """
    count = len(draws[0])
    if count > 1:
        spread = float(np.sqrt(np.mean([np.var(own, ddof=1) for own in draws])))
        share = unit == "%"
        words = f"{number(100 * spread if share else spread, 2)} {'points' if share else unit}"
        own = f"{count} draws a run, their standard deviation {words.strip()}"
        note = f"{note}; {own}" if note else own
    return draft.mean(key, name, [float(np.mean(own)) for own in draws], unit, note)


def halves(runs: Sequence[T]) -> list[Sequence[T]]:
    """The first and the last half of runs in the order of their seeds; none of fewer than four."""
    middle = (len(runs) + 1) // 2
    return [runs[:middle], runs[middle:]] if len(runs) >= 4 else []


def seeds_halved(
    draft: Draft, runs: Mapping[int, T], judge: Callable[[Mapping[int, T]], tuple[Any, str]]
) -> None:
    """Adds the control that the answer stands in either half of the seeds.

    Args:
      runs: what was measured, by seed.
      judge: of some of these, the claim, None where it cannot be said, and a figure in words.
    """
    parts = [{seed: runs[seed] for seed in part} for part in halves(sorted(runs))]
    claim, found = judge(runs)[0], [judge(part) for part in parts]
    claims = [one for one, _ in found]
    passed = None if not parts or None in (claim, *claims) else set(claims) == {claim}
    rows = [(listed([str(seed) for seed in part]), words)
            for part, (_, words) in zip(parts, found, strict=True)]  # fmt: skip
    draft.control("seeds_halved", passed, rows=rows)
