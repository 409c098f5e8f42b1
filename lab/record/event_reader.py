"""TensorBoard's event files -> NumPy arrays, without TensorFlow; also while they are written."""

from __future__ import annotations

import bisect
import collections
import itertools
import os
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from lab.errors import LabError
from lab.record.directory import event_files

_DTYPES = {1: "<f4", 2: "<f8"}  # by TensorFlow's number
_LONG = 2**14  # bytes
_AT_ONCE = 2**24  # bytes whose checksums are computed side by side
_LINE = 16  # words of a line of the processor's cache
_FEW = 4  # events of one length that are read one by one


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

    A file is read up to the first record that is damaged or incomplete; `update` continues there.

    Attributes:
      starts: by file, in the order in which TensorBoard reads them, the first step in it of these
        kinds. A run that is resumed begins another file.
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
        """Reads what has been written since; returns whether that was anything.

        Raises:
          LabError: a file cannot be read.
        """
        try:
            return self._update()
        except OSError as error:
            raise LabError(
                f"{error.filename or self._run} cannot be read: {error.strerror}"
            ) from error

    def _update(self) -> bool:
        paths = event_files(self._run)
        if any(p not in paths or os.path.getsize(p) < end for p, end in self._ends.items()):
            self._forget()
        before = dict(self._ends)
        for path in paths:
            with open(path, "rb") as file:
                file.seek(self._ends.get(path, 0))
                content = file.read()
            spans = _whole(content)
            for _, group in itertools.groupby(spans, lambda span: span[1]):
                self._add_all(path, content, list(group))
            read = spans[-1][0] + spans[-1][1] + 4 if spans else 0
            self._ends[path] = self._ends.get(path, 0) + read
        return self._ends != before

    def _add_all(self, path: str, content: bytes, spans: list[tuple[int, int]]) -> None:
        """The events of neighbouring records of one length."""
        from tensorboard.compat.proto.event_pb2 import Event

        (first, length), count = spans[0], len(spans)
        event = Event.FromString(content[first : first + length])
        self._add(path, event)
        if count > _FEW and event.summary.value:
            wide = length + 16  # bytes from one record to the next
            rows = np.frombuffer(content, np.uint8, (count - 1) * wide + length, first)
            rows = np.lib.stride_tricks.as_strided(rows, (count, length), (wide, 1))
            if self._add_alike(event, rows):
                return
        for start, _ in spans[1:]:
            self._add(path, Event.FromString(content[start : start + length]))

    def _add_alike(self, first: Any, rows: np.ndarray) -> bool:
        """The events of all records but the first, uint8 [records, length], if they differ from it
        in nothing but the time, the step and the contents of the tensors: 20 times as fast. Returns
        whether they do so."""
        known = [(_DTYPES.get(v.tensor.dtype) == self._dtypes[v.tag]) for v in first.summary.value
                 if v.tag in self._dtypes]  # fmt: skip
        layout = _layout(first, rows[0].tobytes())
        if layout is None or not all(known):
            return False
        fixed, (start, end), places = layout
        varint = rows[1:, start:end]
        if ((rows[1:] != rows[0]) & fixed).any() or ((varint >= 128) != (varint[0] >= 128)).any():
            return False
        digits = (varint & 127).astype(np.int64) << 7 * np.arange(end - start)
        steps = digits.sum(axis=1).tolist()
        for value, (start, end) in zip(first.summary.value, places, strict=True):
            if self._kinds[value.tag] in self._wanted:
                numbers, wide = rows[1:, start:end].tobytes(), end - start
                cuts = range(0, len(numbers), wide)
                self._steps[value.tag] += steps
                self._contents[value.tag] += [numbers[i : i + wide] for i in cuts]
        return True

    def _add(self, path: str, event: Any) -> None:
        from tensorboard.util import tensor_util

        for value in event.summary.value:
            tag = value.tag
            if tag not in self._kinds:
                self._kinds[tag] = value.metadata.plugin_data.plugin_name
            if self._kinds[tag] in self._wanted:
                self.starts.setdefault(path, event.step)
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
        """The series of a kind by tag; of a step recorded twice, the last one counts.

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


def _layout(
    event: Any, record: bytes
) -> tuple[np.ndarray, tuple[int, int], list[tuple[int, int]]] | None:
    """Which bytes of a record are the same in all that differ in numbers alone, bool [length];
    where its step stands, and the content of each value's tensor. None where that is elsewhere than
    protobuf would write it."""
    if event.SerializeToString() != record or record[:1] != b"\x09" or record[9:10] != b"\x10":
        return None  # fields 1, a double, and 2, a varint
    fixed = np.ones(len(record), bool)
    end = next(i for i in range(10, len(record)) if record[i] < 128) + 1
    fixed[1:9] = fixed[10:end] = False
    blank, full = (type(event).FromString(record) for _ in range(2))
    for one, byte in ((blank, b"\x00"), (full, b"\xff")):
        for value in one.summary.value:
            value.tensor.tensor_content = byte * len(value.tensor.tensor_content)
    low, high = (np.frombuffer(one.SerializeToString(), np.uint8) for one in (blank, full))
    free = np.flatnonzero(low != high)
    ends = np.cumsum([len(value.tensor.tensor_content) for value in event.summary.value])
    starts = np.concatenate([[0], ends[:-1]])
    if (ends == starts).any():
        return None
    fixed[free] = False
    places = [(int(free[a]), int(free[b - 1]) + 1) for a, b in zip(starts, ends, strict=True)]
    return fixed, (10, end), places


def records(path: str) -> Iterator[bytes]:
    """The records of a file of TFRecords, up to the first that is damaged or not yet whole."""
    with open(path, "rb") as file:
        content = file.read()
    for start, length in _whole(content):
        yield content[start : start + length]


def spans(content: bytes) -> list[tuple[int, int]]:
    """Where the data of the records are, and their lengths, up to the first that is not yet whole.

    A record is its length (uint64), the length's checksum, the data, and the data's checksum.
    """
    found, place = [], 0
    while place + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        if place + 16 + length > len(content):
            break
        found.append((place + 12, length))
        place += 16 + length
    return found


def _whole(content: bytes) -> list[tuple[int, int]]:
    """As `spans`, up to the first that is damaged."""
    found = spans(content)
    if not found:
        return []
    starts, lengths = np.array(found).T
    array = np.frombuffer(content, np.uint8)
    whole = _match(array, starts - 12, 8)
    for length in np.unique(lengths).tolist():
        alike = lengths == length
        if length < _LONG or alike.sum() > 1:  # a long single one is the graph
            whole[alike] &= _match(array, starts[alike], length)
    return found if whole.all() else found[: int(whole.argmin())]


def _match(content: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """Whether `length` bytes from each start have the checksum that follows them: bool [starts].

    It is a CRC-32C, masked as TFRecords have it; all starts are computed side by side.
    """
    if len(starts) > (most := max(1, _AT_ONCE // max(length, 1))):
        cuts = range(0, len(starts), most)
        return np.concatenate([_match(content, starts[i : i + most], length) for i in cuts])
    rows = np.zeros((len(starts), -(-(length + 4) // 4) * 4), np.uint8)
    rows[:, : length + 4] = np.lib.stride_tricks.sliding_window_view(content, length + 4)[starts]
    words, count = rows.view("<u4"), length // 4
    crc = np.full(len(starts), 0xFFFFFFFF, np.uint32)
    for i in range(0, count, _LINE):  # turned in parts that the cache holds
        for word in np.ascontiguousarray(words[:, i : min(i + _LINE, count)].T):
            crc ^= word
            crc = _LOW.take(crc & 0xFFFF) ^ _HIGH.take(crc >> 16)
    for i in range(4 * count, length):
        crc = _BYTE.take((crc ^ rows[:, i]) & 0xFF) ^ (crc >> 8)
    crc = ~crc
    masked = ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)
    return masked == np.ascontiguousarray(rows[:, length : length + 4]).view("<u4")[:, 0]


def _after(remainders: np.ndarray) -> np.ndarray:
    """Remainders of CRC-32C, uint32, after a further byte of 0."""
    return _BYTE[remainders & 0xFF] ^ (remainders >> 8)


def _remainders() -> np.ndarray:
    """Of CRC-32C, by byte: uint32 [256]. Its polynomial is 0x82F63B78 with its bits reversed."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1)
    return table.astype(np.uint32)


_BYTE = _remainders()
# Of the upper and of the lower two bytes of a word of four, uint32 [65536]: their tables fit into
# a level-2 cache.
_HIGH = (_BYTE[:, None] ^ _after(_BYTE)).ravel()
_LOW = _after(_after(_HIGH))
