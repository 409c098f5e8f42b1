"""Per-example losses. The step reduces them over the batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import tensorflow as tf

CLIP = 1e-9
CLIPPED = -math.log(CLIP) * (1 - 1e-6)  # losses from here on sit on the clip, in float32


def clipped_cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """-log of the true class's softmax, clipped to [1e-9, 1]; the reference recipe's loss.

    An example whose true class has a probability below 1e-9 gives a gradient of exactly 0: it
    stops teaching just where the network is most wrong.

    Args:
      labels: int32 [batch].
      logits: float32 [batch, classes].

    Returns:
      float32 [batch], in nats.
    """
    probabilities = tf.nn.softmax(logits)
    probability = tf.gather(probabilities, labels, batch_dims=1)
    loss = -tf.math.log(tf.clip_by_value(probability, CLIP, 1.0))
    # Beside a NaN the softmax gives zeros, which the clip would pass off as probabilities.
    total = tf.stop_gradient(tf.reduce_sum(probabilities, axis=1))
    return tf.where(tf.math.is_nan(total), total, loss)


def softmax_cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """-log of the true class's softmax, from the logits: never clipped, never log(0).

    Shapes and units as `clipped_cross_entropy`.
    """
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)


LOSSES: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "clipped_cross_entropy": clipped_cross_entropy,
    "softmax_cross_entropy": softmax_cross_entropy,
}
