"""Charts, bars and tiles -> inline SVG that follows the page's colours, and PNG.

One drawing serves both: text stays text, and every colour of the SVG is a CSS variable. `COLOURS`
says what they are in light and in dark.
"""

from __future__ import annotations

import functools
import html
import io
import itertools
import logging
import math
import re
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from lab.report.section import Bars, Chart, Mark, Series, Tiles

# Name: (light, dark). c0 to c7 are told apart by colour-blind readers too, after Okabe and Ito,
# and stand out from both papers; no light one twice, since the light ones are what is drawn.
COLOURS = {
    "paper": ("#fdfdfc", "#16181c"),
    "ink": ("#1b1c1e", "#e8e8e4"),
    "soft": ("#5c5f66", "#a3a7b0"),
    "rule": ("#dddcd8", "#34373e"),
    "c0": ("#0072b2", "#56b4e9"),
    "c1": ("#cf5200", "#ff9550"),
    "c2": ("#00805f", "#2fc9a0"),
    "c3": ("#b0508c", "#e7a0c8"),
    "c4": ("#9a6d00", "#ecc04c"),
    "c5": ("#5b5b9e", "#a9a9ee"),
    "c6": ("#7a4a21", "#cfa57c"),
    "c7": ("#2c8fa8", "#7fdcf2"),
}
_LIGHT = {name: light for name, (light, _) in COLOURS.items()}
_CYCLE = [name for name in COLOURS if re.fullmatch(r"c\d", name)]
_MARKERS = "os^Dv*PX"
_HATCHES = ("", "////", "xxxx", "----", "\\\\\\\\", "++++", "||||", "//")
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
_MARK_DASHES = ((0, (1, 2)), (0, (6, 2, 1, 2)), (0, (2, 3)), (0, (8, 4)))

WIDTH = 4.5  # inches; 324 units of the SVG, which a phone shows at about one pixel each
_POINTS = 11  # of all text, and so about as many pixels there
_RC = {
    "axes.axisbelow": True,
    "axes.edgecolor": _LIGHT["soft"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": _LIGHT["ink"],
    "axes.labelsize": _POINTS,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": _POINTS,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
    "font.size": _POINTS,
    "grid.color": _LIGHT["rule"],
    "grid.linewidth": 0.7,
    "hatch.linewidth": 0.8,
    "legend.fontsize": _POINTS,
    "lines.linewidth": 1.7,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "everystep",
    "text.color": _LIGHT["ink"],
    "text.parse_math": False,
    "xtick.color": _LIGHT["soft"],
    "xtick.labelcolor": _LIGHT["ink"],
    "xtick.labelsize": _POINTS,
    "xtick.minor.size": 0,
    "ytick.color": _LIGHT["soft"],
    "ytick.labelcolor": _LIGHT["ink"],
    "ytick.labelsize": _POINTS,
    "ytick.minor.size": 0,
}
logging.getLogger("matplotlib").setLevel(logging.ERROR)


def svg(picture: Chart | Bars | Tiles) -> str:
    """An <svg> element for a page that has the variables `--NAME` of `COLOURS`.

    Its ids begin with the picture's slug. The same picture gives the same text, byte for byte.
    """
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    text = _save(picture, format="svg", metadata=nothing, transparent=True).decode()
    text = clean(text[text.index("<svg") :])
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    used = list(dict.fromkeys(re.findall(r'(?:url\(#|href="#)([^")]+)', text)))
    names = {old: f"{picture.slug}-{i}" for i, old in enumerate(used)}
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{names[m[1]]}"' if m[1] in names else "", text)
    text = re.sub(r'(url\(#|href="#)([^")]+)', lambda m: m[1] + names[m[2]], text)
    text = re.sub(
        r' (?:d|x|y|transform)="[^"]*"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), text
    )
    variables = {light: f"var(--{name})" for name, light in _LIGHT.items()}
    text = re.sub(r"#[0-9a-f]{6}\b", lambda m: variables.get(m[0], m[0]), text)
    text = re.sub(r"font-family: [^;]*; | transform=\"rotate\(-0 [^\"]*\"", "", text)
    text = re.sub(r"\s*\n\s*", "\n", text)
    box = re.search(r'viewBox="[^"]+"', text)
    assert box
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'{box[0]} role="img" aria-labelledby="{picture.slug}-title">\n'
        f'<title id="{picture.slug}-title">{html.escape(clean(picture.title))}</title>'
    )
    return re.sub(r"<svg[^>]*>", lambda _: head, text, count=1)


def png(picture: Chart | Bars | Tiles) -> bytes:
    """A PNG file, 720 pixels wide, in the light colours."""
    return _save(picture, format="png", dpi=160, metadata={"Software": None})


