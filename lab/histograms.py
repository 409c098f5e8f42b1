"""Histograms counted in the graph: only counts and edges leave the device.

A histogram has 30 buckets of equal width from the smallest to the largest finite value, as
TensorBoard's own has. NaN and infinity are in no bucket; they are counted beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

BUCKETS = 30
_LARGE = 4096  # entries from which on a table of pairs pays
_ROW = 32  # buckets, and some that are none


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


def histograms(tensors: Sequence[tf.Tensor], compiled: bool = True) -> Histograms:
    """Counts every tensor.

    The buckets are computed in float32: a value within rounding of the edge between two buckets
    may be counted in either.

    Args:
      tensors: any shapes, not empty, floating; counted as float32.
      compiled: count them in one program of XLA's, where their shapes are known. It takes half
        the time on a CPU; on a GPU, where the order of additions is to be the same each time, it
        would take far more.
    """
    flat = [tf.cast(tf.reshape(tensor, [-1]), tf.float32) for tensor in tensors]
    if compiled and all(x.shape.is_fully_defined() for x in flat):
        counts, low, high, finite = _compiled(flat)
    else:
        counts = None
        low = tf.stack([tf.reduce_min(x) for x in flat])
        high = tf.stack([tf.reduce_max(x) for x in flat])
        # A sum is finite only if every entry is. (An overflow only costs the slower count.)
        finite = tf.math.is_finite(tf.stack([tf.reduce_sum(x) for x in flat]))
    width = high - low
    ordinary = finite & tf.math.is_finite(width) & ((width > 1e-30) | (width == 0.0))

    def plain() -> Histograms:
        each = counts
        if each is None:
            each = tf.stack([_count(x, low[i], high[i]) for i, x in enumerate(flat)])
        return Histograms(each, low, high, tf.zeros([len(flat)], tf.int32))

    def careful() -> Histograms:
        return Histograms(*(tf.stack(part) for part in zip(*map(_careful, flat), strict=True)))

    return tf.cond(tf.reduce_all(ordinary), plain, careful)


def _count(x: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    # The kernel wants a range that is not empty; a constant then falls into the first bucket.
    high = tf.where(high > low, high, low + tf.maximum(tf.abs(low), 1.0))
    return tf.histogram_fixed_width(x, tf.stack([low, high]), BUCKETS)


@tf.function(jit_compile=True)
def _compiled(flat: list[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Counts, int32 [T, BUCKETS], smallest and largest values, [T], of ordinary tensors [n]; and
    whether all their entries are finite, bool [T].

    Adding to memory, one entry after the other, is what takes the time: entries of large tensors
    are counted two at a time, in a table of pairs of buckets. Small ones share one table.
    """
    low = tf.stack([tf.reduce_min(x) for x in flat])
    high = tf.stack([tf.reduce_max(x) for x in flat])
    # As an integer, a number's magnitude is below infinity's, and that is below NaN's.
    bits = [tf.reduce_max(tf.bitwise.bitwise_and(tf.bitcast(x, tf.int32), 2**31 - 1)) for x in flat]
    finite = tf.stack(bits) < 0x7F800000
    scale = tf.math.divide_no_nan(float(BUCKETS), high - low)
    counts: list[Any] = [None] * len(flat)
    small = [i for i, x in enumerate(flat) if x.shape[0] < _LARGE]
    for i, x in enumerate(flat):
        if i not in small:
            half = x.shape[0] // 2
            place = tf.cast((x - low[i]) * scale[i], tf.int32)
            table = _bincount(place[:half] * _ROW + place[half : 2 * half], _ROW * _ROW)
            table = tf.reshape(table, [_ROW, _ROW])
            counts[i] = tf.reduce_sum(table, 0) + tf.reduce_sum(table, 1)
            counts[i] += _bincount(place[2 * half :], _ROW)
    if small:
        row = tf.constant(np.repeat(np.arange(len(small)), [flat[i].shape[0] for i in small]))
        x = tf.concat([flat[i] for i in small], 0)
        start, factor = (tf.gather(tf.gather(v, small), row) for v in (low, scale))
        place = tf.cast((x - start) * factor, tf.int32) + _ROW * tf.cast(row, tf.int32)
        table = tf.reshape(_bincount(place, _ROW * len(small)), [-1, _ROW])
        for i, each in zip(small, tf.unstack(table), strict=True):
            counts[i] = each
    # The largest value comes out at bucket BUCKETS, which is none.
    table = tf.stack(counts)
    last = table[:, BUCKETS - 1 : BUCKETS] + table[:, BUCKETS : BUCKETS + 1]
    return tf.concat([table[:, : BUCKETS - 1], last], 1), low, high, finite


def _bincount(values: tf.Tensor, size: int) -> tf.Tensor:
    # tf.math.bincount cannot be compiled.
    return tf.math.unsorted_segment_sum(tf.ones_like(values), values, size)


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
