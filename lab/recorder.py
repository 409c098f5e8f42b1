"""What the loop hands over -> TensorBoard's event files, through tf.summary.

Each step is one event that holds all its scalars and histograms. Its bytes are the same from step
to step but for the numbers, so they are laid out once and the numbers of a whole loop are put in
by NumPy. A thread of its own does that and writes, while the next loop already runs.

On the wire a histogram is a tensor [30, 3] of rows (left edge, right edge, count): float32, which
holds both ends exactly as they were and counts up to 2^24; float64 for tensors larger than that.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram import metadata as histogram_metadata
from tensorboard.plugins.hparams import api as hparams_api
from tensorboard.plugins.hparams import summary as hparams_summary
from tensorboard.plugins.scalar import metadata as scalar_metadata

from lab.errors import LabError
from lab.rundir import event_files

_EXACT_IN_FLOAT32 = 2**24


class Recorder:
    """Writes one run's events. Every call but `flush` and `close` returns before it is written.

    Args:
      directory: of the event file.
      scalars: tags of the scalars of a step.
      tags: of the histograms of a step.
      sizes: number of entries of each of them.

    Attributes:
      nonfinite: by tag, the first step whose tensor held NaN or infinity, and how many. Such
        entries are in no bucket; the scalar `TAG/nonfinite` counts them at each step with any.

    Raises (every method): LabError where the events cannot be written.
    """

    def __init__(
        self, directory: str, scalars: Sequence[str], tags: Sequence[str], sizes: Sequence[int]
    ) -> None:
        self.nonfinite: dict[str, dict[str, int]] = {}
        _wait_for_a_later_name(directory)
        self._tags = list(tags)
        self._plain = _Layout(scalars, [], [])
        self._full = _Layout(scalars, tags, sizes)
        try:
            self._writer = tf.summary.create_file_writer(directory)
        except tf.errors.OpError as error:
            raise _unwritable(error) from error
        self._path = max(event_files(directory), key=os.path.getmtime)
        # One thread, so events come in the order of the calls.
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "recorder")
        self._pending: list[concurrent.futures.Future] = []

        @tf.function(
            input_signature=[tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.int64)]
        )
        def write(events: tf.Tensor, steps: tf.Tensor) -> None:
            for i in tf.range(tf.shape(steps)[0]):
                tf.summary.experimental.write_raw_pb(events[i], step=steps[i])

        # A function that is traced without a default writer never writes anything.
        with self._writer.as_default():
            self._write = write.get_concrete_function()

    def steps(self, first_step: int, recorded: Mapping[str, tf.Tensor], every: int = 1) -> None:
        """Records the steps from `first_step` on, as TrainLoop.run returned them.

        Histograms are taken of the steps that `every` divides.
        """
        self._submit(self._write_steps, first_step, recorded, every)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records scalars of one step, as float32: what is beyond it is infinite."""

        def write() -> None:
            with self._writer.as_default(), np.errstate(over="ignore"):
                for tag, value in values.items():
                    tf.summary.scalar(tag, np.float32(value), step=step)

        self._submit(write)

    def start(
        self,
        graph: tf.Graph,
        config: Mapping[str, Any],
        hparams: Mapping[str, int | float | str],
        metric: str,
        name: str,
    ) -> None:
        """Records what is written once: the graph of a step, the config as text, and for the
        HParams page the hyperparameters that it shows, its metric and the name of the trial."""

        def write() -> None:
            with self._writer.as_default(), tf.init_scope():
                tf.summary.graph(graph)
                rows = "".join(
                    f"| {key} | {json.dumps(value)} |\n" for key, value in config.items()
                )
                tf.summary.text("config", "| field | value |\n|---|---|\n" + rows, step=0)
                hparams_api.hparams_config(
                    hparams=[hparams_api.HParam(key) for key in hparams],
                    metrics=[hparams_api.Metric(metric)],
                )
                hparams_api.hparams(dict(hparams), trial_id=name)

        self._submit(write)

    def finish(self, succeeded: bool) -> None:
        """Records how the run ended, for the HParams page."""
        status = "STATUS_SUCCESS" if succeeded else "STATUS_FAILURE"
        summary = hparams_summary.session_end_pb(hparams_summary.api_pb2.Status.Value(status))
        self._submit(self._write_events, [summary.SerializeToString()], np.zeros(1, np.int64))

    def flush(self) -> None:
        """Returns when all that was recorded so far is in the file."""
        self._submit(self._writer.flush)
        self._wait(0)
        if not os.path.exists(self._path):
            raise LabError(f"{self._path} was deleted while it was written: run again")

    def close(self) -> None:
        """Writes what is left, and closes the file."""
        try:
            self.flush()
        finally:
            self._thread.shutdown()
            self._writer.close()

    def _submit(self, call: Callable[..., Any], *arguments: Any) -> None:
        # A loop that is still being written when the next but one arrives holds that one up:
        # memory stays bounded, and an error is noticed soon.
        self._wait(2)
        self._pending.append(self._thread.submit(call, *arguments))

    def _wait(self, leave: int) -> None:
        while len(self._pending) > leave:
            try:
                self._pending.pop(0).result()
            except tf.errors.OpError as error:
                raise _unwritable(error) from error

    def _write_events(self, events: Sequence[bytes], steps: np.ndarray) -> None:
        self._write(tf.constant(events, tf.string), tf.constant(steps, tf.int64))

    def _write_steps(self, first: int, recorded: Mapping[str, tf.Tensor], every: int) -> None:
        values = {name: tensor.numpy() for name, tensor in recorded.items()}
        steps = np.arange(first, first + len(values["scalars"]))
        if not self._tags or every > 1:
            events = self._plain.events(values["scalars"])
        if self._tags:
            chosen = np.flatnonzero(steps % every == 0)
            full = self._full.events(*(values[name][chosen] for name in _Layout.ORDER))
            if every == 1:
                events = full
            else:
                for i, event in zip(chosen, full, strict=True):
                    events[i] = event
            self._note_nonfinite(steps[chosen], values["nonfinite"][chosen])
        self._write_events(events, steps)

    def _note_nonfinite(self, steps: np.ndarray, counts: np.ndarray) -> None:
        for row, column in zip(*np.nonzero(counts), strict=True):
            tag, step, count = self._tags[column], int(steps[row]), int(counts[row, column])
            self.nonfinite.setdefault(tag, {"first_step": step, "count": count})
            with self._writer.as_default():
                tf.summary.scalar(f"{tag}/nonfinite", count, step=step)


