"""Normalization over a layer's units, and over a batch."""

from __future__ import annotations

import tensorflow as tf

from lab.models.basic import check_last_axis


class LayerNorm(tf.Module):
    """y = scale (x - mean) / sqrt(variance + epsilon) + bias, over the last axis of each entry
    (Ba, Kiros and Hinton, arXiv:1607.06450, 2016)."""

    def __init__(self, width: int, epsilon: float = 1e-3, name: str | None = None) -> None:
        super().__init__(name)
        self._epsilon = epsilon
        self.scale = tf.Variable(tf.ones([width]), name="scale")
        self.bias = tf.Variable(tf.zeros([width]), name="bias")

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """float32 [..., width] -> the same shape."""
        width = self.scale.shape[0]
        check_last_axis(x, width, "a LayerNorm")
        with tf.name_scope(self.name):
            # As rows: XLA adds up the gradients of scale and bias four times as fast over one axis.
            rows = tf.reshape(x, [-1, width])
            rows -= tf.reduce_mean(rows, -1, keepdims=True)
            variance = tf.reduce_mean(tf.square(rows), -1, keepdims=True)
            rows = rows * tf.math.rsqrt(variance + self._epsilon) * self.scale + self.bias
            return tf.reshape(rows, tf.shape(x))


class BatchNorm(tf.Module):
    """y = scale (x - mean) / sqrt(variance + epsilon) + bias, for each channel, the last axis
    (Ioffe and Szegedy, ICML 2015).

    In training mean and variance are the batch's, and the moving averages `mean` and `variance`,
    which are not trained, go 1 - momentum of the way to them; otherwise they are those averages.
    Each replica takes those of its own examples, and the averages go to the mean over the replicas.
    """

    def __init__(
        self,
        channels: int,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self._momentum, self._epsilon = momentum, epsilon
        self.scale = tf.Variable(tf.ones([channels]), name="scale")
        self.bias = tf.Variable(tf.zeros([channels]), name="bias")
        self.mean, self.variance = (
            tf.Variable(
                tf.fill([channels], start),
                trainable=False,
                name=kind,
                aggregation=tf.VariableAggregation.MEAN,
            )
            for kind, start in (("mean", 0.0), ("variance", 1.0))
        )

    def __call__(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """float32 [batch, ..., channels] -> the same shape."""
        check_last_axis(x, self.scale.shape[0], "a BatchNorm")
        with tf.name_scope(self.name):
            if not training:
                mean, variance = (
                    tf.convert_to_tensor(self.mean),
                    tf.convert_to_tensor(self.variance),
                )
            else:
                axes = [*range(x.shape.rank - 1)]
                mean = tf.reduce_mean(x, axes)
                variance = tf.reduce_mean(tf.square(x - mean), axes)
                for average, now in ((self.mean, mean), (self.variance, variance)):
                    kept = average * self._momentum
                    average.assign(kept + tf.stop_gradient(now) * (1 - self._momentum))
            factor = self.scale * tf.math.rsqrt(variance + self._epsilon)
            return (x - mean) * factor + self.bias
