"""bin/train as a program: how long until its first step is done, and how much memory it takes."""

from __future__ import annotations

import collections
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from statistics import median

from tensorboard.compat.proto.event_pb2 import Event

from bench.workers import ROOT, Failed, environment
from lab.record.directory import event_files

TENSORFLOW = "import tensorflow, s"
STEP = "launch to first step, s"  # after the network's name
MEMORY = "peak memory of bin/train above import tensorflow's, MB"
_IMPORT = [sys.executable, "-c", "import tensorflow"]


def measure(scratch: str, quick: bool) -> dict[str, float]:
    """Medians by name, of processes that take turns. A launch begins with the launcher's start, and
    ends when the first step's event was written, as the event says; a run is of one step."""
    folder = os.path.join(scratch, "launch")
    found = collections.defaultdict(list)
    for _ in range(1 if quick else 5):
        seconds, tensorflow = _run(_IMPORT)
        found[TENSORFLOW].append(seconds)
        for network, flags in (("perceptron", ()), ("transformer", ("--model=transformer",))):
            begun = time.time()
            _train(folder, "--training_steps=1", *flags)
            found[f"{network}: {STEP}"].append(_first_step(folder) - begun)
        _, peak = _train(folder, f"--training_steps={100 if quick else 1000}")
        found[MEMORY].append(peak - tensorflow)
    return {name: median(values) for name, values in found.items()}


def _train(folder: str, *flags: str) -> tuple[float, float]:
    shutil.rmtree(folder, ignore_errors=True)
    return _run([str(ROOT / "bin" / "train"), f"--logdir={folder}", "--run_name=run", *flags])


def _run(command: Sequence[str]) -> tuple[float, float]:
    """Seconds, and the peak memory of the process in MB.

    Raises:
      Failed: it ends with another status than 0.
    """
    begun = time.monotonic()
    with subprocess.Popen(
        command,
        env=environment("") | {"LAB_PYTHON": sys.executable},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise Failed(f"{' '.join(command)}: status {process.returncode}")
    return time.monotonic() - begun, usage.ru_maxrss / 1024


def _first_step(folder: str) -> float:
    """When the event of step 1 was written, on time.time's clock."""
    for path in event_files(os.path.join(folder, "run")):
        content, place = pathlib.Path(path).read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            event = Event.FromString(content[place + 12 : place + 12 + length])
            if event.step == 1:
                return event.wall_time
            place += 16 + length
    raise Failed("bin/train has recorded no step 1")
