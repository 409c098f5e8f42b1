"""The notes below a table of results."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from lab.compare.results import ACCURACY
from lab.compare.rows import LAST_EVALUATIONS, README_TOLERANCE, Pair, Row, heading, mixed, told_by
from lab.compare.statistics import LEVEL


def _places(places: Iterable[int]) -> str:
    listed = [str(place) for place in places]
    return f"row{'s' * (len(listed) != 1)} {', '.join(listed)}"


def plural(count: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count} {noun}{'s' * (count != 1)}"


def of(rows: Sequence[Row], pairs: Sequence[Pair]) -> list[str]:
    """Only the notes that apply to this table."""
    if not rows:
        return ["No results to show: no run here has a usable result.json yet."]
    kinds = {row.interval for row in rows}
    inside = [i for i, row in enumerate(rows) if row.readme_agrees]
    outside = [i for i, row in enumerate(rows) if row.readme_agrees is False]
    counted, others = [row for row in rows if row.correct], _others(rows)
    names = [heading(metric) for metric in dict.fromkeys(rows[i].metric for i in others) if metric]
    notes = {
        "accuracy: correct/total over the test images, mean ± sample standard deviation over"
        " seeds.": counted or not others,
        f"{', '.join(names)}: over the test set, mean ± sample standard deviation over seeds. The"
        " 95% interval is that of the first of them that a row has.": names,
        f"No figure for {_places(i for i in others if not rows[i].metric)}: no test set.": any(
            not rows[i].metric for i in others
        ),
        "95% interval: Student's t, for the mean over seeds; of accuracies on the logit scale"
        ", which keeps it between 0 and 1.": "t" in kinds,
        "w: one run only: Wilson's 95% interval of its correct/total. It covers the chance in the"
        " choice of test images, not the spread over seeds.": "wilson" in kinds,
        "README: its figure, from one run. same rule: our mean by the README's rule, the"
        " unweighted mean of the test batches' means.": any(r.readme is not None for r in rows),
        "The README's figure is within our mean ± 3 standard deviations (at least"
        f" ± {README_TOLERANCE}) in {len(inside)} of {len(inside + outside)} rows"
        + (f"; not in {_places(outside)}." if outside else "."): inside or outside,
        "network, data digest: rows of one config, distinguished by digests of the network and the"
        " data.": bool(told_by(rows)),
        "runs: only completed runs are averaged and compared; for the others see"
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
    others = _others(rows)
    if len(rows) == 1:
        return ["group: one row, so nothing to compare."]
    if len(others) == len(rows):
        return ["group: none. Only accuracies are compared."]
    if not pairs and all(row.interval != "t" for row in rows):
        return [
            "group: none. One seed per row allows no comparison: give every row the same seeds, two"
            " or more."
        ]
    if not pairs:
        return ["group: none. No two rows have two completed seeds in common."]
    seeds = sorted({pair.n for pair in pairs})
    compared = {place for pair in pairs for place in (pair.a, pair.b)}
    alone = [place for place in range(len(rows)) if place not in compared.union(others)]
    together = mixed(rows, pairs)
    kinds = [row.readme is None and not together for row in rows]
    rest = sum(kinds[pair.a] for pair in pairs)
    apart = any(kinds) and rest < len(pairs)
    corrected = plural(len(pairs) - rest * apart, "pair")
    corrected += " of the README's rows" * apart + f" and {rest} of others" * (apart and rest > 0)
    sets = Counter((kinds[place], rows[place].data) for place in compared)
    untested = sum(math.comb(count, 2) for count in sets.values()) - len(pairs)
    data = {rows[place].data for place in compared}
    notes = {
        "group: rows that share a letter differ by less than a point, as far as tests with 80%"
        f" power can say: paired t tests on {seeds[0]}"
        f"{f' to {seeds[-1]}' if len(seeds) > 1 else ''} common seeds, Holm's correction over"
        f" {corrected}, level {LEVEL}."
        + " Two seeds leave one degree of freedom: hardly any pair can differ."
        * (seeds[0] == 2): True,
        "The README's rows are compared among themselves, and so are the others: rows of different"
        " kinds are not compared, and share no letter.": apart,
        _unknown(pairs): any(pair.differ is None for pair in pairs),
        f"No letter for {_places(alone)}: fewer than two completed seeds in common with any other"
        f" row{' of its kind' * apart}, so no comparison.": alone,
        f"No letter for {_places(others)}: only accuracies are compared.": others,
        "Accuracies on different data are not compared, and share no letter.": len(data) > 1,
        f"{plural(untested, 'pair')} of rows with letters had fewer than two seeds in"
        " common: not compared, and so not distinguished.": untested,
    }
    return [note for note, applies in notes.items() if applies]


def _unknown(pairs: Sequence[Pair]) -> str:
    some = [pair.detectable for pair in pairs if pair.differ is None] or [0.0]
    least, most = (f"{float(f'{100 * end:.2g}'):g}" for end in (min(some), max(some)))
    points = least if least == most else f"{least} to {most}"
    return (
        f"?: too few seeds to distinguish the row from some other, in {len(some)} of {len(pairs)}"
        f" pairs: with 80% power their tests detect differences of {points} points or more."
    )


def _others(rows: Sequence[Row]) -> list[int]:
    """The places of the rows that have other figures than accuracies, or none."""
    return [i for i, row in enumerate(rows) if row.averaged and row.metric != ACCURACY]
