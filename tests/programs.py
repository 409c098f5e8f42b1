"""Runs the lab's program, and TensorBoard's, as a user does."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"},
    "PYTHONPATH": ROOT,
}
TRAIN = [sys.executable, "-m", "lab.training.main"]
CHILDREN = os.path.join(ROOT, "tests", "child_programs")  # small programs that tests start


@dataclasses.dataclass
class Outcome:
    """What a program printed, and its exit status."""

    status: int
    out: str
    err: str


def train(*arguments: str) -> Outcome:
    """The training program in this process, where TensorFlow is loaded already."""
    from lab.training import main

    return _here(main.train, "train", arguments)


def report(*arguments: Any) -> Outcome:
    """The report's program in this process."""
    from lab.report import main

    return _here(main.main, "report", arguments)


def view(*arguments: Any) -> Outcome:
    """bin/view in this process."""
    from lab.viewer import main

    return _here(main.main, "view", arguments)


def why(*arguments: Any) -> Outcome:
    """bin/why in this process."""
    from lab.diagnosis import main

    return _here(main.main, "why", arguments)


def launch(*arguments: Any) -> Outcome:
    """bin/launch in this process; the workers are others."""
    from lab.processes import launch

    return _here(launch.main, "launch", arguments)


def _here(program: Callable[[], int], name: str, arguments: Iterable[Any]) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", [name, *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        status = program()
    return Outcome(status, out.getvalue(), err.getvalue())


def start(*arguments: str, cwd: str | os.PathLike, **options: Any) -> subprocess.Popen:
    """The training program in a process of its own, its output in pipes."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    options = pipes | {"env": ENVIRONMENT} | options
    return subprocess.Popen([*TRAIN, *map(str, arguments)], cwd=cwd, **options)


def finish(process: subprocess.Popen) -> Outcome:
    """Waits for the end of a process that `start` started."""
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    return Outcome(process.returncode, out, err)


def result(directory: str | os.PathLike) -> dict[str, Any]:
    """A run's result.json, which has to be strict JSON: NaN and Infinity are refused."""
    with open(os.path.join(directory, "result.json")) as file:
        return json.load(file, parse_constant=_refuse)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    """Polls until `condition` is true, and returns it; fails when that takes for ever."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.05)
    return value


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class TensorBoard:
    """A TensorBoard server's HTTP interface."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"

    def raw(self, route: str, body: Any = None, **query: Any) -> bytes:
        """GET, or POST of a JSON body, of a route with a query."""
        url = f"{self.address}/{route}"
        if query:
            url += "?" + urllib.parse.urlencode(query)
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.read()

    def get(self, route: str, body: Any = None, **query: Any) -> Any:
        """As `raw`, parsed from JSON."""
        return json.loads(self.raw(route, body, **query))

    def time_series(self, plugin: str, tag: str, run: str) -> list[dict[str, Any]]:
        """What the Time Series page draws of one tag of one run, a dict for each step."""
        one = {"plugin": plugin, "tag": tag} | ({"run": run} if plugin == "histograms" else {})
        (reply,) = self.get("data/plugin/timeseries/timeSeries", requests=json.dumps([one]))
        return reply["runToSeries"][run]

    def has_all(self, run: str, step: int, watched: bool = True) -> bool:
        """Whether the server has read a run up to a step and its evaluation."""
        try:
            kinds = {"scalars": "test-accuracy"}
            if "test-accuracy" not in self.get("data/plugin/scalars/tags").get(run, ()):
                return False
            if watched:
                histograms = self.get("data/plugin/histograms/tags").get(run)
                if not histograms:
                    return False
                kinds["histograms"] = next(iter(histograms))
            return all(
                # Sampled, but with the last one; a server that is told to keep none has none.
                [point[1] for point in self.get(f"data/plugin/{kind}/{kind}", run=run, tag=tag)][
                    -1:
                ]
                in ([step], [])
                for kind, tag in kinds.items()
            )
        except (urllib.error.URLError, ConnectionError):
            return False


@contextlib.contextmanager
def serving(
    command: str | list[str], run: str, step: int, watched: bool = True, **options: Any
) -> Iterator[TensorBoard]:
    """Runs a command that starts TensorBoard, `--port` and `--host` added, until `run` is read,
    with its histograms if it was watched."""
    port = free_port()
    more = ["--host", "127.0.0.1", "--port", str(port)]
    shell = isinstance(command, str)
    whole = f"exec {command} {' '.join(more)}" if shell else [*command, *more]
    process = subprocess.Popen(
        whole, shell=shell, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options
    )
    try:
        board = TensorBoard(port)

        def ready() -> bool:
            assert process.poll() is None, process.communicate()[1]
            return board.has_all(run, step, watched)

        wait_for(ready, f"TensorBoard to read {run}")
        yield board
    finally:
        # It ends its data server, a process of its own, on SIGTERM.
        process.terminate()
        process.communicate(timeout=60)
