"""Settings of the programs other than bin/train. Nothing here loads TensorFlow."""

from __future__ import annotations

import dataclasses

from lab.settings.fields import Checked, choice, field

TABLE_FORMATS = ("text", "markdown", "csv", "json")


@dataclasses.dataclass(frozen=True)
class ReportSettings(Checked):
    """Settings of bin/report."""

    logdir: str = field("logs", "folder that contains the run directories", group="Report")
    format: str = choice("format of the table", TABLE_FORMATS)
    page: bool = field(
        True, "answer the questions: report.html, report.json, TensorBoard's run report"
    )


@dataclasses.dataclass(frozen=True)
class ViewSettings(Checked):
    """Settings of bin/view."""

    out: str = field(
        "", "file to write; view.html in the run's directory, or beside the first one", group="View"
    )
    steps: tuple[str, ...] = field(
        (), "A..B, or several: steps to keep if not all fit into a page of 30 MB"
    )
    follow: bool = field(
        False, "serve the page on this machine, and update it while the runs train"
    )
    port: int = field(0, "port that --follow serves on; 0 for a free one", least=0, below=65536)


@dataclasses.dataclass(frozen=True)
class LaunchSettings(Checked):
    """Settings of bin/launch."""

    workers: int = field(
        2, "processes, each with one share of every batch", least=1, group="Launch"
    )
