"""Reads event files back with TensorBoard's own loader, and judges histograms with NumPy."""

from __future__ import annotations

import dataclasses
import glob
import os
from typing import Any

import numpy as np
from tensorboard.backend.event_processing import event_file_loader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.util import tensor_util


@dataclasses.dataclass
class Series:
    """All that a run's event files hold of one tag: steps, values [steps, ...], metadata."""

    steps: list[int]
    values: np.ndarray
    metadata: Any

    @property
    def plugin(self) -> str:
        return self.metadata.plugin_data.plugin_name


def files(directory: str | os.PathLike) -> list[str]:
    """The event files right in a directory, in the order in which TensorBoard reads them."""
    return sorted(glob.glob(os.path.join(glob.escape(str(directory)), "*tfevents*")))


def events(directory: str | os.PathLike) -> list[Event]:
    """Every event of a directory."""
    return [
        event
        for path in files(directory)
        for event in event_file_loader.EventFileLoader(path).Load()
    ]


def read(directory: str | os.PathLike) -> dict[str, Series]:
    """Every tag of a directory. TensorBoard writes a tag's metadata into its first event only."""
    series: dict[str, Series] = {}
    values: dict[str, list[np.ndarray]] = {}
    for event in events(directory):
        for value in event.summary.value:
            one = series.setdefault(value.tag, Series([], np.empty(0), value.metadata))
            one.steps.append(event.step)
            values.setdefault(value.tag, []).append(tensor_util.make_ndarray(value.tensor))
    for tag, one in series.items():
        one.values = np.stack(values[tag])
    return series


def histograms(series: dict[str, Series]) -> dict[str, Series]:
    """Those of the series that TensorBoard shows as histograms."""
    return {tag: one for tag, one in series.items() if one.plugin == "histograms"}


def assert_histogram(rows: np.ndarray, tensor: np.ndarray) -> None:
    """Asserts that 30 rows (left, right, count) are the histogram of a float32 tensor.

    Outer edges bit for bit, inner ones equally spaced, and each count that of NumPy's comparisons:
    only entries within rounding of an edge may stand on either side of it.
    """
    x = np.sort(np.asarray(tensor, np.float64).ravel())
    left, right, counts = np.asarray(rows, np.float64).T
    assert rows.shape == (30, 3)
    assert (left[0], right[-1]) == (x[0], x[-1])
    rounding = 4 * np.finfo(np.float32).eps * max(-x[0], x[-1])
    np.testing.assert_allclose(left, np.linspace(x[0], x[-1], 31)[:-1], 0, rounding)
    np.testing.assert_array_equal(left[1:], right[:-1])
    assert (counts >= 0).all()
    assert (counts == np.round(counts)).all()
    assert counts.sum() == x.size
    if x[0] == x[-1]:
        # What tf.summary.histogram does, too.
        assert counts[-1] == x.size
        return
    below = np.cumsum(counts)[:-1]
    assert (below >= np.searchsorted(x, right[:-1] - rounding, "left")).all()
    assert (below <= np.searchsorted(x, right[:-1] + rounding, "right")).all()
