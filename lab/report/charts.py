"""Charts, bars and tiles -> inline SVG that follows the page's colours, and PNG.

One drawing serves both: text stays text, and every colour of the SVG is a CSS variable. `COLOURS`
says what they are in light and in dark.
"""

from __future__ import annotations

import html
import io
import logging
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

from lab.analysis.workers import Compute
from lab.report.figures import number
from lab.report.section import Bars, Chart, Drawn, Mark, Series, Tiles

# Name: (light, dark). c0 to c7 can be told apart by colour-blind readers, after Okabe and Ito,
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
# Of a PNG. TensorBoard's cards are 350 wide, and leave out what is too much, pixel by pixel: of
# every two one, or letters lose strokes. A click shows them all.
PIXELS = 700
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


def drawn(
    draw: Callable[[Drawn], Any], pictures: Sequence[Drawn], compute: Compute
) -> dict[str, Any]:
    """The pictures as `svg` or `png` draws them, by slug; compute: in this process or in others."""
    found = compute([(draw, picture) for picture in pictures])
    return {picture.slug: one for picture, one in zip(pictures, found, strict=True)}


def svg(picture: Drawn) -> str:
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
        f'{box[0]} id="{picture.slug}-drawing" role="img"'
        f' aria-labelledby="{picture.slug}-title">\n'
        f'<title id="{picture.slug}-title">{html.escape(clean(picture.title))}</title>'
    )
    return re.sub(r"<svg[^>]*>", lambda _: head, text, count=1)


def png(picture: Drawn) -> bytes:
    """A PNG file in the light colours, `PIXELS` wide."""
    return _save(picture, format="png", dpi=PIXELS / WIDTH, metadata={"Software": None})


def _save(picture: Drawn, **how: Any) -> bytes:
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


def clean(text: str) -> str:
    """The text without characters that HTML and XML do not allow."""
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


