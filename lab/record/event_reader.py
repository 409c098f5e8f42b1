"""TensorBoard's event files -> NumPy arrays, without TensorFlow; also while they are written."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lab.record.directory import event_files


class Series(NamedTuple):
    """What was recorded under one tag, each step once, in order.

    steps: int64 [n].
    values: of a scalar float64 [n]; of a histogram float64 [n, 30, 3], rows of (left edge, right
      edge, count).
    """

    steps: np.ndarray
    values: np.ndarray


def read(run: str) -> tuple[dict[str, Series], dict[str, Series]]:
    """(scalars, histograms) by tag, from the event files of a run directory.

    Of a step that is there twice, the last one counts. A file is read up to the first record that
    is damaged or not yet whole.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.util import tensor_util

    kinds: dict[str, str] = {}  # a tag's metadata is in its first event
    steps: dict[str, list[int]] = {}
    numbers: dict[str, list] = {}
    for path in event_files(run):
        for record in records(path):
            event = Event.FromString(record)
            for value in event.summary.value:
                plugin = value.metadata.plugin_data.plugin_name
                if kinds.setdefault(value.tag, plugin) not in ("scalars", "histograms"):
                    continue
                content, dtype = value.tensor.tensor_content, value.tensor.dtype
                if content and dtype in (1, 2):
                    number = np.frombuffer(content, ("<f4", "<f8")[dtype - 1])
                else:
                    number = tensor_util.make_ndarray(value.tensor)
                steps.setdefault(value.tag, []).append(event.step)
                numbers.setdefault(value.tag, []).append(number)
    scalars, histograms = {}, {}
    for tag, found in numbers.items():
        values = np.stack(found).astype(np.float64)
        rising, last = np.unique(np.array(steps[tag])[::-1], return_index=True)
        if kinds[tag] == "scalars":
            scalars[tag] = Series(rising, values[::-1][last].reshape(len(rising)))
        else:
            histograms[tag] = Series(rising, values[::-1][last].reshape(len(rising), -1, 3))
    return scalars, histograms


def records(path: str) -> Iterator[bytes]:
    """The records of a file of TFRecords, up to the first that is damaged or not yet whole.

    A record is its length (uint64), the length's checksum, the data, and the data's checksum.
    """
    with open(path, "rb") as file:
        content = file.read()
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
    end = len(spans) if whole.all() else int(whole.argmin())
    for start, length in spans[:end]:
        yield content[start : start + length]


def _match(content: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """Whether `length` bytes from each start have the checksum that follows them: bool [starts].

    It is a CRC-32C, masked as TFRecords have it; all starts are computed side by side.
    """
    crc = np.full(len(starts), 0xFFFFFFFF, np.uint32)
    for k in range(length):
        crc = _CRC32C[(crc ^ content[starts + k]) & 0xFF] ^ (crc >> 8)
    crc = ~crc
    masked = ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)
    stored = content[(starts + length)[:, None] + np.arange(4)]
    return masked == np.ascontiguousarray(stored).view("<u4")[:, 0]


def _table() -> np.ndarray:
    """The 256 remainders of CRC-32C, whose polynomial is 0x82F63B78 with its bits reversed."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1)
    return table.astype(np.uint32)


_CRC32C = _table()
_LONG = 2**14  # bytes
