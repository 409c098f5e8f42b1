"""The perceptron, called with the weights of a run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from lab.analysis.weights import Weights
from lab.kernels.metrics import predictions
from lab.models import losses
from lab.models.layers import ACTIVATIONS, INITIALIZERS
from lab.models.mlp import MLP


class Score(NamedTuple):
    """accuracy: share of examples. cross_entropy: unclipped mean, in nats."""

    accuracy: float
    cross_entropy: float


class Model:
    """Calls one network with many weights. x is float32 [n, inputs], labels are integers [n]."""

    def __init__(self, network: MLP) -> None:
        self.network = network
        self._variables = variables_of(network)
        self._held: dict[str, np.ndarray] = {}
        self._compiled = functools.cache(
            lambda function: tf.function(functools.partial(function, network), autograph=False)
        )
        self._product: tuple[Any, Any, Any] = None, None, None

    def __call__(self, function: Callable, weights: Weights, *arguments: Any) -> Any:
        """function(network, *arguments), of tensors, with these weights in its variables.

        It is compiled once for each shape of the arguments.
        """
        for tag, variable in self._variables.items():
            if self._held.get(tag) is not weights[tag]:
                variable.assign(weights[tag])
                self._held[tag] = weights[tag]
        return self._compiled(function)(*arguments)

    def logits(self, weights: Weights, x: Any) -> np.ndarray:
        """float32 [n, classes]."""
        return self(MLP.__call__, weights, x).numpy()

    def hidden(self, weights: Weights, x: Any) -> dict[str, np.ndarray]:
        """The output of every layer but the last, by name, float32 [n, units]."""
        *hidden, _ = self(MLP.activations, weights, x).items()
        return {name: output.numpy() for name, output in hidden}

    def evaluate(self, weights: Weights, x: Any, labels: Any, product: Any = None) -> Score:
        """Accuracy and mean cross-entropy.

        product: x W_1, where the caller knows it.
        """
        product = self.product(weights, x) if product is None else product
        return Score(*map(float, self(_evaluate, weights, product, labels)))

    def product(self, weights: Weights, x: Any) -> tf.Tensor:
        """x W_1 [n, units], by far the largest product.

        The last one is kept, for weights that share W_1.
        """
        w = weights.weights[0]
        if self._product[0] is not x or self._product[1] is not w:
            self._product = x, w, tf.matmul(x, w)
        return self._product[2]


def variables_of(network: Any) -> dict[str, tf.Variable]:
    """By tag."""
    return {variable.name.split(":")[0]: variable for variable in network.variables}


def _evaluate(network: MLP, product: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    labels = tf.cast(labels, tf.int32)
    first, *rest = network.layers
    z = functools.reduce(lambda a, layer: layer(a), rest, first.activation(product + first.bias))
    right = tf.cast(predictions(z) == labels, tf.float64)
    loss = tf.cast(losses.softmax_cross_entropy(labels, z), tf.float64)
    return tf.reduce_mean(right), tf.reduce_mean(loss)


def model_of(config: Mapping[str, Any], weights: Weights) -> Model:
    """The network that a run trained, by its config and its weights' shapes; one for all alike."""
    return _model(_sizes(weights), config["activation"])


@functools.cache
def _model(sizes: tuple[int, ...], activation: str) -> Model:
    return Model(MLP(sizes, ACTIVATIONS[activation]))


def fresh(config: Mapping[str, Any], weights: Weights, seed: int) -> Weights:
    """What a run of this config would begin with, with another seed."""
    law = INITIALIZERS[config["initializer"]](config["init_stddev"])
    variables = variables_of(MLP(_sizes(weights), initializer=law, seed=seed))
    return Weights.from_tensors({tag: variable.numpy() for tag, variable in variables.items()})


def _sizes(weights: Weights) -> tuple[int, ...]:
    return len(weights.weights[0]), *map(len, weights.biases)
