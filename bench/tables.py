"""Results to text: the tables, the bars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from bench import parts
from bench.common import PERCEPTRON
from bench.launch import MEMORY, STEP, TENSORFLOW

BASE, RECORD = parts.NO_RECORD.name, parts.DEFAULT_RECORD.name
EVERYTHING, ADD_HISTOGRAM = "ours, everything watched", "PyTorch, add_histogram"
_FEW, _MANY = (f"{count} tensors: " for count in parts.FEW_AND_MANY)


class Bar(NamedTuple):
    """What is asked of the ratio of two contestants of a part."""

    what: str
    most: float
    part: str
    above: str
    below: str  # "": the fastest one without record
    network: str = PERCEPTRON


RATIOS = [
    Bar("default record / no record", 1.15, "record", RECORD, BASE),
    Bar("everything watched / no record", 1.35, "record", EVERYTHING, BASE),
    Bar("no record / fastest peer without record", 1.00, "peers", BASE, ""),
    Bar("default record / fastest peer without record", 1.00, "peers", RECORD, ""),
    Bar("no record / floor", 1.30, "record", BASE, parts.FLOOR.name),
    Bar("default record / PyTorch with add_histogram", 0.08, "peers", RECORD, ADD_HISTOGRAM),
    Bar("default record / notebook's way with histograms", 0.04, "peers", RECORD,
        parts.NOTEBOOK.name),
    Bar("MirroredStrategy / no strategy", 1.03, "record", BASE, "ours, no strategy"),
    Bar("2 replicas / 1", 1.30, "record", "ours, 2 replicas", BASE),
]  # fmt: skip
for _network in parts.NETWORKS:
    RATIOS += [
        Bar(f"{_network}: no record / fastest peer", 1.00, "networks", BASE, "", _network),
        Bar(f"{_network}: default record / no record", 1.05, "networks", RECORD, BASE, _network),
    ]
WIDE = 2048
# Of the figures of the part `sizes`: what, at most, and of which two the ratio is taken.
FIGURES: list[tuple[str, float, str, str]] = [
    ("perceptron: launch to first step / import tensorflow", 1.5, f"perceptron: {STEP}",
     TENSORFLOW),
    ("transformer: launch to first step / import tensorflow", 2.5, f"transformer: {STEP}",
     TENSORFLOW),
    (MEMORY, 350, MEMORY, ""),
    (f"{parts.BYTES} / tf.summary.histogram's", 0.5, parts.BYTES,
     f"tf.summary.histogram: {parts.BYTES}"),
    ("record of 200 tensors / of 10 as large", 1.2, _MANY + parts.RECORDING,
     _FEW + parts.RECORDING),
    ("compiling with 200 tensors / with 10", 1.5, _MANY + parts.COMPILING, _FEW + parts.COMPILING),
]  # fmt: skip


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Of the values, or of none: the quarter, the half, the three quarters."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]) if len(values) else [np.nan] * 3
    return float(low), float(middle), float(high)


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Turn by turn, as far as both came."""
    return [a / b for a, b in zip(above, below, strict=False)]


