"""A section being filled: figures from Python, every text from the question's template."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from lab.analysis.runs import Group
from lab.analysis.study import Evidence
from lab.compare.notes import plural
from lab.report import figures
from lab.report.section import (
    Bars,
    Chart,
    Control,
    Figure,
    Mark,
    Picture,
    Section,
    Series,
    Table,
    Tiles,
)

SEEDS = 5  # of the runs that a command would add

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("lab.report", "templates/questions"),
    undefined=jinja2.StrictUndefined,
)
_TEMPLATES.filters.update(
    interval=figures.with_interval,
    listed=figures.listed,
    number=figures.number,
    percent=figures.percent,
    plural=plural,
    spoken=figures.spoken,
    value=figures.without_interval,
)


class Draft:
    """A section of a report under construction.

    Texts are blocks of templates/questions/SLUG.txt: `title` or `title_OUTCOME`, `answer_OUTCOME`,
    `evidence` or `evidence_OUTCOME`, `picture_SLUG` (its first line is the title, the rest the
    caption), `control_KEY` (the claim, then what was found), `unknown_KEY` and `gap_KEY`.
    common.txt has the blocks that several questions share.

    Attributes:
      facts: what every block of the section can name; `label` is that of the reference group.
    """

    def __init__(self, slug: str, evidence: Evidence) -> None:
        self.slug, self.evidence, reference = slug, evidence, evidence.reference
        self.facts: dict[str, Any] = {"label": reference.label if reference else ""}
        self.figures: list[Figure] = []
        self.pictures: list[Picture] = []
        self.controls: list[Control] = []
        self.unknowns: list[str] = []
        self.commands: list[tuple[str, str]] = []

    def mean(
        self,
        key: str,
        name: str,
        values: Iterable[float],
        unit: str = "",
        note: str = "",
        least: float = -math.inf,
    ) -> Figure:
        """Adds the mean over runs, with its interval, unless no value is finite."""
        figure = figures.across(key, name, values, unit, note, least)
        self.add(figure)
        return figure

    def add(self, *found: Figure) -> None:
        self.figures += [figure for figure in found if figure.value is not None]

    def chart(
        self,
        slug: str,
        x_label: str,
        y_label: str,
        series: Sequence[Series],
        marks: Sequence[Mark] = (),
        scales: tuple[str, str] = ("linear", "linear"),
        **facts: Any,
    ) -> None:
        texts = self._two("picture", slug, facts)
        self.pictures.append(Chart(slug, *texts, x_label, y_label, series, marks, *scales))

    def bars(
        self,
        slug: str,
        y_label: str,
        series: Sequence[Series],
        marks: Sequence[Mark] = (),
        scale: str = "linear",
        **facts: Any,
    ) -> None:
        texts = self._two("picture", slug, facts)
        self.pictures.append(Bars(slug, *texts, y_label, series, marks, scale))

    def tiles(self, slug: str, images: np.ndarray, captions: Sequence[str], **facts: Any) -> None:
        self.pictures.append(Tiles(slug, *self._two("picture", slug, facts), images, captions))

    def table(
        self, slug: str, columns: Sequence[str], rows: Sequence[Sequence[str]], **facts: Any
    ) -> None:
        self.pictures.append(Table(slug, *self._two("picture", slug, facts), columns, rows))

    def control(self, key: str, passed: bool | None, **facts: Any) -> None:
        """The template's block is named by what stands before a colon in the key."""
        claim, outcome = self._two("control", key.partition(":")[0], facts)
        self.controls.append(Control(claim, outcome, passed, key))

    def unknown(self, key: str, **facts: Any) -> None:
        self.unknowns.append(self._text(facts, f"unknown_{key}"))

    def command(
        self,
        key: str,
        group: Group | None = None,
        config: Mapping[str, Any] | None = None,
        **flags: Any,
    ) -> None:
        """A gap that more runs would fill: of `group`, or of a config, with some other flags, so
        that they can be compared with those that are there."""
        if group and group.runs[0].result.get("given"):
            return  # what was given as objects, no flag can say
        if group and group.replicas > 1:
            names = group.runs[0].result["devices"] or ("",)
            kind = "gpu" if "GPU" in names[0] else "cpu"
            flags["devices"] = f"{kind}:{group.replicas}"
        line = figures.command(
            self.evidence.runs.logdir, group.config if group else config, **flags
        )
        self.commands.append((self._text({}, f"gap_{key}"), line))

    def section(self, outcome: str, **facts: Any) -> Section:
        """The finished section."""
        facts["outcome"] = outcome
        return Section(
            self.slug, self._text(facts, f"title_{outcome}", "title"),
            self._text(facts, f"answer_{outcome}"), self.figures, self.pictures, self.controls,
            self.unknowns, self.commands, self._text(facts, f"evidence_{outcome}", "evidence"),
            outcome,
        )  # fmt: skip

    def _two(self, kind: str, key: str, facts: dict[str, Any]) -> tuple[str, str]:
        lines = self._lines(facts, f"{kind}_{key}")
        return lines[0], " ".join(lines[1:])

    def _text(self, facts: dict[str, Any], *blocks: str) -> str:
        return " ".join(self._lines(facts, *blocks))

    def _lines(self, facts: dict[str, Any], *blocks: str) -> list[str]:
        """Of the first of these blocks that one of the two templates has."""
        templates = [_TEMPLATES.get_template(name) for name in (f"{self.slug}.txt", "common.txt")]
        for block in (block.replace("-", "_") for block in blocks):
            for template in templates:
                if block in template.blocks:
                    context = template.new_context(self.facts | facts)
                    text = "".join(template.blocks[block](context))
                    return [" ".join(line.split()) for line in text.strip().splitlines()]
        raise LookupError(f"templates/questions/{self.slug}.txt: no block {' or '.join(blocks)}")
