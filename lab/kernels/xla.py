"""Products, reductions and counts, written so that XLA makes fast programs of them for a CPU.

XLA reduces one entry after the other, and adds to a table one entry after the other. So here a
reduction folds slices of a tensor onto each other, which is done in vectors, and a table is of
pairs of entries. All functions take tensors of known shapes; but for `matmul` and `squares` they
belong into a function that is compiled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

_LANES = 32
_LARGE = 4096  # entries from which on a table of pairs pays
_TABLES = 2  # that take turns: adding to an entry has to wait for the last addition to it

_NARROW = 64  # columns, see `matmul`

Operation = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def matmul(x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    """float32 [batch, n], [n, m] -> [batch, m]; its gradient is fast when XLA compiles it."""
    if x.shape.rank == 2 and w.shape[1] <= _NARROW:
        return _narrow(x, tf.convert_to_tensor(w))
    return tf.matmul(x, w)


@tf.custom_gradient
def _narrow(x: tf.Tensor, w: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """The gradient of w, x' g, as (g' x)': where g is narrow, XLA does that in a fifth of the time.

    The row of zeros below g' keeps it from making x' g of that again.
    """

    def gradient(g: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        rows = tf.pad(tf.transpose(g), [[0, 1], [0, 0]])
        return tf.matmul(g, w, transpose_b=True), tf.transpose(tf.matmul(rows, x)[:-1])

    return tf.matmul(x, w), gradient


def smallest(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """The smallest finite entry of each tensor float32 [n], infinity of none: float32 [T]."""
    rows = [
        _lanes(tf.minimum, own, np.inf, lambda x: tf.where(x > -np.inf, x, np.inf))
        for own in tensors
    ]
    return tf.reduce_min(tf.stack(rows), axis=1)


def largest(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """The largest finite entry of each tensor float32 [n], -infinity of none: float32 [T]."""
    rows = [
        _lanes(tf.maximum, own, -np.inf, lambda x: tf.where(x < np.inf, x, -np.inf))
        for own in tensors
    ]
    return tf.reduce_max(tf.stack(rows), axis=1)


@tf.function(jit_compile=True, autograph=False)
def squares(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """The sum of the squares of each tensor's entries, float32, any shapes: float32 [T]."""
    rows = [_lanes(tf.add, tf.reshape(x, [-1]), 0.0, tf.square) for x in tensors]
    return tf.reduce_sum(tf.stack(rows), axis=1)


def _lanes(
    fold: Operation, x: tf.Tensor, neutral: float, entry: Callable[[tf.Tensor], tf.Tensor]
) -> tf.Tensor:
    """x [n] -> [_LANES], of which `fold` gives the same as of the `entry` of all of x.

    `entry` is taken of each slice: of the whole, it would be written to memory first.
    """
    rests = []
    while x.shape[0] > _LANES:
        rows = x.shape[0] // _LANES
        # As measured: many slices of a large tensor would share the same few places of the cache.
        some = range(8, 15 if x.shape[0] < 16384 else 13)
        parts = min(max(some, key=lambda parts: (rows % parts == 0, parts)), rows)
        length = rows // parts * _LANES
        rest = x.shape[0] - parts * length
        *slices, last = tf.split(x, [length] * parts + [rest])
        if rest:
            rests.append(_lanes(fold, last, neutral, entry))
        x, entry = _fold(fold, [entry(part) for part in slices]), tf.identity
    rests.append(tf.pad(entry(x), [[0, _LANES - x.shape[0]]], constant_values=neutral))
    return _fold(fold, rests)


def _fold(fold: Operation, parts: list[tf.Tensor]) -> tf.Tensor:
    while len(parts) > 1:
        half = len(parts) // 2
        parts = [*map(fold, parts[:half], parts[half : 2 * half]), *parts[2 * half :]]
    return parts[0]


def bincount(values: tf.Tensor, size: int) -> tf.Tensor:
    """How often each of 0, 1, ..., size - 1 is among values: int32 [size].

    Args:
      values: float32 [n], whole numbers.
      size: at most 64, so that the tables stay in the cache.
    """
    n = values.shape[0]
    if n < _LARGE:
        return _add(values, size)
    half = n // 2
    pairs = values[:half] * size + values[half : 2 * half]
    pairs += tf.cast(tf.range(half) % _TABLES, tf.float32) * size * size
    tables = tf.reshape(_add(pairs, _TABLES * size * size), [_TABLES, size, size])
    table = tf.reduce_sum(tables, 0)
    counts = tf.reduce_sum(table, 0) + tf.reduce_sum(table, 1)
    return counts + _add(values[-1:], size) if n % 2 else counts


def _add(values: tf.Tensor, size: int) -> tf.Tensor:
    # The last bits of v + 2^23 are v: that is less than a cast, which looks for overflow and NaN.
    places = tf.bitcast(values + 2.0**23, tf.int32) - 0x4B000000
    return tf.math.unsorted_segment_sum(_ones(values.shape[0]), places, size)


@functools.cache
def _ones(size: int) -> tf.Tensor:
    # Kept, and not made where it is needed: XLA would write it again at every step.
    with tf.init_scope(), tf.device("/cpu:0"):
        return tf.ones([size], tf.int32)
