"""The processes that run the trials of a grid side by side.

Each worker is a process of its own that runs one trial after another, on its own GPU or its share
of the cores; where --devices names GPUs, on those. The share decides how long a trial takes and
nothing else: the number of threads is the trial's own. Orders and answers are lines of JSON, see
lab/training/worker.py. This process never loads TensorFlow.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import glob
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO, Any

import tqdm

from lab import machine
from lab.errors import LabError
from lab.processes import cluster
from lab.processes.stop import Stop
from lab.settings.config import Config, Settings

_TRIALS = 100  # that a process runs: TensorFlow keeps about 2 MB of each


def run(configs: Sequence[Config], settings: Settings, stop: Stop) -> dict[str, str]:
    """Runs trials, `settings.jobs` at a time; returns how each ended, by its run directory.

    That is a status of result.json, `failed`, or `not run` where `stop` came first. A trial that
    fails does not stop the others.

    Raises:
      LabError: this is one of several processes that were all given the whole grid.
    """
    if settings.shard == "0/1" and cluster.is_one_of_several():
        raise LabError(
            "this is one of several workers, and each would run the whole grid: give each a part "
            "of it with --shard=I/N, or train one run over all of them, named by --run_name, "
            "without --grid, --seeds and lists"
        )
    board = _Board(configs, settings)
    asyncio.run(_run(configs, settings, stop, board))
    board.close()
    return board.outcomes


async def _run(configs: Sequence[Config], settings: Settings, stop: Stop, board: _Board) -> None:
    waiting = _Waiting(configs)
    jobs = min(settings.jobs or default_jobs(settings.devices), len(configs))
    workers = [_Worker(number, jobs, settings, stop, board) for number in range(jobs)]
    tasks = {asyncio.create_task(worker.run(waiting)) for worker in workers}
    stopping = False
    while tasks:
        done, tasks = await asyncio.wait(tasks, timeout=0.2)
        for task in done:
            task.result()
        if stop.signal and not stopping:
            stopping = True
            waiting.clear()
            board.print("stopping: the running trials end after their current loop")
            for worker in workers:
                worker.send_signal(stop.signal)


def default_jobs(devices: str = "auto") -> int:
    """One trial for each GPU or, without any, for each core that this process may use; and one
    where `devices`, as Settings.devices, names GPUs, which each trial then uses.

    The recipe's matrices are too small to keep a second thread busy: on two cores, two trials
    with a thread each took two thirds of the time of the same two one after the other. A trial
    takes about a gigabyte, and no more are begun than fit in three quarters of the free memory.
    """
    if _kind(devices) == "named":
        return 1
    memory = int(0.75 * machine.free_memory() / 2**30)
    return len(_gpus(devices)) or max(1, min(len(machine.cores()), memory))


def _kind(devices: str) -> str:
    """auto, cpu, or named: GPUs that are counted or named."""
    if devices == "auto":
        return "auto"
    return "cpu" if devices.strip().lower().removeprefix("/").startswith("cpu") else "named"


def _gpus(devices: str) -> list[str]:
    """The GPUs of which each worker gets one."""
    if _kind(devices) != "auto":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name not in ("", "-1")]
    return [str(i) for i in range(len(glob.glob("/dev/nvidia[0-9]*")))]


class _Waiting:
    """The trials that have not begun."""

    def __init__(self, configs: Sequence[Config]) -> None:
        # Those that differ in the seed alone.
        self._groups: dict[Config, collections.deque[Config]] = {}
        for config in configs:
            self._groups.setdefault(config.seedless, collections.deque()).append(config)

    def __bool__(self) -> bool:
        return bool(self._groups)

    def clear(self) -> None:
        self._groups.clear()

    def take(self, last: Config | None) -> Config:
        """The next trial for a process: one that differs from its last one in the seed alone, or
        else the first of the largest group of such trials."""
        group = last.seedless if last else None
        if group not in self._groups:
            group = max(self._groups, key=lambda one: len(self._groups[one]))
        config = self._groups[group].popleft()
        if not self._groups[group]:
            del self._groups[group]
        return config


class _Worker:
    """Runs one trial after another in a process, and starts a new process if that dies."""

    def __init__(
        self, number: int, jobs: int, settings: Settings, stop: Stop, board: _Board
    ) -> None:
        self._settings, self._stop, self._board = settings, stop, board
        cores, gpus = machine.cores(), _gpus(settings.devices)
        kind = _kind(settings.devices)
        share = cores[number::jobs] or [cores[number % len(cores)]]
        self._cores = cores if gpus or kind == "named" else share
        self._environment = os.environ | {"TF_NUM_INTEROP_THREADS": str(len(share))}
        if gpus:
            self._environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
        elif kind == "cpu":
            self._environment["CUDA_VISIBLE_DEVICES"] = ""  # TensorFlow would take their memory
        if gpus or kind == "named":
            self._environment["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"  # trials may share a GPU
        self._process: asyncio.subprocess.Process | None = None

    def send_signal(self, number: int) -> None:
        """The process ends after its loop."""
        with contextlib.suppress(ProcessLookupError):
            if self._process:
                self._process.send_signal(number)

    async def run(self, waiting: _Waiting) -> None:
        """Runs trials until no more are waiting."""
        threads, ran = 0, 0  # of the process: TensorFlow sets up its threads once
        config = None
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            while waiting:
                config = waiting.take(config)
                if self._process and (config.threads != threads or ran == _TRIALS):
                    await self._process.communicate(b"")
                    self._process = None
                if not self._process:
                    self._process = await self._start(errors)
                    threads, ran = config.threads, 0
                ran += 1
                if not self._stop.signal:
                    await self._run_one(self._process, config, errors)
            if self._process:
                await self._process.communicate(b"")

    async def _start(self, errors: IO[str]) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "lab.training.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=self._environment,
            limit=2**30,  # bytes of an answer
            start_new_session=True,  # Ctrl-C reaches only this program, which passes it on
        )
        if hasattr(os, "sched_setaffinity"):
            with contextlib.suppress(OSError):  # it has ended already, or the system refuses
                os.sched_setaffinity(process.pid, self._cores)
        return process

    async def _run_one(
        self, process: asyncio.subprocess.Process, config: Config, errors: IO[str]
    ) -> None:
        """Has one trial run, and shows on the board what the process answers."""
        assert process.stdin and process.stdout
        order = {"config": dataclasses.asdict(config), "settings": vars(self._settings)}
        process.stdin.write(json.dumps(order).encode() + b"\n")
        async for line in process.stdout:
            try:
                answer = json.loads(line)
            except ValueError:
                continue  # not the worker's own
            self._board.show(config, answer)
            if "result" in answer or "error" in answer:
                return
        self._process = None
        status = await process.wait()
        if self._stop.signal:
            return
        errors.seek(0)
        last = (errors.read().strip().splitlines() or [""])[-1]
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        self._board.show(config, {"error": f"its process ended ({how}) {last}".strip()})


class _Board:
    """The progress of a grid: a bar on a terminal, one line per trial elsewhere."""

    def __init__(self, configs: Sequence[Config], settings: Settings) -> None:
        self._settings = settings
        self._steps = dict.fromkeys(configs, 0)
        self._begun = time.monotonic()
        self._ran = 0  # steps that were really run, for the time to go
        self.outcomes = {settings.directory(config): "not run" for config in configs}
        total = sum(config.training_steps for config in configs)
        self._bar = tqdm.tqdm(total=total, unit="step", disable=not sys.stdout.isatty())
        self._bar.set_description(self._counts(), refresh=False)

    def show(self, config: Config, answer: dict[str, Any]) -> None:
        """A worker has answered about its trial."""
        if "step" in answer:
            self._advance(config, answer["step"])
            self._ran += answer["ran"]
        elif "say" in answer:
            self.print(f"{config.run_name}: {answer['say']}")
        else:
            outcome = answer.get("result", {}).get("status", "failed")
            self.outcomes[self._settings.directory(config)] = outcome
            self._advance(config, config.training_steps)
            self.print(f"{self._counts()}  {config.run_name}: {_outcome(answer)}")
        self._bar.set_description(self._counts(), refresh=False)

    def _advance(self, config: Config, step: int) -> None:
        self._bar.update(step - self._steps[config])
        self._steps[config] = step

    def _counts(self) -> str:
        done = sum(outcome != "not run" for outcome in self.outcomes.values())
        text = f"{done} of {len(self.outcomes)} done"
        to_run = sum(config.training_steps - step for config, step in self._steps.items())
        if self._bar.disable and self._ran and to_run:
            minutes = (time.monotonic() - self._begun) / self._ran * to_run / 60
            text += f", about {minutes:.1f} min to go"
        return text

    def print(self, text: str) -> None:
        """Prints a line above the bar."""
        tqdm.tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()


def _outcome(answer: dict[str, Any]) -> str:
    if "error" in answer:
        return f"failed: {answer['error']}"
    result, known = answer["result"], "" if answer["ran"] else ", already done"
    if result["test_correct"] is None:
        return f"{result['status']} at step {result['step']}{known}"
    accuracy, seconds = result["test_accuracy"], result["seconds"]
    return f"{result['status']}, test accuracy {accuracy:.4f}, {seconds:.1f} s{known}"
