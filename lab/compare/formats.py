"""The table of results as text, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from lab.compare.statistics import LEVEL
from lab.compare.table import Row, Table
from lab.settings.config import TABLE_FORMATS


def _plain(value: Any) -> Any:
    """A config value for one cell of text or CSV."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "" if value is None else value


def _decimals(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _cells(place: int, row: Row, fields: Sequence[str]) -> dict[str, str]:
    """One row as heading -> printed cell; the headings are the same for every row."""
    interval = "collapsed" if row.averaged_status == "collapsed" else ""
    if row.low is not None:
        interval = f"{row.low:.4f}..{row.high:.4f}" + " w" * (row.interval == "wilson")
    ends = sorted(row.correct)
    counts = "..".join(map(str, dict.fromkeys([*ends[:1], *ends[-1:]])))
    return {
        "#": str(place),
        **{name: str(_plain(row.config.get(name))) for name in fields},
        "README": _decimals(row.readme, 4),
        "same rule": _decimals(row.readme_accuracy, 4),
        "accuracy": _decimals(row.mean, 4) + ("" if row.std is None else f" ± {row.std:.4f}"),
        "95% interval": interval,
        "group": row.groups,
        "runs": f"{row.averaged} of {row.runs}",
        "correct": f"{counts}/{row.total}" if counts else "",
        "in-run sd": _decimals(row.spread, 4),
        "seconds": _decimals(row.seconds, 1),
        "status": row.status,
    }


def _printed(table: Table) -> list[dict[str, str]]:
    """All rows; the README's columns only if there is one of its rows."""
    rows = [_cells(place, row, table.fields) for place, row in enumerate(table.rows)]
    hidden = set() if any(row["README"] for row in rows) else {"README", "same rule"}
    return [{k: v for k, v in row.items() if k not in hidden} for row in rows]


def _align(rows: Sequence[Mapping[str, str]], headings: Sequence[str]) -> list[str]:
    columns = []
    for heading in headings:
        cells = [heading, *(row[heading] for row in rows)]
        width = max(map(len, cells))
        left = heading in ("optimizer", "group", "status")
        columns.append([c.ljust(width) if left else c.rjust(width) for c in cells])
    return ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]


def to_text(table: Table, width: int = 120) -> str:
    """Two blocks with the same row numbers, figures and runs, then the notes; for a terminal."""
    rows, lines = _printed(table), []
    if rows:
        headings = list(rows[0])
        cut = headings.index("runs")
        lines = [*_align(rows, headings[:cut]), "", *_align(rows, ["#", *headings[cut:]]), ""]
    for note in table.notes:
        lines += textwrap.wrap(note, width, subsequent_indent="  ", break_long_words=False)
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
    """A heading and a line a row, unrounded, empty where there is no figure; lists by commas."""
    names = [field.name for field in dataclasses.fields(Row) if field.name != "config"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*table.fields, *names])
    for row in table.rows:
        values = [row.config.get(f) for f in table.fields] + [getattr(row, n) for n in names]
        writer.writerow([_plain(value) for value in values])
    return out.getvalue()


def to_json(table: Table) -> str:
    """Rows with their whole config, every compared pair, the notes. Strict JSON: null for none."""
    found = {"level": LEVEL, **dataclasses.asdict(table)}
    return json.dumps(found, indent=1, allow_nan=False) + "\n"


FORMATS = {"text": to_text, "markdown": to_markdown, "csv": to_csv, "json": to_json}
assert FORMATS.keys() == {*TABLE_FORMATS}  # the choices of the flag
