"""A story -> one self-contained HTML file."""

from __future__ import annotations

import math
import re

import jinja2
import markupsafe

from lab.report import charts
from lab.report.section import Figure, Story, Table, check

VERDICTS = {True: ("✓", "passed"), False: ("✗", "failed"), None: ("?", "cannot say")}


def as_html(story: Story) -> str:
    """The page. Equal stories give equal text; nothing in it is fetched, no script is run."""
    check(story)
    return _environment().get_template("page.html").render(story=story)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lab.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.globals.update(colours=_colours, verdicts=VERDICTS)
    environment.filters.update(
        anchor=lambda key: re.sub(r"[^A-Za-z0-9._-]+", "-", key),
        clean=charts.clean,
        is_table=lambda picture: isinstance(picture, Table),
        sentence=lambda title: title if title.endswith((".", "?", "!")) else f"{title}.",
        svg=lambda picture: markupsafe.Markup(charts.svg(picture)),
        text=_text,
        value=said,
    )
    return environment


def _text(text: str) -> markupsafe.Markup:
    """Escaped; `words in backticks` are code."""
    escaped = str(markupsafe.escape(charts.clean(text)))
    return markupsafe.Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped))


def _colours(theme: int) -> markupsafe.Markup:
    """CSS variables of the light (0) or the dark (1) theme."""
    pairs = charts.COLOURS.items()
    return markupsafe.Markup("".join(f"--{name}:{pair[theme]};" for name, pair in pairs))


def said(figure: Figure) -> tuple[str, str]:
    """The value with its unit, and the interval or nothing, as the page has them.

    Rounded to two digits of the interval's width; four digits where there is no interval.
    """
    if figure.value is None or not math.isfinite(figure.value):
        return "cannot be said", ""
    factor, unit = (100, "%") if figure.unit == "%" else (1, f" {figure.unit}" * bool(figure.unit))
    value = figure.value * factor
    if figure.low is None or figure.high is None:
        return _short(value) + unit, ""
    low, high = figure.low * factor, figure.high * factor
    digits = 1 - math.floor(math.log10(high - low)) if low < high < math.inf else -1
    if not 0 <= digits <= 6 or abs(value) >= 1e6:
        return _short(value) + unit, f"{_short(low)} to {_short(high)}{unit}"
    value_text, *ends = (f"{v:,.{digits}f}".replace("-", "−") for v in (value, low, high))
    return value_text + unit, f"{' to '.join(ends)}{unit}"


def _short(value: float) -> str:
    if not math.isfinite(value):
        return "no limit"
    if value == round(value) and abs(value) < 1e9:
        return f"{value:,.0f}".replace("-", "−")
    text = charts.number(value, 4)
    return charts.number(value, 8) if text in ("100", "1") else text  # 99.999% is not all
