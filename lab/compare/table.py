"""Results -> the table's rows, their comparisons and notes.

Runs whose configs differ in nothing but the seed are one row.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.compare.results import Result
from lab.compare.statistics import (
    LEVEL,
    holm,
    letter_display,
    paired_p,
    t_interval,
    wilson_interval,
)
from lab.settings.config import Config

LAST_EVALUATIONS = 10

# The README that the lab repeats, "Model Investigation with Tensorboard": its columns, and its
# nine rows in its order. Accuracy there is the unweighted mean of the test batches' means.
README_FIELDS = ("n_hidden_1", "n_hidden_2", "learning_rate", "optimizer")
README_ROWS = (
    (128, 256, 0.1, "sgd", 0.0972),
    (128, 256, 0.01, "sgd", 0.9752),
    (128, 256, 0.001, "sgd", 0.9356),
    (128, 256, 0.0001, "sgd", 0.735),
    (128, 256, 0.01, "adam", 0.9764),
    (128, 256, 0.01, "rmsprop", 0.9778),
    (128, 256, 0.01, "adagrad", 0.9504),
    (128, 128, 0.01, "rmsprop", 0.9782),
    (128, 64, 0.01, "rmsprop", 0.9762),
)
README_TOLERANCE = 0.004  # where seeds agree so closely that 3 standard deviations are less

# What is recorded does not change what is trained: a README row stays one whatever these say.
RECORDING_FIELDS = frozenset({"watch", "histogram_every", "display_step"})


@dataclass(frozen=True)
class Row:
    """The trials of one config. Accuracies are shares of 1; None where there is no such figure.

    Figures are over the `averaged` runs: the completed ones or, if there are none, the collapsed
    ones; never a mixture.
    """

    config: dict[str, Any]  # without the seed
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
    interval: str | None  # "t" (mean over seeds), "wilson" (one run's count) or None
    groups: str  # letters
    seeds: list[int]  # of the averaged runs; `correct` in the same order
    correct: list[int]
    total: int | None
    spread: float | None  # over a run's last evaluations, median over the runs
    seconds: float | None  # median
    status: str


@dataclass(frozen=True)
class Pair:
    """Row `a` minus row `b` (places in Table.rows) over the n seeds that both completed."""

    a: int
    b: int
    n: int
    difference: float
    low: float
    high: float
    p: float
    p_holm: float


@dataclass(frozen=True)
class Table:
    """Rows, every compared pair of rows, the config fields to show, and the notes below."""

    rows: list[Row]
    pairs: list[Pair]
    fields: list[str]
    notes: list[str]


def _key(config: Mapping[str, Any]) -> str:
    return json.dumps({k: v for k, v in config.items() if k != "seed"}, sort_keys=True)


def _readme_place(config: Mapping[str, Any], recipe: Mapping[str, Any]) -> int | None:
    """Which README row the config repeats, if it keeps to the recipe in all that trains."""
    skip = {*README_FIELDS, *RECORDING_FIELDS}
    if any(config.get(k) != recipe.get(k) for k in (config.keys() | recipe.keys()) - skip):
        return None
    ours = tuple(config.get(k) for k in README_FIELDS)
    return next((i for i, row in enumerate(README_ROWS) if row[:-1] == ours), None)


def _status(runs: Sequence[Result]) -> str:
    parts = []
    for status, count in Counter(r.status for r in runs if r.status != "completed").items():
        many = f"{count} of {len(runs)} " if len(runs) > 1 else ""
        same = [r for r in runs if r.status == status]
        classes = sorted({r.collapsed for r in same if r.collapsed is not None})
        label = f" (class{'es' * (len(classes) > 1)} {', '.join(map(str, classes))})"
        parts.append(many + status + (label if status == "collapsed" and classes else ""))
    return "; ".join(parts) or "completed"


def _std(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _row(config: dict[str, Any], runs: Sequence[Result], readme: float | None) -> Row:
    """The row, without its letters."""
    completed = [r for r in runs if r.status == "completed"]
    chosen = completed or [r for r in runs if r.status == "collapsed"]
    values = [r.accuracy for r in chosen]
    ours = [r.readme_accuracy for r in chosen if r.readme_accuracy is not None]
    agrees = None
    if readme is not None and len(ours) > 1:
        allowed = max(3 * statistics.stdev(ours), README_TOLERANCE)
        agrees = abs(statistics.fmean(ours) - readme) <= allowed
    # A collapsed run's accuracy is the frequency of the class it fell into: no interval fits.
    low = high = interval = None
    if len(completed) > 1:
        (low, high), interval = t_interval(values), "t"
    elif completed:
        (low, high), interval = wilson_interval(chosen[0].correct, chosen[0].total), "wilson"
    return Row(
        config=config,
        readme=readme,
        readme_accuracy=statistics.fmean(ours) if ours else None,
        readme_agrees=agrees,
        runs=len(runs),
        averaged=len(chosen),
        averaged_status=chosen[0].status if chosen else None,
        mean=statistics.fmean(values) if values else None,
        std=_std(values),
        low=low,
        high=high,
        interval=interval,
        groups="",
        seeds=[r.seed for r in chosen],
        correct=[r.correct for r in chosen],
        total=chosen[0].total if chosen else None,
        spread=_median(_std(r.evaluations[-LAST_EVALUATIONS:]) for r in chosen),
        seconds=_median(r.seconds for r in chosen),
        status=_status(runs),
    )


def compare(accuracies: Sequence[Mapping[int, float]]) -> list[Pair]:
    """All pairs of rows, each given as seed -> accuracy, that have two seeds or more in common.

    Seed-paired differences with their t interval, the paired t test, and Holm's correction over
    the pairs that are compared.
    """
    found = []
    for a, b in itertools.combinations(range(len(accuracies)), 2):
        common = sorted(accuracies[a].keys() & accuracies[b].keys())
        if len(common) >= 2:
            found.append((a, b, [accuracies[a][s] - accuracies[b][s] for s in common]))
    p_values = [paired_p(d) for _, _, d in found]
    return [
        Pair(a, b, len(d), statistics.fmean(d), *t_interval(d), p, adjusted)
        for (a, b, d), p, adjusted in zip(found, p_values, holm(p_values), strict=True)
    ]


def _letters(rows: Sequence[Row], pairs: Sequence[Pair]) -> list[str]:
    """Letters of the rows that were compared with some other row; "" for the rest."""
    compared = {place for pair in pairs for place in (pair.a, pair.b)}
    # Best row first, so that "a" is the best group. A lone row is a group by itself.
    best_first = sorted(
        compared or ([0] if len(rows) == 1 and rows[0].interval == "t" else []),
        key=lambda place: -(rows[place].mean or 0.0),
    )
    rank = {place: i for i, place in enumerate(best_first)}
    different = [(rank[pair.a], rank[pair.b]) for pair in pairs if pair.p_holm <= LEVEL]
    letters = dict(zip(best_first, letter_display(len(rank), different), strict=True))
    return [letters.get(place, "") for place in range(len(rows))]


def make_table(
    results: Iterable[Result],
    recipe: Mapping[str, Any] | None = None,
    *,
    problems: Iterable[str] = (),
    order: Iterable[Mapping[str, Any]] = (),
) -> Table:
    """Results -> rows, comparisons, notes.

    recipe: The reference recipe's config, by default Config(): it decides which rows the README
    has; a field that an older result.json lacks counts as having its value. problems: What
    results.py could not use. order: Configs (a grid's trials) whose rows come first, in that order;
    then follow the README's rows in its order, then the others by their hyperparameters.
    """
    # As JSON, like the results: tuples become lists.
    values = json.loads(json.dumps(recipe or dataclasses.asdict(Config())))
    recipe = {name: value for name, value in values.items() if name != "seed"}
    places: dict[str, int] = {}
    for config in order:
        places.setdefault(_key({**recipe, **config}), len(places))
    trials, notes = _trials(results, recipe)
    configs = {key: {**recipe, **next(iter(runs.values())).config} for key, runs in trials.items()}
    readme = {key: _readme_place(config, recipe) for key, config in configs.items()}
    names = dict.fromkeys(itertools.chain(README_FIELDS, *configs.values()))
    differ = {k for k in names if len({json.dumps(c.get(k)) for c in configs.values()}) > 1}
    fields = [k for k in names if k in differ.union(README_FIELDS)]

    def sort_key(key: str) -> tuple[Any, ...]:
        values = [configs[key].get(k) for k in fields]
        return (
            places.get(key, math.inf),
            math.inf if readme[key] is None else readme[key],
            [(0, v, "") if type(v) in (int, float) else (1, 0, str(v)) for v in values],
        )

    rows, accuracies = [], []
    for key in sorted(trials, key=sort_key):
        place, runs = readme[key], [run for _, run in sorted(trials[key].items())]
        rows.append(_row(configs[key], runs, None if place is None else README_ROWS[place][-1]))
        accuracies.append({r.seed: r.accuracy for r in runs if r.status == "completed"})
    pairs = compare(accuracies)
    letters = zip(rows, _letters(rows, pairs), strict=True)
    rows = [dataclasses.replace(row, groups=groups) for row, groups in letters]
    notes += [f"Left out: {problem}" for problem in problems]
    return Table(rows, pairs, fields, _notes(rows, pairs) + notes)


def _trials(
    results: Iterable[Result], recipe: Mapping[str, Any]
) -> tuple[dict[str, dict[int, Result]], list[str]]:
    """The results by config and seed, and a note for each that repeats another one's."""
    trials: dict[str, dict[int, Result]] = {}
    repeats = []
    use = {"completed": 0, "collapsed": 1}  # of two results of one trial, keep the more complete
    for result in sorted(results, key=lambda r: (use.get(r.status, 2), r.path)):
        runs = trials.setdefault(_key({**recipe, **result.config}), {})
        if result.seed in runs:
            repeats.append(f"{result.path} repeats {runs[result.seed].path}: left out.")
        else:
            runs[result.seed] = result
    return trials, repeats


def _places(places: Iterable[int]) -> str:
    listed = [str(place) for place in places]
    return f"row{'s' * (len(listed) != 1)} {', '.join(listed)}"


def _notes(rows: Sequence[Row], pairs: Sequence[Pair]) -> list[str]:
    """What a reader must know to read the table, and only what applies to this one."""
    if not rows:
        return ["No result to show: no run here has left a usable result.json yet."]
    kinds = {row.interval for row in rows}
    inside = [i for i, row in enumerate(rows) if row.readme_agrees]
    outside = [i for i, row in enumerate(rows) if row.readme_agrees is False]
    notes = {
        "accuracy: correct/total over the test images, mean ± sample standard deviation over"
        " seeds.": True,
        "95% interval: Student's t, for the mean over seeds.": "t" in kinds,
        "w: one run only: Wilson's 95% interval of its correct/total. It holds the chance in the"
        " choice of test images, not the spread over seeds.": "wilson" in kinds,
        "README: its figure, from one run. same rule: our mean by the README's rule, the"
        " unweighted mean of the test batches' means.": any(r.readme is not None for r in rows),
        "The README's figure lies within our mean ± 3 standard deviations (at least"
        f" ± {README_TOLERANCE}) in {len(inside)} of {len(inside + outside)} rows"
        + (f"; not in {_places(outside)}." if outside else "."): inside or outside,
        "runs: only completed runs are averaged and compared; what became of the others says"
        " status, not accuracy. Where none completed, accuracy is the collapsed runs', marked"
        " collapsed, without interval or letter.": any(
            row.averaged < row.runs or row.averaged_status != "completed" for row in rows
        ),
        **dict.fromkeys(_group_notes(rows, pairs), True),
        f"in-run sd: standard deviation over a run's last {LAST_EVALUATIONS} evaluations (all, if"
        " it has fewer), median over the row's runs; seconds: median too.": any(
            row.spread is not None for row in rows
        ),
    }
    return [note for note, applies in notes.items() if applies]


def _group_notes(rows: Sequence[Row], pairs: Sequence[Pair]) -> list[str]:
    if len(rows) == 1:
        return ["group: one row, so nothing to compare."]
    if not pairs and all(row.interval != "t" for row in rows):
        return [
            "group: none. One seed a row allows no comparison: give every row the same seeds, two"
            " or more."
        ]
    if not pairs:
        return ["group: none. No two rows have two completed seeds in common."]
    seeds = sorted({pair.n for pair in pairs})
    compared = {place for pair in pairs for place in (pair.a, pair.b)}
    alone = [place for place in range(len(rows)) if place not in compared]
    untested = math.comb(len(compared), 2) - len(pairs)
    notes = {
        "group: rows that share a letter cannot be told apart (which does not prove them equal):"
        f" paired t tests on {seeds[0]}{f' to {seeds[-1]}' if len(seeds) > 1 else ''} common seeds,"
        f" Holm's correction over {len(pairs)} pair{'s' * (len(pairs) > 1)}, level {LEVEL}."
        + " Two seeds leave one degree of freedom: hardly any pair can differ."
        * (seeds[0] == 2): True,
        f"No letter for {_places(alone)}: fewer than two completed seeds in common with any other"
        " row, so no comparison.": alone,
        f"{untested} pair{'s' * (untested > 1)} of rows with letters had fewer than two seeds in"
        " common: not compared, and so not told apart.": untested,
    }
    return [note for note, applies in notes.items() if applies]
