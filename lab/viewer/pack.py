"""What runs have on record -> text that a page can hold: every step, or, above a limit, those that
are left, which the page says."""

from __future__ import annotations

import base64
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lab.diagnosis.events import Mark
from lab.record.directory import FINISHED
from lab.record.event_reader import Series
from lab.record.run import RunReader
from lab.viewer.layout import layout
from lab.viewer.marks import ROUTINE, last_step, marks

LIMIT = 30_000_000  # bytes of a page that holds every step
_AROUND = 100  # steps on either side of what happened, and at either end, that are never left out
_FRACTIONS = np.arange(31) * (1 / 30)  # of a histogram's edges


class Blobs:
    """Arrays as texts, each once: [dtype, base64 of the deflated bytes], the bytes of equal
    significance side by side, as HDF5's shuffle filter lays them.

    Attributes:
      texts: of the arrays, in the order of their numbers.
    """

    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []
        self._numbers: dict[tuple[str, bytes], int] = {}

    def add(self, array: np.ndarray) -> int:
        """The number of an array: uint8, uint32, float32 or float64."""
        shuffled = array.reshape(-1).view(np.uint8).reshape(-1, array.itemsize).T.tobytes()
        dtype = f"{array.dtype.kind}{array.itemsize}"
        key = dtype, zlib.compress(shuffled, 6)
        if key not in self._numbers:
            self._numbers[key] = len(self.texts)
            self.texts.append((dtype, base64.b64encode(key[1]).decode()))
        return self._numbers[key]


def pack(
    runs: Sequence[RunReader], always: Sequence[tuple[int, int]] = (), limit: int = LIMIT
) -> dict[str, Any]:
    """All that a page holds of runs, as JSON values.

    Args:
      always: ranges of steps, (first, last), of which none is left out.
      limit: on the size of the blobs, in bytes. Above it, apart from these ranges, the first and
        the last steps and those around marks, one step of so many is kept, and `thinned` says so.
    """
    found, every = [marks(run) for run in runs], 1
    while True:
        records = [_kept(run, own, always, every) for run, own in zip(runs, found, strict=True)]
        packed = pack_records(runs, [record[:2] for record in records], found)
        size = sum(len(text) for _, text in packed["blobs"])
        if size <= limit or every >= max(run["steps"] for run in packed["runs"]):
            break
        every = max(every + 1, int(1.1 * every * size / limit))
    for run, (*_, note) in zip(packed["runs"], records, strict=True):
        run["thinned"] = note
    return packed


Record = tuple[Mapping[str, Series], Mapping[str, Series]]  # scalars and histograms, by tag


def pack_records(
    runs: Sequence[RunReader], records: Sequence[Record], found: Sequence[Sequence[Mark]]
) -> dict[str, Any]:
    """As `pack`, of these records of the runs and the marks that were found in each.

    Returns:
      `runs`, for each its name, status, last step, marks, and by tag its `scalars` and `histograms`
      as numbers of blobs; `blobs`, see Blobs; and the rows of the page, see `layout`.
    """
    blobs, packed = Blobs(), []
    names = {run.path: os.path.basename(os.path.abspath(run.path)) for run in runs}
    if len({*names.values()}) < len(names):
        names = {path: path for path in names}
    for run, (scalars, histograms), own in zip(runs, records, found, strict=True):
        status = (run.result or {}).get("status", "")
        packed.append(
            {
                "name": names[run.path],
                "status": status if status in FINISHED else "still training, or interrupted",
                "steps": last_step(run),
                "marks": [mark._asdict() | {"routine": mark.kind in ROUTINE} for mark in own],
                "scalars": {tag: _scalar(one, blobs) for tag, one in scalars.items()},
                "histograms": {tag: _histogram(one, blobs) for tag, one in histograms.items()},
            }
        )
    tags = {
        kind: dict.fromkeys(tag for run in runs for tag in run.events.tags(kind))
        for kind in ("histograms", "scalars")
    }
    order = [tag for run in runs for tag in run.forward_order]
    summed = [run.config.get("reduction") == "sum" for run in runs]
    return {"runs": packed, "blobs": blobs.texts, **layout(**tags, order=order, summed=summed)}


