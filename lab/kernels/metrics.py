"""What is computed from a classifier's logits."""

from __future__ import annotations

import tensorflow as tf


def predictions(logits: tf.Tensor) -> tf.Tensor:
    """The class with the largest logit, the first of equal ones: [..., classes] -> int32 [...]."""
    return tf.argmax(logits, axis=-1, output_type=tf.int32)


def accuracy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """1 where the predicted class is the label's, 0 elsewhere.

    Args:
      labels: integers [...].
      logits: floating [..., classes].

    Returns:
      float32 [...].
    """
    return tf.cast(tf.equal(predictions(logits), tf.cast(labels, tf.int32)), tf.float32)
