"""Many trials: a grid file's lines, and the processes that run trials side by side.

Each worker is a process of its own that runs one trial after another, on its own GPU or its share
of the cores. The share decides how long a trial takes and nothing else: the number of threads is
the trial's own. It is told what to run, and answers, in lines of JSON (lab/worker.py). This
process never loads TensorFlow.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import glob
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

import tqdm

from lab import machine
from lab.processes.stop import Stop
from lab.settings.config import Config, Settings


def run(configs: Sequence[Config], settings: Settings, stop: Stop) -> dict[str, str]:
    """Runs trials, `settings.jobs` at a time; returns how each ended, by its run directory.

    That is a status of result.json, `failed`, or `not run` where `stop` came first. A trial that
    fails does not stop the others.
    """
    board = _Board(configs, settings)
    jobs = min(settings.jobs or default_jobs(), len(configs))
    waiting = collections.deque(configs)
    events: queue.Queue[tuple[Config, dict[str, Any]]] = queue.Queue()
    workers = [_Worker(i, jobs, settings, waiting, events, stop) for i in range(jobs)]
    for worker in workers:
        worker.start()
    forwarded = False
    while any(worker.is_alive() for worker in workers) or not events.empty():
        if stop.signal and not forwarded:
            forwarded = True
            waiting.clear()
            board.say("stopping: the running trials end after their loop")
            for worker in workers:
                worker.end()
        try:
            board.show(*events.get(timeout=0.2))
        except queue.Empty:
            continue
    board.close()
    return board.outcomes


def default_jobs() -> int:
    """One trial for each GPU or, without any, for each core that this process may use.

    The recipe's matrices are too small to keep a second thread busy: on two cores, two trials
    with a thread each took two thirds of the time of the same two one after the other. A trial
    takes about a gigabyte, and no more are begun than fit in three quarters of the free memory.
    """
    if _gpus():
        return len(_gpus())
    return max(1, min(len(machine.cores()), int(0.75 * machine.free_memory() / 2**30)))


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name not in ("", "-1")]
    return [str(i) for i in range(len(glob.glob("/dev/nvidia[0-9]*")))]


class _Worker(threading.Thread):
    """Feeds one worker process from the queue of trials, and starts another if it dies."""

    def __init__(
        self,
        number: int,
        jobs: int,
        settings: Settings,
        waiting: collections.deque[Config],
        events: queue.Queue[tuple[Config, dict[str, Any]]],
        stop: Stop,
    ) -> None:
        super().__init__(daemon=True)
        self._settings, self._waiting, self._events = settings, waiting, events
        self._stop_signal = stop
        cores = machine.cores()
        self._cores = cores[number::jobs] or [cores[number % len(cores)]]
        self._environment = os.environ | {
            "TF_NUM_INTEROP_THREADS": str(len(self._cores)),
            "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # several trials may share a GPU
        }
        if _gpus():
            self._environment["CUDA_VISIBLE_DEVICES"] = _gpus()[number % len(_gpus())]
            self._cores = cores
        self._process: subprocess.Popen[str] | None = None
        self._threads = 0  # of the trials that the process runs

    def end(self) -> None:
        """Passes the signal on."""
        if self._process:
            self._process.send_signal(self._stop_signal.signal)

    def run(self) -> None:
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            while True:
                try:
                    config = self._waiting.popleft()
                except IndexError:
                    break
                if self._process and config.threads != self._threads:
                    self._process.communicate()  # TensorFlow sets its threads up once
                    self._process = None
                if not self._process:
                    self._process, self._threads = self._start(errors), config.threads
                self._events.put((config, self._run_one(config, errors)))
            if self._process:
                self._process.communicate()

    def _start(self, errors: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "lab.training.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=self._environment,
            start_new_session=True,  # Ctrl-C reaches only this program, which passes it on
        )
        if hasattr(os, "sched_setaffinity"):
            with contextlib.suppress(OSError):  # it has ended already, or may not be told
                os.sched_setaffinity(process.pid, self._cores)
        return process

    def _run_one(self, config: Config, errors: Any) -> dict[str, Any]:
        """Has one trial run; returns the last thing that the worker said of it."""
        process = self._process
        assert process and process.stdin and process.stdout
        order = {"config": dataclasses.asdict(config), "settings": vars(self._settings)}
        self._events.put((config, {"begin": True}))
        try:
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
            if self._stop_signal.signal:  # it came while the process was being started
                self.end()
            for line in process.stdout:
                try:
                    answer = json.loads(line)
                except ValueError:
                    continue  # not the worker's own
                if "result" in answer or "error" in answer:
                    return answer
                self._events.put((config, answer))
        except BrokenPipeError:
            pass
        self._process = None
        status = process.wait()
        if self._stop_signal.signal:
            return {"stopped": True}
        errors.seek(0)
        last = (errors.read().strip().splitlines() or [""])[-1]
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        return {"error": f"its process ended ({how}) {last}".strip()}


class _Board:
    """The progress of a grid: a bar on a terminal, a line a trial elsewhere."""

    def __init__(self, configs: Sequence[Config], settings: Settings) -> None:
        self._settings = settings
        self._steps = dict.fromkeys(configs, 0)
        self._running: set[Config] = set()
        self._begun = time.monotonic()
        self._ran = 0  # steps that were really run, for the time to go
        self.outcomes = {settings.directory(config): "not run" for config in configs}
        self._bar = tqdm.tqdm(
            total=sum(config.training_steps for config in configs),
            unit="step",
            disable=not sys.stdout.isatty(),
        )

    def show(self, config: Config, event: dict[str, Any]) -> None:
        """Takes what a worker said of a trial."""
        directory = self._settings.directory(config)
        if "begin" in event:
            self._running.add(config)
        elif "step" in event:
            self._advance(config, event["step"])
            self._ran += event["ran"]
        elif "say" in event:
            self.say(f"{config.run_name}: {event['say']}")
        else:
            self._running.discard(config)
            if "stopped" in event:
                return
            self.outcomes[directory] = event.get("result", {}).get("status", "failed")
            self._advance(config, config.training_steps)
            self._bar.set_description(self._counts(), refresh=False)
            self.say(f"{self._counts()}  {config.run_name}: {_outcome(event)}")
        self._bar.set_description(self._counts(), refresh=False)

    def _advance(self, config: Config, step: int) -> None:
        self._bar.update(step - self._steps[config])
        self._steps[config] = step

    def _counts(self) -> str:
        done = sum(outcome != "not run" for outcome in self.outcomes.values())
        left = len(self.outcomes) - done - len(self._running)
        text = f"{done} of {len(self.outcomes)} done, {len(self._running)} running, {left} left"
        to_run = sum(config.training_steps - step for config, step in self._steps.items())
        if self._bar.disable and self._ran and to_run:
            minutes = (time.monotonic() - self._begun) / self._ran * to_run / 60
            text += f", about {minutes:.1f} min to go"
        return text

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        tqdm.tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()


def _outcome(event: dict[str, Any]) -> str:
    if "error" in event:
        return f"failed: {event['error']}"
    result = event["result"]
    known = "" if event["ran"] else ", there already"
    if result["test_correct"] is None:
        return f"{result['status']} at step {result['step']}{known}"
    return (
        f"{result['status']}, test accuracy {result['test_accuracy']:.4f}, "
        f"{result['seconds']:.1f} s{known}"
    )
