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

GRACE = 60.0  # seconds that the others have once a worker has failed, or a signal has come


def main() -> int:
    """Starts the workers, and returns their exit status."""
    try:
        workers, command = command_line.parse_launch(sys.argv)
    except LabError as error:
        print(f"launch: {error}", file=sys.stderr)
        return 2
    with (stop := _Stop()):
        return launch(workers, command, stop)


class _Stop(Stop):
    """A second signal must not end this program before its workers."""

    again = False

    def _note(self, number: int, _: FrameType | None) -> None:
        self.again = bool(self.signal)
        self.signal = self.signal or number


def launch(workers: int, command: Sequence[str], stop: _Stop) -> int:
    """Runs the command as so many workers; 0 if all of them end with 0."""
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(workers)]
    processes = []
    try:
        for index in range(workers):
            task = {"type": "worker", "index": index}
            config = {"cluster": {"worker": addresses}, "task": task}
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=os.environ | {"TF_CONFIG": json.dumps(config)},
                start_new_session=True,  # a signal comes to them once, from here
            )
            processes.append(process)
        threads = [
            threading.Thread(target=_pass_on, args=(index, process.stdout), daemon=True)
            for index, process in enumerate(processes)
        ]
        for thread in threads:
            thread.start()
        status = _wait(processes, stop)
        for process in processes:
            _signal(process, signal.SIGKILL)
        for thread in threads:
            thread.join(5)
        return status
    except OSError as error:
        print(f"launch: {command[0]} cannot be started ({error.strerror})", file=sys.stderr)
        return 2
    finally:
        for process in processes:
            _signal(process, signal.SIGKILL)


def _wait(processes: Sequence[subprocess.Popen], stop: _Stop) -> int:
    """Waits for all, until a second signal; passes the first on; gives the others a time limit once
    one has failed."""
    first, deadline, told = 0, float("inf"), 0
    while None in [process.poll() for process in processes]:  # each of them, each time
        if stop.signal and not told:
            told, deadline = stop.signal, time.monotonic() + GRACE
            for process in processes:
                _signal(process, told)
        if stop.again:
            return stop.status
        failed = [p.returncode for p in processes if p.returncode]
        if failed and not first:
            first, deadline = failed[0], min(deadline, time.monotonic() + GRACE)
        if time.monotonic() > deadline:
            late = [i for i, process in enumerate(processes) if process.poll() is None]
            names = ", ".join(f"worker {i}" for i in late)
            print(f"launch: {names} did not end within {GRACE:.0f} s: killed", file=sys.stderr)
            return first or 1
        time.sleep(0.05)
    statuses = [process.returncode for process in processes]
    first = first or next((status for status in statuses if status), 0)
    return 128 - first if first < 0 else first


def _signal(process: subprocess.Popen, number: int) -> None:
    """To the worker and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _pass_on(index: int, lines: TextIO) -> None:
    for line in lines:
        sys.stdout.write(f"[worker {index}] {line.rstrip()}\n")
        sys.stdout.flush()


def _free_ports(count: int) -> list[int]:
    doors = [socket.socket() for _ in range(count)]
    try:
        for door in doors:
            door.bind(("127.0.0.1", 0))
        return [door.getsockname()[1] for door in doors]
    finally:
        for door in doors:
            door.close()


if __name__ == "__main__":
    sys.exit(main())
