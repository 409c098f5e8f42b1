"""One contestant's process: requests as JSON lines on standard input, one answer a line.

    python worker.py '{"module": "on_torch", "data": "data.npz", "folder": "..."}'

    {"do": "make", "name": "a", "variant": ..., "rule": ..., ...}   makes it, checks it, warms it up
    {"do": "go", "name": "a"}                                       one turn
    {"do": "drop", "name": "a"}
    {"do": "about"}                                                 versions, threads, peak memory

It runs in the environment of its framework, and imports of the benchmark only what lies beside it.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import itertools
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from typing import Any

import numpy as np
from common import Batches, Made, Task


class Contestants:
    """The answers to the requests; each one a dict that JSON can hold."""

    def __init__(self, module: str, data: str, folder: str) -> None:
        self._module = importlib.import_module(module)
        with np.load(data) as arrays:
            self._images, self._labels = arrays["images"], arrays["labels"]
        self._folder = folder
        self._made: dict[str, tuple[Made, Batches, int, str]] = {}

    def make(
        self,
        name: str,
        variant: str,
        rule: str,
        sizes: list[int],
        batch: int,
        chunk: int,
        check: int,
        seconds: float,
    ) -> dict[str, Any]:
        """Makes a contestant whose turns take about `seconds`.

        `means` holds, for each of its first `check` steps, the mean of the losses so far.
        """
        folder = os.path.join(self._folder, name)
        os.makedirs(folder)
        task = Task(variant, rule, sizes, batch, chunk, self._images, self._labels, folder)
        made = self._module.make(task)
        batches = Batches(len(self._images), batch)
        losses = made.run(batches.take(max(check, made.chunk))).astype(float)
        few = max(1, 4 // made.chunk) * made.chunk
        taken = []
        for _ in range(2):
            begun = time.perf_counter()
            made.run(batches.take(few))
            taken.append((time.perf_counter() - begun) / few)
        steps = max(1, round(made.turn * seconds / min(taken) / made.chunk)) * made.chunk
        self._made[name] = made, batches, steps, folder
        means = np.cumsum(losses) / np.arange(1, len(losses) + 1)
        return {"means": np.nan_to_num(means).tolist(), "steps": steps, "note": made.note}

    def go(self, name: str) -> dict[str, Any]:
        """One turn: seconds and bytes on disk a step."""
        made, batches, steps, folder = self._made[name]
        indices = batches.take(steps)
        before = _bytes(folder)
        begun = time.perf_counter()
        made.run(indices)
        seconds = time.perf_counter() - begun
        return {"seconds": seconds / steps, "bytes": (_bytes(folder) - before) / steps}

    def drop(self, name: str) -> dict[str, Any]:
        """Forgets a contestant and its record."""
        made, _, _, folder = self._made.pop(name)
        if made.close:
            made.close()
        shutil.rmtree(folder, ignore_errors=True)
        gc.collect()
        return {}

    def about(self) -> dict[str, Any]:
        """Versions, threads and devices, as the module knows them, and the peak memory."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"peak_mb": peak / 1024, "about": self._module.about()}


def _bytes(folder: str) -> int:
    files = [os.path.join(path, name) for path, _, names in os.walk(folder) for name in names]
    return sum(os.path.getsize(file) for file in files if not os.path.islink(file))


def main() -> None:
    if sys.platform == "linux":  # ends with the parent, however that ends
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    # Whatever a framework prints goes to the log; the answers have the real output to themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    contestants: Contestants | None = None
    for line in itertools.chain(['{"do": "start"}'], iter(sys.stdin.readline, "")):
        request = json.loads(line)
        do = request.pop("do")
        try:
            if do == "start":
                contestants = Contestants(**json.loads(sys.argv[1]))
                answer: dict[str, Any] = {}
            else:
                answer = getattr(contestants, do)(**request)
        except Exception as error:
            traceback.print_exc()
            said = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
            line = said[-1] if said[0].endswith(":") else said[0]
            answer = {"error": f"{type(error).__name__}: {line}"[:300]}
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # some frameworks would still be busy for a while


if __name__ == "__main__":
    main()
