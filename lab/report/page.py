"""A story -> one self-contained HTML file."""

from __future__ import annotations

import functools
import re

import jinja2
import markupsafe

from lab.analysis import workers
from lab.analysis.workers import Compute
from lab.report import charts, figures
from lab.report.section import Section, Story, Table, check

_TILE = (72 * charts.WIDTH, 232.0)  # width and height in units of the SVG: a chart and its legend
VERDICTS = {True: ("✓", "passed"), False: ("✗", "failed"), None: ("?", "cannot say")}


def as_html(story: Story, compute: Compute = workers.compute) -> str:
    """The page. Equal stories give equal text; nothing in it is fetched, no script is run.

    Args:
      compute: draws the pictures, in this process or in others.
    """
    check(story)
    svgs = charts.drawn(charts.svg, story.drawn, compute)
    return _environment(svgs).get_template("page.html").render(story=story)


def _environment(svgs: dict[str, str]) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lab.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    small = functools.partial(_small, svgs)
    environment.globals.update(colours=_colours, small=small, tile=_TILE, verdicts=VERDICTS)
    environment.filters.update(
        anchor=lambda key: re.sub(r"[^A-Za-z0-9._-]+", "-", key),
        clean=charts.clean,
        is_table=lambda picture: isinstance(picture, Table),
        sentence=lambda title: title if title.endswith((".", "?", "!")) else f"{title}.",
        svg=lambda picture: markupsafe.Markup(svgs[picture.slug]),
        text=_text,
        value=figures.rounded,
    )
    return environment


def _small(svgs: dict[str, str], section: Section) -> tuple[str, float] | None:
    """The id and the height of the picture that the opening shows of a section: the first one that
    a tile holds in full size, else the least tall, which is scaled down."""
    slugs = [picture.slug for picture in section.pictures if not isinstance(picture, Table)]
    sizes = {slug: re.search(r'viewBox="0 0 \S+ (\S+)"', svgs[slug]) for slug in slugs}
    found = [(f"{slug}-drawing", float(size[1])) for slug, size in sizes.items() if size]
    least = min(found, key=lambda one: one[1], default=None)
    return next((one for one in found if one[1] <= _TILE[1]), least)


def _text(text: str) -> markupsafe.Markup:
    """Escaped; `words in backticks` are code."""
    escaped = str(markupsafe.escape(charts.clean(text)))
    return markupsafe.Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped))


def _colours(theme: int) -> markupsafe.Markup:
    """CSS variables of the light (0) or the dark (1) theme."""
    pairs = charts.COLOURS.items()
    return markupsafe.Markup("".join(f"--{name}:{pair[theme]};" for name, pair in pairs))
