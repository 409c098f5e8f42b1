"""The bytes of one step's summary: laid out once, the numbers of many steps put in by NumPy.

On the wire a histogram is a tensor [30, 3] of rows (left edge, right edge, count): float32, which
holds both ends exactly as they were and counts up to 2^24; float64 for tensors larger than that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram import metadata as histogram_metadata
from tensorboard.plugins.scalar import metadata as scalar_metadata

_EXACT_IN_FLOAT32 = 2**24
_IN_CACHE = 1 << 21  # bytes of summaries that are laid out together
_MARKER = b"\xa5"  # in no text
AROUND = 16 + 9 + 3 + 4  # bytes of a record, and in it of time, step, and the summary's length


class Layout:
    """The bytes of one step's Summary, and where in them the numbers are.

    Args:
      scalars: tags.
      tags: of the histograms.
      sizes: number of entries of each of their tensors.
      described: whether each value has its metadata, which TensorBoard takes from the first one.

    Attributes:
      size: bytes of a step in the event file.
    """

    def __init__(
        self,
        scalars: Sequence[str],
        tags: Sequence[str] = (),
        sizes: Sequence[int] = (),
        described: bool = True,
    ) -> None:
        summary, scalar, histogram = Summary(), None, None
        if described:
            scalar = scalar_metadata.create_summary_metadata("", "")
            histogram = histogram_metadata.create_summary_metadata(None, None)
        dtypes = [_add(summary, tag, np.dtype("<f4"), scalar) for tag in scalars]
        for tag, size in zip(tags, sizes, strict=True):
            numbers = "<f4" if size <= _EXACT_IN_FLOAT32 else "<f8"
            dtypes.append(_add(summary, tag, np.dtype((numbers, (30, 3))), histogram))
        self._bytes = summary.SerializeToString()
        self.size = len(self._bytes) + AROUND
        places, end = [], 0
        for dtype in dtypes:
            places.append(self._bytes.index(_MARKER * dtype.itemsize, end))
            end = places[-1] + dtype.itemsize
        names = list(map(str, range(len(dtypes))))
        size = len(self._bytes)
        step: Any = {"names": names, "formats": dtypes, "offsets": places, "itemsize": size}
        self._step = np.dtype(step)

    def summaries(self, recorded: Mapping[str, np.ndarray]) -> list[bytes]:
        """One serialized Summary per step.

        Args:
          recorded: `scalars` [steps, scalars]; of histograms `counts` [steps, tags, 30], `low`
            and `high` [steps, tags].
        """
        steps = len(recorded["scalars"])
        at_once = max(1, _IN_CACHE // len(self._bytes))
        summaries = []
        for start in range(0, steps, at_once):
            some = {name: value[start : start + at_once] for name, value in recorded.items()}
            summaries += self._some(some)
        return summaries

    def _some(self, recorded: Mapping[str, np.ndarray]) -> list[bytes]:
        scalars = recorded["scalars"]
        content = np.tile(np.frombuffer(self._bytes, np.uint8), (len(scalars), 1))
        steps = content.view(self._step)[:, 0]
        columns = [*scalars.T]
        if len(self._step) > len(columns):
            rows = _rows(recorded["counts"], recorded["low"], recorded["high"])
            columns += [*rows.swapaxes(0, 1)]
        for name, column in zip(self._step.names, columns, strict=True):
            steps[name] = column
        return [row.tobytes() for row in content]


def _add(summary: Summary, tag: str, numbers: np.dtype, metadata: Any) -> np.dtype:
    """Adds a value, with markers in the place of its numbers; returns the dtype of all of them."""
    value = summary.value.add(tag=tag, metadata=metadata)
    value.tensor.dtype = tf.as_dtype(numbers.base).as_datatype_enum
    for size in numbers.shape:
        value.tensor.tensor_shape.dim.add().size = size
    value.tensor.tensor_content = _MARKER * numbers.itemsize
    return numbers


def _rows(counts: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(left, right, count) of every bucket, float64 [..., 30, 3].

    As TensorBoard's own histograms, a tensor of one value has all edges at it, and its count in
    the last bucket.
    """
    buckets = counts.shape[-1]
    low, high = low[..., None].astype(np.float64), high[..., None].astype(np.float64)
    edges = low + (high - low) * np.linspace(0, 1, buckets + 1)
    edges[..., -1:] = high
    last = np.arange(buckets) == buckets - 1
    counts = np.where(low == high, counts.sum(-1, keepdims=True) * last, counts)
    return np.stack([edges[..., :-1], edges[..., 1:], counts], axis=-1)
