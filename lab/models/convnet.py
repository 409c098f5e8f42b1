"""A small convolutional network, after LeNet-5 (LeCun et al., Proc. IEEE 86(11), 1998)."""

from __future__ import annotations

import tensorflow as tf

from lab.models import layers

# The defaults of its runs.
RECIPE = {
    "loss": "softmax_cross_entropy",
    "reduction": "mean",
    "optimizer": "adam",
    "learning_rate": 0.002,
    "learning_rate_decay": "cosine",
    "batch_size": 128,
    "training_steps": 3000,
}


class ConvNet(tf.Module):
    """Two convolutions of 5 x 5, each with relu and pooling, and two Dense layers.

    Args:
      channels: of the first convolution; the second has twice as many.
      units: of the hidden Dense layer.
      dropout: fraction of its outputs set to 0 in training.
      batch_norm: whether each convolution's output is normalized over the batch.
      classes: number of outputs.
      seed: of the initial weights.
    """

    def __init__(
        self,
        channels: int = 10,
        units: int = 120,
        dropout: float = 0.25,
        batch_norm: bool = False,
        classes: int = 10,
        seed: int = 0,
    ) -> None:
        super().__init__("convnet")
        self.conv1 = layers.Conv2D(1, channels, 5, seed=(seed, 0))
        self.conv2 = layers.Conv2D(channels, 2 * channels, 5, padding="valid", seed=(seed, 1))
        self.norm1 = layers.BatchNorm(channels) if batch_norm else None
        self.norm2 = layers.BatchNorm(2 * channels) if batch_norm else None
        self.hidden = layers.Dense(5 * 5 * 2 * channels, units, tf.nn.relu, seed=(seed, 2))
        self.dropout = layers.Dropout(dropout)
        self.logits = layers.Dense(units, classes, seed=(seed, 3))

    def __call__(
        self, x: tf.Tensor, training: bool = False, seed: layers.Seed | None = None
    ) -> tf.Tensor:
        """float32 [batch, 28, 28], with or without a last axis of 1, or [batch, 784] -> logits,
        float32 [batch, classes].

        Args:
          training: whether units drop out, and batches are normalized by their own statistics.
          seed: two integers, of the dropout in this step.
        """
        x = tf.reshape(x, [-1, 28, 28, 1])
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            x = conv(x)
            x = norm(x, training) if norm else x
            x = layers.max_pool(tf.nn.relu(x), 2)
        x = self.hidden(tf.reshape(x, [-1, self.hidden.weights.shape[0]]))
        return self.logits(self.dropout(x, training, seed))
