"""Histograms counted in the graph: only counts and edges leave the device.

A histogram has 30 buckets of equal width from the smallest to the largest finite value, as
TensorBoard's own has. NaN and infinity are in no bucket; they are counted beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

BUCKETS = 30
_LARGE = 4096  # entries from which on a compiled count of its own pays, on a CPU


class Histograms(NamedTuple):
    """The histograms of T tensors.

    counts: int32 [T, BUCKETS]; each row sums to the tensor's size less its nonfinite entries.
    low, high: float32 [T], the smallest and the largest finite value; 0 where there is none.
    nonfinite: int32 [T], the number of entries that are NaN or infinite.
    """

    counts: tf.Tensor
    low: tf.Tensor
    high: tf.Tensor
    nonfinite: tf.Tensor


def histograms(
    tensors: Sequence[tf.Tensor],
    pairs: bool = True,
    squares: Sequence[tf.Tensor | None] = (),
) -> Histograms:
    """Counts every tensor.

    The buckets are computed in float32: a value within rounding of the edge between two buckets
    may be counted in either.

    Args:
      tensors: any shapes, not empty, floating; counted as float32.
      pairs: count large tensors two entries at a time. It takes half the time on a CPU; on a
        GPU, where the order of additions is to be the same each time, it would take far more.
      squares: float32 [], half the sum of squares of each, where it is known already.
    """
    flat = [tf.cast(tf.reshape(tensor, [-1]), tf.float32) for tensor in tensors]
    low = tf.stack([tf.reduce_min(x) for x in flat])
    high = tf.stack([tf.reduce_max(x) for x in flat])
    # A sum is finite only if every entry is. (An overflow only costs the slower count.)
    known = squares or [None] * len(flat)
    sums = [tf.nn.l2_loss(x) if k is None else k for x, k in zip(flat, known, strict=True)]
    width = high - low
    finite = tf.math.is_finite(tf.stack(sums)) & tf.math.is_finite(width)
    ordinary = tf.reduce_all(finite & ((width > 1e-30) | (width == 0.0)))

    def plain() -> Histograms:
        counts = [
            (_count_pairs if pairs and (x.shape[0] or 0) >= _LARGE else _count)(x, low[i], high[i])
            for i, x in enumerate(flat)
        ]
        return Histograms(tf.stack(counts), low, high, tf.zeros([len(flat)], tf.int32))

    def careful() -> Histograms:
        return Histograms(*(tf.stack(part) for part in zip(*map(_careful, flat), strict=True)))

    return tf.cond(ordinary, plain, careful)


def _count(x: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    # The kernel wants a range that is not empty; a constant then falls into the first bucket.
    high = tf.where(high > low, high, low + tf.maximum(tf.abs(low), 1.0))
    return tf.histogram_fixed_width(x, tf.stack([low, high]), BUCKETS)


@tf.function(jit_compile=True)
def _count_pairs(x: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """As `_count`, by half as many additions, in a table of the buckets of two entries.

    Adding to memory is what takes the time, one entry after the other.
    """
    half = x.shape[0] // 2
    places = tf.cast((x - low) * tf.math.divide_no_nan(float(BUCKETS), high - low), tf.int32)
    both = places[:half] * 32 + places[half : 2 * half]
    table = tf.math.unsorted_segment_sum(tf.ones_like(both), both, 32 * 32)
    table = tf.reshape(table, [32, 32])
    counts = tf.reduce_sum(table, 0) + tf.reduce_sum(table, 1)
    counts += tf.reduce_sum(tf.one_hot(places[2 * half :], 32, dtype=tf.int32), 0)
    # The largest entry itself is in bucket 30, which is none.
    return counts[:BUCKETS] + counts[BUCKETS] * tf.one_hot(BUCKETS - 1, BUCKETS, dtype=tf.int32)


def _careful(x: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """One tensor with NaN, infinity, or a range that float32 cannot divide."""
    finite = tf.boolean_mask(x, tf.math.is_finite(x))
    some = tf.size(finite) > 0
    low = tf.where(some, tf.reduce_min(finite), 0.0)
    high = tf.where(some, tf.reduce_max(finite), 0.0)
    start, width = tf.cast(low, tf.float64), tf.cast(high, tf.float64) - tf.cast(low, tf.float64)
    scaled = (tf.cast(finite, tf.float64) - start) / tf.where(width > 0, width, 1.0)
    counts = tf.histogram_fixed_width(scaled, tf.constant([0, 1], tf.float64), BUCKETS)
    return counts, low, high, tf.size(x) - tf.size(finite)
