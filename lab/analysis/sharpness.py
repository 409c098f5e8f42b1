"""Question 5, sharpness: the largest eigenvalue of the loss's Hessian."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from scipy.sparse.linalg import LinearOperator, eigsh

from lab.analysis.model import Model
from lab.analysis.weights import Weights
from lab.models.losses import softmax_cross_entropy


def hessian_product(network: Any, x: tf.Tensor, labels: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
    """H v, float32 [entries], H the Hessian of the mean unclipped cross-entropy over x.

    Forward over reverse. v: all entries, in the order of the network's variables.
    """
    zero, variables = tf.UnconnectedGradients.ZERO, list(network.variables)
    pieces = tf.split(tf.cast(v, tf.float32), [w.shape.num_elements() for w in variables])
    tangents = [tf.reshape(piece, w.shape) for piece, w in zip(pieces, variables, strict=True)]
    with tf.autodiff.ForwardAccumulator(variables, tangents) as forward:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(softmax_cross_entropy(tf.cast(labels, tf.int32), network(x)))
        gradients = tape.gradient(loss, variables, unconnected_gradients=zero)
    products = [forward.jvp(g, unconnected_gradients=zero) for g in gradients]
    return tf.concat([tf.reshape(p, [-1]) for p in products], axis=0)


class Eigenvalue(NamedTuple):
    """value, and residual: ||H v - value v|| / |value| of its eigenvector v."""

    value: float
    residual: float


def sharpness(
    model: Model, weights: Weights, x: Any, labels: Any, rng: np.random.Generator
) -> Eigenvalue:
    """The largest (most positive) Hessian eigenvalue of the mean cross-entropy over x: Lanczos.

    Above 2 / learning rate on the mean loss full-batch gradient descent is unstable; for sgd that
    is a heuristic, for adaptive optimizers it does not hold as it stands. Source: Cohen et al.,
    "Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability", ICLR 2021.
    """
    x, labels = tf.convert_to_tensor(x), tf.convert_to_tensor(labels)

    def product(v: np.ndarray) -> np.ndarray:
        return model(hessian_product, weights, x, labels, v).numpy()

    start = rng.normal(size=sum(w.size for w in weights.values()))
    if not product(start).any():
        return Eigenvalue(0.0, 0.0)
    hessian = LinearOperator((start.size, start.size), product, dtype=np.float64)
    values, vectors = eigsh(hessian, 1, which="LA", ncv=8, tol=1e-3, v0=start)
    value, v = float(values[0]), vectors[:, 0]
    return Eigenvalue(value, float(np.linalg.norm(product(v) - value * v)) / abs(value))
