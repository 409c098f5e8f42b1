"""The page of runs that are still training, on the loopback address only: bin/view --follow."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lab.errors import LabError
from lab.record.event_reader import Series
from lab.record.run import RunReader
from lab.viewer import html_file
from lab.viewer.marks import marks
from lab.viewer.pack import pack_records

_ADDRESS = "127.0.0.1"
_LONGEST = 2**24  # bytes of a request


class Server(http.server.ThreadingHTTPServer):
    """Serves the page of runs at `/` and, at `/more`, what has been recorded since.

    Args:
      port: 0 for a free one.

    Attributes:
      address: to open in a browser.

    Raises:
      LabError: the port is not free.
    """

    daemon_threads = True

    def __init__(self, runs: Sequence[RunReader], port: int) -> None:
        self._runs, self._lock = list(runs), threading.Lock()
        self._marks = [marks(run) for run in runs]
        try:
            super().__init__((_ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            raise LabError(f"--port={port} cannot be used: {error}") from error
        self.address = f"http://{_ADDRESS}:{self.server_port}/"

    def record(self, have: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        """What is on record now, as `pack` gives it; with `epoch`, another number if event files
        had to be read from the beginning again, so that what a page has may no longer hold.

        Args:
          have: of each run, by tag, the last step that a page has.

        Raises:
          LabError: a run directory is gone, or cannot be read.
        """
        with self._lock:
            for place, run in enumerate(self._runs):
                fresh = run.updated()
                if fresh is not run:
                    self._runs[place], self._marks[place] = fresh, marks(fresh)
            records = [
                (_new(run, "scalars", known), _new(run, "histograms", known))
                for run, known in zip(self._runs, have, strict=True)
            ]
            epoch = sum(run.events.epoch for run in self._runs)
            return pack_records(self._runs, records, self._marks) | {"epoch": epoch}

    def whole_page(self) -> str:
        """The page of all that is on record now."""
        return html_file.as_html(self.record([{} for _ in self._runs]))


def _new(run: RunReader, kind: str, have: Mapping[str, int]) -> dict[str, Series]:
    series = run.events.series(kind, have)
    return {tag: one for tag, one in series.items() if len(one.steps)}


def _is_news(record: dict[str, Any], status: Sequence[str]) -> bool:
    runs = record["runs"]
    more = any(run["scalars"] or run["histograms"] for run in runs)
    return more or [run["status"] for run in runs] != status


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._answer("/", lambda: (200, "text/html; charset=utf-8", self.server.whole_page()))

    def do_POST(self) -> None:
        self._answer("/more", self._more)

    def _more(self) -> tuple[int, str, str]:
        length = int(self.headers.get("Content-Length", 0))
        if not 0 < length <= _LONGEST:
            raise ValueError
        asked = json.loads(self.rfile.read(length))
        record = self.server.record(asked["have"])
        if record["epoch"] != asked["epoch"]:
            return 205, "text/plain", ""
        if not _is_news(record, asked["status"]):
            return 204, "text/plain", ""
        return 200, "application/json", html_file.as_json(record)

    def _answer(self, path: str, answer: Callable[[], tuple[int, str, str]]) -> None:
        """Answers a request that names this machine, with any port, as one may be forwarded: other
        sites' names that are made to lead to the loopback address are not answered."""
        name = self.headers.get("Host", "").partition(":")[0]
        if name not in (_ADDRESS, "localhost") or self.path != path:
            self.send_error(404)
            return
        try:
            status, kind, text = answer()
        except LabError as error:
            self.send_error(503, str(error).splitlines()[0])
            return
        except (AttributeError, KeyError, TypeError, ValueError):
            self.send_error(400)
            return
        content = text.encode()
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the page was closed
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None: ...
