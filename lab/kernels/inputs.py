"""What a model is given of a batch."""

from __future__ import annotations

import tensorflow as tf


def prepare(x: tf.Tensor) -> tf.Tensor:
    """The model's input unless the data say otherwise: uint8 as float32 in [0, 1], anything else
    unchanged."""
    return tf.cast(x, tf.float32) / 255.0 if x.dtype == tf.uint8 else x
