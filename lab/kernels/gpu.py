"""What xla.py has for a CPU, for a GPU: there XLA reduces in parallel, and plain operations do.

A table that is added to entry by entry is slow there, since additions to the same place take turns.
So each entry is compared with each bucket, and the matches are added up as whole numbers, whose
order does not matter. All functions belong in a function that is compiled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from lab.kernels.xla import Group


def smallest(groups: Sequence[Group]) -> tf.Tensor:
    """As xla.smallest: float32 [T]."""
    rows = (tf.where(group.x > -np.inf, group.x, np.inf) for group in groups)
    return tf.concat([tf.reduce_min(x, axis=1) for x in rows], 0)


def largest(groups: Sequence[Group]) -> tf.Tensor:
    """As xla.largest: float32 [T]."""
    rows = (tf.where(group.x < np.inf, group.x, -np.inf) for group in groups)
    return tf.concat([tf.reduce_max(x, axis=1) for x in rows], 0)


def bincounts(values: tf.Tensor, size: int) -> tf.Tensor:
    """As xla.bincounts, of any size: int32 [rows, size].

    The comparisons, [rows, size, n], are fused: they are never in memory.
    """
    matches = values[:, None] == tf.range(size, dtype=tf.float32)[:, None]
    return tf.reduce_sum(tf.cast(matches, tf.int32), axis=2)
