"""A model on a fixed set of examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from lab.kernels.metrics import predictions
from lab.step.placement import resident


class Evaluator:
    """Computes loss and prediction of each of some examples, `chunk` of them at a time."""

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        model: Any,
        loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
        images: np.ndarray,
        labels: np.ndarray,
        chunk: int = 1000,
    ) -> None:
        self._model, self._loss, self._chunk = model, loss, chunk
        self._images = resident(strategy, images)[0]
        self._labels = resident(strategy, labels)[0]
        self.run = tf.function(self._run, input_signature=[], autograph=False)

    def _run(self) -> tuple[tf.Tensor, tf.Tensor]:
        """The loss, float32 [examples], and the predicted class, int32 [examples]."""
        examples = self._images.shape[0]
        chunks = -(-examples // self._chunk)
        all_losses = tf.TensorArray(tf.float32, chunks, infer_shape=False, element_shape=[None])
        classes = tf.TensorArray(tf.int32, chunks, infer_shape=False, element_shape=[None])

        def body(i: tf.Tensor, all_losses: tf.TensorArray, classes: tf.TensorArray) -> tuple:
            part = slice(i * self._chunk, tf.minimum((i + 1) * self._chunk, examples))
            logits = self._model(tf.cast(self._images[part], tf.float32) / 255.0)
            all_losses = all_losses.write(i, self._loss(self._labels[part], logits))
            return i + 1, all_losses, classes.write(i, predictions(logits))

        _, all_losses, classes = tf.while_loop(
            lambda i, *_: i < chunks, body, (0, all_losses, classes)
        )
        return all_losses.concat(), classes.concat()