def rows_of(
    results: dict[str, Any], part: str, network: str = PERCEPTRON
) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of a part that were measured, by rule and name."""
    rows = [row for row in results["parts"].get(part, {}).get("rows", []) if "error" not in row]
    return {(r["rule"], r["name"]): r for r in rows if r.get("network", PERCEPTRON) == network}


def bars(results: dict[str, Any]) -> Iterator[tuple[str, float, dict[str, float]]]:
    """What is asked for: (what, at most, measured by rule); those that were not measured too."""
    for what, most, part, above, below, network in RATIOS:
        rows, found = rows_of(results, part, network), {}
        for rule in dict.fromkeys(rule for rule, _ in rows):
            other = below or fastest(rows, rule)
            if (rule, above) in rows and (rule, other) in rows:
                values = ratios(rows[rule, above]["ms"], rows[rule, other]["ms"])
                found[rule if below else f"{rule}, {other}"] = median(values)
        yield what, most, found
    found = {}
    for point in results["parts"].get("sweeps", {}).get("points", []):
        if (point["axis"], point["value"]) == ("width", WIDE):
            values = ratios(point["ms"]["default record"], point["ms"]["no record"])
            found[results["parts"]["sweeps"]["rule"]] = median(values)
    yield f"width {WIDE}: default record / no record", 1.25, found
    figures = results["parts"].get("sizes", {}).get("figures", {})
    for what, most, above, below in FIGURES:
        known = above in figures and (not below or below in figures)
        yield what, most, {"": figures[above] / figures.get(below, 1)} if known else {}


def fastest(rows: dict[tuple[str, str], dict[str, Any]], rule: str) -> str:
    """The name of the fastest peer without record, or nothing."""
    names = [name for name in parts.BARE if (rule, name) in rows]
    return min(names, key=lambda name: median(rows[rule, name]["ms"]), default="")


def to_markdown(results: dict[str, Any]) -> str:
    """Everything that was measured, and how."""
    machine, measured = results["machine"], results["parts"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB; "
        f"{machine['system']}; load before the run {machine['load']:.1f}; {results['date']}"
        + ("; **the machine was not quiet: figures spread**" if machine["load"] > 0.5 else "")
        + ("; **quick: too few turns to compare**" if results["quick"] else ""),
        "",
    ]
    for part, found in measured.items():
        if "error" in found:
            lines += [f"**{part}**: not measured: {_cell(found['error'])}", ""]
        tables: dict[str, list[dict[str, Any]]] = {}
        for row in found.get("rows", []):
            name = row.get("network", PERCEPTRON)
            title = f"{part}, {row['rule']}" if name == PERCEPTRON else f"{name}, {row['rule']}"
            if part == "gpu":
                title = f"{name}, {row['rule']}, on one GPU"
            tables.setdefault(title, []).append(row)
        for title, rows in tables.items():
            lines += [f"**{title}**", "", *_rows(rows), ""]
        if "figures" in found:
            cells = ((name, f"{value:.4g}") for name, value in found["figures"].items())
            lines += [*_table("", "measured"), *(_line(*pair) for pair in cells), ""]
        if "points" in found:
            lines += [*_sweeps(found["rule"], found["points"]), ""]
        if "pages" in found:
            lines += [*_pages(found["pages"]), ""]
        if "steps" in found:
            steps, seconds = found["steps"], found["seconds"]
            lines += [f"The README's grid, default record, {steps:,} steps: {seconds:.1f} s.", ""]
    lines += [*_bars(results), "", "Versions, threads, devices:", ""]
    rows = [row for found in measured.values() for row in found.get("rows", []) if "about" in row]
    about = [", ".join(f"{k} {v}" for k, v in row["about"].items()) for row in rows]
    return "\n".join([*lines, *(f"- {text}" for text in dict.fromkeys(about)), ""])


def _table(*head: str) -> list[str]:
    return [_line(*head), _line(*["---"] * len(head))]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def _spread(values: Sequence[float], digits: int = 2) -> tuple[str, str]:
    """The cells of the median and the quartiles."""
    low, middle, high = quartiles(values)
    return f"{middle:.{digits}f}", f"{low:.{digits}f}..{high:.{digits}f}"


def _rows(rows: list[dict[str, Any]]) -> list[str]:
    base: list[float] = next((row["ms"] for row in rows if row["name"] == BASE), [])
    numbers = "ms a step", "quartiles", "times ours", "quartiles", "bytes a step", "peak MB", "loss"
    lines = _table("", *numbers, "")
    for row in rows:
        if "error" in row:
            cells = [*[""] * len(numbers), f"not measured: {_cell(row['error'])}"]
        else:
            cells = [
                *_spread(row["ms"], 3 if median(row["ms"]) < 10 else 1),
                *_spread(ratios(row["ms"], base)),
                f"{row['bytes']:.0f}",
                f"{row['peak_mb']:.0f}",
                _loss(row),
                _cell(row["note"]),
            ]
        lines.append(_line(row["name"], *cells))
    return lines


def _loss(row: dict[str, Any]) -> str:
    """The mean loss of the first steps, which are the same for all, and ours where it differs."""
    loss, ours = row["loss"], row["loss_ours"]
    text = f"{loss:.{1 if loss > 10 else 4}f} ({row['checked']} steps)" if loss else ""
    return text if abs(loss - ours) <= 0.01 * ours or not loss else f"{text}, **ours {ours:.4g}**"


def _sweeps(rule: str, points: list[dict[str, Any]]) -> list[str]:
    lines = _table(rule, "no record, ms", "default record, ms", "ratio", "quartiles")
    for point in points:
        none, some = point["ms"]["no record"], point["ms"]["default record"]
        cells = f"{median(none):.2f}", f"{median(some):.2f}", *_spread(ratios(some, none))
        lines.append(_line(f"{point['axis']} {point['value']}", *cells))
    return lines


def _pages(rows: list[dict[str, Any]]) -> list[str]:
    head = "MB", "made in s", "first picture, s", "all in sight, s", "frames/s, cursor moving"
    lines = _table("bin/view", *head)
    for row in rows:
        cells = [f"{row[key]:.1f}" for key in ("megabytes", "made", "opened", "drawn", "frames")]
        lines.append(_line(row["name"], *cells))
    return lines


def _bars(results: dict[str, Any]) -> list[str]:
    lines = _table("bar", "at most", "measured", "")
    for what, most, found in bars(results):
        texts = [f"{value:.3f}" + (f" ({rule})" if rule else "") for rule, value in found.items()]
        verdict = "met" if found and max(found.values()) <= most else "**not met**"
        cells = ("; ".join(texts), verdict) if found else ("-", "not measured")
        lines.append(_line(what, f"{most:.2f}", *cells))
    return lines
