"""The replayed table."""

from __future__ import annotations

import re

from lab.analysis.study import Evidence
from lab.compare.table import Row
from lab.report.figures import command, listed, many, percent, points, say
from lab.report.section import Bars, Control, Figure, Picture, Section, Series, Table


def _some(labels: list[str], most: int = 6) -> str:
    """The first labels, and how many more there are."""
    more = len(labels) - most
    return listed([*labels[:most], f"{more} more"] if more > 1 else labels)


def _best(which: str, compared: list[tuple[str, Row]]) -> str:
    """The best of these rows, and those among them that share the first of its letters."""
    top, row = max(compared, key=lambda pair: pair[1].mean or 0)
    letter = (re.findall(r"\(\d+\)|\w", row.groups) or [""])[0]
    group = {n: r.mean or 0 for n, r in compared if letter in r.groups}
    start = f"{which.format(len(compared))} that were compared"
    if len(group) == 1:
        return f"{start} {top} is the best, at {percent(row.mean or 0)}"
    return (
        f"{start} the best group holds {len(group)} that cannot be told apart"
        f" ({_some(list(group))}), at {percent(min(group.values()))} to"
        f" {percent(max(group.values()))}"
    )


def table(evidence: Evidence) -> Section:
    found, logdir = evidence.runs.table, evidence.runs.logdir
    names = evidence.runs.labels
    shown = [(n, r) for n, r in zip(names, found.rows, strict=True) if r.mean is not None]
    figures = [
        Figure(f"accuracy:{n}", f"test accuracy, {n}", r.mean, r.low, r.high, r.averaged, "%")
        for n, r in shown
    ]
    rows = [
        (
            name,
            "" if row.readme is None else f"{row.readme:.4f}",
            "" if row.mean is None else f"{row.mean:.4f}",
            "" if row.low is None or row.high is None else f"{row.low:.4f} to {row.high:.4f}",
            row.groups,
            f"{row.averaged} of {row.runs}",
            row.status,
        )
        for name, row in zip(names, found.rows, strict=True)
    ]
    headings = ("configuration", "README", "accuracy", "95% interval", "group", "runs", "status")
    see = (
        "accuracy: on all test images, the mean over the completed runs, or where none completed"
        " over those that collapsed; 95% interval: over seeds. Rows that share a letter (group)"
        " cannot be told apart by paired t tests with Holm's correction."
    )
    pictures: list[Picture] = [Table("table", "The table, replayed", see, headings, rows)]
    readme = [(n, r.readme) for n, r in shown if r.readme is not None]
    if len(shown) > 1:
        # The README's rows alone, where there are any: with grids beside them the rest is long.
        drawn = [name for name, _ in readme] if len(readme) > 1 else [name for name, _ in shown]
        errors = [
            Figure("", "", 1 - f.value, None if f.high is None else 1 - f.high,
                   None if f.low is None else 1 - f.low)
            for f in figures if f.value is not None and f.key.partition(":")[2] in drawn
        ]  # fmt: skip
        series = [points("these runs", drawn, errors, "points")]
        if readme:
            series.append(
                Series("README", [n for n, _ in readme], [1 - v for _, v in readme], style="points")
            )
        best = max((pair for pair in shown if pair[0] in drawn), key=lambda pair: pair[1].mean or 0)
        see = f"The lowest error is {percent(1 - (best[1].mean or 0))}, of {best[0]}."
        pictures.append(
            Bars("errors", "Test error by configuration", see, "share of test images wrong",
                 series, y_scale="log")
        )  # fmt: skip
    if not shown:
        answer = "There is no finished run to make a table of."
    elif not found.pairs:
        top = max(figures, key=lambda f: f.value or 0)
        which = top.key.partition(":")[2]
        answer = (
            f"The accuracy of {which} is {say(top)}, of {many(top.runs, 'run')}; there is nothing"
            " to compare it with."
            if len(shown) == 1
            else f"Of {len(shown)} configurations the highest accuracy is {say(top)} ({which}), but"
            " no two of them have two seeds in common, so none can be told from another."
        )
    else:
        compared = [(n, r) for n, r in shown if r.groups]
        rows_of_readme = [(n, r) for n, r in compared if r.readme is not None]
        parts = []
        if 1 < len(rows_of_readme) < len(compared):
            parts.append(_best("Of the README's {} configurations", rows_of_readme))
        parts.append(_best("of all {}" if parts else "Of {} configurations", compared))
        seeds = sorted({pair.n for pair in found.pairs})
        common = str(seeds[0]) + (f" to {seeds[-1]}" if len(seeds) > 1 else "")
        answer = (
            f"{'; '.join(parts)}; {many(len(found.pairs), 'pair')} of {len(shown)} configurations"
            f" were compared, on {common} common seeds."
        )
    dead = sum(r.averaged for _, r in shown if r.averaged_status == "collapsed")
    if dead:
        answer += f" {many(dead, 'run')} collapsed onto one class."
    judged = [(n, r.readme_agrees) for n, r in shown if r.readme_agrees is not None]
    outside = [n for n, agrees in judged if not agrees]
    controls = []
    if readme:
        controls.append(
            Control(
                "The README's figures come out again, by its own rule, within 3 standard"
                " deviations over seeds.",
                f"In {len(judged) - len(outside)} of {len(judged)} rows"
                + (f"; not {listed(outside)}." if outside else ".")
                if judged
                else "One seed a row gives no standard deviation to hold them against.",
                not outside if judged else None,
            )
        )
    commands = []
    if any(row.runs < 2 for row in found.rows) or not found.rows:
        grid = "readme" if readme or not found.rows else "FILE"
        commands = [("the README's rows with five seeds", command(logdir, grid=grid, seeds=5))]
        if grid == "FILE":
            commands = [
                (f"five seeds of {n}", command(logdir, r.config, seeds=5))
                for n, r in zip(names, found.rows, strict=True)
                if r.runs < 2
            ][:5]
    unknown = [
        "That rows share a letter does not prove them equal; it says that these seeds do not tell"
        " them apart."
    ]
    return Section(
        "table", "The table, replayed", answer, figures, pictures, controls,
        unknown if found.pairs else (), commands,
    )  # fmt: skip
