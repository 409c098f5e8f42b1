"""The table of results as text, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from lab.compare.results import ACCURACY, LOSS
from lab.compare.rows import Row, Table, heading, reads, told_by
from lab.compare.statistics import LEVEL
from lab.settings.other_programs import TABLE_FORMATS


def _plain(value: Any) -> Any:
    """A config value for one cell of text or CSV."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "" if value is None else value


def decimals(value: float | None, digits: int) -> str:
    """A figure for one cell; empty if there is none."""
    return "" if value is None else f"{value:.{digits}f}"


def _field(row: Row, name: str) -> Any:
    """A field of a row's config for one cell, or `model.KEY`, a parameter of its model; nothing
    where the model does not read it."""
    if name.startswith("model."):
        return row.parameters.get(name.removeprefix("model."), "")
    return _plain(row.config.get(name)) if reads(row.config, name) else ""


def _cells(place: int, row: Row, fields: Sequence[str], metrics: Sequence[str]) -> dict[str, str]:
    """One row as heading -> printed cell; the headings are the same for every row."""
    interval = "collapsed" if row.averaged_status == "collapsed" else ""
    if row.low is not None:
        interval = f"{row.low:.4f}..{row.high:.4f}" + " w" * (row.interval == "wilson")
    ends = sorted(row.correct)
    counts = "..".join(map(str, dict.fromkeys([*ends[:1], *ends[-1:]])))
    means = dict.fromkeys(metrics, "") | {LOSS: decimals(row.loss, 4)}
    if row.metric:
        means[row.metric] = decimals(row.mean, 4)
        means[row.metric] += "" if row.std is None else f" ± {row.std:.4f}"
    return {
        "#": str(place),
        **{name: str(_field(row, name)) for name in fields},
        "network": row.network[:6],
        "data digest": row.data[:6],
        "README": decimals(row.readme, 4),
        "same rule": decimals(row.readme_accuracy, 4),
        **{heading(name): means[name] for name in metrics},
        "95% interval": interval,
        "group": row.groups,
        "runs": f"{row.averaged} of {row.runs}",
        "correct": f"{counts}/{row.total}" if counts else "",
        "in-run sd": decimals(row.spread, 4),
        "seconds": decimals(row.seconds, 1),
        "status": row.status,
    }


def _printed(table: Table) -> list[dict[str, str]]:
    """All rows, with the columns that say something: the README's only if there is one of its
    rows, digests only where they tell rows apart, other metrics only of rows without accuracy."""
    own = dict.fromkeys(row.metric for row in table.rows if row.averaged)
    others = [name for name in own if name not in (ACCURACY, LOSS, "")]
    metrics = [ACCURACY] * (ACCURACY in own or not own.keys() - {""})
    metrics += [*others, *[LOSS] * bool(others or LOSS in own)]
    rows = [_cells(place, row, table.fields, metrics) for place, row in enumerate(table.rows)]
    shown = {"network": "network", "data": "data digest"}
    hidden = {shown[name] for name in shown.keys() - told_by(table.rows)}
    if not any(row["README"] for row in rows):
        hidden |= {"README", "same rule"}
    for name in {"data", "loss", "model"} & {*table.fields}:
        _shorten(rows, name)
    return [{k: v for k, v in row.items() if k not in hidden} for row in rows]


def _shorten(rows: Sequence[dict[str, str]], column: str) -> None:
    """Leaves of paths what stands behind the last slash, where that tells them apart."""
    short = {row[column]: row[column].rstrip("/").rpartition("/")[2] for row in rows}
    if len({*short.values()}) == len(short):
        for row in rows:
            row[column] = short[row[column]]


def _align(rows: Sequence[Mapping[str, str]], headings: Sequence[str]) -> list[str]:
    columns = []
    for name in headings:
        cells = [name, *(row[name] for row in rows)]
        width = max(map(len, cells))
        left = name in ("optimizer", "group", "status")
        columns.append([c.ljust(width) if left else c.rjust(width) for c in cells])
    return ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]


def to_text(table: Table) -> str:
    """Two blocks with the same row numbers, figures and runs, then the notes; for a terminal."""
    rows, lines = _printed(table), []
    if rows:
        headings = list(rows[0])
        cut = headings.index("runs")
        lines = [*_align(rows, headings[:cut]), "", *_align(rows, ["#", *headings[cut:]]), ""]
    for note in table.notes:
        lines += textwrap.wrap(note, 120, subsequent_indent="  ", break_long_words=False)
    return "\n".join(lines) + "\n"


def to_markdown(table: Table) -> str:
    """One Markdown table, then the notes as a list."""
    rows, lines = _printed(table), []
    if rows:
        cells = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
        lines = ["| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in cells]
        lines.append("")
    return "\n".join([*lines, *(f"- {note}" for note in table.notes)]) + "\n"


def to_csv(table: Table) -> str:
    """A heading and a line a row, unrounded, empty where there is no figure; lists by commas. A
    field of a row that is named as one of configs has another heading."""
    names = [
        one.name for one in dataclasses.fields(Row) if one.name not in ("config", "parameters")
    ]
    other = {"loss": "test_loss", "data": "data_digest"}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*table.fields, *(other.get(name, name) for name in names)])
    for row in table.rows:
        values = [_field(row, f) for f in table.fields] + [getattr(row, n) for n in names]
        writer.writerow([_plain(value) for value in values])
    return out.getvalue()


def to_json(table: Table) -> str:
    """Rows with their whole config, every compared pair, the notes. Strict JSON: null for none."""
    found = {"level": LEVEL, **dataclasses.asdict(table)}
    return json.dumps(found, indent=1, allow_nan=False) + "\n"


FORMATS = {"text": to_text, "markdown": to_markdown, "csv": to_csv, "json": to_json}
assert FORMATS.keys() == {*TABLE_FORMATS}  # the choices of the flag