def _unwritable(error: tf.errors.OpError) -> LabError:
    reason = " ".join(error.message.split())
    return LabError(
        f"the event file cannot be written ({reason}): make room or choose another --logdir"
    )


class NullRecorder:
    """Takes all that a Recorder takes, and records nothing."""

    def __init__(self) -> None:
        self.nonfinite: dict[str, dict[str, int]] = {}

    def _nothing(self, *_: Any, **__: Any) -> None: ...

    steps = scalars = start = finish = flush = close = _nothing


def _wait_for_a_later_name(directory: str) -> None:
    """TensorBoard reads the event files of a run by their names, which begin with the second that
    they were made in: a run that goes on must not begin its next file within the same one."""
    seconds = [int(p.rsplit(".tfevents.")[1].split(".")[0]) for p in event_files(directory)]
    while seconds and time.time() < max(seconds) + 1:
        time.sleep(0.05)


class _Layout:
    """The bytes of one step's event, and where in them the numbers stand."""

    ORDER = ("scalars", "counts", "low", "high")  # of the arguments of `events`

    def __init__(self, scalars: Sequence[str], tags: Sequence[str], sizes: Sequence[int]) -> None:
        self._bytes = b""
        self._scalars = [
            self._add(tag, np.float32, [], scalar_metadata.create_summary_metadata("", ""))
            for tag in scalars
        ]
        self._histograms = [
            self._add(
                tag,
                np.float32 if size <= _EXACT_IN_FLOAT32 else np.float64,
                [30, 3],
                histogram_metadata.create_summary_metadata(None, None),
            )
            for tag, size in zip(tags, sizes, strict=True)
        ]

    def _add(self, tag: str, dtype: type, shape: Sequence[int], metadata: Any) -> tuple:
        """Appends one value; returns where its numbers lie, their dtype and shape."""
        marker = b"\xa5" * (int(np.prod(shape)) * np.dtype(dtype).itemsize)
        value = Summary.Value(tag=tag)
        value.metadata.CopyFrom(metadata)
        value.tensor.dtype = tf.as_dtype(dtype).as_datatype_enum
        for size in shape:
            value.tensor.tensor_shape.dim.add().size = size
        value.tensor.tensor_content = marker
        piece = Summary(value=[value]).SerializeToString()
        start = len(self._bytes) + piece.index(marker)
        self._bytes += piece
        return slice(start, start + len(marker)), dtype

    def events(
        self,
        scalars: np.ndarray,
        counts: np.ndarray | None = None,
        low: np.ndarray | None = None,
        high: np.ndarray | None = None,
    ) -> list[bytes]:
        """One serialized Summary a step.

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
