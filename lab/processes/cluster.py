"""Which workers train together, and whether they are all there. No TensorFlow.

TensorFlow's own start waits for ever for a worker that never comes, and nothing in the process can
interrupt it. So the workers meet here first, on the ports that TensorFlow will use, with a deadline
and by name.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import time
from collections.abc import Iterable, Mapping

from lab.errors import LabError

PATIENCE = 60.0  # seconds that a worker waits for the others; LAB_PATIENCE changes it


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers' addresses, host:port each, and which of them this process is, from 0."""

    workers: tuple[str, ...]
    index: int

    @property
    def me(self) -> str:
        """This worker, for messages."""
        return self.names([self.index])

    @property
    def others(self) -> str:
        """All workers but this one, for messages."""
        return self.names(i for i in range(len(self.workers)) if i != self.index)

    def names(self, indices: Iterable[int]) -> str:
        """These workers, for messages."""
        return ", ".join(f"worker {i} ({self.workers[i]})" for i in indices)


def from_environment(environment: Mapping[str, str] = os.environ) -> Cluster | None:
    """The cluster that TF_CONFIG describes; None without it, or for one worker alone.

    Raises:
      LabError: TF_CONFIG is not what TensorFlow expects; says what is wrong and shows how it
        should look.
    """
    text = environment.get("TF_CONFIG", "")
    if not text:
        return None
    try:
        config = json.loads(text)
        workers, task = config["cluster"]["worker"], config["task"]
        if set(config["cluster"]) != {"worker"} or task["type"] != "worker":
            raise ValueError("only tasks of type worker train here")
        for address in workers:
            host, _, port = address.rpartition(":")
            if not host or not 0 < int(port) < 65536:
                raise ValueError(f"{address!r} is not host:port")
        index = int(task["index"])
        if not 0 <= index < len(workers) or len(set(workers)) < len(workers):
            raise ValueError(f"task {index} of {len(workers)} different workers cannot be")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise LabError(
            f"TF_CONFIG is malformed ({what}): it must look like "
            '{"cluster": {"worker": ["host0:port", "host1:port"]}, '
            '"task": {"type": "worker", "index": 0}}'
        ) from error
    return Cluster(tuple(workers), index) if len(workers) > 1 else None


def patience(environment: Mapping[str, str] = os.environ) -> float:
    """Seconds that a worker waits for the others. Raises LabError: LAB_PATIENCE is no number."""
    text = environment.get("LAB_PATIENCE", "") or str(PATIENCE)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise LabError(f"LAB_PATIENCE={text}: must be a number of seconds above 0")
    return seconds


def meet(cluster: Cluster) -> None:
    """Returns when every worker has come: worker 0 waits for the others, they for its word.

    Raises:
      LabError: this worker's port is taken, or the time is over; names who did not come.
    """
    deadline = time.monotonic() + patience()
    host, _, port = cluster.workers[cluster.index].rpartition(":")
    try:
        with socket.socket(_family(host, port)) as door:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            door.bind(("", int(port)))
            if cluster.index == 0:
                door.listen(len(cluster.workers))
                _gather(cluster, door, deadline)
            else:
                _report(cluster, deadline)
    except OSError as error:
        raise LabError(
            f"{cluster.me}: its port cannot be used ({error.strerror or error}): name a free port "
            "and a host of this machine in TF_CONFIG"
        ) from error


def _family(host: str, port: str) -> int:
    return socket.getaddrinfo(host.strip("[]"), int(port))[0][0]


def _gather(cluster: Cluster, door: socket.socket, deadline: float) -> None:
    """Worker 0: takes one line from each of the others, then answers all."""
    lines: dict[int, socket.socket] = {}
    try:
        while len(lines) < len(cluster.workers) - 1:
            door.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                line, _ = door.accept()
            except TimeoutError:
                missing = [i for i in range(1, len(cluster.workers)) if i not in lines]
                names = cluster.names(missing)
                raise LabError(f"{cluster.me}: {names} did not come; start every worker") from None
            index = _hello(line)
            if 0 < index < len(cluster.workers) and index not in lines:
                lines[index] = line
            else:
                line.close()
        for line in lines.values():
            line.sendall(b"go")
    finally:
        for line in lines.values():
            line.close()


def _hello(line: socket.socket) -> int:
    """The number of the worker that speaks; 0 for anybody else, who may also say nothing."""
    try:
        line.settimeout(1)
        words = line.recv(64).decode(errors="replace").split()
    except OSError:
        return 0
    known = len(words) == 2 and words[0] == "everystep" and words[1].isdecimal()
    return int(words[1]) if known else 0


def _report(cluster: Cluster, deadline: float) -> None:
    """The others: says that this worker is here, and waits for worker 0's word."""
    host, _, port = cluster.workers[0].rpartition(":")
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=2) as line:
                line.sendall(f"everystep {cluster.index}".encode())
                line.settimeout(max(deadline - time.monotonic(), 0.01))
                if line.recv(2) == b"go":
                    return
        except OSError:
            pass
        time.sleep(0.1)
    raise LabError(
        f"{cluster.me}: worker 0 ({cluster.workers[0]}) did not come, or still waits for another; "
        "start every worker"
    )
