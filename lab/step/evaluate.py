"""A model on a fixed set of examples."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from lab.kernels.metrics import predictions
from lab.step.placement import devices
from lab.step.replica import Training, call_seed, per_example

PREDICTED = "/predicted"  # no metric has a name with a /
_BYTES = 2**26  # of examples at a time


class Evaluator:
    """Computes loss, metrics and prediction for each example of a set, without training.

    Args:
      x, y: the examples, [examples, ...].
      classes: whether the model gives the logits of classes, and y are labels [examples].
      chunk: the maximum number of examples computed at a time.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        training: Training,
        x: np.ndarray,
        y: np.ndarray,
        classes: bool = True,
        chunk: int = 1000,
    ) -> None:
        self._training, self._x, self._y, self._classes = training, x, y, classes
        self._device = devices(strategy)[0]
        self._chunk = max(min(chunk, len(x), _BYTES // max(x[:1].nbytes, 1)), 1)
        self._function = tf.function(self._call, autograph=False)

    def compile(self) -> list[Any]:
        """Traces the model, which `run` does otherwise; returns the concrete functions."""
        traced = []
        for size in sorted({self._chunk, len(self._x) % self._chunk or self._chunk}):
            part = (tf.TensorSpec([size, *a.shape[1:]], a.dtype) for a in (self._x, self._y))
            given = *part, tf.TensorSpec([], tf.int64)
            traced.append(self._function.get_concrete_function(*given))
        return traced

    def run(self, seed: int) -> dict[str, np.ndarray]:
        """By name: `loss` and each metric, float32 [examples]; and for classes PREDICTED, int32
        [examples].

        Args:
          seed: for models that also draw random numbers outside training.
        """
        parts = []
        with tf.device(self._device):
            for first in range(0, len(self._x), self._chunk):
                own = slice(first, first + self._chunk)
                given = map(tf.constant, (self._x[own], self._y[own]))
                parts.append(self._function(*given, tf.constant(seed, tf.int64)))
        return {name: np.concatenate([part[name].numpy() for part in parts]) for name in parts[0]}

    def _call(self, x: tf.Tensor, y: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        training, number = self._training, tf.constant(0, tf.int64)
        own = call_seed(seed, number)
        output = training.model(training.prepare(x), False, own, number)
        found = {"loss": training.loss(y, output)}
        found |= {name: metric(y, output) for name, metric in training.metrics.items()}
        found = {name: tf.cast(per_example(v), tf.float32) for name, v in found.items()}
        return found | ({PREDICTED: predictions(output)} if self._classes else {})
