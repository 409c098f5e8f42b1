"""bin/launch: several workers on this machine, for a rehearsal of several machines.

    bin/launch --workers=2 -- bin/train --optimizer=adam

Each worker is the command with a TF_CONFIG of its own; what it prints comes out with its number
before it. The first that fails ends the others, and its exit status is this program's.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import TextIO

from lab.errors import LabError
from lab.processes.stop import Stop
from lab.settings import command_line
from lab.terminal import program

GRACE = 60.0  # seconds that the others have once a worker has failed, or a signal has come


@program
def main() -> int:
    """Starts the workers, and returns their exit status."""
    try:
        workers, command = command_line.parse_launch(sys.argv)
    except LabError as error:
        print(f"launch: {error}", file=sys.stderr)
        return 2
    with (stop := _Stop()):
        return _launch(workers, command, stop)


class _Stop(Stop):
    """A second signal must not end this program before its workers."""

    again = False

    def _note(self, number: int, _: FrameType | None) -> None:
        self.again = bool(self.signal)
        self.signal = self.signal or number


def _launch(workers: int, command: Sequence[str], stop: _Stop) -> int:
    """Runs the command as so many workers; 0 if all of them end with 0."""
    with contextlib.ExitStack() as stack:
        servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(workers)]
        ports = [stack.enter_context(server).getsockname()[1] for server in servers]
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    environment = dict(os.environ)
    if environment.get("PYTHONSAFEPATH") == "bin/python":  # which sets it for this program alone
        del environment["PYTHONSAFEPATH"]
    processes: list[subprocess.Popen[str]] = []
    threads = []
    try:
        for index in range(workers):
            config = {"cluster": cluster, "task": {"type": "worker", "index": index}}
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=environment | {"TF_CONFIG": json.dumps(config)},
                start_new_session=True,  # a signal comes to them once, from here
            )
            processes.append(process)
            threads.append(threading.Thread(target=_pass_on, args=(index, process.stdout)))
            threads[-1].daemon = True
            threads[-1].start()
        status = _wait(processes, stop)
        return 128 - status if status < 0 else status
    except OSError as error:
        print(f"launch: {command[0]} cannot be started ({error.strerror})", file=sys.stderr)
        return 2
    finally:
        _signal(processes, signal.SIGKILL)
        for thread in threads:
            thread.join(5)


def _wait(processes: Sequence[subprocess.Popen[str]], stop: _Stop) -> int:
    """Waits for all, until a second signal; passes the first on. Once there was a signal or one
    worker has failed, the others have a time limit."""
    first, deadline, passed_on = 0, float("inf"), False
    while True:
        codes = [process.poll() for process in processes]
        first = first or next(filter(None, codes), 0)
        if None not in codes:
            return first
        if stop.again:
            return stop.status
        if stop.signal and not passed_on:
            _signal(processes, stop.signal)
            passed_on = True
        if stop.signal or first:
            deadline = min(deadline, time.monotonic() + GRACE)
        if time.monotonic() > deadline:
            names = ", ".join(f"worker {i}" for i, code in enumerate(codes) if code is None)
            print(f"launch: {names} did not end within {GRACE:.0f} s: killed", file=sys.stderr)
            return first or 1
        time.sleep(0.05)


def _signal(processes: Sequence[subprocess.Popen[str]], number: int) -> None:
    """To the workers and all that they have started."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def _pass_on(index: int, lines: TextIO) -> None:
    for line in lines:
        with contextlib.suppress(BrokenPipeError):  # training continues if nobody reads
            print(f"[worker {index}] {line.rstrip()}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
