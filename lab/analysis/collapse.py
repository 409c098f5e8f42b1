"""The autopsy of sgd at 0.1: one step, and which gradients are left after it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from lab.analysis.model import Model, variables_of
from lab.analysis.weights import Weights
from lab.models.losses import CLIP, CLIPPED, clipped_cross_entropy

CERTAIN = 1e-6  # a loss up to here is that of a probability of 1 within rounding, on every CPU
SPREAD_LIMIT = -math.log(CLIP)  # ln(1e9) = 20.7: logits further apart reach the clip

Batch = tuple[Any, Any]  # x, labels


class VitalSigns(NamedTuple):
    """What the loss still teaches on a batch; shares in [0, 1].

    spread: median over the examples of max z - min z, against `SPREAD_LIMIT`. on_clip: examples
    with p_label < 1e-9, no gradient. certain: with a p_label of 1 within rounding, hardly any.
    Together they are the examples that teach nothing. (Whether a gradient is exactly 0 depends on
    how a CPU rounds.)
    """

    spread: float
    on_clip: float
    certain: float


def sgd_step(
    model: Model, weights: Weights, batch: Batch, learning_rate: float, reduction: str
) -> tuple[VitalSigns, Weights]:
    """The signs before, and W - learning_rate dL/dW, for the clipped cross-entropy of this batch.

    In float32, as the training. reduction: sum or mean.
    """
    z, losses, gradients = model(_gradients, weights, *batch, reduction)
    rate = np.float32(learning_rate)
    after = Weights({tag: w - rate * gradients[tag].numpy() for tag, w in weights.items()})
    signs = VitalSigns(
        float(np.median(np.ptp(z.numpy(), axis=1))),
        float(np.mean(losses.numpy() >= CLIPPED)),
        float(np.mean(losses.numpy() <= CERTAIN)),
    )
    return signs, after


def _gradients(
    network: Any, x: tf.Tensor, labels: tf.Tensor, reduction: str
) -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
    reduce = {"sum": tf.reduce_sum, "mean": tf.reduce_mean}[reduction]
    with tf.GradientTape() as tape:
        z = network(x)
        losses = clipped_cross_entropy(tf.cast(labels, tf.int32), z)
        total = reduce(losses)
    return z, losses, tape.gradient(total, variables_of(network))
