"""A network of `lab.models`, called with the weights of a run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from lab.analysis.weights import Weights
from lab.models import losses
from lab.models.layers import ACTIVATIONS, INITIALIZERS, Dense
from lab.models.mlp import MLP

_ZERO = tf.UnconnectedGradients.ZERO
Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class Evaluation(NamedTuple):
    """accuracy: share of examples. cross_entropy: unclipped mean, in nats."""

    accuracy: float
    cross_entropy: float


class Model:
    """Calls one network with many weights; each function is compiled once a shape of x.

    Everywhere x is float32 [n, inputs...] and labels are integers [n], arrays or tensors.

    Args:
      network: x -> logits [n, classes], with named `variables`. For `hidden` it has
        `activations`, x -> the output of every layer by name, the logits last.
    """

    def __init__(self, network: Any) -> None:
        self.network = network
        self._variables = {v.name.split(":")[0]: v for v in network.variables}
        self._held: dict[str, np.ndarray] = {}
        self._known: tuple[Any, Any, tf.Tensor | None] = (None, None, None)
        for name in ("_evaluate", "_losses", "_gradients", "_hessian_product"):
            setattr(self, name, tf.function(getattr(self, name), autograph=False))

    def put(self, weights: Mapping[str, np.ndarray]) -> None:
        """Assigns the variables, but for those that hold the very same array."""
        for tag, variable in self._variables.items():
            if self._held.get(tag) is not weights[tag]:
                variable.assign(weights[tag])
                self._held[tag] = weights[tag]

    def evaluate(
        self, weights: Mapping[str, np.ndarray], x: Any, labels: Any, product: Any = None
    ) -> Evaluation:
        """Accuracy and mean cross-entropy.

        product: of x and the first layer's weights, if that is known; see `product`.
        """
        self.put(weights)
        if product is None:
            product = self.product(weights, x)
        inputs = _float32(x) if product is None else product
        return Evaluation(*map(float, self._evaluate(inputs, _int32(labels), product is not None)))

    def product(self, weights: Mapping[str, np.ndarray], x: Any) -> tf.Tensor | None:
        """x W_1 [n, units], the dearest product of a dense network; None if it does not begin
        with a dense layer. The last one is kept for weights that share the very array."""
        first = getattr(self.network, "layers", [None])[0]
        if not isinstance(first, Dense):
            return None
        w = weights[f"{first.name}/weights"]
        if self._known[0] is not x or self._known[1] is not w:
            self._known = x, w, tf.matmul(_float32(x), w)
        return self._known[2]

    def logits(self, weights: Mapping[str, np.ndarray], x: Any) -> np.ndarray:
        """float32 [n, classes]."""
        self.put(weights)
        return self.network(_float32(x)).numpy()

    def hidden(self, weights: Mapping[str, np.ndarray], x: Any) -> dict[str, np.ndarray]:
        """The output of every layer but the last, by name, float32 [n, units]."""
        self.put(weights)
        found = list(self.network.activations(_float32(x)).items())
        return {name: output.numpy() for name, output in found[:-1]}

    def losses(
        self, weights: Mapping[str, np.ndarray], x: Any, labels: Any, loss: Loss
    ) -> tuple[np.ndarray, np.ndarray]:
        """The logits, float32 [n, classes], and each example's loss, float32 [n]."""
        self.put(weights)
        z, values = self._losses(_float32(x), _int32(labels), loss)
        return z.numpy(), values.numpy()

    def gradients(
        self, weights: Mapping[str, np.ndarray], x: Any, labels: Any, loss: Loss, reduction: str
    ) -> dict[str, np.ndarray]:
        """Of the loss's sum or mean over the batch, by tag."""
        self.put(weights)
        found = self._gradients(_float32(x), _int32(labels), loss, reduction)
        return {tag: g.numpy() for tag, g in zip(self._variables, found, strict=True)}

    def hessian_vector_product(
        self, weights: Mapping[str, np.ndarray], x: Any, labels: Any
    ) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
        """v -> H v, H the Hessian of the mean cross-entropy over x, and the length of v.

        Forward over reverse. v is a vector of all entries, in the order of the variables. It holds
        until other weights are put.
        """
        self.put(weights)
        x, labels = _float32(x), _int32(labels)
        sizes = [v.shape.num_elements() for v in self._variables.values()]

        def product(v: np.ndarray) -> np.ndarray:
            return self._hessian_product(x, labels, _float32(v)).numpy()

        return product, sum(sizes)

    def _evaluate(
        self, x: tf.Tensor, labels: tf.Tensor, is_product: bool
    ) -> tuple[tf.Tensor, tf.Tensor]:
        if is_product:
            first, *rest = self.network.layers
            z = functools.reduce(lambda a, f: f(a), rest, first.activation(x + first.bias))
        else:
            z = self.network(x)
        right = tf.cast(losses.predictions(z) == labels, tf.float64)
        loss = tf.cast(losses.softmax_cross_entropy(labels, z), tf.float64)
        return tf.reduce_mean(right), tf.reduce_mean(loss)

    def _losses(self, x: tf.Tensor, labels: tf.Tensor, loss: Loss) -> tuple[tf.Tensor, tf.Tensor]:
        z = self.network(x)
        return z, loss(labels, z)

    def _gradients(
        self, x: tf.Tensor, labels: tf.Tensor, loss: Loss, reduction: str
    ) -> list[tf.Tensor]:
        reduce = {"sum": tf.reduce_sum, "mean": tf.reduce_mean}[reduction]
        variables = list(self._variables.values())
        with tf.GradientTape() as tape:
            total = reduce(loss(labels, self.network(x)))
        return tape.gradient(total, variables, unconnected_gradients=_ZERO)

    def _hessian_product(self, x: tf.Tensor, labels: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
        variables = list(self._variables.values())
        pieces = tf.split(v, [w.shape.num_elements() for w in variables])
        tangents = [tf.reshape(p, w.shape) for p, w in zip(pieces, variables, strict=True)]
        with tf.autodiff.ForwardAccumulator(variables, tangents) as forward:
            with tf.GradientTape() as tape:
                total = tf.reduce_mean(losses.softmax_cross_entropy(labels, self.network(x)))
            gradients = tape.gradient(total, variables, unconnected_gradients=_ZERO)
        products = [forward.jvp(g, unconnected_gradients=_ZERO) for g in gradients]
        return tf.concat([tf.reshape(p, [-1]) for p in products], axis=0)


def _float32(x: Any) -> tf.Tensor:
    return tf.convert_to_tensor(x, tf.float32)


def _int32(labels: Any) -> tf.Tensor:
    return labels if tf.is_tensor(labels) else tf.constant(labels, tf.int32)


def model_of(config: Mapping[str, Any], weights: Weights) -> Model:
    """The network that a run trained, by its config and its weights' shapes."""
    return _model(_sizes(weights), config["activation"])


@functools.cache
def _model(sizes: tuple[int, ...], activation: str) -> Model:
    return Model(MLP(sizes, ACTIVATIONS[activation]))


def fresh(config: Mapping[str, Any], weights: Weights, seed: int) -> Weights:
    """What a run of this config would begin with, with another seed."""
    law = INITIALIZERS[config["initializer"]](config["init_stddev"])
    network = MLP(_sizes(weights), initializer=law, seed=seed)
    return Weights.from_tensors({v.name.split(":")[0]: v.numpy() for v in network.variables})


def _sizes(weights: Weights) -> Sequence[int]:
    return (len(weights.weights[0]), *(len(b) for b in weights.biases))
