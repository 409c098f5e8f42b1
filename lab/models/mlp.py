"""A multilayer perceptron."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import tensorflow as tf

from lab.models.layers import Activation, Dense, Initializer, Product, normal


class MLP(tf.Module):
    """Dense layers in a row, `h1`, `h2`, ... and, without an activation, `logits`.

    Args:
      sizes: inputs, each hidden layer, outputs: at least two.
      activation: of the hidden layers.
      initializer: (shape, seed) -> float32 weights.
      seed: layer i draws from (seed, i).
      matmul: of every layer, see Dense.

    Raises:
      ValueError: fewer than two sizes.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: Activation = tf.sigmoid,
        initializer: Initializer | None = None,
        seed: int = 0,
        matmul: Product = tf.matmul,
    ) -> None:
        super().__init__("mlp")
        if len(sizes) < 2:
            raise ValueError(f"sizes={list(sizes)}: give inputs and outputs at least")
        self._names = [*(f"h{i}" for i in range(1, len(sizes) - 1)), "logits"]
        for i, (name, shape) in enumerate(zip(self._names, itertools.pairwise(sizes), strict=True)):
            layer = Dense(
                *shape,
                activation=tf.identity if name == "logits" else activation,
                initializer=initializer or normal(0.05),
                seed=tf.constant([seed, i], tf.int64),
                name=name,
                matmul=matmul,
            )
            setattr(self, name, layer)

    @property
    def layers(self) -> list[Dense]:
        """From first to last; each is also an attribute under its own name."""
        return [getattr(self, name) for name in self._names]

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """float32 [batch, inputs] -> logits, float32 [batch, outputs]."""
        return self.activations(x)["logits"]

    def activations(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        """The output of every layer by its name, float32 [batch, units], the logits last."""
        outputs = {}
        for layer in self.layers:
            x = outputs[layer.name] = layer(x)
        return outputs
