"""bin/report: the runs below a folder, as a table and as a page.

0: done; 2: a wrong command line; 1: any other error that the user can fix; 130: interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
from collections.abc import Iterator

import tqdm

from lab.analysis.workers import Progress, Workers
from lab.compare import formats, results, table
from lab.errors import LabError
from lab.record.directory import write_file
from lab.settings import command_line
from lab.terminal import fail, load_tensorflow, program, tensorboard_command


@program
def main() -> int:
    """Prints the table of all runs, then writes the page; returns the exit status."""
    try:
        settings = command_line.parse_report(sys.argv)
        found, problems = results.read_results(settings.logdir)
    except LabError as error:
        return fail("report", error, 2)
    print(formats.FORMATS[settings.format](table.make_table(found, problems=problems)), end="")
    if not settings.page:
        return 0
    sys.stdout.flush()
    try:
        if not found:
            raise LabError(f"{settings.logdir}: no run has a result.json: no page is written")
        lines = _write(settings.logdir)
    except LabError as error:
        return fail("report", error, 1)
    except KeyboardInterrupt:
        return fail("report", "interrupted: no page was written", 130)
    # What reads a table in another format than text reads nothing else.
    print(lines, file=sys.stdout if settings.format == "text" else sys.stderr)
    return 0


def _write(logdir: str) -> str:
    """Reads the runs, answers the questions and writes the page; returns where it is."""
    if not importlib.util.find_spec("matplotlib"):
        raise LabError(
            f"the page needs matplotlib: {sys.executable} -m pip install matplotlib"
            " (--nopage prints only the table)"
        )
    # The measurements compute on the CPU: a GPU is left to those who train.
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    load_tensorflow()
    from lab.analysis import runs
    from lab.report import board, figures_json, page, story

    html, figures = (os.path.join(logdir, name) for name in ("report.html", "report.json"))
    board.check(logdir)
    for path in (html, figures):  # before the minutes that it takes to fill them
        _put(path, "", commit=False)
    # TensorFlow has the threads of a run in the process that trains it again, and no others.
    with Workers() as workers, Workers(few=0) as trainers:
        with _bar("reading the runs") as progress:
            reading = functools.partial(workers.compute, progress=progress)
            all_runs = runs.read_runs(logdir, reading)
        with _bar("measuring") as progress:
            parts = (
                functools.partial(one.compute, progress=progress) for one in (workers, trainers)
            )
            whole = story.make_story(all_runs, *parts)
        with _bar("drawing") as progress:
            drawing = functools.partial(workers.compute, progress=progress)
            _put(html, page.as_html(whole, drawing))
            _put(figures, figures_json.as_json(whole))
            board.write(whole, logdir, drawing)
    return (
        f"page:     {html}\n"
        f"figures:  {figures}\n"
        f"both in TensorBoard, as the run {board.RUN!r}:\n{tensorboard_command(logdir)}"
    )


def _put(path: str, text: str, commit: bool = True) -> None:
    """Writes a file so that it is whole or as it was; without commit only tries to."""
    try:
        if os.path.isdir(path):
            raise LabError(f"{path} is a folder: move it away, the report is written there")
        if commit:
            write_file(path, text)
        else:
            write_file(f"{path}.tmp", text)
            os.remove(f"{path}.tmp")
    except OSError as error:
        raise LabError(
            f"{path} cannot be written ({error.strerror}): free some space, or copy the runs"
            " to a writable folder (--nopage prints only the table)"
        ) from error


@contextlib.contextmanager
def _bar(what: str) -> Iterator[Progress]:
    """Shows (done, total) on a terminal."""
    quiet = not sys.stderr.isatty()
    with tqdm.tqdm(desc=what, total=1, leave=False, disable=quiet, file=sys.stderr) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


if __name__ == "__main__":
    sys.exit(main())
