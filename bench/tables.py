"""Results to text: the table, the bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.parts import BARE

BASE = "ours, no record"
# The notebook's way writes 12 histograms a step; ours, watching everything, 9 more than by default.
HISTOGRAMS, MORE = 12, 9


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Of the values, or of none: the quarter, the half, the three quarters."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]) if len(values) else [np.nan] * 3
    return float(low), float(middle), float(high)


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Turn by turn, as far as both came."""
    return [a / b for a, b in zip(above, below, strict=False)]


def loaded(machine: dict[str, Any]) -> bool:
    """The machine was not quiet as the run began."""
    return machine["load"] > 0.5


def rows_of(results: dict[str, Any], part: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of a part that were measured, by rule and name."""
    rows = results["parts"].get(part, {}).get("rows", [])
    return {(row["rule"], row["name"]): row for row in rows if "error" not in row}


def bars(results: dict[str, Any]) -> list[tuple[str, float, dict[str, float]]]:
    """What is asked for: (what, at most, measured by rule); those that were not measured too."""
    rules = results["rules"]

    def by_rule(part: str, above: str, below: str | None) -> dict[str, float]:
        rows, found = rows_of(results, part), {}
        for rule in rules:
            other = below or _fastest(rows, rule)
            if (rule, above) in rows and (rule, other) in rows:
                values = ratios(rows[rule, above]["ms"], rows[rule, other]["ms"])
                found[rule if below else f"{rule}, {other}"] = quartiles(values)[1]
        return found

    default, notebook = "ours, default record", "notebook's way, histograms"
    asked = [
        ("default record / no record", 1.10, by_rule("record", default, BASE)),
        (
            "everything watched / no record",
            1.35,
            by_rule("record", "ours, everything watched", BASE),
        ),
        ("no record / fastest peer without record", 1.00, by_rule("peers", BASE, None)),
        ("no record / floor", 1.30, by_rule("record", BASE, "floor: eight products")),
        (
            "default record / PyTorch with add_histogram",
            0.08,
            by_rule("peers", default, "PyTorch, add_histogram"),
        ),
        (
            "default record / notebook's way with histograms",
            0.04,
            by_rule("peers", default, notebook),
        ),
        ("MirroredStrategy / no strategy", 1.03, by_rule("record", BASE, "ours, no strategy")),
    ]
    start = results["parts"].get("startup", {})
    if start.get("import"):
        middle = quartiles(ratios(start["first_step"], start["import"]))[1]
        asked.append(("launch to first step / import tensorflow", 1.7, {"": middle}))
    else:
        asked.append(("launch to first step / import tensorflow", 1.7, {}))
    rows, size = rows_of(results, "record") | rows_of(results, "peers"), {}
    everything = "ours, everything watched"
    for rule in rules:
        if all((rule, name) in rows for name in (default, everything, notebook)):
            ours = (rows[rule, everything]["bytes"] - rows[rule, default]["bytes"]) / MORE
            size[rule] = ours / (rows[rule, notebook]["bytes"] / HISTOGRAMS)
    asked.append(("bytes of a histogram / tf.summary.histogram's", 0.55, size))
    return asked


def _fastest(rows: dict[tuple[str, str], dict[str, Any]], rule: str) -> str:
    there = [name for name in BARE if (rule, name) in rows]
    return min(there, key=lambda name: quartiles(rows[rule, name]["ms"])[1], default="")


def to_markdown(results: dict[str, Any]) -> str:
    """Everything that was measured, and how."""
    machine = results["machine"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB; "
        f"{machine['system']}; load before the run {machine['load']:.1f}; {results['date']}"
        + ("; **quick: too few turns to tell anything**" if results["quick"] else ""),
        "",
    ]
    if loaded(machine):
        load = f"load {machine['load']:.1f}"
        lines += [f"**The machine was not quiet ({load}): figures spread.**", ""]
    for part, found in results["parts"].items():
        if "error" in found:
            lines += [f"**{part}**: not measured: {_cell(found['error'])}", ""]
        if "gpu" in found:
            lines += [f"**gpu**: {found['gpu']}", ""]
        for rule in results["rules"]:
            rows = [row for row in found.get("rows", []) if row["rule"] == rule]
            lines += _rows(part, rule, rows) if rows else []
    lines += _others(results["parts"])
    lines += ["| bar | at most | measured | |", "| --- | --- | --- | --- |"]
    for what, most, measured in bars(results):
        said = "; ".join(
            f"{value:.3f} ({rule})" if rule else f"{value:.3f}" for rule, value in measured.items()
        )
        verdict = "met" if measured and max(measured.values()) <= most else "**not met**"
        lines.append(
            f"| {what} | {most:.2f} | {said or '-'} | {verdict if measured else 'not measured'} |"
        )
    lines += ["", "Versions, threads, devices:", ""]
    abouts: dict[str, None] = {}
    for found in results["parts"].values():
        for row in found.get("rows", []):
            if "about" in row:
                abouts[", ".join(f"{k} {v}" for k, v in row["about"].items())] = None
    return "\n".join([*lines, *(f"- {text}" for text in abouts), ""])


def _rows(part: str, rule: str, rows: list[dict[str, Any]]) -> list[str]:
    base: list[float] = next((row["ms"] for row in rows if row["name"] == BASE), [])
    lines = [
        f"**{part}, {rule}**",
        "",
        "| | ms a step | quartiles | times ours | quartiles | bytes a step | peak MB | loss | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['name']} | | | | | | | | not measured: {_cell(row['error'])} |")
            continue
        low, middle, high = quartiles(row["ms"])
        a, b, c = quartiles(ratios(row["ms"], base))
        digits = 3 if middle < 10 else 1
        lines.append(
            f"| {row['name']} | {middle:.{digits}f} | {low:.{digits}f}..{high:.{digits}f} "
            f"| {b:.2f} | {a:.2f}..{c:.2f} | {row['bytes']:.0f} | {row['peak_mb']:.0f} "
            f"| {_learnt(row)} | {_cell(row['note'])} |"
        )
    return [*lines, ""]


def _learnt(row: dict[str, Any]) -> str:
    """The mean loss of the first steps, which are the same for all, and ours where it differs."""
    loss, ours = row["loss"], row["loss_ours"]
    if not loss:
        return ""
    said = f"{loss:.1f} ({row['checked']} steps)"
    return said if abs(loss - ours) <= 0.01 * ours else f"{said}, **ours {ours:.1f}**"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def _others(parts: dict[str, Any]) -> list[str]:
    lines = []
    start, nine, sweep = (parts.get(name, {}) for name in ("startup", "grid", "sweeps"))
    if start.get("import"):
        lines += ["| from launch, seconds | median | quartiles |", "| --- | --- | --- |"]
        for name, key in (
            ("python -c 'import tensorflow'", "import"),
            ("bin/train to the evaluation of step 1", "first_step"),
            ("startup_seconds in result.json", "startup_seconds"),
        ):
            low, middle, high = quartiles(start[key])
            lines.append(f"| {name} | {middle:.2f} | {low:.2f}..{high:.2f} |")
        peak = quartiles(start["peak_mb"])[1]
        lines += ["", f"Peak memory of bin/train with the default record: {peak:.0f} MB.", ""]
    if nine.get("seconds"):
        said = (
            f"The README's grid, default record, {nine['steps']:,} steps: {nine['seconds']:.1f} s"
        )
        slow = {
            row["rule"]: quartiles(row["ms"])[1]
            for row in parts.get("peers", {}).get("rows", [])
            if row["name"] == "notebook's way, histograms" and row["ms"]
        }
        if {"sgd", "adam"} <= slow.keys():
            seconds = nine["steps"] / 9 * (4 * slow["sgd"] + 5 * slow["adam"]) / 1000
            said += (
                f"; the notebook's way with histograms at each step would take {seconds:,.0f} s "
                "(its step's time, and nothing for start and evaluation)"
            )
        lines += [said + ".", ""]
    if sweep.get("points"):
        lines += [
            f"| {sweep['rule']} | no record, ms | default record, ms | ratio | quartiles |",
            "| --- | --- | --- | --- | --- |",
        ]
        for point in sweep["points"]:
            none, some = point["ms"]["no record"], point["ms"]["default record"]
            low, middle, high = quartiles(ratios(some, none))
            lines.append(
                f"| {point['axis']} {point['value']} | {quartiles(none)[1]:.2f} "
                f"| {quartiles(some)[1]:.2f} | {middle:.2f} | {low:.2f}..{high:.2f} |"
            )
        lines.append("")
    return lines
