"""The bytes of one step's summary: laid out once, the numbers of many steps put in by NumPy.

On the wire a histogram is a tensor [30, 3] of rows (left edge, right edge, count): float32, which
holds both ends exactly as they were and counts up to 2^24; float64 for tensors larger than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram import metadata as histogram_metadata
from tensorboard.plugins.scalar import metadata as scalar_metadata

_EXACT_IN_FLOAT32 = 2**24


class Layout:
    """The bytes of one step's Summary, and where in them the numbers stand."""

    ORDER = ("scalars", "counts", "low", "high")  # of the arguments of `summaries`

    def __init__(self, scalars: Sequence[str], tags: Sequence[str], sizes: Sequence[int]) -> None:
        summary = Summary()
        parts = [
            self._add(summary, tag, np.float32, [], scalar_metadata.create_summary_metadata("", ""))
            for tag in scalars
        ]
        for tag, size in zip(tags, sizes, strict=True):
            dtype: type = np.float32 if size <= _EXACT_IN_FLOAT32 else np.float64
            metadata = histogram_metadata.create_summary_metadata(None, None)
            parts.append(self._add(summary, tag, dtype, [30, 3], metadata))
        self._bytes = summary.SerializeToString()
        places, end = [], 0
        for marker, dtype in parts:
            start = self._bytes.index(marker, end)
            end = start + len(marker)
            places.append((slice(start, end), dtype))
        self._scalars, self._histograms = places[: len(scalars)], places[len(scalars) :]

    def _add(
        self, summary: Summary, tag: str, dtype: type, shape: Sequence[int], metadata: Any
    ) -> tuple[bytes, type]:
        """Appends one value; returns what stands there for its numbers, and their dtype."""
        marker = b"\xa5" * (int(np.prod(shape)) * np.dtype(dtype).itemsize)  # in no text
        value = summary.value.add(tag=tag, metadata=metadata)
        value.tensor.dtype = tf.as_dtype(dtype).as_datatype_enum
        for size in shape:
            value.tensor.tensor_shape.dim.add().size = size
        value.tensor.tensor_content = marker
        return marker, dtype

    def summaries(
        self,
        scalars: np.ndarray,
        counts: np.ndarray | None = None,
        low: np.ndarray | None = None,
        high: np.ndarray | None = None,
    ) -> list[bytes]:
        """One serialized Summary per step.

        Args:
          scalars: [steps, scalars].
          counts: [steps, tags, 30].
          low, high: [steps, tags].
        """
        steps = len(scalars)
        block = np.empty((steps, len(self._bytes)), np.uint8)
        block[:] = np.frombuffer(self._bytes, np.uint8)
        for i, (place, dtype) in enumerate(self._scalars):
            block[:, place] = np.ascontiguousarray(scalars[:, i, None], dtype).view(np.uint8)
        if self._histograms:
            assert counts is not None and low is not None and high is not None
            rows = _rows(counts, low, high)
            rows = rows.reshape(steps, len(self._histograms), rows.shape[-2] * 3)
            for i, (place, dtype) in enumerate(self._histograms):
                block[:, place] = np.ascontiguousarray(rows[:, i], dtype).view(np.uint8)
        return [row.tobytes() for row in block]


def _rows(counts: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(left, right, count) of every bucket, float64 [..., 30, 3].

    As TensorBoard's own histograms, a tensor of one value has all edges at it, and its count in
    the last bucket.
    """
    buckets = counts.shape[-1]
    low, high = low[..., None].astype(np.float64), high[..., None].astype(np.float64)
    edges = low + (high - low) * np.linspace(0, 1, buckets + 1)
    edges[..., -1:] = high
    single = low == high
    last = np.arange(buckets) == buckets - 1
    counts = np.where(single, counts.sum(-1, keepdims=True) * last, counts)
    return np.stack([edges[..., :-1], edges[..., 1:], counts], axis=-1)