def _errors(y: np.ndarray, interval: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """How far an interval reaches below and above y, as error bars have it."""
    return np.fmax(np.nan_to_num([y - interval[0], interval[1] - y]), 0)


def _chart(chart: Chart) -> Figure:
    figure, axes = _figure(2.5, [s.name for s in chart.series], chart.marks)
    all_x, all_y = [np.empty(0)], [np.empty(0)]
    for i, series in enumerate(chart.series):
        x, y = _numbers(series.x), _numbers(series.y)
        colour, marker = _LIGHT[_CYCLE[i % len(_CYCLE)]], _MARKERS[i % len(_MARKERS)]
        interval = _interval(series, y)
        all_x.append(x[np.isfinite(y)])
        all_y += [y, *(interval or ())]
        look: dict[str, Any] = {"color": colour, "label": series.name or None, "zorder": 3}
        if series.style == "points":
            errors = _errors(y, interval) if interval else None
            axes.errorbar(x, y, errors, fmt=marker, elinewidth=1.1, capsize=2, **look)
            continue
        if interval:
            step = {"step": "mid"} if series.style == "steps" else {}
            axes.fill_between(x, *interval, color=colour, alpha=0.2, linewidth=0, **step)
        if series.style == "steps":
            look |= {"drawstyle": "steps-mid", "linestyle": _DASHES[i % len(_DASHES)]}
        elif len(chart.series) > 1:
            look |= {"marker": marker, "markevery": 1 if len(x) <= 12 else (0.02 * i, 0.12)}
        if series.style == "dashes":
            look |= {"linestyle": _DASHES[1]}
        axes.plot(x, y, **look)
    _marks(axes, chart.marks)
    of_marks = {a: [m.value for m in chart.marks if m.axis == a] for a in "xy"}
    _scale(axes.xaxis, chart.x_scale, np.append(np.concatenate(all_x), of_marks["x"]))
    _scale(axes.yaxis, chart.y_scale, np.append(np.concatenate(all_y), of_marks["y"]))
    for line in axes.lines:  # points at 0 are drawn in full; what a log axis leaves out is cut
        line.set_clip_on(chart.y_scale == "log")
    axes.set_xlabel(_wrapped(chart.x_label))
    axes.set_title(_wrapped(chart.y_label), loc="left")
    if not np.isfinite(np.concatenate(all_y)).any():
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no value", ha="center", transform=axes.transAxes)
    _legend(figure, axes, [s.name for s in chart.series])
    return figure


def _bars(bars: Bars) -> Figure:
    """Horizontal ones, so that long names stay readable."""
    names = list(dict.fromkeys(str(name) for series in bars.series for name in series.x))
    many = len(bars.series)
    thin = all(series.style == "points" for series in bars.series)
    labels = [textwrap.fill(name, 24) for name in names]
    lines = max((label.count("\n") + 1 for label in labels), default=1)
    row = max(0.08 + 0.17 * lines, 0.1 * many) if thin else 0.25 + 0.17 * many
    height = row * len(names) + 0.5
    figure, axes = _figure(height, [s.name for s in bars.series], bars.marks)
    lengths = [_numbers(series.y) for series in bars.series]
    intervals = [_interval(s, y) for s, y in zip(bars.series, lengths, strict=True)]
    reached = [mark.value for mark in bars.marks]
    values = np.concatenate([reached, *lengths, *(end for ends in intervals for end in ends or ())])
    foot = 0.0
    if bars.y_scale == "log" and (values > 0).any():
        low, high = np.log10([np.nanmin(values[values > 0]), np.nanmax(values)])
        foot = 10.0 ** (low - 0.1 * (high - low) - 0.15)  # lest the smallest has no length
        axes.set_xlim(foot, 10.0 ** (high + 0.05 * (high - low)))
    for i, (series, y, interval) in enumerate(zip(bars.series, lengths, intervals, strict=True)):
        colour = _LIGHT[_CYCLE[i % len(_CYCLE)]]
        place = np.array([names.index(str(name)) for name in series.x], np.float64)
        place += (i - (many - 1) / 2) * 0.8 / many
        look: dict[str, Any] = {"color": colour, "label": series.name or None}
        if series.style == "points":
            axes.plot(y, place, _MARKERS[i % len(_MARKERS)], zorder=4, **look)
        else:
            there = np.isfinite(y) & ((y > 0) | (foot == 0))
            look |= {"hatch": _HATCHES[i % len(_HATCHES)], "edgecolor": _LIGHT["paper"]}
            axes.barh(place[there], y[there] - foot, 0.74 / many, foot, lw=0, zorder=2, **look)
            colour = _LIGHT["ink"]
        if interval:
            how = {"color": colour, "elinewidth": 1.2, "capsize": 2.5, "zorder": 3}
            axes.errorbar(y, place, xerr=_errors(y, interval), fmt="none", **how)
    _marks(axes, [Mark(mark.label, mark.value, "x") for mark in bars.marks])
    _scale(axes.xaxis, bars.y_scale, values)
    axes.yaxis.set_ticks(range(len(names)), labels)
    axes.yaxis.set_tick_params(length=0)
    axes.yaxis.grid(False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(_wrapped(bars.y_label), loc="right")
    _legend(figure, axes, [s.name for s in bars.series])
    return figure


def _tiles(tiles: Tiles) -> Figure:
    images = np.asarray(tiles.images, np.float64)
    captions = [str(caption) for caption in tiles.captions] or [""] * len(images)
    columns = max(1, min(len(images), 4 if any(len(c) > 9 for c in captions) else 6))
    rows = max(1, -(-len(images) // columns))
    side = WIDTH / columns
    tall = side * images.shape[1] / images.shape[2] if images.size else side
    figure = Figure(figsize=(WIDTH, rows * (tall + 0.25) + 0.3), layout="constrained")
    most = float(np.nanmax(np.abs(images), initial=0, where=np.isfinite(images))) or 1.0
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.imshow(image, cmap="gray", vmin=-most, vmax=most, interpolation="none")
        axes.set_title(textwrap.fill(caption, int(11 * side)), loc="left", pad=2)
        axes.axis("off")
    ends = f"black {number(-most, 2)}, middle grey 0, white {number(most, 2)}"
    figure.supxlabel(ends, x=0, ha="left", fontsize=_POINTS, color=_LIGHT["soft"])
    return figure


def _figure(height: float, names: Sequence[str], marks: Sequence[Mark]) -> tuple[Figure, Any]:
    labels = [label for label in [*names, *(mark.label for mark in marks)] if label]
    rows = -(-len(labels) // _columns(labels))
    figure = Figure(figsize=(WIDTH, height + 0.22 * rows), layout="constrained")
    return figure, figure.add_subplot()


def _columns(labels: Sequence[str]) -> int:
    """Of a legend that is as wide as the picture at most."""
    longest = max(map(len, labels), default=0)
    return 3 if longest <= 9 else 2 if longest <= 17 else 1


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 46)


def _legend(figure: Figure, axes: Any, names: Sequence[str]) -> None:
    """Above the axes, where it hides nothing; the series come before the marks."""
    pairs = list(zip(*axes.get_legend_handles_labels(), strict=True))
    pairs.sort(key=lambda pair: names.index(pair[1]) if pair[1] in names else len(names))
    if pairs:
        handles, labels = zip(*pairs, strict=True)
        figure.legend(
            handles, [_wrapped(label) for label in labels], loc="outside upper left",
            ncols=_columns(labels), frameon=False, borderaxespad=0.1, handlelength=2.2,
            columnspacing=1.2, labelspacing=0.3,
        )  # fmt: skip


def _marks(axes: Any, marks: Sequence[Mark]) -> None:
    for i, mark in enumerate(marks):
        line = axes.axvline if mark.axis == "x" else axes.axhline
        dashes = _MARK_DASHES[i % len(_MARK_DASHES)]
        line(mark.value, color=_LIGHT["ink"], lw=1.2, ls=dashes, label=mark.label, zorder=2.5)


def _scale(axis: Any, scale: str, values: np.ndarray) -> None:
    """Sets an axis's scale, and few ticks with plain numbers. Where nothing is negative it does not
    go below 0."""
    finite = values[np.isfinite(values)]
    values = np.abs(finite[finite != 0])
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
    low, high = axis.get_view_interval()
    if low < 0 < high and (finite >= 0).all():
        axis.set_view_interval(0, high, ignore=True)
    axis.set_major_locator(places)
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: number(value, 6)))
    axis.set_minor_locator(ticker.NullLocator())
