"""Dense, Conv2D, Embedding, Dropout, and what all layers share: seeds and checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import tensorflow as tf

from lab.models.initial import Initializer, glorot, normal

Activation = Callable[[tf.Tensor], tf.Tensor]
Product = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
Seed: TypeAlias = "Sequence[int] | tf.Tensor"


def split_seed(seed: Seed, count: int) -> list[tf.Tensor]:
    """Distinct seeds, int64 [2], which also differ from those of any other seed."""
    return tf.unstack(tf.random.experimental.stateless_split(as_seed(seed), count, alg="philox"))


def as_seed(seed: Seed) -> tf.Tensor:
    """int64 [2]."""
    return seed if tf.is_tensor(seed) else tf.constant(seed, tf.int64)


def check_last_axis(x: tf.Tensor, size: int, what: str) -> None:
    """Raises ValueError unless the last axis of x has that size; `what` takes x."""
    if x.shape[-1] != size:
        raise ValueError(f"{what} takes [..., {size}], not {shape_text(x.shape)}")


def shape_text(shape: tf.TensorShape) -> str:
    """`[?, 28, 28]`: ? for a size that is not known."""
    return str(shape.as_list()).replace("None", "?")


class Dense(tf.Module):
    """y = activation(x W + b).

    Args:
      n_in, n_out: sizes of x and y.
      activation: elementwise function; None for none.
      initializer: (shape, seed) -> float32 weights. The bias starts at exactly 0.
      seed: two integers, for the initializer.
      name: the variables are `name/weights` [n_in, n_out] and `name/bias` [n_out]; without it
        `weights` and `bias`.
      matmul: computes x W; `kernels.xla.matmul` where XLA compiles the whole step.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        activation: Activation | None = None,
        initializer: Initializer = glorot,
        seed: Seed = (0, 0),
        name: str | None = None,
        matmul: Product = tf.matmul,
    ) -> None:
        super().__init__(name)
        self.activation, self._matmul = activation or tf.identity, matmul
        prefix = f"{name}/" if name else ""
        first = initializer((n_in, n_out), as_seed(seed))
        self.weights = tf.Variable(first, name=f"{prefix}weights")
        self.bias = tf.Variable(tf.zeros([n_out]), name=f"{prefix}bias")

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """float32 [batch, ..., n_in] -> float32 [batch, ..., n_out].

        Raises:
          ValueError: x has another last axis.
        """
        n_in, n_out = self.weights.shape
        check_last_axis(x, n_in, "a Dense layer")
        with tf.name_scope(self.name):
            if x.shape.rank == 2:
                return self.activation(self._matmul(x, self.weights) + self.bias)
            # One product of matrices: XLA would make one for each example, and those are slow.
            rows = self._matmul(tf.reshape(x, [-1, n_in]), self.weights) + self.bias
            return self.activation(tf.reshape(rows, [-1, *x.shape[1:-1], n_out]))


class Conv2D(tf.Module):
    """y = x * W + b: the cross-correlation of images with kernels, as in every library.

    Args:
      in_channels, out_channels: of x and y.
      size: height and width of a kernel.
      stride: rows and columns from one output to the next.
      padding: "same": zeros around x so that y has ceil(height / stride) rows, the odd one below
        and to the right; "valid": none.
      initializer: (shape, seed) -> float32 weights [size, size, in_channels, out_channels].
      seed: two integers, for the initializer.

    Raises:
      ValueError: another padding.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        stride: int = 1,
        padding: str = "same",
        initializer: Initializer = glorot,
        seed: Seed = (0, 0),
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        if padding not in ("same", "valid"):
            raise ValueError(f"padding={padding!r}: must be 'same' or 'valid'")
        self._stride, self._padding = stride, padding
        shape = (size, size, in_channels, out_channels)
        self.weights = tf.Variable(initializer(shape, as_seed(seed)), name="weights")
        self.bias = tf.Variable(tf.zeros([out_channels]), name="bias")

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """float32 [batch, height, width, in_channels] -> [batch, rows, columns, out_channels].

        Raises:
          ValueError: x has another rank or number of channels, or is smaller than a kernel.
        """
        size, _, channels, _ = self.weights.shape
        if x.shape.rank != 4:
            wanted = f"[batch, height, width, {channels}]"
            raise ValueError(f"a Conv2D layer takes {wanted}, not {shape_text(x.shape)}")
        check_last_axis(x, channels, "a Conv2D layer")
        with tf.name_scope(self.name):
            if self._padding == "valid" and min(x.shape[1:3]) < size:
                raise ValueError(f"a kernel of {size} x {size} does not fit {shape_text(x.shape)}")
            y = tf.nn.conv2d(x, self.weights, self._stride, self._padding.upper())
            return tf.nn.bias_add(y, self.bias)


def max_pool(x: tf.Tensor, size: int = 2) -> tf.Tensor:
    """The largest entry of each window of size x size; the windows do not overlap, and rows and
    columns at the end that do not fill a window are dropped.

    Of equal entries, the first in a window, row by row, receives the whole gradient.

    Args:
      x: float32 [batch, height, width, channels].

    Returns:
      float32 [batch, height // size, width // size, channels].
    """
    return tf.nn.max_pool2d(x, size, size, "VALID")


class Embedding(tf.Module):
    """y = W[x]: a row of weights for each integer.

    Args:
      n_in: x is in 0, 1, ..., n_in - 1; anything else takes the nearest row under XLA, a row of
        zeros on a GPU, and is an error otherwise.
      width: of a row.
      initializer: (shape, seed) -> float32 weights [n_in, width].
      seed: two integers, for the initializer.
    """

    def __init__(
        self,
        n_in: int,
        width: int,
        initializer: Initializer | None = None,
        seed: Seed = (0, 0),
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        first = (initializer or normal(0.02))((n_in, width), as_seed(seed))
        self.weights = tf.Variable(first, name="weights")

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """integers [batch, ...] -> float32 [batch, ..., width]."""
        with tf.name_scope(self.name):
            return tf.gather(self.weights, x)


class Dropout(tf.Module):
    """In training, zeroes each entry with probability `rate` and scales the rest by 1 / (1 - rate)
    (Srivastava et al., JMLR 2014).

    Raises:
      ValueError: `rate` is not in [0, 1).
    """

    def __init__(self, rate: float, name: str | None = None) -> None:
        super().__init__(name)
        if not 0 <= rate < 1:
            raise ValueError(f"rate={rate}: must be at least 0 and below 1")
        self._rate = rate

    def __call__(self, x: tf.Tensor, training: bool = False, seed: Seed | None = None) -> tf.Tensor:
        """float32, any shape -> the same shape.

        Args:
          seed: two integers, for this call; another for each step and layer, see `split_seed`.
            The same seed leaves out the same entries, but XLA and TensorFlow's kernels not alike.

        Raises:
          ValueError: no seed, in training.
        """
        if not training or not self._rate:
            return x
        if seed is None:
            raise ValueError("a Dropout layer in training: give it a seed, two integers")
        with tf.name_scope(self.name):
            numbers = tf.random.stateless_uniform(tf.shape(x), as_seed(seed), alg="philox")
            return tf.where(numbers >= self._rate, x / (1 - self._rate), 0.0)
