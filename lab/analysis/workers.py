"""Many independent calls, in worker processes that compute with one thread each."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent import futures
from typing import Any

from lab import machine
from lab.errors import LabError
from lab.terminal import quiet_stderr

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def compute(
    jobs: list[tuple[Any, ...]], progress: Callable[[int, int], None], processes: int | None
) -> list[Any]:
    """The results of jobs (function, arguments...), in their order.

    processes: one a core unless given; 0 computes in this process.

    Raises:
      LabError: a worker process was killed.
    """
    processes = len(machine.cores()) if processes is None else processes
    progress(0, len(jobs))
    if not processes or len(jobs) < 2:
        found = []
        for i, (function, *arguments) in enumerate(jobs):
            found.append(function(*arguments))
            progress(i + 1, len(jobs))
        return found
    context = multiprocessing.get_context("spawn")
    before = dict(os.environ)
    os.environ.update(dict.fromkeys(_THREADS, "1"))  # their NumPy reads it at its start
    with futures.ProcessPoolExecutor(processes, context, _start) as pool:
        waiting = [pool.submit(*job) for job in jobs]
        try:
            for i, one in enumerate(futures.as_completed(waiting)):
                one.result()
                progress(i + 1, len(jobs))
        except futures.process.BrokenProcessPool as error:
            raise LabError(
                "a process that measured was killed, perhaps for want of memory: try again with "
                "fewer cores (taskset) or fewer runs"
            ) from error
        finally:
            for name in _THREADS:
                os.environ.pop(name)
            os.environ.update(before)
            pool.shutdown(cancel_futures=True)
        return [one.result() for one in waiting]


def _start() -> None:
    if os.environ.get(_LEVEL) == "3":  # as `quiet_stderr` left it in the parent
        del os.environ[_LEVEL]
    with quiet_stderr():
        import tensorflow as tf
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
