"""What several questions use."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from lab.analysis.drift import thin
from lab.analysis.runs import Group
from lab.analysis.study import Evidence, load_data
from lab.report.draft import SEEDS, Draft
from lab.report.section import Section

POINT = 0.01  # of accuracy


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


def windows(values: np.ndarray, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """(last steps, means) of `count` windows of about equal width in log t, of a value per step."""
    edges = thin(np.arange(1, len(values) + 1), count)
    starts = np.concatenate([[0], edges[:-1] + 1])
    return edges + 1, np.add.reduceat(values, starts) / np.diff([*starts, edges[-1] + 1])
