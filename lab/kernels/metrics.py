"""What is read off a classifier's logits."""

from __future__ import annotations

import tensorflow as tf


def predictions(logits: tf.Tensor) -> tf.Tensor:
    """The class with the largest logit, the first of equal ones: int32 [batch]."""
    return tf.argmax(logits, axis=1, output_type=tf.int32)
