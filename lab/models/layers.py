"""Layers: tf.Module over tf.Variable, written out.

A layer makes its variables in its constructor: call it under the strategy's scope. The gradients
are summed over the replicas before they are applied, so that every replica assigns the same value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import tensorflow as tf

Initializer = Callable[[Sequence[int], Sequence[int]], tf.Tensor]
Activation = Callable[[tf.Tensor], tf.Tensor]
Product = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def normal(stddev: float) -> Initializer:
    """Weights from N(0, stddev^2)."""

    def initialize(shape: Sequence[int], seed: Sequence[int]) -> tf.Tensor:
        # The generator is named since the default gives other numbers on other devices.
        return tf.random.stateless_normal(shape, seed, stddev=stddev, alg="philox")

    return initialize


def glorot(shape: Sequence[int], seed: Sequence[int]) -> tf.Tensor:
    """Weights uniform in +-sqrt(6 / (n_in + n_out)) (Glorot and Bengio, AISTATS 2010)."""
    limit = math.sqrt(6 / sum(shape))
    return tf.random.stateless_uniform(shape, seed, -limit, limit, alg="philox")


def he(shape: Sequence[int], seed: Sequence[int]) -> tf.Tensor:
    """Weights from N(0, 2 / n_in) (He et al., ICCV 2015)."""
    return normal(math.sqrt(2 / shape[0]))(shape, seed)


INITIALIZERS: dict[str, Callable[[float], Initializer]] = {
    "normal": normal,
    "glorot": lambda stddev: glorot,
    "he": lambda stddev: he,
}

ACTIVATIONS: dict[str, Activation] = {
    "sigmoid": tf.sigmoid,
    "tanh": tf.tanh,
    "relu": tf.nn.relu,
}


class Dense(tf.Module):
    """y = activation(x W + b).

    Args:
      n_in, n_out: sizes of x and y.
      activation: elementwise function; tf.identity for none.
      initializer: (shape, seed) -> float32 weights. The bias starts at exactly 0.
      seed: two integers, for the initializer.
      matmul: computes x W; `kernels.xla.matmul` where XLA compiles the whole step.
      name: the variables are `name/weights` [n_in, n_out] and `name/bias` [n_out].
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        activation: Activation,
        initializer: Initializer,
        seed: Sequence[int],
        name: str,
        matmul: Product = tf.matmul,
    ) -> None:
        super().__init__(name)
        self.activation, self._matmul = activation, matmul
        self.weights = tf.Variable(initializer((n_in, n_out), seed), name=f"{name}/weights")
        self.bias = tf.Variable(tf.zeros([n_out]), name=f"{name}/bias")

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """float32 [batch, n_in] -> float32 [batch, n_out]."""
        with tf.name_scope(self.name):
            return self.activation(self._matmul(x, self.weights) + self.bias)
