"""The parts of a report before it is drawn: sections of figures, pictures and controls.

A module of `questions` fills each section; page.py, board.py and figures_json.py write them out.
Only plain Python values and NumPy arrays are in here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number with its interval.

    Attributes:
      key: of the figure in report.json, unique in its section.
      name: what it is, in words.
      value: None where it is not known.
      low, high: of the 95% interval over seeds; None with fewer than two runs.
      runs: how many it was measured in.
      unit: "" for a plain number, "%" for a share (the value is then a share of 1), else the
        unit's sign.
    """

    key: str
    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    runs: int = 1
    unit: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Series:
    """One curve, set of points or set of bars: x and y of equal length, low and high too where
    there is an interval. style: line, dashes, points, steps (a histogram's outline)."""

    name: str
    x: Sequence[Any]
    y: Sequence[float]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    style: str = "line"


@dataclasses.dataclass(frozen=True)
class Mark:
    """A straight reference line across a chart, at `value` of an axis ("x" or "y")."""

    label: str
    value: float
    axis: str = "y"


@dataclasses.dataclass(frozen=True)
class Chart:
    """Curves over a common pair of axes. slug: unique on the page. see: the sentence that says what
    to see. x_scale, y_scale: linear, log or symlog."""

    slug: str
    title: str
    see: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    marks: Sequence[Mark] = ()
    x_scale: str = "linear"
    y_scale: str = "linear"


@dataclasses.dataclass(frozen=True)
class Bars:
    """Groups of bars: the x of each series names its groups. A series in the style points is drawn
    as points, which on a log scale say no more than they mean."""

    slug: str
    title: str
    see: str
    y_label: str
    series: Sequence[Series]
    marks: Sequence[Mark] = ()
    y_scale: str = "linear"


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Small grey pictures side by side: images float [n, height, width], signed values around 0
    (0 is the middle grey), each with a caption or none."""

    slug: str
    title: str
    see: str
    images: np.ndarray
    captions: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under headings."""

    slug: str
    title: str
    see: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


Drawn = Chart | Bars | Tiles
Picture = Drawn | Table


@dataclasses.dataclass(frozen=True)
class Control:
    """A test that could have proved the answer false; passed is None if these runs cannot tell.
    claim: what was tested. outcome: what was found. key: unique in its section."""

    claim: str
    outcome: str
    passed: bool | None
    key: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
    """One question.

    Attributes:
      answer: one short sentence.
      unknown: what is not established.
      commands: (gap, command line) for each gap that more runs would fill.
      evidence: the numbers behind the answer, in one or two sentences.
      outcome: which of a question's answers it is, as a key.
    """

    slug: str
    title: str
    answer: str
    figures: Sequence[Figure] = ()
    pictures: Sequence[Picture] = ()
    controls: Sequence[Control] = ()
    unknown: Sequence[str] = ()
    commands: Sequence[tuple[str, str]] = ()
    evidence: str = ""
    outcome: str = ""


@dataclasses.dataclass(frozen=True)
class Story:
    """The whole report. made: how it was made, (what, value) in order."""

    title: str
    summary: str
    made: Sequence[tuple[str, str]]
    sections: Sequence[Section]

    @property
    def drawn(self) -> list[Drawn]:
        """All pictures that are drawn, in order."""
        every = (picture for section in self.sections for picture in section.pictures)
        return [picture for picture in every if not isinstance(picture, Table)]


def check(story: Story) -> None:
    """ValueError if a name that must be unique is not: one of the two would be lost."""
    sections = [section.slug for section in story.sections]
    pictures = [picture.slug for section in story.sections for picture in section.pictures]
    keys = [f"{s.slug}.{figure.key}" for s in story.sections for figure in s.figures]
    for names in (sections, pictures, keys):
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"not unique in this report: {', '.join(sorted(twice))}")
    for slug in sections + pictures:
        if not re.fullmatch(r"[A-Za-z][\w-]*", slug):
            raise ValueError(f"{slug!r} cannot be an id: letters, digits, - and _")
