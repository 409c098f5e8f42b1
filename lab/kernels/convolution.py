"""Convolution and pooling of images, fast on a CPU whether XLA compiles them or not.

Both are made of operations whose gradients give the same bits in every run.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf


def conv2d(x: tf.Tensor, w: tf.Tensor, stride: int = 1) -> tf.Tensor:
    """y[b, i, j, o] = sum over p, q, c of x[b, i stride + p, j stride + q, c] w[p, q, c, o].

    Neighbouring columns of x are taken as channels, and as many of y: a few times the products
    where a kernel has few channels, but long ones, which a CPU computes several times as fast.

    Args:
      x: float32 [batch, height, width, channels], padded already; all but the batch known.
      w: float32 [size, size, channels, out_channels].

    Returns:
      float32 [batch, (height - size) // stride + 1, (width - size) // stride + 1, out_channels].
    """
    height, width, channels = x.shape[1:]
    size, _, _, outs = w.shape
    rows, columns = (height - size) // stride + 1, (width - size) // stride + 1
    together = min(_together(channels), columns)
    step = together * stride  # columns of x that are channels of one
    groups = -(-columns // together)
    reach = -(-((together - 1) * stride + size) // step)  # how many such an output looks at
    needed = (groups + reach - 1) * step
    x = x[:, :, : min(needed, width)]
    x = tf.pad(x, [[0, 0], [0, 0], [0, max(needed - width, 0)], [0, 0]])
    kernels = [
        tf.pad(w, [[0, 0], [i * stride, reach * step - size - i * stride], [0, 0], [0, 0]])
        for i in range(together)
    ]
    kernel = tf.reshape(tf.stack(kernels, 3), [size, reach, step * channels, together * outs])
    x = tf.reshape(x, [-1, height, groups + reach - 1, step * channels])
    y = tf.nn.conv2d(x, kernel, [stride, 1], "VALID")
    return tf.reshape(y, [-1, rows, groups * together, outs])[:, :, :columns]


def _together(channels: int) -> int:
    """As measured on two cores, for kernels of 3 x 3 and 5 x 5."""
    return 4 if channels < 4 else 2 if channels < 32 else 1


def max_pool(x: tf.Tensor, size: int = 2) -> tf.Tensor:
    """The largest entry of each window of size x size; the windows do not overlap, and rows and
    columns at the end that fill none are left out.

    Of equal entries the first in a window, row by row, has all of the gradient, as in TensorFlow's
    and Keras's. (That of tf.reduce_max would be shared by them.)

    Args:
      x: float32 [batch, height, width, channels]; all but the batch known.

    Returns:
      float32 [batch, height // size, width // size, channels].
    """
    rows, columns = x.shape[1] // size, x.shape[2] // size
    x = x[:, : rows * size, : columns * size]
    return _pool(tf.reshape(x, [-1, rows, size, columns, size, x.shape[3]]))


@tf.custom_gradient
def _pool(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    size = x.shape[2]
    entries = [x[:, :, i, :, j] for i in range(size) for j in range(size)]
    largest = entries[0]
    for entry in entries[1:]:
        largest = tf.maximum(largest, entry)

    def gradient(g: tf.Tensor) -> tf.Tensor:
        first = tf.fill(tf.shape(g), size * size - 1)
        for i, entry in reversed([*enumerate(entries[:-1])]):
            first = tf.where(entry == largest, i, first)
        place = tf.reshape(tf.range(size * size), [1, 1, size, 1, size, 1])
        return tf.where(first[:, :, None, :, None] == place, g[:, :, None, :, None], 0.0)

    return largest, gradient
