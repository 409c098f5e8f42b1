"""Losses of each example, or of each token. The step reduces them over the batch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import tensorflow as tf

CLIP = 1e-9

Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def clipped_cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """-log of the true class's softmax, clipped to [1e-9, 1]; the reference recipe's loss.

    An example whose true class has a probability below 1e-9 has a gradient of exactly 0: it
    stops teaching just where the network is most wrong.

    Args:
      labels: classes, any integer dtype, [batch, ...]: one for each example, or for each token.
      logits: float32 or float64, [batch, ..., classes].

    Returns:
      Of labels' shape and logits' dtype, in nats.

    Raises:
      ValueError: labels are not integers, or their shape does not fit.
    """
    return _clipped(labels, logits, _looked_up)


def _clipped(labels: tf.Tensor, logits: tf.Tensor, of_class: Loss) -> tf.Tensor:
    labels = _classes(labels, logits)
    probabilities = tf.nn.softmax(logits)
    probability = of_class(labels, probabilities)
    loss = -tf.math.log(tf.clip_by_value(probability, CLIP, 1.0))
    # Beside a NaN the softmax gives zeros, which the clip would pass off as probabilities.
    total = tf.stop_gradient(tf.reduce_sum(probabilities, axis=-1))
    return tf.where(tf.math.is_nan(total), total, loss)


def softmax_cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """-log of the true class's softmax, from the logits: never clipped, never log(0).

    Shapes, dtypes, units and errors as `clipped_cross_entropy`.
    """
    labels = _classes(labels, logits)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)


def _softmax_compared(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    labels = _classes(labels, logits)
    precise = tf.cast(logits, tf.float32) if logits.dtype.size < 4 else logits
    return tf.cast(-_compared(labels, tf.nn.log_softmax(precise)), logits.dtype)


def sigmoid_cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """-p log q - (1 - p) log(1 - q) with q = sigmoid(logit), from the logits: never log(0).

    Args:
      labels: p, in [0, 1]: any dtype, of the logits' shape.
      logits: float32 or float64, [batch, ...].

    Returns:
      The mean over the last axis, [batch, ...], in nats, as Keras; of logits [batch] the losses as
      they are. In logits' dtype.

    Raises:
      ValueError: the shapes differ.
    """
    labels = _targets(labels, logits)
    return _mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits))


def mean_squared_error(targets: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """(output - target)^2. Shapes, dtypes and errors as `sigmoid_cross_entropy`."""
    return _mean(tf.square(outputs - _targets(targets, outputs)))


def mean_absolute_error(targets: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """|output - target|. Shapes, dtypes and errors as `sigmoid_cross_entropy`."""
    return _mean(tf.abs(outputs - _targets(targets, outputs)))


def _looked_up(labels: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    return tf.gather(rows, labels, batch_dims=rows.shape.rank - 1)


def _compared(labels: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """As `_looked_up`, bit for bit, its gradient too: a sum of one value and zeros. NaN where a
    label is of no class."""
    own = tf.range(rows.shape[-1]) == labels[..., None]
    found = tf.reduce_sum(tf.where(own, rows, tf.zeros([], rows.dtype)), axis=-1)
    return tf.where(tf.reduce_any(own, axis=-1), found, tf.constant(math.nan, rows.dtype))


def _classes(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    labels = tf.convert_to_tensor(labels)
    if not (labels.dtype.is_integer and logits.shape[:-1].is_compatible_with(labels.shape)):
        raise ValueError(
            f"labels are {labels.dtype.name} {labels.shape}, logits {logits.shape}: labels must be "
            "integers, one for each row of logits"
        )
    return tf.cast(labels, tf.int32)


def _targets(targets: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """The targets in the outputs' dtype; of another shape they would be broadcast, silently."""
    targets = tf.convert_to_tensor(targets)
    if not outputs.shape.is_compatible_with(targets.shape):
        raise ValueError(f"targets are {targets.shape}, outputs {outputs.shape}: must be equal")
    return tf.cast(targets, outputs.dtype)


def _mean(losses: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(losses, axis=-1) if losses.shape.rank > 1 else losses


LOSSES: dict[str, Loss] = {
    loss.__name__: loss
    for loss in (
        clipped_cross_entropy,
        softmax_cross_entropy,
        sigmoid_cross_entropy,
        mean_squared_error,
        mean_absolute_error,
    )
}

# For a GPU, where a deterministic gradient of a lookup is slow. Elsewhere the losses stay as they
# are: their operations are part of a run's identity.
WITHOUT_A_LOOKUP: dict[Loss, Loss] = {
    clipped_cross_entropy: functools.partial(_clipped, of_class=_compared),
    softmax_cross_entropy: _softmax_compared,
}
