"""Results -> the table's rows and their comparisons.

Runs that differ in nothing but the seed are one row: their configs, networks and data are equal.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lab.compare import columns, notes
from lab.compare.results import ACCURACY, LOSS, Result
from lab.compare.rows import (
    LAST_EVALUATIONS,
    README_FIELDS,
    README_TOLERANCE,
    Pair,
    Row,
    Table,
    Trial,
    mixed,
)
from lab.compare.statistics import (
    LEVEL,
    detectable,
    holm,
    letter_display,
    paired_p,
    share_ends,
    t_interval,
    wilson_interval,
)
from lab.settings.config import Config

# The README that the lab repeats, "Model Investigation with Tensorboard": its nine rows in its
# order, by README_FIELDS. Accuracy there is the unweighted mean of the test batches' means.
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

# What is recorded does not change what is trained: a README row stays one whatever these say.
RECORDING_FIELDS = frozenset({"watch", "histogram_every", "display_step"})


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


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _std(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _row(
    config: dict[str, Any], parameters: dict[str, str], runs: Sequence[Result], readme: float | None
) -> Row:
    """The row, without its letters."""
    completed = [r for r in runs if r.status == "completed"]
    chosen = completed or [r for r in runs if r.status == "collapsed"]
    metric = next((r.metric for r in chosen if r.metric), "")
    values = [r.value for r in chosen if r.value is not None and r.metric == metric]
    counts = [r for r in chosen if r.total]
    ours = [r.readme_accuracy for r in chosen if r.readme_accuracy is not None]
    agrees = None
    if readme is not None and len(ours) > 1:
        allowed = max(3 * statistics.stdev(ours), README_TOLERANCE)
        agrees = abs(statistics.fmean(ours) - readme) <= allowed
    # A collapsed run's accuracy is the frequency of the class it fell into: no interval fits.
    low = high = interval = None
    if completed and len(values) > 1:
        (low, high), interval = t_interval(values), "t"
        if metric == ACCURACY:
            low, high = share_ends((low + high) / 2, (high - low) / 2)
    elif len(completed) == 1 and counts:
        (low, high), interval = wilson_interval(chosen[0].correct, chosen[0].total), "wilson"
    return Row(
        config=config,
        parameters=parameters,
        network=runs[0].network,
        data=runs[0].data,
        metric=metric,
        loss=_mean(r.metrics.get(LOSS) for r in chosen),
        readme=readme,
        readme_accuracy=_mean(ours),
        readme_agrees=agrees,
        runs=len(runs),
        averaged=len(chosen),
        averaged_status=chosen[0].status if chosen else None,
        mean=_mean(values),
        std=_std(values),
        low=low,
        high=high,
        interval=interval,
        groups="",
        seeds=[r.seed for r in chosen],
        correct=[r.correct for r in counts],
        total=counts[0].total if counts else None,
        spread=_median(_std(r.evaluations[-LAST_EVALUATIONS:]) for r in chosen),
        seconds=_median(r.seconds for r in chosen),
        status=_status(runs),
    )


def _ends(differences: Sequence[float]) -> tuple[float, float]:
    """Of the t interval; no difference of accuracies is beyond -1 and 1."""
    low, high = t_interval(differences)
    return max(low, -1.0), min(high, 1.0)


def compare(accuracies: Sequence[Mapping[int, float]], data: Sequence[str]) -> list[Pair]:
    """All pairs of rows, each given as seed -> accuracy, that have two seeds or more in common and
    are on the same `data`.

    Seed-paired differences with their t interval, the paired t test, Holm's correction over the
    pairs that are compared, and what the test could have seen.
    """
    found = []
    for a, b in itertools.combinations(range(len(accuracies)), 2):
        if data[a] != data[b]:
            continue
        common = sorted(accuracies[a].keys() & accuracies[b].keys())
        if len(common) >= 2:
            found.append((a, b, [accuracies[a][s] - accuracies[b][s] for s in common]))
    p_values = [paired_p(d) for _, _, d in found]
    return [
        Pair(
            a,
            b,
            len(d),
            statistics.fmean(d),
            *_ends(d),
            p,
            adjusted,
            statistics.stdev(d) * detectable(len(d), LEVEL / len(found)),
        )
        for (a, b, d), p, adjusted in zip(found, p_values, holm(p_values), strict=True)
    ]


def _all_pairs(rows: Sequence[Row], accuracies: Sequence[Mapping[int, float]]) -> list[Pair]:
    """The pairs of the README's rows, then those of the others: these take no power from the tests
    of the README's. Where no two of the README's can be compared, all rows are one set."""

    def among(places: Sequence[int]) -> list[Pair]:
        found = compare([accuracies[i] for i in places], [rows[i].data for i in places])
        return [dataclasses.replace(one, a=places[one.a], b=places[one.b]) for one in found]

    others = [i for i, row in enumerate(rows) if row.readme is None]
    of_readme = among([i for i, row in enumerate(rows) if row.readme is not None])
    return of_readme + among(others) if of_readme else among(range(len(rows)))


def _letters(rows: Sequence[Row], pairs: Sequence[Pair]) -> list[str]:
    """Letters of the rows that were compared with some other row; "" for the rest."""
    compared = {place for pair in pairs for place in (pair.a, pair.b)}
    # Of each set the best row first, so that its first letter is the best group's; the README's
    # rows before the others. A table's only row is a group by itself.
    apart = not mixed(rows, pairs)
    best_first = sorted(
        compared or ([0] if len(rows) == 1 and rows[0].interval == "t" else []),
        key=lambda place: (apart and rows[place].readme is None, -(rows[place].mean or 0.0)),
    )
    rank = {place: i for i, place in enumerate(best_first)}
    alike = {frozenset((pair.a, pair.b)) for pair in pairs if pair.differ is False}
    unknown = {place for pair in pairs if pair.differ is None for place in (pair.a, pair.b)}
    different = [
        (rank[a], rank[b])
        for a, b in itertools.combinations(best_first, 2)
        if frozenset((a, b)) not in alike
    ]
    letters = dict(zip(best_first, letter_display(len(rank), different), strict=True))
    return [letters.get(place, "") + "?" * (place in unknown) for place in range(len(rows))]


def make_table(
    results: Iterable[Result],
    *,
    problems: Iterable[str] = (),
    order: Iterable[Mapping[str, Any]] = (),
) -> Table:
    """Results -> rows, comparisons, notes.

    The defaults of Config are the reference recipe, which decides which rows the README has; a
    field that an older result.json lacks counts as having its value. problems: What results.py
    could not use. order: Configs (a grid's trials) whose rows come first, in that order; then
    follow the README's rows in its order, then the others by their hyperparameters.
    """
    # As JSON, like the results: tuples become lists.
    values = json.loads(json.dumps(dataclasses.asdict(Config())))
    recipe = {name: value for name, value in values.items() if name != "seed"}
    places: dict[str, int] = {}
    for config in order:
        places.setdefault(_key({**recipe, **config}), len(places))
    trials, repeated = _trials(results, recipe)
    configs = {key: recipe | next(iter(runs.values())).config for key, runs in trials.items()}
    readme = {key: None if key[1] else _readme_place(c, recipe) for key, c in configs.items()}
    parameters = columns.parameters(configs, trials)
    fields = columns.fields(list(configs.values()), list(parameters.values()))

    def sort_key(key: Trial) -> tuple[Any, ...]:
        place = readme[key]
        return (
            places.get(key[0], math.inf),
            math.inf if place is None else place,
            columns.sort_key(configs[key], parameters[key], fields),
            *key,
        )

    rows, accuracies = [], []
    for key in sorted(trials, key=sort_key):
        place, runs = readme[key], [run for _, run in sorted(trials[key].items())]
        figure = None if place is None else README_ROWS[place][-1]
        rows.append(_row(configs[key], parameters[key], runs, figure))
        counted = (r for r in runs if r.status == "completed" and r.metric == ACCURACY)
        accuracies.append({r.seed: r.value for r in counted if r.value is not None})
    pairs = _all_pairs(rows, accuracies)
    letters = _letters(rows, pairs)
    rows = [dataclasses.replace(row, groups=own) for row, own in zip(rows, letters, strict=True)]
    left_out = [f"Left out: {problem}" for problem in problems]
    return Table(rows, pairs, fields, notes.of(rows, pairs) + repeated + left_out)


def _trials(
    results: Iterable[Result], recipe: Mapping[str, Any]
) -> tuple[dict[Trial, dict[int, Result]], list[str]]:
    """The results by trial and seed, and a note for each that repeats another one's."""
    trials: dict[Trial, dict[int, Result]] = {}
    repeats = []
    use = {"completed": 0, "collapsed": 1}  # of two results of one trial, keep the more complete
    for result in sorted(results, key=lambda r: (use.get(r.status, 2), r.path)):
        key = _key({**recipe, **result.config}), result.network, result.data
        runs = trials.setdefault(key, {})
        if result.seed in runs:
            repeats.append(f"{result.path} repeats {runs[result.seed].path}: left out.")
        else:
            runs[result.seed] = result
    return trials, repeats
