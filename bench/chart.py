"""The chart of a run's results, and its tables in bench/README.md."""

from __future__ import annotations

import pathlib
from typing import Any

from bench.common import PERCEPTRON
from bench.parts import BARE, NETWORKS
from bench.tables import quartiles, rows_of, to_markdown
from bench.workers import Failed

COLOURS = {"ours": "#d1495b", "others, without record": "#9aa5b1", "others, with record": "#3d5a80"}
BEGIN, END = "<!-- the table: bin/bench --chart -->", "<!-- end of the table -->"


def draw(results: dict[str, Any], path: pathlib.Path) -> None:
    """For each network a bar per contestant: its step in units of the fastest peer's that records
    nothing (of the fastest bar, if there is none), on a log axis; and in milliseconds. With adam,
    if that was measured.

    Raises:
      Failed: There is no such bar.
    """
    panels = {network: _figures(results, network) for network in (PERCEPTRON, *NETWORKS)}
    panels = {network: rows for network, rows in panels.items() if rows}
    if not panels:
        raise Failed("the results hold no figures of the parts peers and networks")
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams |= {"svg.hashsalt": "bench", "font.size": 9}
    from matplotlib import pyplot

    size = (2.6 + 2.6 * len(panels), 4.4)
    shared = {"sharex": True, "sharey": True, "squeeze": False}
    figure, axes = pyplot.subplots(1, len(panels), figsize=size, **shared)
    medians: dict[str, float] = {}
    for rows in panels.values():
        medians |= {name: row[1] for name, row in rows.items() if name not in medians}
    names = sorted(medians, key=lambda name: -medians[name])
    for axis, (network, rows) in zip(axes[0], panels.items(), strict=True):
        bare = [row[1] for name, row in rows.items() if name in BARE]
        unit = min(bare or [row[1] for row in rows.values()])
        for name, (low, middle, high, bytes_) in rows.items():
            record = "with" if bytes_ else "without"
            kind = "ours" if name.startswith("ours") else f"others, {record} record"
            y, spread = names.index(name), [[(middle - low) / unit], [(high - middle) / unit]]
            axis.barh(y, middle / unit, color=COLOURS[kind], xerr=spread)
            text = f"{middle:.2f} ms" if middle < 10 else f"{middle:,.0f} ms"
            axis.text(high / unit * 1.12, y, text, va="center")
        axis.axvline(1, color="black", linewidth=0.6)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_yticks(range(len(names)), names)
        axis.set_title(network)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_xlim(0.4, axes[0][0].get_xlim()[1] * 5)
    axes[0][0].set_xlabel("a step, in units of the fastest other's without record")
    patches = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS.values()]
    axes[0][-1].legend(patches, COLOURS, frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def _figures(results: dict[str, Any], network: str) -> dict[str, tuple[float, ...]]:
    """By contestant: quartiles of the milliseconds, and bytes a step."""
    rows = rows_of(results, "peers" if network == PERCEPTRON else "networks", network)
    rule = "adam" if any(rule == "adam" for rule, _ in rows) else results["rules"][0]
    own = {name: row for (its, name), row in rows.items() if its == rule and row["ms"]}
    return {name: (*quartiles(row["ms"]), row["bytes"]) for name, row in own.items()}


def fill(readme: pathlib.Path, *results: dict[str, Any]) -> None:
    """Puts the tables of one run after the other between their two marks.

    Raises:
      Failed: A mark is missing.
    """
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise Failed(f"{readme} lacks the line {END if begin else BEGIN}")
    tables = "\n".join(map(to_markdown, results))
    readme.write_text(f"{before}{BEGIN}\n\n{tables}\n{END}{after}")
