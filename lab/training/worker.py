"""A process that runs the trials it is sent, one after another; started by pool.py.

It reads orders on standard input and answers on standard output, a line of JSON each:
    {"config": ..., "settings": ...}
    {"step": 300, "ran": 100}   {"say": "..."}   and last {"result": ..., "ran": true}
                                                 or {"error": "..."}
The end of its input ends it, after the loop that is running.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from typing import Any, TextIO

from lab.errors import LabError
from lab.processes.stop import Stop
from lab.settings.config import Config, Settings
from lab.settings.fields import from_json
from lab.terminal import load_tensorflow
from lab.training.progress import Reporter


class _Pipe(Reporter):
    """Answers the parent."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._step = out, 0
        self.ran = False

    def answer(self, **message: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # the parent is gone; see _read
            self._out.write(json.dumps(message) + "\n")
            self._out.flush()

    def begin(self, about: list[str], steps: int, first: int) -> None:
        self._step, self.ran = first, True

    def advance(self, step: int) -> None:
        self.answer(step=step, ran=step - self._step)
        self._step = step

    def notify(self, text: str) -> None:
        if self.ran:
            self.answer(say=text)


def main() -> None:
    """Runs orders until there are no more."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing else may answer, native code neither
    with Stop("stopped in the midst of a step") as stop:
        load_tensorflow()
        from lab.training import trial
        from lab.training.problem import load_data, problem_of
        from lab.training.programs import Programs

        load, programs = functools.lru_cache(maxsize=2)(load_data), Programs(largest=2**24)
        orders: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read, args=(orders, stop), daemon=True).start()
        while not stop.signal and (order := orders.get()) is not None:
            fields, pipe = json.loads(order), _Pipe(out)
            config = Config(**from_json(Config, fields["config"], "config."))
            settings = Settings(**fields["settings"])
            try:
                data, files = load(config.data)
                problem, started = problem_of(config, data, files), time.monotonic()
                _, result = trial.run(
                    config, settings, problem, pipe, stop, started, programs=programs
                )
                pipe.answer(result=result, ran=pipe.ran)
            except LabError as error:
                pipe.answer(error=str(error))
            except Exception as error:  # a trial that fails must not end the others
                traceback.print_exc()
                pipe.answer(error=f"{type(error).__name__}: {error}")


def _read(orders: queue.Queue[str | None], stop: Stop) -> None:
    for line in sys.stdin:
        orders.put(line)
    stop.signal = stop.signal or signal.SIGTERM
    orders.put(None)


if __name__ == "__main__":
    main()