def _scalar(series: Series, blobs: Blobs) -> dict[str, int]:
    """Steps and values [n]."""
    return {"steps": _steps(series, blobs), "values": blobs.add(_small(series.values))}


def _histogram(series: Series, blobs: Blobs) -> dict[str, Any]:
    """Steps, low and high [n], counts [30, n], and edges [n, 31] where they are not `low + (high -
    low) * i / 30` in the precision of the record; NaN where no entry was finite. `linear`: below
    which absolute value a symmetric-log axis is linear."""
    edges = np.concatenate([series.values[:, :, 0], series.values[:, -1:, 1]], axis=1)
    edges[series.values[:, :, 2].sum(1) == 0] = np.nan
    low, high, counts = edges[:, 0], edges[:, -1], series.values[:, :, 2]
    small = _small(edges)
    largest = np.maximum(abs(low), abs(high))
    largest = largest[(largest > 0) & np.isfinite(largest)]
    entry: dict[str, Any] = {
        "steps": _steps(series, blobs),
        "low": blobs.add(np.ascontiguousarray(small[:, 0])),
        "high": blobs.add(np.ascontiguousarray(small[:, -1])),
        "counts": blobs.add(_whole(counts.T)),
        # Two decades below what is usual.
        "linear": 10.0 ** (np.floor(np.log10(np.median(largest))) - 2) if largest.size else 1.0,
    }
    even = low[:, None] + (high - low)[:, None] * _FRACTIONS
    even[:, -1] = high
    if not np.array_equal(even.astype(small.dtype), small, equal_nan=True):
        entry["edges"] = blobs.add(small)
    return entry


def _kept(
    run: RunReader, found: Sequence[Mark], always: Sequence[tuple[int, int]], every: int
) -> tuple[Mapping[str, Series], Mapping[str, Series], str]:
    """A run's record with one step of so many, and a note that says what was left out."""
    if every == 1:
        return run.scalars, run.histograms, ""
    last = last_step(run)
    around = [mark.step for mark in found if mark.kind not in ROUTINE]
    ranges = [(step - _AROUND, step + _AROUND) for step in (0, last, *around)]
    kept = _merged([*ranges, *always], last)
    scalars, histograms = (
        {tag: _thinned(series, kept, every) for tag, series in record.items()}
        for record in (run.scalars, run.histograms)
    )
    whole = ", ".join(f"{a} to {b}" for a, b in kept)
    note = f"every step of {whole}, and otherwise one step in {every}"
    return scalars, histograms, note


def _steps(series: Series, blobs: Blobs) -> int:
    return blobs.add(_whole(series.steps))


def _small(values: np.ndarray) -> np.ndarray:
    """float32, or float64 where that would lose anything."""
    with np.errstate(over="ignore"):
        small = values.astype(np.float32)
    return small if np.array_equal(small, values, equal_nan=True) else values


def _whole(values: np.ndarray) -> np.ndarray:
    """Whole numbers from 0 on as uint8 or uint32; float64 where they are too large for that."""
    most = values.max(initial=0)
    dtype = np.uint8 if most < 2**8 else np.uint32 if most < 2**32 else np.float64
    return np.ascontiguousarray(values.astype(dtype))


def _merged(ranges: Sequence[tuple[int, int]], last: int) -> list[tuple[int, int]]:
    """Ranges of steps in order, those that touch joined, within 0 and the last step."""
    merged: list[tuple[int, int]] = []
    for a, b in sorted((max(a, 0), min(b, last)) for a, b in ranges):
        if a > b:
            continue
        if merged and a <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(b, merged[-1][1])
        else:
            merged.append((a, b))
    return merged


def _thinned(series: Series, kept: Sequence[tuple[int, int]], every: int) -> Series:
    """The steps within the ranges, and of the others the first in each `every` steps."""
    steps = series.steps
    keep = np.diff(steps // every, prepend=-1) > 0
    for a, b in kept:
        keep |= (a <= steps) & (steps <= b)
    return Series(steps[keep], series.values[keep])
