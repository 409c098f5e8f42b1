"""Convolution and pooling of images, fast on a CPU inside one program of XLA's.

There XLA's own convolution is many times slower in a loop (measured: 800 ms a step for 50), and the
gradient of its pooling does not repeat. These are matrix products and comparisons, which do.
TensorFlow's own kernels are faster still: see `native`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import tensorflow as tf

__all__ = ["conv2d", "max_pool", "native"]

_TOGETHER = 4  # outputs, as measured: fewer make narrow products, more multiply more zeros

_native = False


@contextlib.contextmanager
def native() -> Iterator[None]:
    """What is traced within it convolves and pools by TensorFlow's kernels.

    For programs that XLA does not compile: on a GPU, or on a CPU where the whole step is faster so.
    The results are equal within rounding.
    """
    global _native
    before, _native = _native, True
    try:
        yield
    finally:
        _native = before


def conv2d(x: tf.Tensor, w: tf.Tensor, stride: int = 1) -> tf.Tensor:
    """y[b, i, j, o] = sum over p, q, c of x[b, i stride + p, j stride + q, c] w[p, q, c, o].

    A row of the matrix holds what some neighbouring outputs look at, and the other matrix the
    kernel once for each of them, shifted, among zeros: more products than a row for each output
    would take, but fewer rows to write, and of wide matrices.

    Args:
      x: float32 [batch, height, width, channels], padded already; all but the batch known.
      w: float32 [size, size, channels, out_channels].

    Returns:
      float32 [batch, (height - size) // stride + 1, (width - size) // stride + 1, out_channels].
    """
    if _native:
        return tf.nn.conv2d(x, w, stride, "VALID")
    height, width, channels = x.shape[1:]
    size, _, _, outs = w.shape
    rows, columns = (height - size) // stride + 1, (width - size) // stride + 1
    groups = max(columns // max(_TOGETHER, size - 1), 1)
    together = -(-columns // groups)
    step = together * stride  # columns of x from one group of outputs to the next
    reach = -(-((together - 1) * stride + size) // step)  # such steps that a group looks at
    needed = (groups + reach - 1) * step
    x = x[:, :, : min(needed, width)]
    x = tf.pad(x, [[0, 0], [0, 0], [0, max(needed - width, 0)], [0, 0]])
    x = tf.reshape(x, [-1, height, groups + reach - 1, step * channels])
    x = tf.concat([x[:, :, i : i + groups] for i in range(reach)], 3)
    last = (rows - 1) * stride
    x = tf.concat([x[:, i : i + last + 1 : stride] for i in range(size)], 3)
    kernels = [
        tf.pad(w, [[0, 0], [i * stride, reach * step - size - i * stride], [0, 0], [0, 0]])
        for i in range(together)
    ]
    kernel = tf.reshape(tf.stack(kernels, 3), [x.shape[3], together * outs])
    y = tf.matmul(tf.reshape(x, [-1, x.shape[3]]), kernel)
    return tf.reshape(y, [-1, rows, groups * together, outs])[:, :, :columns]


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
    if _native:
        return tf.nn.max_pool2d(x, size, size, "VALID")
    rows, columns = x.shape[1] // size, x.shape[2] // size
    return _pool(x[:, : rows * size, : columns * size], size)


def _pool(x: tf.Tensor, size: int) -> tf.Tensor:
    @tf.custom_gradient
    def pool(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        entries = [x[:, i::size, j::size] for i in range(size) for j in range(size)]
        largest = entries[0]
        for entry in entries[1:]:
            largest = tf.maximum(largest, entry)

        def gradient(g: tf.Tensor) -> tf.Tensor:
            free, parts = tf.ones_like(g, tf.bool), []
            for entry in entries:
                parts.append(tf.where(free & (entry == largest), g, 0.0))
                free &= entry != largest
            rows = [tf.stack(parts[i : i + size], 3) for i in range(0, size * size, size)]
            return tf.reshape(tf.stack(rows, 2), tf.shape(x))

        return largest, gradient

    return pool(x)
