"""What all contestants share: the task, its batches, and the protocol of their modules.

A module `on_FRAMEWORK` has two functions:

    make(task: Task) -> Runner
    about() -> dict    versions, threads and devices
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

PERCEPTRON = "perceptron"
EPSILON = 1e-7  # of adam
CLIP = 1e-9  # the smallest probability in the perceptron's loss
# Of the transformer; those of the convnet are in `shapes`.
PATCH, ACROSS, WIDTH, HEADS, BLOCKS = 7, 4, 64, 4, 2
NORM_EPSILON = 1e-3  # of a LayerNorm


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
      network: perceptron, convnet, transformer, or, for ours alone, heads: see `shapes`.
      sizes: Of the perceptron's layers, inputs and outputs included; sigmoid between them.
      batch: Examples per step.
      chunk: Steps per call of a compiled loop.
      folder: Where the record goes.
      images: uint8 [examples, 784].
      labels: int32 [examples].
    """

    name: str
    rule: str
    network: str
    sizes: list[int]
    batch: int
    chunk: int
    folder: str
    images: np.ndarray
    labels: np.ndarray

    @property
    def mean(self) -> bool:
        """Whether the loss is the mean of the cross-entropies, and not the sum of clipped ones."""
        return self.network in ("convnet", "transformer")

    @property
    def rate(self) -> float:
        """The learning rate."""
        return 0.001 if self.mean else 0.01

    def weights(self) -> dict[str, np.ndarray]:
        """The initial values by name, the same for every contestant."""
        random, arrays = np.random.default_rng(0), {}
        for name, shape in shapes(self.network, self.sizes).items():
            kind = name.rpartition("/")[2]
            if kind in ("bias", "scale"):
                array = np.full(shape, float(kind == "scale"))
            else:
                spread = math.sqrt(2 / (math.prod(shape[:-1]) + shape[-1])) if self.mean else 0.05
                array = random.normal(0, spread, shape)
            arrays[name] = array.astype(np.float32)
        return arrays

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


def shapes(network: str, sizes: list[int]) -> dict[str, tuple[int, ...]]:
    """Of the weights, by the lab's names; images are [28, 28, 1], a dense layer's are [in, out].

    perceptron: dense layers of these sizes. heads: dense layers side by side, each of sizes[0]
    inputs. convnet: 5 x 5 (same), 5 x 5 (valid), relu and a maximum over 2 x 2 after each; 120
    units, relu. transformer: patches, positions, pre-norm blocks, norm, the mean over the patches.
    """
    if network == "convnet":
        found = {"conv1/weights": (5, 5, 1, 10), "conv1/bias": (10,)}
        found |= {"conv2/weights": (5, 5, 10, 20), "conv2/bias": (20,)}
        return found | _dense("hidden", 500, 120) | _dense("logits", 120, 10)
    if network == "transformer":
        found = _dense("embedding", PATCH**2, WIDTH) | {"positions": (ACROSS**2, WIDTH)}
        for block in (f"blocks/{i}" for i in range(BLOCKS)):
            found |= _norm(f"{block}/attention_norm")
            for part in ("query", "key", "value", "output"):
                found |= _dense(f"{block}/attention/{part}", WIDTH, WIDTH)
            found |= _norm(f"{block}/feed_norm")
            found |= _dense(f"{block}/feed_in", WIDTH, 4 * WIDTH)
            found |= _dense(f"{block}/feed_out", 4 * WIDTH, WIDTH)
        return found | _norm("norm") | _dense("logits", WIDTH, 10)
    if network == "heads":
        parts = [_dense(f"heads/{i}", sizes[0], size) for i, size in enumerate(sizes[1:])]
    else:
        names = [*(f"h{i}" for i in range(1, len(sizes) - 1)), "logits"]
        parts = [_dense(n, *pair) for n, pair in zip(names, itertools.pairwise(sizes))]  # noqa: B905
    return {name: shape for part in parts for name, shape in part.items()}


def _dense(name: str, n_in: int, n_out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}/weights": (n_in, n_out), f"{name}/bias": (n_out,)}


def _norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}/scale": (WIDTH,), f"{name}/bias": (WIDTH,)}


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
        steps = max(runner.chunk, min(20, task.chunk))
        runner.run(batches(steps))
        ms[name] = 1000 * min(timed(runner, batches(steps)) for _ in range(3))
    name = min(ms, key=ms.__getitem__)
    rest = ", ".join(f"{other} {ms[other]:.2f}" for other in forms if other != name)
    return forms[name]()._replace(note=f"{name}: {ms[name]:.2f} ms (tried: {rest})")
