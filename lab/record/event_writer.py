"""What the training loop returns -> TensorBoard's event files, through tf.summary.

Each step is one event with all its scalars and histograms. A thread of its own lays out the bytes
of a loop's events, and hands them to tf.summary in one graph call while the next loop runs: one
call per step would take three times as long.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import summary as hparams_summary
from tensorboard.plugins.hparams import summary_v2 as hparams_api  # `api` imports Keras
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb

from lab.errors import LabError
from lab.record.directory import event_files
from lab.record.event_bytes import AROUND, Layout
from lab.record.event_reader import spans

_QUEUE = 10  # events that the writer holds back at most: parsed, they take several times the space


class Recorder:
    """Writes one run's events. All calls but `flush` and `close` return before the write.

    Args:
      directory: of the event file.
      scalars: tags of the scalars of a step.
      tags, sizes: of the histograms of a step, and the number of entries of each tensor.
      writer: takes the events; a file writer in `directory` unless given.

    Attributes:
      size: about how many bytes the event files there take, with what `start` was given.
      nonfinite: by tag, the first step whose tensor held NaN or infinity, and how many. Such
        entries are in no bucket; the scalar `TAG/nonfinite` counts them at each step with any.

    Raises (every method): LabError where the events cannot be written.
    """

    def __init__(
        self,
        directory: str,
        scalars: Sequence[str],
        tags: Sequence[str],
        sizes: Sequence[int],
        writer: tf.summary.SummaryWriter | None = None,
    ) -> None:
        self.nonfinite: dict[str, dict[str, int]] = {}
        _wait_for_a_later_name(directory)
        self._tags = tags
        # Of a step without histograms and of one with them, the first of each in this file and all
        # later ones.
        self._plain = [Layout(scalars, described=first) for first in (True, False)]
        self._full = [Layout(scalars, tags, sizes, first) for first in (True, False)]
        with _readable_errors(), tf.device("/cpu:0"):
            tf.io.gfile.makedirs(directory)
            self._writer = writer or tf.summary.create_file_writer(
                directory, max_queue=_QUEUE, filename_suffix=".v2"
            )
        self._path = "" if writer else event_files(directory)[-1]
        self.size = sum(map(os.path.getsize, event_files(directory)))
        self._missing, self._end = 1, 0  # the first record has the version of the format
        self._write = tf.function(
            self._write_each,
            input_signature=[tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.int64)],
            autograph=False,
        )
        # One thread, so events come in the order of the calls.
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "recorder")
        self._pending: list[concurrent.futures.Future] = []

    def steps(self, first_step: int, recorded: Mapping[str, tf.Tensor], every: int = 1) -> None:
        """Records the steps from `first_step` on, as TrainLoop.run returned them.

        Histograms are taken of the steps that `every` divides. Where `tf.summary.record_if` says
        no in the calling thread, nothing is recorded.
        """
        with self._writer.as_default():
            if tf.summary.should_record_summaries():
                self._submit(self._write_steps, first_step, recorded, every)

    def bytes_of(self, steps: int, every: int = 1) -> int:
        """About how much so many steps take in the event file, whose histograms are taken of the
        steps that `every` divides."""
        full = steps // every
        return full * self._full[-1].size + (steps - full) * self._plain[-1].size

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records scalars of one step, as float32: what is beyond it is infinite."""
        with np.errstate(over="ignore"):
            summaries = [scalar_pb(tag, np.float32(value)) for tag, value in values.items()]
        self._submit(self._write_summaries, summaries, step)

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
        rows = "".join(f"| {key} | {json.dumps(value)} |\n" for key, value in config.items())
        keys, metrics = map(hparams_api.HParam, hparams), [hparams_api.Metric(metric)]
        summaries = [
            text_pb("config", "| field | value |\n|---|---|\n" + rows),
            hparams_api.hparams_config_pb(list(keys), metrics),
            hparams_api.hparams_pb(dict(hparams), trial_id=name),
        ]
        graph_def = graph.as_graph_def(add_shapes=True)
        self.size += sum(one.ByteSize() + AROUND for one in (graph_def, *summaries))
        self._submit(self._write_graph, graph_def)
        self._submit(self._write_summaries, summaries)

    def finish(self, succeeded: bool) -> None:
        """Records how the run ended, for the HParams page."""
        status = "STATUS_SUCCESS" if succeeded else "STATUS_FAILURE"
        summary = hparams_summary.session_end_pb(hparams_summary.api_pb2.Status.Value(status))
        self._submit(self._write_summaries, [summary])

    def flush(self) -> None:
        """Returns once everything recorded so far is in the file.

        The records in it are counted: TensorFlow's writer loses some without an error, where there
        is no room for what its buffer cannot hold.
        """
        self._submit(self._writer.flush)
        self._wait(0)
        if self._path and not os.path.exists(self._path):
            raise LabError(f"{self._path} was deleted while it was written: run again")
        if self._path:
            with open(self._path, "rb") as file:
                file.seek(self._end)
                found = spans(file.read())
            self._missing -= len(found)
            self._end += sum(length + 16 for _, length in found)
            if self._missing:
                raise LabError(
                    f"{self._path} lacks {self._missing} of its events (No space left, or File too "
                    "large): free some space or choose another --logdir"
                )

    def close(self) -> None:
        """Writes what remains, and closes the file."""
        try:
            self.flush()
        finally:
            self._thread.shutdown()
            with _readable_errors():
                self._writer.close()

    def _submit(self, call: Callable[..., Any], *arguments: Any) -> None:
        # A loop that is still being written when the next but one arrives holds that one up:
        # memory stays bounded, and an error is noticed soon.
        self._wait(2)
        self._pending.append(self._thread.submit(self._on_cpu, call, *arguments))

    def _on_cpu(self, call: Callable[..., Any], *arguments: Any) -> None:
        # Where there is a GPU, TensorFlow makes constants there by an operation, and one of this
        # thread's came out with the type of one that another thread made at the same time.
        with tf.device("/cpu:0"):
            call(*arguments)

    def _wait(self, leave: int) -> None:
        while len(self._pending) > leave:
            with _readable_errors():
                self._pending.pop(0).result()

    def _write_each(self, summaries: tf.Tensor, steps: tf.Tensor) -> None:
        def write(i: tf.Tensor) -> tuple[tf.Tensor]:
            tf.summary.experimental.write_raw_pb(summaries[i], step=steps[i])
            return (i + 1,)

        # The context ends with a flush: it is around the loop, not in it.
        with tf.device("/cpu:0"), self._writer.as_default():
            start = (tf.constant(0),)
            tf.while_loop(lambda i: i < tf.size(steps), write, start, parallel_iterations=1)

    def _write_graph(self, graph_def: Any) -> None:
        self._missing += 1
        with self._writer.as_default():
            tf.summary.graph(graph_def)

    def _write_summaries(self, summaries: Sequence[Any], step: int = 0) -> None:
        content = [summary.SerializeToString() for summary in summaries]
        self._write_all(content, np.full(len(content), step))

    def _write_steps(self, first: int, recorded: Mapping[str, tf.Tensor], every: int) -> None:
        values = {name: tensor.numpy() for name, tensor in recorded.items()}
        steps = np.arange(first, first + len(values["scalars"]))
        events: list[list[bytes]] = [[] for _ in steps]  # of each step
        full = steps % every == 0
        for chosen, layouts in ((~full, self._plain), (full, self._full)):
            head, rest = np.split(np.flatnonzero(chosen), [len(layouts) - 1])
            for layout, rows in ((layouts[0], head), (layouts[-1], rest)):
                own = layout.summaries({name: value[rows] for name, value in values.items()})
                for row, summary in zip(rows, own, strict=True):
                    events[row].append(summary)
            del layouts[: len(head)]
        for row, column in np.argwhere(values["nonfinite"]) if self._tags else ():
            tag, count = self._tags[column], int(values["nonfinite"][row, column])
            self.nonfinite.setdefault(tag, {"first_step": int(steps[row]), "count": count})
            events[row].append(scalar_pb(f"{tag}/nonfinite", count).SerializeToString())
        content = [summary for own in events for summary in own]
        numbers = np.repeat(steps, [len(own) for own in events])
        self._write_all(content, numbers)

    def _write_all(self, content: list[bytes], steps: np.ndarray) -> None:
        self._missing += len(content)
        self._write(tf.constant(content, tf.string), tf.constant(steps, tf.int64))


@contextlib.contextmanager
def _readable_errors() -> Iterator[None]:
    """Raises errors of TensorFlow's as a LabError."""
    try:
        yield
    except tf.errors.OpError as error:
        raise LabError(
            f"the event file cannot be written ({' '.join(error.message.split())}): free some "
            "space or choose another --logdir"
        ) from error


class NullRecorder:
    """Accepts everything that a Recorder accepts, and records nothing."""

    def __init__(self) -> None:
        self.nonfinite: dict[str, dict[str, int]] = {}
        self.size = 0

    def _nothing(self, *_: Any, **__: Any) -> None: ...

    def bytes_of(self, *_: Any) -> int:
        return 0

    steps = scalars = start = finish = flush = close = _nothing


def _wait_for_a_later_name(directory: str) -> None:
    """TensorBoard reads the event files of a run by their names, which begin with the second that
    they were made in: a run that is resumed must not begin its next file within the same one."""
    seconds = [int(p.rsplit(".tfevents.")[1].split(".")[0]) for p in event_files(directory)]
    while seconds and time.time() < max(seconds) + 1:
        time.sleep(0.05)
