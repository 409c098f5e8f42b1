"""What all contestants share: the task, its batches, and the protocol of their modules.

A module `on_FRAMEWORK` has two functions:

    make(task: Task) -> Runner
    about() -> dict    versions, threads and devices
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

RATE = 0.01
EPSILON = 1e-7  # of adam
CLIP = 1e-9  # the smallest probability in the loss


class Runner(NamedTuple):
    """A contestant that is ready to train.

    Attributes:
      run: Takes the examples of each step, int32 [steps, batch], and returns the losses [steps],
        after all steps are done and all that they record is on disk.
      chunk: The number of steps is a multiple of this.
      note: The form that was chosen, for the table.
      turn: How many times longer its turns are than those of others.
      close: Called when it is no longer needed.
    """

    run: Callable[[np.ndarray], np.ndarray]
    chunk: int = 1
    note: str = ""
    turn: int = 1
    close: Callable[[], object] = lambda: None


@dataclasses.dataclass
class Task:
    """What a contestant has to do.

    Attributes:
      name: The contestant's.
      rule: sgd or adam.
      sizes: Of the layers, inputs and outputs included; sigmoid between them.
      batch: Examples per step.
      chunk: Steps per call of a compiled loop.
      folder: Where the record goes.
      images: uint8 [examples, 784].
      labels: int32 [examples].
    """

    name: str
    rule: str
    sizes: list[int]
    batch: int
    chunk: int
    folder: str
    images: np.ndarray
    labels: np.ndarray

    def weights(self) -> list[np.ndarray]:
        """The initial weights and bias of each layer in turn, the same for every contestant."""
        random = np.random.default_rng(0)
        arrays = []
        for shape in zip(self.sizes, self.sizes[1:]):  # noqa: B905
            arrays += [random.normal(0, 0.05, shape), np.zeros(shape[1])]
        return [array.astype(np.float32) for array in arrays]

    def floats(self) -> np.ndarray:
        """The images as the network sees them: float32, from 0 to 1."""
        return self.images.astype(np.float32) / 255

    def batches(self) -> Callable[[int], np.ndarray]:
        """steps -> int32 [steps, batch]: random examples, the same ones for every contestant."""
        random, examples = np.random.default_rng(1), len(self.images)
        return lambda steps: random.integers(examples, size=(steps, self.batch), dtype=np.int32)

    def chunks(self, indices: np.ndarray) -> list[np.ndarray]:
        """The batches of each call of a compiled loop."""
        return [indices[i : i + self.chunk] for i in range(0, len(indices), self.chunk)]


def timed(runner: Runner, indices: np.ndarray) -> float:
    """Seconds per step."""
    begun = time.perf_counter()
    runner.run(indices)
    return (time.perf_counter() - begun) / len(indices)


def best(task: Task, forms: dict[str, Callable[[], Runner]]) -> Runner:
    """The fastest of several forms, made afresh."""
    ms: dict[str, float] = {}
    for name, make in forms.items():
        runner, batches = make(), task.batches()
        steps = max(runner.chunk, 20)
        runner.run(batches(steps))
        ms[name] = 1000 * min(timed(runner, batches(steps)) for _ in range(3))
    name = min(ms, key=ms.__getitem__)
    rest = ", ".join(f"{other} {ms[other]:.2f}" for other in forms if other != name)
    return forms[name]()._replace(note=f"{name}: {ms[name]:.2f} ms (tried: {rest})")
