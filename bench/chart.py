"""The chart of a run's results, and its tables in bench/README.md."""

from __future__ import annotations

import pathlib
from typing import Any

from bench.tables import quartiles, rows_of, to_markdown
from bench.workers import Failed

COLOURS = {"ours": "#d1495b", "others, without record": "#9aa5b1", "others, with record": "#3d5a80"}
BEGIN, END = "<!-- the table: bin/bench --chart -->", "<!-- end of the table -->"


def draw(results: dict[str, Any], path: pathlib.Path) -> None:
    """One bar per contestant of the part `peers`, milliseconds per step on a log axis.

    Raises:
      Failed: There is no such bar.
    """
    rules, rows = results["rules"], rows_of(results, "peers")
    names = [name for rule, name in rows if rule == rules[0]]
    if not names:
        raise Failed("the results hold no figures of the part peers")
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams |= {"svg.hashsalt": "bench", "font.size": 9}
    from matplotlib import pyplot

    size = (5.2 * len(rules), 4.4)
    figure, axes = pyplot.subplots(1, len(rules), figsize=size, sharey=True, squeeze=False)
    names.sort(key=lambda name: -quartiles(rows[rules[0], name]["ms"])[1])
    for axis, rule in zip(axes[0], rules, strict=True):
        for y, name in enumerate(names):
            if (rule, name) not in rows:
                continue
            low, middle, high = quartiles(rows[rule, name]["ms"])
            record = "with" if rows[rule, name]["bytes"] else "without"
            kind = "ours" if name.startswith("ours") else f"others, {record} record"
            axis.barh(y, middle, color=COLOURS[kind], xerr=[[middle - low], [high - middle]])
            text = f"{middle:.2f}" if middle < 10 else f"{middle:,.0f}"
            axis.text(high * 1.12, y, text, va="center")
        axis.set_xscale("log")
        axis.set_xlim(0.3, axis.get_xlim()[1] * 2)
        axis.set_yticks(range(len(names)), names)
        axis.set_title(f"{rule}: milliseconds a step")
        axis.spines[["top", "right"]].set_visible(False)
    patches = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS.values()]
    axes[0][-1].legend(patches, COLOURS, frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def fill(readme: pathlib.Path, results: dict[str, Any]) -> None:
    """Puts the tables between their two marks.

    Raises:
      Failed: A mark is missing.
    """
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise Failed(f"{readme} lacks the line {END if begin else BEGIN}")
    readme.write_text(f"{before}{BEGIN}\n\n{to_markdown(results)}\n{END}{after}")
