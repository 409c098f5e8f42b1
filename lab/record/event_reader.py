"""TensorBoard's event files -> NumPy arrays, without TensorFlow; also while they are written."""

from __future__ import annotations

import bisect
import collections
import os
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from lab.record.directory import event_files

_DTYPES = {1: "<f4", 2: "<f8"}  # by TensorFlow's number
_LONG = 2**14  # bytes
_AT_ONCE = 2**24  # bytes whose checksums are computed side by side


class Series(NamedTuple):
    """What was recorded under one tag, each step once, in order.

    Attributes:
      steps: int64 [n].
      values: of a scalar float64 [n]; of a histogram float64 [n, 30, 3], rows of (left edge, right
        edge, count).
    """

    steps: np.ndarray
    values: np.ndarray


class EventReader:
    """The series in the event files of a run, of some kinds: "scalars", "histograms".

    A file is read up to the first record that is damaged or not yet whole; `update` goes on there.

    Attributes:
      starts: by file, in the order in which TensorBoard reads them, the first step in it. A run
        that is resumed begins another file.
      epoch: how often the files had to be read from the beginning again: a run that is resumed cuts
        what lies after its checkpoint, and one that is overwritten deletes all.
    """

    def __init__(self, run: str, *kinds: str) -> None:
        self._run, self._wanted = run, kinds
        self.epoch = -1
        self._forget()

    def _forget(self) -> None:
        self.epoch += 1
        self.starts: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        self._kinds: dict[str, str] = {}  # a tag's metadata is in its first event
        self._dtypes: dict[str, str] = {}
        self._steps: dict[str, list[int]] = collections.defaultdict(list)
        self._contents: dict[str, list[bytes]] = collections.defaultdict(list)

    def update(self) -> bool:
        """Reads what has been written since; returns whether that was anything."""
        from tensorboard.compat.proto.event_pb2 import Event

        paths = event_files(self._run)
        if any(p not in paths or os.path.getsize(p) < end for p, end in self._ends.items()):
            self._forget()
        before = dict(self._ends)
        for path in paths:
            with open(path, "rb") as file:
                file.seek(self._ends.get(path, 0))
                content = file.read()
            spans = _whole(content)
            for start, length in spans:
                event = Event.FromString(content[start : start + length])
                if event.summary.value:
                    self.starts.setdefault(path, event.step)
                    self._add(event)
            read = spans[-1][0] + spans[-1][1] + 4 if spans else 0
            self._ends[path] = self._ends.get(path, 0) + read
        return self._ends != before

    def _add(self, event: Any) -> None:
        from tensorboard.util import tensor_util

        for value in event.summary.value:
            tag = value.tag
            if tag not in self._kinds:
                self._kinds[tag] = value.metadata.plugin_data.plugin_name
            if self._kinds[tag] in self._wanted:
                tensor = value.tensor
                content = tensor.tensor_content
                if not content or _DTYPES.get(tensor.dtype) != self._dtypes.get(tag):
                    number = tensor_util.make_ndarray(tensor)
                    dtype = self._dtypes.setdefault(tag, number.dtype.newbyteorder("<").str)
                    content = number.astype(dtype).tobytes()
                self._steps[tag].append(event.step)
                self._contents[tag].append(content)

    def tags(self, kind: str) -> list[str]:
        """The tags of a kind in the order of their first values."""
        return [tag for tag in self._contents if self._kinds[tag] == kind]

    def series(self, kind: str, have: Mapping[str, int] | None = None) -> dict[str, Series]:
        """The series of a kind by tag; of a step that is there twice, the last one counts.

        Args:
          have: by tag, the last step to leave out.
        """
        shape = (-1,) if kind == "scalars" else (-1, 30, 3)
        found = {}
        for tag in self.tags(kind):
            first = bisect.bisect_right(self._steps[tag], have[tag]) if have and tag in have else 0
            content = b"".join(self._contents[tag][first:])
            values = np.frombuffer(content, self._dtypes[tag]).astype(np.float64)
            steps = np.array(self._steps[tag][first:], np.int64)
            rising, last = np.unique(steps[::-1], return_index=True)
            found[tag] = Series(rising, values.reshape(shape)[::-1][last])
        return found


def read(run: str, kind: str) -> dict[str, Series]:
    """All series of a kind, "scalars" or "histograms", in the event files of a run, by tag; see
    EventReader."""
    reader = EventReader(run, kind)
    reader.update()
    return reader.series(kind)


def records(path: str) -> Iterator[bytes]:
    """The records of a file of TFRecords, up to the first that is damaged or not yet whole."""
    with open(path, "rb") as file:
        content = file.read()
    for start, length in _whole(content):
        yield content[start : start + length]


def _whole(content: bytes) -> list[tuple[int, int]]:
    """Where the data of the records are, and their lengths, up to the first that is damaged or not
    yet whole.

    A record is its length (uint64), the length's checksum, the data, and the data's checksum.
    """
    spans, place = [], 0
    while place + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        if place + 16 + length > len(content):
            break
        spans.append((place + 12, length))
        place += 16 + length
    starts, lengths = np.array(spans, np.int64).reshape(-1, 2).T
    array = np.frombuffer(content, np.uint8)
    whole = _match(array, starts - 12, 8)
    for length in np.unique(lengths).tolist():
        alike = lengths == length
        if length < _LONG or alike.sum() > 1:  # a long single one is the graph
            whole[alike] &= _match(array, starts[alike], length)
    return spans if whole.all() else spans[: int(whole.argmin())]


def _match(content: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """Whether `length` bytes from each start have the checksum that follows them: bool [starts].

    It is a CRC-32C, masked as TFRecords have it; all starts are computed side by side.
    """
    if len(starts) > (most := max(1, _AT_ONCE // length)):
        cuts = range(0, len(starts), most)
        return np.concatenate([_match(content, starts[i : i + most], length) for i in cuts])
    rows = content[starts[:, None] + np.arange(length + 4)]
    crc = np.full(len(starts), 0xFFFFFFFF, np.uint32)
    for byte in np.ascontiguousarray(rows[:, :-4].T):
        crc = _REMAINDERS.take(crc.astype(np.uint8) ^ byte) ^ (crc >> 8)
    crc = ~crc
    masked = ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)
    return masked == np.ascontiguousarray(rows[:, -4:]).view("<u4")[:, 0]


def _remainders() -> np.ndarray:
    """Of CRC-32C, by byte: uint32 [256]. Its polynomial is 0x82F63B78 with its bits reversed."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1)
    return table.astype(np.uint32)


_REMAINDERS = _remainders()
