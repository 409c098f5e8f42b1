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
    low = tf.stack([tf.reduce_min(x) for x in flat])
    high = tf.stack([tf.reduce_max(x) for x in flat])
    counts = None
    if compiled and all(x.shape.is_fully_defined() for x in flat):
        counts, finite = _compiled(flat, low, high)
    else:
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
def _compiled(
    flat: list[tf.Tensor], low: tf.Tensor, high: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Counts, int32 [T, BUCKETS], and whether no entry is NaN, bool [T], of tensors [n].

    Adding to memory, one entry after the other, is what takes the time: entries of large tensors
    are counted two at a time, in a table of pairs of buckets. Small ones share one table.
    """
    scale = tf.math.divide_no_nan(float(BUCKETS), high - low)
    rows: list[Any] = [None] * len(flat)
    small = [i for i, x in enumerate(flat) if x.shape[0] < _LARGE]
    for i, x in enumerate(flat):
        if i not in small:
            half = x.shape[0] // 2
            place = _place(x, low[i], scale[i])
            table = _bincount(place[:half] * _ROW + place[half : 2 * half], _ROW * _ROW)
            table = tf.reshape(table, [_ROW, _ROW])
            rows[i] = tf.reduce_sum(table, 0) + tf.reduce_sum(table, 1)
            rows[i] += _bincount(place[2 * half :], _ROW)
    if small:
        row = np.repeat(np.arange(len(small), dtype=np.int32), [flat[i].shape[0] for i in small])
        start, factor = (tf.gather(tf.gather(v, small), row) for v in (low, scale))
        place = _place(tf.concat([flat[i] for i in small], 0), start, factor)
        # As integers, since NaN is to stay in its own row.
        place = tf.cast(place, tf.int32) + _ROW * row
        counted = _bincount(place, _ROW * len(small))
        for i, each in zip(small, tf.split(counted, len(small)), strict=True):
            rows[i] = each
    table = tf.stack(rows)
    last = table[:, BUCKETS : BUCKETS + 1] + table[:, BUCKETS + 1 : BUCKETS + 2]
    return tf.concat([table[:, 1:BUCKETS], last], 1), table[:, 0] == 0


def _place(x: tf.Tensor, low: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """The bucket of each entry as a whole float, from 1; the largest entry's is BUCKETS + 1.

    As an integer NaN is 0, which is no bucket.
    """
    return tf.floor((x - low) * scale) + 1.0


def _bincount(values: tf.Tensor, size: int) -> tf.Tensor:
    # tf.math.bincount cannot be compiled.
    values = tf.cast(values, tf.int32)
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
