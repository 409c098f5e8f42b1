"""One process of contestants: requests as JSON lines on standard input, one line per answer.

    {"do": "start", "module": "on_torch", ...}
    {"do": "make", "name": "a", "rule": ..., ...}   makes it, checks it, warms it up
    {"do": "turn", "name": "a"}
    {"do": "drop", "name": "a"}                     versions, threads, peak memory

It runs in the environment of its framework, and imports of the benchmark only what lies beside it.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
from common import Runner, Task, timed


class Contestants:
    """A method per request; it returns the answer, a dict that JSON can hold."""

    def __init__(self) -> None:
        self._ready: dict[str, tuple[Task, Runner, Callable[[int], np.ndarray], int]] = {}

    def start(self, module: str) -> dict[str, Any]:
        """Loads the framework and the data."""
        self._module = importlib.import_module(module)
        with np.load("../data.npz") as arrays:
            self._arrays = dict(arrays)
        return {}

    def make(self, name: str, seconds: float, **more: Any) -> dict[str, Any]:
        """Makes a contestant whose turns take about `seconds`, and trains it for a chunk of steps:
        `loss` is their mean loss, `first_s` how long that took, compiling included."""
        task = Task(name, **more, folder=tempfile.mkdtemp(dir="."), **self._arrays)
        runner, batches = self._module.make(task), task.batches()
        begun = time.perf_counter()
        loss = runner.run(batches(task.chunk)).mean(dtype=float)
        first = time.perf_counter() - begun
        few = max(1, 4 // runner.chunk) * runner.chunk
        step = min(timed(runner, batches(few)) for _ in range(2))
        steps = max(1, round(runner.turn * seconds / step / runner.chunk)) * runner.chunk
        self._ready[name] = task, runner, batches, steps
        checked = {"loss": float(np.nan_to_num(loss)), "checked": task.chunk, "first_s": first}
        return {**checked, "note": runner.note}

    def turn(self, name: str) -> dict[str, Any]:
        """Seconds per step, and bytes per step on disk."""
        task, runner, batches, steps = self._ready[name]
        indices = batches(steps)
        before = _bytes(task.folder)
        seconds = timed(runner, indices)
        return {"seconds": seconds, "bytes": (_bytes(task.folder) - before) / steps}

    def drop(self, name: str) -> dict[str, Any]:
        """Removes a contestant. Versions, threads and devices, and the peak memory."""
        task, runner, _, _ = self._ready.pop(name)
        runner.close()
        shutil.rmtree(task.folder, ignore_errors=True)
        gc.collect()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"peak_mb": peak / 1024, "about": {"numpy": np.__version__, **self._module.about()}}


def _bytes(folder: str) -> int:
    files = [os.path.join(path, name) for path, _, names in os.walk(folder) for name in names]
    return sum(os.path.getsize(file) for file in files if not os.path.islink(file))


def main() -> None:
    if sys.platform == "linux":  # ends with the parent, however that ends
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    # Whatever a framework prints goes to the log; the answers have the real output to themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    contestants = Contestants()
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        try:
            answer = getattr(contestants, request.pop("do"))(**request)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"}
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # some frameworks would still be busy for a while


if __name__ == "__main__":
    main()
