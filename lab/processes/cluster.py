"""Which workers train together, and whether all have joined. No TensorFlow.

TensorFlow's own start waits forever for a worker that never joins, and nothing in the process can
interrupt it. So the workers meet here first, on the ports that TensorFlow will use, with a deadline
and by name.
"""

from __future__ import annotations

import contextlib
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
            raise ValueError(f"task {index} of {len(workers)} different workers does not exist")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise LabError(
            f"TF_CONFIG is malformed ({what}): it must look like "
            '{"cluster": {"worker": ["host0:port", "host1:port"]}, '
            '"task": {"type": "worker", "index": 0}}'
        ) from error
    return Cluster(tuple(workers), index) if len(workers) > 1 else None


def slurm_tasks(environment: Mapping[str, str] = os.environ) -> int:
    """The tasks of the Slurm job step of which this process is one; 1 outside of any."""
    known = "SLURM_PROCID" in environment
    return int(environment.get("SLURM_STEP_NUM_TASKS", 1)) if known else 1


def is_one_of_several(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is one of several with the same command: the workers of TF_CONFIG, or
    the tasks of a Slurm job step. Raises LabError: TF_CONFIG is malformed."""
    return from_environment(environment) is not None or slurm_tasks(environment) > 1


def patience(environment: Mapping[str, str] = os.environ) -> float:
    """Seconds that a worker waits for the others. Raises LabError: LAB_PATIENCE is no number."""
    text = environment.get("LAB_PATIENCE", "") or str(PATIENCE)
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1e6:
            return float(text)
    raise LabError(f"LAB_PATIENCE={text}: must be a number of seconds above 0")


def meet(cluster: Cluster) -> None:
    """Returns when every worker has joined: worker 0 waits for the others, they for its reply.

    Raises:
      LabError: this worker's port is taken, or time is up; names those that did not join.
    """
    deadline = time.monotonic() + patience()
    host, _, port = cluster.workers[cluster.index].rpartition(":")
    try:
        family = socket.getaddrinfo(host.strip("[]"), int(port))[0][0]
        with socket.socket(family) as door:
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


def _gather(cluster: Cluster, door: socket.socket, deadline: float) -> None:
    """Worker 0: takes one line from each of the others, then answers all."""
    missing = set(range(1, len(cluster.workers)))
    with contextlib.ExitStack() as stack:
        lines = []
        while missing:
            door.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                line = stack.enter_context(door.accept()[0])
            except TimeoutError:
                names = cluster.names(sorted(missing))
                raise LabError(f"{cluster.me}: {names} did not join; start every worker") from None
            index = _hello(line)
            if index in missing:
                missing.remove(index)
                lines.append(line)
            else:
                line.close()
        for line in lines:
            line.sendall(b"go")


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
        with (
            contextlib.suppress(OSError),
            socket.create_connection((host.strip("[]"), int(port)), timeout=2) as line,
        ):
            line.sendall(f"everystep {cluster.index}".encode())
            line.settimeout(max(deadline - time.monotonic(), 0.01))
            if line.recv(2) == b"go":
                return
        time.sleep(0.1)
    raise LabError(
        f"{cluster.me}: worker 0 ({cluster.workers[0]}) did not join, or waits for another; "
        "start every worker"
    )