def _save(picture: Chart | Bars | Tiles, **how: Any) -> bytes:
    draw = {Chart: _chart, Bars: _bars, Tiles: _tiles}[type(picture)]
    out = io.BytesIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that no font here has: the reader's may
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        figure = draw(picture)  # type: ignore[operator]
        figure.set_facecolor(_LIGHT["paper"])
        figure.savefig(out, **how)
    return out.getvalue()


def number(value: float, digits: int = 6) -> str:
    """As on an axis: 0.001, 20,000, −3, 2·10⁻⁷."""
    if value == 0:
        return "0"
    power = math.floor(math.log10(abs(value)) + 1e-9)
    if -4 < power < 6:
        text = f"{value:,.{digits}g}" if "e" not in f"{value:.{digits}g}" else f"{value:,.0f}"
    else:
        raised = "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        factor = f"{value / 10.0**power:.{min(digits, 3)}g}"
        text = raised if factor == "1" else f"-{raised}" if factor == "-1" else f"{factor}·{raised}"
    return text.replace("-", "−")


def clean(text: str) -> str:
    """Without what no HTML or XML may hold."""
    return re.sub(r"[^\t\n -\ud7ff\ue000-\U0010ffff]", "�", str(text))


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    """None and infinity become NaN, which leaves a gap."""
    array = np.array([np.nan if value is None else value for value in values], np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def _interval(series: Series, y: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Ends, NaN where there is none; None if there is none anywhere."""
    if series.low is None or series.high is None:
        return None
    low, high = _numbers(series.low), _numbers(series.high)
    whole = np.isfinite(low) & np.isfinite(high) & np.isfinite(y)
    return (np.where(whole, low, np.nan), np.where(whole, high, np.nan)) if whole.any() else None


def _few(x: np.ndarray, scale: str, most: int = 300) -> np.ndarray:
    """Places in a rising x, evenly spaced on its axis, first and last included; all if few."""
    if len(x) <= most or not (np.diff(x) > 0).all():
        return np.arange(len(x))
    first = x[0] if scale == "linear" else x[x > 0].min(initial=x[-1])
    spaced = np.linspace if scale == "linear" else np.geomspace
    return np.unique(np.searchsorted(x, [x[0], *spaced(first, x[-1], most)]).clip(0, len(x) - 1))


def _outline(x: np.ndarray, y: np.ndarray, scale: str) -> np.ndarray:
    """Places that look like all of them: between any two of a few the least and the greatest y."""
    few = _few(x, scale)
    kept = list(few)
    for a, b in itertools.pairwise(few):
        if b > a + 1 and np.isfinite(y[a:b]).any():
            kept += [a + np.nanargmin(y[a:b]), a + np.nanargmax(y[a:b])]
    return np.unique(np.array(kept, int))


def _chart(chart: Chart) -> Figure:
    figure = _figure(2.5, [s.name for s in chart.series], chart.marks)
    axes: Any = figure.add_subplot()
    several = len(chart.series) > 1
    all_x, all_y = [np.empty(0)], [np.empty(0)]
    for i, series in enumerate(chart.series):
        x, y = _numbers(series.x), _numbers(series.y)
        colour = _LIGHT[_CYCLE[i % len(_CYCLE)]]
        interval = _interval(series, y)
        all_x.append(x[np.isfinite(y)])
        all_y += [y, *(interval or ())]
        look: dict[str, Any] = {"color": colour, "label": series.name or None, "zorder": 3}
        if series.style == "points":
            look |= {"linestyle": "", "marker": _MARKERS[i % len(_MARKERS)], "alpha": 0.85}
            if interval:
                down, up = y - interval[0], interval[1] - y
                bars = np.fmax(np.nan_to_num([down, up]), 0)
                axes.errorbar(x, y, bars, ecolor=colour, elinewidth=1.1, capsize=2, **look)
            else:
                axes.plot(x, y, **look)
            continue
        if interval:
            step = {"step": "mid"} if series.style == "steps" else {}
            few = _few(x, chart.x_scale)
            ends = (end[few] for end in interval)
            axes.fill_between(x[few], *ends, color=colour, alpha=0.2, linewidth=0, **step)
        kept = _outline(x, y, chart.x_scale)
        x, y = x[kept], y[kept]
        if series.style == "steps":
            look |= {"drawstyle": "steps-mid", "linestyle": _DASHES[i % len(_DASHES)]}
        elif several:
            spots = _few(x, chart.x_scale, 64)
            spots = spots if len(x) <= 12 else spots[i % 8 :: max(1, len(spots) // 8)]
            look |= {"marker": _MARKERS[i % len(_MARKERS)], "markevery": spots.tolist()}
        if series.style == "dashes":
            look |= {"linestyle": _DASHES[1]}
        axes.plot(x, y, **look)
    _marks(axes, chart.marks)
    of_marks = {a: [m.value for m in chart.marks if m.axis == a] for a in "xy"}
    _scale(axes.xaxis, chart.x_scale, np.append(np.concatenate(all_x), of_marks["x"]))
    _scale(axes.yaxis, chart.y_scale, np.append(np.concatenate(all_y), of_marks["y"]))
    axes.set_xlabel(_wrapped(chart.x_label))
    axes.set_title(_wrapped(chart.y_label), loc="left")
    if not np.isfinite(np.concatenate(all_y)).any():
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no value", ha="center", transform=axes.transAxes)
    _legend(figure, axes, [s.name for s in chart.series])
    return figure


def _bars(bars: Bars) -> Figure:
    names = list(dict.fromkeys(str(name) for series in bars.series for name in series.x))
    many = len(bars.series)
    lying = sum(_width(name) + 0.15 for name in names) > WIDTH - 0.6
    thin = all(series.style == "points" for series in bars.series)
    height = (0.25 + (0.08 if thin else 0.17) * many) * len(names) + 0.5 if lying else 2.5
    figure = _figure(height, [s.name for s in bars.series], bars.marks)
    axes: Any = figure.add_subplot()
    across, along = (axes.yaxis, axes.xaxis) if lying else (axes.xaxis, axes.yaxis)
    heights = [_numbers(series.y) for series in bars.series]
    intervals = [_interval(s, y) for s, y in zip(bars.series, heights, strict=True)]
    reached = [m.value for m in bars.marks if m.axis == "y"]
    values = np.concatenate([reached, *heights, *(end for ends in intervals for end in ends or ())])
    foot = 0.0
    if bars.y_scale == "log" and (values > 0).any():
        low, high = np.log10([np.nanmin(values[values > 0]), np.nanmax(values)])
        foot = 10.0 ** (low - 0.1 * (high - low) - 0.15)  # lest the smallest has no length
        (axes.set_xlim if lying else axes.set_ylim)(foot, 10.0 ** (high + 0.05 * (high - low)))
    for i, (series, y, interval) in enumerate(zip(bars.series, heights, intervals, strict=True)):
        colour = _LIGHT[_CYCLE[i % len(_CYCLE)]]
        there = np.isfinite(y) & ((y > 0) | (foot == 0))
        place = np.array([names.index(str(name)) for name in series.x], np.float64)
        place += (i - (many - 1) / 2) * 0.8 / many
        points = (y, place) if lying else (place, y)
        look: dict[str, Any] = {"color": colour, "label": series.name or None}
        if series.style == "points":
            axes.plot(*points, _MARKERS[i % len(_MARKERS)], zorder=4, **look)
        else:
            draw, size, start = (
                (axes.barh, "height", "left") if lying else (axes.bar, "width", "bottom")
            )
            look |= {"hatch": _HATCHES[i % len(_HATCHES)], "edgecolor": _LIGHT["paper"]}
            look |= {size: 0.74 / many, start: foot, "linewidth": 0, "zorder": 2}
            draw(place[there], y[there] - foot, **look)
            colour = _LIGHT["ink"]
        if interval:
            ends = np.fmax(np.nan_to_num([y - interval[0], interval[1] - y]), 0)
            how = {"xerr" if lying else "yerr": ends, "color": colour, "zorder": 3}
            axes.errorbar(*points, fmt="none", elinewidth=1.2, capsize=2.5, **how)
    swap = {"x": "y", "y": "x"}
    _marks(axes, [Mark(m.label, m.value, swap[m.axis]) if lying else m for m in bars.marks])
    _scale(along, bars.y_scale, values)
    across.set_ticks(range(len(names)), [textwrap.fill(n, 24 if lying else 12) for n in names])
    across.set_tick_params(length=0)
    across.grid(False)
    if lying:
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel(_wrapped(bars.y_label), loc="right")
    else:
        axes.set_xlim(-0.5, max(len(names), 1) - 0.5)
        axes.set_title(_wrapped(bars.y_label), loc="left")
    _legend(figure, axes, [s.name for s in bars.series])
    return figure


def _tiles(tiles: Tiles) -> Figure:
    images = np.asarray(tiles.images, np.float64)
    captions = [str(caption) for caption in tiles.captions] or [""] * len(images)
    longest = max(map(_width, captions), default=0)
    fits = int(WIDTH / (longest + 0.08)) if longest else 8
    columns = max(1, min(len(images), max(fits, 3), 8))
    rows = max(1, -(-len(images) // columns))
    side = min(1.4, WIDTH / columns - 0.06)
    letters = max(4, int((WIDTH / columns - 0.04) / _width("n")))
    texts = [c if _width(c) < WIDTH / columns else textwrap.fill(c, letters) for c in captions]
    words = 0.19 * max((text.count("\n") + 1 for text in texts if text), default=0)
    tall = images.shape[1] / images.shape[2] * side if images.size else side
    height = rows * (tall + words + 0.1) + 0.25
    figure = Figure(figsize=(WIDTH, height))
    most = float(np.nanmax(np.abs(images), initial=0, where=np.isfinite(images))) or 1.0
    for i, (image, text) in enumerate(zip(images, texts, strict=False)):
        row, column = divmod(i, columns)
        left, top = column * WIDTH / columns, row * (tall + words + 0.1) + words
        place = (left / WIDTH, 1 - (top + tall) / height, side / WIDTH, tall / height)
        axes = figure.add_axes(place)
        axes.imshow(image, cmap="gray", vmin=-most, vmax=most, interpolation="none")
        axes.set_title(text, loc="left", pad=2)
        axes.axis("off")
    ends = f"black {number(-most, 2)}, middle grey 0, white {number(most, 2)}"
    figure.text(0, 0.04 / height, ends, color=_LIGHT["soft"])
    return figure


def _figure(height: float, names: Sequence[str], marks: Sequence[Mark]) -> Figure:
    labels = [label for label in [*names, *(mark.label for mark in marks)] if label]
    rows = -(-len(labels) // _columns(labels))
    return Figure(figsize=(WIDTH, height + 0.22 * rows), layout="constrained")


def _columns(labels: Sequence[str]) -> int:
    """Of a legend that is as wide as the picture at most."""
    widths = [max(map(_width, _wrapped(label).split("\n"))) + 0.66 for label in labels]
    for columns in range(min(4, len(labels)), 1, -1):
        if sum(max(column) for column in np.array_split(widths, columns)) < WIDTH:
            return columns
    return 1


@functools.cache
def _width(text: str) -> float:
    """Inches, in matplotlib's own font; the fonts of most readers' systems are narrower."""
    font = FontProperties(family="DejaVu Sans", size=_POINTS)
    return text_to_path.get_text_width_height_descent(text, font, False)[0] / 72


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 46)


def _legend(figure: Figure, axes: Any, names: Sequence[str]) -> None:
    """Above the axes, where it hides nothing; the series come before the marks."""
    pairs = list(zip(*axes.get_legend_handles_labels(), strict=True))
    pairs.sort(key=lambda pair: names.index(pair[1]) if pair[1] in names else len(names))
    if pairs:
        figure.legend(
            [handle for handle, _ in pairs],
            [_wrapped(label) for _, label in pairs],
            loc="outside upper left",
            ncols=_columns([label for _, label in pairs]),
            frameon=False,
            borderaxespad=0.1,
            handlelength=2.2,
            columnspacing=1.2,
            labelspacing=0.3,
        )


def _marks(axes: Any, marks: Sequence[Mark]) -> None:
    for i, mark in enumerate(marks):
        line = axes.axvline if mark.axis == "x" else axes.axhline
        dashes = _MARK_DASHES[i % len(_MARK_DASHES)]
        line(mark.value, color=_LIGHT["ink"], lw=1.2, ls=dashes, label=mark.label, zorder=2.5)


def _scale(axis: Any, scale: str, values: np.ndarray) -> None:
    """Sets an axis's scale, and few ticks with plain numbers."""
    values = np.abs(values[np.isfinite(values) & (values != 0)])
    positive = len(values) > 0
    decades = np.log10(values.max() / values.min()) if positive else 0
    set_scale = axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale
    places: Any = ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
    if scale == "log" and positive:
        set_scale("log", nonpositive="clip" if axis.axis_name == "y" else "mask")
        if decades > 0.7:
            subs = (1.0,) if decades > 2.5 else (1.0, 3.0) if decades > 1.5 else (1.0, 2.0, 5.0)
            places = ticker.LogLocator(subs=subs, numticks=6 if subs == (1.0,) else 20)
    elif scale == "symlog" and positive:
        least = 10.0 ** math.floor(np.log10(max(values.min(), values.max() / 1e6)))
        set_scale("symlog", linthresh=least)
        places = ticker.SymmetricalLogLocator(linthresh=least, base=10)
        places.numticks = 7
    axis.set_major_locator(places)
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: number(value)))
    axis.set_minor_locator(ticker.NullLocator())
