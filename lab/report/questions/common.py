"""What the answers share."""

from __future__ import annotations

import numpy as np

from lab.analysis.drift import thin
from lab.analysis.runs import Group
from lab.analysis.study import Evidence, load_data
from lab.report.figures import command
from lab.report.section import Section

_SEEDS = 5


NO_IMAGES = "All that needs images: the data of these runs are not at hand."


POINT = 0.01  # an accuracy lost


def without_runs(evidence: Evidence, slug: str, title: str) -> Section:
    """A question that no run here can answer."""
    fill = ("a run", command(evidence.runs.logdir, seeds=_SEEDS))
    return Section(slug, title, "These runs cannot say: none completed.", commands=[fill])


def seeds_missing(evidence: Evidence, group: Group) -> list[tuple[str, str]]:
    """The command for intervals, where there are too few runs for them."""
    if len(group.completed) >= 3:
        return []
    line = command(evidence.runs.logdir, group.config, seeds=_SEEDS)
    return [(f"intervals: {_SEEDS} seeds of {group.label}", line)]


def chance(evidence: Evidence, group: Group) -> float:
    """The accuracy of always saying the most frequent class of the test set."""
    labels = load_data(evidence.runs.folders[group.data])[0].test_labels
    return float(np.bincount(labels).max() / len(labels))


def names_of(evidence: Evidence) -> tuple[str, ...]:
    assert evidence.reference
    return evidence.reference.runs[0].final.names


def windows(values: np.ndarray, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """(last steps, means) of `count` windows of about equal width in log t, of a value a step."""
    edges = thin(np.arange(1, len(values) + 1), count)
    starts = np.concatenate([[0], edges[:-1] + 1])
    return edges + 1, np.add.reduceat(values, starts) / np.diff([*starts, edges[-1] + 1])
