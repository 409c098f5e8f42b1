"""Many independent calls, in worker processes that compute with one thread each."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent import futures
from typing import Any

from lab import machine
from lab.errors import LabError
from lab.terminal import load_tensorflow

Job = tuple[Any, ...]  # function, arguments...
Compute = Callable[[list[Job]], list[Any]]  # the results, in the order of the jobs
Progress = Callable[[int, int], None]  # (done, total)

_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
FEW = 4  # jobs for which no process is started


def compute(jobs: list[Job], progress: Progress = lambda done, total: None) -> list[Any]:
    """In this process."""
    found = []
    for function, *arguments in jobs:
        found.append(function(*arguments))
        progress(len(found), len(jobs))
    return found


class Workers:
    """Processes that start with the first jobs, and end with the context.

    Args:
      processes: how many, one per core unless given.
      few: jobs for which none is started.
    """

    def __init__(self, processes: int | None = None, few: int = FEW) -> None:
        self._processes, self._few = processes or len(machine.cores()), few
        self._pool: futures.ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        self._before = {name: os.environ.get(name) for name in _THREADS}
        os.environ.update(dict.fromkeys(_THREADS, "1"))  # NumPy reads it when it is imported
        return self

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def compute(self, jobs: list[Job], progress: Progress) -> list[Any]:
        """In these processes.

        Raises:
          LabError: a process was killed.
        """
        if len(jobs) <= self._few:
            return compute(jobs, progress)
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = futures.ProcessPoolExecutor(self._processes, context, _start)
        progress(0, len(jobs))
        waiting = [self._pool.submit(*job) for job in jobs]
        try:
            for done, one in enumerate(futures.as_completed(waiting), start=1):
                one.result()
                progress(done, len(jobs))
        except futures.process.BrokenProcessPool as error:
            raise LabError(
                "a measuring process was killed, perhaps for lack of memory: try again with"
                " fewer cores (taskset) or fewer runs"
            ) from error
        return [one.result() for one in waiting]


def _start() -> None:
    load_tensorflow()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
