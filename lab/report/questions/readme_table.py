"""The table of all configurations, beside the README's."""

from __future__ import annotations

from typing import Any

from lab.analysis.study import Evidence
from lab.compare.formats import decimals
from lab.compare.results import ACCURACY
from lab.compare.rows import Row, heading, mixed
from lab.report.draft import SEEDS, Draft
from lab.report.figures import points
from lab.report.section import Figure, Section, Series

_COMMANDS = 5  # at most
Rows = list[tuple[str, Row]]


def table(evidence: Evidence) -> Section:
    draft = Draft("table", evidence)
    found = evidence.runs.table
    rows = list(zip(evidence.runs.labels, found.rows, strict=True))
    counted = [(name, row) for name, row in rows if row.mean is not None]
    shown = _comparable(draft, counted)
    readme = [(name, row) for name, row in shown if row.readme is not None]
    _figures(draft, rows, counted)
    if len(shown) > 1:
        _errors(draft, readme if len(readme) > 1 else shown)
    if readme:
        judged = {name: row.readme_agrees for name, row in readme if row.readme_agrees is not None}
        outside = [name for name, agrees in judged.items() if not agrees]
        draft.control(
            "readme", not outside if judged else None, judged=len(judged), outside=outside
        )
    if not rows or any(row.runs < 2 for _, row in rows):
        if readme or not rows:
            config = readme[0][1].config if readme else None
            draft.command("readme", config=config, grid="readme", seeds=SEEDS)
        single = [group for group in evidence.runs.groups if len(group.runs) < 2]
        for group in single[: 0 if readme else _COMMANDS]:
            draft.facts["label"] = group.label
            draft.command("seeds", group, seeds=SEEDS)
    if found.pairs:
        draft.unknown("letters")
    outcome, facts = _outcome(draft, shown, readme)
    dead = sum(run.result["status"] == "collapsed" for g in evidence.runs.groups for run in g.runs)
    return draft.section(outcome, collapsed=dead, **facts)


def _comparable(draft: Draft, rows: Rows) -> Rows:
    """The accuracies on one set of data: the reference's, if it has any, or the first row's."""
    found = [(name, row) for name, row in rows if row.metric == ACCURACY]
    reference = draft.evidence.reference
    of_reference = [pair for pair in found if reference and pair[1].data == reference.data]
    return of_reference or [pair for pair in found if pair[1].data == found[0][1].data]


def _figures(draft: Draft, rows: Rows, shown: Rows) -> None:
    draft.add(*(
        Figure(f"{r.metric}:{n}", f"test {r.metric}, {n}", r.mean, r.low, r.high, r.averaged,
               "%" * (r.metric == ACCURACY))
        for n, r in shown
    ))  # fmt: skip
    metrics = list(dict.fromkeys([ACCURACY, *(r.metric for _, r in shown)]))
    cells = [
        (
            name,
            decimals(row.readme, 4),
            *(decimals(row.mean if row.metric == metric else None, 4) for metric in metrics),
            "" if row.low is None else f"{row.low:.4f} to {row.high:.4f}",
            row.groups,
            f"{row.averaged} of {row.runs}",
            row.status,
        )
        for name, row in rows
    ]
    columns = ("configuration", "README", *map(heading, metrics), "95% interval", "group", "runs",
               "status")  # fmt: skip
    found = draft.evidence.runs.table
    alike = mixed(found.rows, found.pairs)  # then all are one table
    ours = [line for line in cells if line[1] or alike]
    others = [line for line in cells if not line[1] and not alike]
    if ours:
        draft.table("table", columns, ours)
    if others or not ours:
        without = [(line[0], *line[2:]) for line in (columns, *others)]  # the README's accuracy
        draft.table("others" if ours else "table", without[0], without[1:])


def _errors(draft: Draft, drawn: Rows) -> None:
    """The README's rows alone, where there are any: with grids beside them the rest is long."""

    def wrong(share: float | None) -> float | None:
        return None if share is None else 1 - share

    figures = [Figure("", "", wrong(r.mean), wrong(r.high), wrong(r.low)) for _, r in drawn]
    series = [points("these runs", [name for name, _ in drawn], figures, "points")]
    if readme := {name: 1 - row.readme for name, row in drawn if row.readme is not None}:
        series.append(Series("README", list(readme), list(readme.values()), style="points"))
    best = max(drawn, key=lambda pair: pair[1].mean or 0)
    draft.bars("errors", "share of test images wrong", series, scale="log",
               lowest=wrong(best[1].mean), best=best[0])  # fmt: skip


def _outcome(draft: Draft, shown: Rows, readme: Rows) -> tuple[str, dict[str, Any]]:
    pairs = draft.evidence.runs.table.pairs
    if not shown:
        return "no_accuracy" if draft.figures else "no_run", {}
    compared = [(name, row) for name, row in shown if row.groups]
    if not pairs or not compared:
        names = {f"{ACCURACY}:{name}" for name, _ in shown}
        found = [figure for figure in draft.figures if figure.key in names]
        top = max(found, key=lambda figure: figure.value or 0)
        facts = {"best": top.key.partition(":")[2], "figure": top, "count": len(shown)}
        return "alone" if len(shown) == 1 else "not_compared", facts
    ours = [(name, row) for name, row in readme if row.groups]
    apart = len(readme) < len(shown) and not mixed(draft.evidence.runs.table.rows, pairs)
    judged = ours if ours and apart else compared
    best, row = max(judged, key=lambda pair: pair[1].mean or 0)
    # A letter past Z is a number in brackets: the first one ends behind a bracket.
    letter = row.groups[: row.groups.index(")") + 1] if row.groups[0] == "(" else row.groups[0]
    group = [(name, other.mean or 0) for name, other in judged if letter in other.groups]
    unknown = [pair.detectable for pair in pairs if pair.differ is None]
    every, other = max(compared, key=lambda pair: pair[1].mean or 0)
    alone = [(name, row.mean or 0) for name, row in (readme if judged is ours else shown)
             if not row.groups and row.averaged_status != "collapsed"]  # fmt: skip
    facts = {
        "alone": len(alone), "alone_best": max(alone, key=lambda pair: pair[1], default=None),
        "every": every, "highest": other.mean, "all": len(compared),
        "best": best, "row": row, "group": group, "count": len(judged), "pairs": len(pairs),
        "seeds": sorted({pair.n for pair in pairs}), "readme": judged is ours,
        "untold": len(unknown), "blind": 100 * min(unknown, default=0),
    }  # fmt: skip
    if "?" in row.groups:
        return "unsure", facts
    return "best" if len(group) == 1 else "best_group", facts
