"""IDX, the file format of MNIST, read and checked."""

from __future__ import annotations

import math
import os
import zlib

import numpy as np

from lab.errors import LabError

# The four files and the sha256 of MNIST's, unpacked.
FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def read_file(folder: str, name: str) -> tuple[str, bytes]:
    """The path and content of a file, or of its gzipped version."""
    plain = os.path.join(folder, name)
    path = f"{plain}.gz" if os.path.exists(f"{plain}.gz") else plain
    if not os.path.exists(path):
        raise LabError(
            f"no {name}.gz and no {name} in {folder}: --data needs a folder with the four "
            f"files {', '.join(FILES)}"
        )
    try:
        with open(path, "rb") as file:
            raw = file.read()
        return path, raw if path == plain else _unzipped(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise LabError(f"{path} cannot be read ({error}): replace it") from error


def _unzipped(raw: bytes) -> bytes:
    """As gzip.decompress, but each member in one call of zlib: `gzip` reads a few kilobytes at a
    time, and waits before each for the interpreter's lock, which the import of TensorFlow holds."""
    parts = []
    while raw := raw.lstrip(b"\0"):  # members, and zeros after the last
        member = zlib.decompressobj(wbits=31)
        parts.append(member.decompress(raw))
        if not member.eof:
            raise EOFError("it ends too early")
        raw = member.unused_data
    return b"".join(parts)


def parse(path: str, raw: bytes, dimensions: int) -> np.ndarray:
    """IDX: two zero bytes, type 8 (uint8), rank, the sizes as big-endian int32, the entries."""
    header = 4 + 4 * dimensions
    if raw[:4] != bytes([0, 0, 8, dimensions]) or len(raw) < header:
        raise LabError(f"{path} is not an IDX file of {dimensions} dimensions of bytes: replace it")
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", dimensions, 4))
    entries = math.prod(shape)
    if len(raw) != header + entries:
        raise LabError(
            f"{path} holds {len(raw) - header} entries where its header says {entries}: replace it"
        )
    return np.frombuffer(raw, np.uint8, entries, header).reshape(shape)
