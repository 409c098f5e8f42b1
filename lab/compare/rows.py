"""The parts of the table of results."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.compare.statistics import LEVEL
from lab.settings.config import Config

Trial = tuple[str, str, str]  # config as text, digests of network and data

README_FIELDS = ("n_hidden_1", "n_hidden_2", "learning_rate", "optimizer")  # the README's columns
LAST_EVALUATIONS = 10
POINT = 0.01  # of accuracy: rows that share a letter do not differ by as much
README_TOLERANCE = 0.004  # where seeds agree so closely that 3 standard deviations are less

# What heads other columns of a table than those of metrics.
_TAKEN = frozenset(one.name for one in dataclasses.fields(Config)) | {
    *("#", "configuration", "network", "data digest", "README", "same rule", "95% interval"),
    *("group", "runs", "correct", "in-run sd", "seconds", "status"),
}
_PERCEPTRONS = frozenset(one.name for one in dataclasses.fields(Config) if "of" in one.metadata)


def reads(config: Mapping[str, Any], name: str) -> bool:
    """Whether the model of a config reads a field of it."""
    return config.get("model", "mlp") == "mlp" or name not in _PERCEPTRONS


@dataclass(frozen=True)
class Row:
    """The trials of one config. Accuracies are shares of 1; None where there is no such figure.

    Figures are over the `averaged` runs: the completed ones or, if there are none, the collapsed
    ones; never a mixture. mean, std, low, high and spread are those of `metric`.
    """

    config: dict[str, Any]  # without the seed
    parameters: dict[str, str]  # of the model, as flags have them: those given to any row
    network: str  # digest of what no config tells, "" if it tells all
    data: str  # digest, "" if it is not on record
    metric: str  # the runs' own: accuracy, another one, loss; "" without a test set
    loss: float | None  # mean over the runs, over the test set
    readme: float | None  # the README's figure
    readme_accuracy: float | None  # ours by the README's rule, mean over the runs
    readme_agrees: bool | None  # within 3 standard deviations or README_TOLERANCE; needs two runs
    runs: int
    averaged: int
    averaged_status: str | None  # "completed", "collapsed" or None
    mean: float | None
    std: float | None  # sample standard deviation over seeds
    low: float | None
    high: float | None
    interval: str | None  # "t" (mean over seeds; see notes), "wilson" (one run's count) or None
    groups: str  # letters
    seeds: list[int]  # of the averaged runs; `correct` in the same order
    correct: list[int]
    total: int | None
    spread: float | None  # over a run's last evaluations, median over the runs
    seconds: float | None  # median
    status: str


@dataclass(frozen=True)
class Pair:
    """Row `a` minus row `b` (places in Table.rows) over the n seeds that both completed.

    detectable: the smallest difference that the test at Holm's first level sees with 80% power.
    """

    a: int
    b: int
    n: int
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    detectable: float

    @property
    def differ(self) -> bool | None:
        """None where they may differ by more than a point and the seeds are too few to say so."""
        if self.p_holm <= LEVEL:
            return True
        return False if max(self.detectable, abs(self.difference)) <= POINT else None


@dataclass(frozen=True)
class Table:
    """Rows, every compared pair of rows, the config fields to show, and the notes below."""

    rows: list[Row]
    pairs: list[Pair]
    fields: list[str]
    notes: list[str]


def told_by(rows: Sequence[Row]) -> set[str]:
    """Which of `network` and `data` distinguish rows of one config."""
    alike: dict[str, list[Row]] = {}
    for row in rows:
        alike.setdefault(json.dumps(row.config, sort_keys=True), []).append(row)
    return {
        name
        for same in alike.values()
        for name in ("network", "data")
        if len({getattr(row, name) for row in same}) > 1
    }


def mixed(rows: Sequence[Row], pairs: Sequence[Pair]) -> bool:
    """Whether rows of the README were compared with others, so that all are one set."""
    return any((rows[pair.a].readme is None) != (rows[pair.b].readme is None) for pair in pairs)


def heading(metric: str) -> str:
    """Of a metric's column: its name, unless that is another column's."""
    return f"test {metric}" if metric in _TAKEN else metric
