"""bin/train as a program: how long until its first step is done, and how much memory it takes."""

from __future__ import annotations

import collections
import os
import shutil
import sys
import time
from statistics import median

from tensorboard.compat.proto.event_pb2 import Event

from bench.workers import ROOT, Failed, run
from lab.record.directory import event_files
from lab.record.event_reader import records

TENSORFLOW = "import tensorflow, s"
STEP = "launch to first step, s"  # after the network's name
MEMORY = "peak memory of bin/train above import tensorflow's, MB"


def measure(scratch: str, quick: bool) -> dict[str, float]:
    """Medians by name, of processes that take turns. A launch begins with the launcher's start, and
    ends when the first step's event was written, as the event says; a run is of one step."""
    folder = os.path.join(scratch, "launch")
    found = collections.defaultdict(list)
    for _ in range(1 if quick else 5):
        seconds, tensorflow = run(sys.executable, "-c", "import tensorflow")
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
    return run(ROOT / "bin" / "train", f"--logdir={folder}", "--run_name=run", *flags)


def _first_step(folder: str) -> float:
    """When the event of step 1 was written, on time.time's clock."""
    for path in event_files(os.path.join(folder, "run")):
        for event in map(Event.FromString, records(path)):
            if event.step == 1:
                return event.wall_time
    raise Failed("bin/train has recorded no step 1")
