"""Histograms counted in the graph: only counts and edges leave the device.

A histogram has 30 buckets of equal width from the smallest to the largest finite value, as
TensorBoard's own has. NaN and infinity are in no bucket; they are counted separately.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from lab.kernels import gpu as on_gpu
from lab.kernels import xla as compiled

BUCKETS = 30


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


def histograms(tensors: Sequence[tf.Tensor], xla: bool = True, gpu: bool = False) -> Histograms:
    """Counts every tensor.

    The buckets are computed in float32: a value within rounding of the edge between two buckets
    may be counted in either.

    Args:
      tensors: any shapes, not empty, floating; counted as float32.
      xla: count them in one program of XLA's, where their shapes are known. It takes a third of
        the time on a CPU.
      gpu: whether that program is for a GPU.
    """
    flat = [tf.cast(tf.reshape(tensor, [-1]), tf.float32) for tensor in tensors]
    if xla and all(x.shape.is_fully_defined() for x in flat):
        return Histograms(*_by_xla(flat, gpu))
    low = tf.stack([tf.reduce_min(x) for x in flat])
    high = tf.stack([tf.reduce_max(x) for x in flat])
    # A sum is finite only if every entry is. (An overflow only costs the slower count.)
    finite = tf.math.is_finite(tf.stack([tf.reduce_sum(x) for x in flat]))
    width = high - low
    ordinary = finite & tf.math.is_finite(width) & ((width > 1e-30) | (width == 0.0))

    def plain() -> Histograms:
        size = tf.where(width > 0, width, 1.0)  # a constant is in the first bucket
        counts = _count([(x - low[i]) / size[i] for i, x in enumerate(flat)])
        return Histograms(counts, low, high, tf.zeros([len(flat)], tf.int32))

    def careful() -> Histograms:
        return Histograms(*(tf.stack(part) for part in zip(*map(_careful, flat), strict=True)))

    return tf.cond(tf.reduce_all(ordinary), plain, careful)


@tf.function(jit_compile=True, autograph=False)
def _by_xla(flat: list[tf.Tensor], gpu: bool) -> tuple[tf.Tensor, ...]:
    """The fields of the Histograms of tensors float32 [n]."""
    kernels: Any = on_gpu if gpu else compiled
    groups = compiled.grouped(flat)
    low, high = kernels.smallest(groups), kernels.largest(groups)
    some = low <= high
    low, high = tf.where(some, low, 0.0), tf.where(some, high, 0.0)
    # Neither the width nor 1 / width may leave float32, and a power of two changes no digit.
    largest = tf.maximum(tf.abs(low), tf.abs(high))
    factor = tf.where(largest > 1e37, 2.0**-4, tf.where(largest < 1e-18, 2.0**64, 1.0))
    start = low * factor
    scale = tf.math.divide_no_nan(float(BUCKETS), high * factor - start)
    rows = [len(group.places) for group in groups]
    of_groups = (tf.split(part[:, None], rows) for part in (factor, start, scale))
    tables = []
    for (places, x, lacking), f, s, c in zip(groups, *of_groups, strict=True):
        # From 1; the largest entry's is BUCKETS + 1, that of NaN and infinity 0.
        bucket = tf.floor((x * f - s) * c) + 1.0
        bucket = tf.where(tf.math.is_finite(x), bucket, 0.0)
        padding = np.zeros([len(places), BUCKETS + 2], np.int32)
        padding[:, 0] = lacking
        tables.append(kernels.bincounts(bucket, BUCKETS + 2) - padding)
    table = tf.concat(tables, 0)
    last = table[:, BUCKETS : BUCKETS + 1] + table[:, BUCKETS + 1 :]
    fields = tf.concat([table[:, 1:BUCKETS], last], 1), low, high, table[:, 0]
    return tuple(compiled.in_order(groups, one) for one in fields)


def _count(shares: Sequence[tf.Tensor]) -> tf.Tensor:
    """Of tensors [n] with entries from 0 to 1, how many are in each bucket: int32 [T, BUCKETS].

    Whole numbers have the same sum in any order, so this repeats on a GPU too. (As measured on one,
    tf.histogram_fixed_width loses entries there: some of the smallest, or of the largest.)
    """
    places = []
    for row, share in enumerate(shares):
        place = tf.cast(tf.floor(share * BUCKETS), tf.int32)
        places.append(tf.clip_by_value(place, 0, BUCKETS - 1) + row * BUCKETS)
    whole = tf.concat(places, 0)
    table = tf.math.unsorted_segment_sum(tf.ones_like(whole), whole, len(places) * BUCKETS)
    return tf.reshape(table, [len(places), BUCKETS])


def _careful(x: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """One tensor with NaN, infinity, or a range that float32 cannot divide."""
    finite = tf.boolean_mask(x, tf.math.is_finite(x))
    some = tf.size(finite) > 0
    low = tf.where(some, tf.reduce_min(finite), 0.0)
    high = tf.where(some, tf.reduce_max(finite), 0.0)
    start, width = tf.cast(low, tf.float64), tf.cast(high, tf.float64) - tf.cast(low, tf.float64)
    scaled = (tf.cast(finite, tf.float64) - start) / tf.where(width > 0, width, 1.0)
    return _count([scaled])[0], low, high, tf.size(x) - tf.size(finite)
