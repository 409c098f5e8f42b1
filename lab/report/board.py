"""A report inside TensorBoard: a run named `report` next to the runs it is about."""

from __future__ import annotations

import contextlib
import fnmatch
import os
from collections.abc import Sequence

import tensorflow as tf

from lab.analysis import workers
from lab.analysis.workers import Compute
from lab.errors import LabError
from lab.report import charts
from lab.report.figures import rounded
from lab.report.page import VERDICTS
from lab.report.section import Section, Story, Table

RUN = "report"
_SUFFIX = ".report"  # of our event files
_OURS = f"events.out.tfevents.*{_SUFFIX}"


def check(logdir: str) -> None:
    """Raises LabError if `logdir`/report exists and holds anything not written by a report."""
    path = os.path.join(logdir, RUN)
    if os.path.lexists(path) and not os.path.isdir(path):
        raise LabError(f"{path} is not a folder: move it away, the report is written there")
    for name in sorted(os.listdir(path)) if os.path.isdir(path) else []:
        if not fnmatch.fnmatch(name, _OURS):
            raise LabError(
                f"{path} holds {name}, which was not written by a report: move it away, "
                "the report is written there"
            )


def write(story: Story, logdir: str, compute: Compute = workers.compute) -> None:
    """Puts a report in the place of the last one, if there is one.

    Pictures stand on the page Images, under section/picture, with what to see as description; a
    summary of each section on the page Text. LabError if they cannot be written. compute: draws
    them, in this process or in others.
    """
    check(logdir)
    pngs = charts.drawn(charts.png, story.drawn, compute)
    path = os.path.join(logdir, RUN)
    old = set(os.listdir(path)) if os.path.isdir(path) else set()
    gone: set[str] = set()
    try:
        events = _write_events(story, pngs, path)
        added = sorted(set(os.listdir(path)) - old)
        if len(added) != 1:
            raise LabError(
                f"{path}: {len(added)} new event files where one was written: is another"
                " bin/report running on the same folder? Run it again alone"
            )
        (new,) = added
        kept = _events_in(os.path.join(path, new))
        if kept != events + 1:  # the first one is the format's version
            raise OSError(f"{kept} of {events + 1} events are in {new}")
        gone = old
    except (OSError, tf.errors.OpError) as error:
        gone = set(os.listdir(path)) - old if os.path.isdir(path) else set()
        reason = " ".join(str(getattr(error, "message", error)).split())
        raise LabError(f"{path} cannot be written: free some space ({reason})") from error
    finally:
        for name in gone:
            with contextlib.suppress(FileNotFoundError):  # another report's work
                os.remove(os.path.join(path, name))


def _write_events(story: Story, pngs: dict[str, bytes], path: str) -> int:
    """Writes one event file, and returns how many events were to be in it."""
    events = 0
    writer = tf.summary.create_file_writer(path, filename_suffix=_SUFFIX)
    with writer.as_default(step=0):
        tf.summary.text("summary", _summary(story))
        for section in story.sections:
            tf.summary.text(f"{section.slug}/answer", _markdown(section))
            events += 1
            for picture in section.pictures:
                if isinstance(picture, Table):
                    continue
                pixels = tf.io.decode_png(pngs[picture.slug], channels=3)
                about = f"**{_line(picture.title)}** {_line(picture.see)}"
                tag = f"{section.slug}/{picture.slug}"
                tf.summary.image(tag, pixels[tf.newaxis], description=about)
                events += 1
    writer.close()
    return events + 1


def _events_in(path: str) -> int:
    """How many can be read back: the writer does not tell of a full disk."""
    events = 0
    with contextlib.suppress(tf.errors.DataLossError):
        for _ in tf.data.TFRecordDataset(path):
            events += 1
    return events


def _line(text: str) -> str:
    """As one line of Markdown that stays within a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *(map(_line, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _summary(story: Story) -> str:
    answers = (f"- **{_line(s.title)}** {_line(s.answer)}" for s in story.sections)
    made = _rows(["How it was made", ""], story.made)
    return "\n\n".join([f"# {_line(story.title)}", _line(story.summary), "\n".join(answers), made])


def _markdown(section: Section) -> str:
    parts = [f"# {_line(section.title)}", f"**{_line(section.answer)}**", _line(section.evidence)]
    if section.figures:
        rows = [[f.name, *rounded(f), str(f.runs), f.note] for f in section.figures]
        parts.append(_rows(["Measured", "Value", "95% interval", "Runs", "Note"], rows))
    for picture in section.pictures:
        if isinstance(picture, Table):
            parts += [f"## {_line(picture.title)}", _rows(picture.columns, picture.rows)]
        else:
            parts.append(f"- `{section.slug}/{picture.slug}`, on the page Images: ")
            parts[-1] += _line(picture.see)
    if section.controls:
        rows = [[" ".join(VERDICTS[c.passed]), c.claim, c.outcome] for c in section.controls]
        parts.append(_rows(["Control", "What could have proved it false", "Outcome"], rows))
    if section.unknown:
        parts.append("Not established:\n\n" + "\n".join(f"- {_line(u)}" for u in section.unknown))
    if section.commands:
        lines = (f"- {_line(what)}: `{line}`" for what, line in section.commands)
        parts.append("To fill the gaps:\n\n" + "\n".join(lines))
    return "\n\n".join(parts)
