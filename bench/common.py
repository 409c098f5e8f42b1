"""What the contestants share: the task, the batches, and the choice of a framework's best form."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

RATE = 0.01
EPSILON = 1e-7  # of adam
CLIP = 1e-9


class Made(NamedTuple):
    """A contestant that is ready to run.

    run: int32 [steps, batch] -> the loss of each step, after all steps are done and all that they
      record is on disk. `steps` is a multiple of `chunk`.
    note: the form that was chosen, for the table.
    turn: how much longer its turns should be than those of others.
    close: called when it is dropped.
    """

    run: Callable[[np.ndarray], np.ndarray]
    chunk: int = 1
    note: str = ""
    turn: int = 1
    close: Callable[[], object] | None = None


@dataclasses.dataclass
class Task:
    """What a contestant has to do.

    images: uint8 [examples, 784]; labels: int32 [examples].
    sizes: of the layers, inputs and outputs included; sigmoid between them.
    chunk: steps a call of a compiled loop.
    folder: where the record goes.
    """

    variant: str
    rule: str
    sizes: list[int]
    batch: int
    chunk: int
    images: np.ndarray
    labels: np.ndarray
    folder: str

    @property
    def tags(self) -> list[str]:
        """Of weights and bias of each layer, as the lab names them."""
        names = [f"h{i + 1}" for i in range(len(self.sizes) - 2)] + ["logits"]
        return [f"{name}/{part}" for name in names for part in ("weights", "bias")]

    def weights(self) -> list[np.ndarray]:
        """The initial weights and biases in the order of `tags`, the same for every contestant."""
        random = np.random.default_rng(0)
        arrays = []
        for shape in zip(self.sizes, self.sizes[1:]):  # noqa: B905
            arrays += [random.normal(0, 0.05, shape), np.zeros(shape[1])]
        return [array.astype(np.float32) for array in arrays]

    def floats(self) -> np.ndarray:
        """The images as the network sees them: float32, from 0 to 1."""
        return self.images.astype(np.float32) / 255


class Batches:
    """Random batches, epoch by epoch, the same for every contestant."""

    def __init__(self, examples: int, batch: int) -> None:
        self._examples, self._batch = examples, batch
        self._random, self._left = np.random.default_rng(1), np.zeros(0, np.int32)

    def take(self, steps: int) -> np.ndarray:
        """int32 [steps, batch]: the next ones."""
        wanted = steps * self._batch
        while len(self._left) < wanted:
            epoch = self._random.permutation(self._examples).astype(np.int32)
            self._left = np.concatenate([self._left, epoch])
        taken, self._left = self._left[:wanted], self._left[wanted:]
        return taken.reshape(steps, self._batch)


def best(task: Task, forms: dict[str, Callable[[], Made]], tries: int = 3) -> Made:
    """The fastest of several forms, made afresh. A form that fails is left out, unless all do."""
    seconds: dict[str, float] = {}
    error: Exception | None = None
    for name, make in forms.items():
        batches = Batches(len(task.images), task.batch)
        try:
            made = make()
            steps = max(made.chunk, 20)
            made.run(batches.take(steps))
            times = []
            for _ in range(tries):
                indices = batches.take(steps)
                begun = time.perf_counter()
                made.run(indices)
                times.append((time.perf_counter() - begun) / steps)
            seconds[name] = min(times)
        except Exception as wrong:
            error = wrong
    if not seconds:
        assert error
        raise error
    name = min(seconds, key=seconds.__getitem__)
    rest = ", ".join(f"{n} {1000 * s:.2f}" for n, s in seconds.items() if n != name)
    note = f"{name}: {1000 * seconds[name]:.2f} ms" + (f" (tried: {rest})" if rest else "")
    return forms[name]()._replace(note=note)


def about(**more: Any) -> dict[str, Any]:
    """What a contestant's module says of itself: versions, threads, devices."""
    return {"numpy": np.__version__, **more}
