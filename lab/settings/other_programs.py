"""What the programs beside bin/train are asked for. Nothing here loads TensorFlow."""

from __future__ import annotations

import dataclasses

from lab.settings.fields import Checked, choice, field

TABLE_FORMATS = ("text", "markdown", "csv", "json")


@dataclasses.dataclass(frozen=True)
class ReportSettings(Checked):
    """What bin/report is asked for."""

    logdir: str = field("logs", "folder that the run directories lie in", group="Report")
    format: str = choice("of the table", TABLE_FORMATS)
    page: bool = field(
        True, "answer the questions: report.html, report.json, TensorBoard's run report"
    )


@dataclasses.dataclass(frozen=True)
class ViewSettings(Checked):
    """What bin/view is asked for."""

    out: str = field(
        "", "file to write; view.html in the run's directory, or beside the first one", group="View"
    )
    steps: tuple[str, ...] = field(
        (), "A..B, or several: steps that are kept where not all fit into a page of 30 MB"
    )
    follow: bool = field(
        False, "serve the page on this machine while the runs train, with what they add"
    )
    port: int = field(0, "where --follow serves it; 0 for a free one", least=0, below=65536)


@dataclasses.dataclass(frozen=True)
class LaunchSettings(Checked):
    """What bin/launch is asked for."""

    workers: int = field(
        2, "processes, each with one share of every batch", least=1, group="Launch"
    )
