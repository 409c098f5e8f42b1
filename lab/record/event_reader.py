"""TensorBoard's event files -> NumPy arrays, without TensorFlow; also while they are written."""

from __future__ import annotations

import collections
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lab.record.directory import event_files

_DTYPES = {1: "<f4", 2: "<f8"}  # by TensorFlow's number
_LONG = 2**14  # bytes


class Series(NamedTuple):
    """What was recorded under one tag, each step once, in order.

    Attributes:
      steps: int64 [n].
      values: of a scalar float64 [n]; of a histogram float64 [n, 30, 3], rows of (left edge, right
        edge, count).
    """

    steps: np.ndarray
    values: np.ndarray


def read(run: str, kind: str) -> dict[str, Series]:
    """All series of a kind, "scalars" or "histograms", in the event files of a run, by tag.

    Of a step that is there twice, the last one counts. A file is read up to the first record that
    is damaged or not yet whole.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.util import tensor_util

    kinds: dict[str, str] = {}  # a tag's metadata is in its first event
    steps: dict[str, list[int]] = collections.defaultdict(list)
    contents: dict[str, list[bytes]] = collections.defaultdict(list)
    dtypes: dict[str, str] = {}
    for path in event_files(run):
        for record in records(path):
            event = Event.FromString(record)
            step = event.step
            for value in event.summary.value:
                tag = value.tag
                if tag not in kinds:
                    kinds[tag] = value.metadata.plugin_data.plugin_name
                if kinds[tag] == kind:
                    tensor = value.tensor
                    content = tensor.tensor_content
                    if not content or _DTYPES.get(tensor.dtype) != dtypes.get(tag):
                        number = tensor_util.make_ndarray(tensor)
                        dtype = dtypes.setdefault(tag, number.dtype.newbyteorder("<").str)
                        content = number.astype(dtype).tobytes()
                    steps[tag].append(step)
                    contents[tag].append(content)
    shape = (-1,) if kind == "scalars" else (-1, 30, 3)
    found = {}
    for tag, parts in contents.items():
        values = np.frombuffer(b"".join(parts), dtypes[tag]).astype(np.float64).reshape(shape)
        rising, last = np.unique(np.array(steps[tag])[::-1], return_index=True)
        found[tag] = Series(rising, values[::-1][last])
    return found


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
