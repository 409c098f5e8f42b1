"""The page of runs that are still training, on the loopback address alone: bin/view --follow."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from lab.errors import LabError
from lab.record.event_reader import Series
from lab.record.run import RunReader
from lab.viewer import html_file
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
        try:
            super().__init__((_ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            raise LabError(f"--port={port} cannot be used: {error}") from error
        self.address = f"http://{_ADDRESS}:{self.server_port}/"

    def record(self, have: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        """What is on record now, as `pack` gives it; with `epoch`, another number if event files
        had to be read from the beginning again, so that what a page has may no longer hold.

        Args:
          have: of each run, by tag, how many values to leave out at the beginning.
        """
        with self._lock:
            self._runs = [run.updated() for run in self._runs]
            records = [
                (_new(run, "scalars", known), _new(run, "histograms", known))
                for run, known in zip(self._runs, have, strict=True)
            ]
            epoch = sum(run.events.epoch for run in self._runs)
            return pack_records(self._runs, records) | {"epoch": epoch}

    def whole_page(self) -> str:
        """The page of all that is on record now."""
        return html_file.as_html(self.record([{} for _ in self._runs]))


def _new(run: RunReader, kind: str, have: Mapping[str, int]) -> dict[str, Series]:
    series = run.events.series(kind, have)
    return {tag: one for tag, one in series.items() if len(one.steps)}


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if self._own() and self.path == "/":
            self._send(200, "text/html; charset=utf-8", self.server.whole_page())
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        if not self._own() or self.path != "/more" or length > _LONGEST:
            self.send_error(404)
            return
        try:
            asked = json.loads(self.rfile.read(length))
            record = self.server.record(asked["have"])
        except (KeyError, TypeError, ValueError):
            self.send_error(400)
            return
        if record["epoch"] != asked["epoch"]:
            self._send(205, "text/plain", "")
        else:
            self._send(200, "application/json", html_file.as_json(record))

    def _own(self) -> bool:
        """Whether the request names this server: other sites' names that are made to lead to the
        loopback address do not."""
        name, _, port = self.headers.get("Host", "").rpartition(":")
        return name in (_ADDRESS, "localhost") and port == str(self.server.server_port)

    def _send(self, status: int, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None: ...
