"""Laws of the initial weights, each (shape, seed) -> float32 weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import tensorflow as tf

Initializer = Callable[[Sequence[int], Sequence[int]], tf.Tensor]


def normal(stddev: float) -> Initializer:
    """Weights from N(0, stddev^2)."""

    def initialize(shape: Sequence[int], seed: Sequence[int]) -> tf.Tensor:
        # The generator is named since the default gives other numbers on other devices.
        return tf.random.stateless_normal(shape, seed, stddev=stddev, alg="philox")

    return initialize


def glorot(shape: Sequence[int], seed: Sequence[int]) -> tf.Tensor:
    """Weights uniform in +-sqrt(6 / (n_in + n_out)) (Glorot and Bengio, AISTATS 2010)."""
    limit = math.sqrt(6 / sum(_fans(shape)))
    return tf.random.stateless_uniform(shape, seed, -limit, limit, alg="philox")


def he(shape: Sequence[int], seed: Sequence[int]) -> tf.Tensor:
    """Weights from N(0, 2 / n_in) (He et al., ICCV 2015)."""
    return normal(math.sqrt(2 / _fans(shape)[0]))(shape, seed)


def _fans(shape: Sequence[int]) -> tuple[int, int]:
    """n_in and n_out of weights [..., n_in, n_out], where each of the axes before is summed over
    (a kernel's), or of a vector, as Keras has them."""
    if len(shape) < 2:
        return math.prod(shape), math.prod(shape)
    window = math.prod(shape[:-2])
    return window * shape[-2], window * shape[-1]


INITIALIZERS: dict[str, Callable[[float], Initializer]] = {
    "normal": normal,
    "glorot": lambda stddev: glorot,
    "he": lambda stddev: he,
}
