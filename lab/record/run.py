"""A run directory as NumPy arrays, finished or still being written: `lab.open_run`."""

from __future__ import annotations

import difflib
import functools
import glob
import os
from typing import Any, NamedTuple

import numpy as np

from lab.errors import LabError
from lab.record.directory import CONFIG, RESULT, checkpoint_paths, read_object
from lab.record.event_reader import EventReader, Series, read
from lab.settings.config import Config, renamed
from lab.settings.fields import from_json


class Histograms(NamedTuple):
    """The histograms of a tensor, one per recorded step, in order.

    Attributes:
      steps: int64 [n].
      edges: float64 [n, 31], of the buckets, from the smallest to the largest finite value.
      counts: float64 [n, 30], whole numbers. Where all entries are equal, all edges are that value
        and the last bucket has the count.
    """

    steps: np.ndarray
    edges: np.ndarray
    counts: np.ndarray


class RunReader:
    """The contents of a run directory, read on first use.

    Attributes:
      path: of the directory.
      config: every field of the run's config, by name.
      circumstances: all of config.json, including what decided the numbers besides the config.
      result: of result.json; None while the run has not ended.
      forward_order: the tags of the variables in the order in which the model first uses them; of
        an older run empty.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        if not os.path.isdir(path):
            raise LabError(f"{path} is not a run: there is no such directory")
        self.circumstances = read_object(os.path.join(path, CONFIG))
        self.config: Any = renamed(self.circumstances.get("config"))
        if not isinstance(self.config, dict):
            runs = sorted(glob.glob(os.path.join(glob.escape(path), "*", CONFIG)))
            what = f"it has no {CONFIG} of a run"
            if runs:
                what = f"it holds {len(runs)}, such as {os.path.dirname(runs[0])}"
            raise LabError(f"{path} is not a run: {what}")
        self.result: dict[str, Any] | None = read_object(os.path.join(path, RESULT)) or None
        self.forward_order: list[str] = self.circumstances.get("forward_order", [])

    @property
    def checked_config(self) -> Config:
        """The config, checked. LabError for a value that a field cannot have."""
        return Config(**from_json(Config, self.config, f"{self.path}: config."))

    @functools.cached_property
    def events(self) -> EventReader:
        """The event files, read up to now."""
        reader = EventReader(self.path, "scalars", "histograms")
        reader.update()
        return reader

    def updated(self) -> RunReader:
        """The run as it is now: this one if nothing is new. What has been read of its events is
        not read again."""
        new = self.events.update()
        fresh = RunReader(self.path)
        fresh.events = self.events
        return fresh if new or fresh.result != self.result else self

    @functools.cached_property
    def scalars(self) -> dict[str, Series]:
        """All scalars by tag. They are a tenth of the record: unless the events have been read, the
        histograms are left alone."""
        if "events" in self.__dict__:
            return self.events.series("scalars")
        return read(self.path, "scalars")

    @functools.cached_property
    def histograms(self) -> dict[str, Series]:
        """The rows of all histograms by tag: of each bucket left edge, right edge, count."""
        return self.events.series("histograms")

    @property
    def tags(self) -> list[str]:
        """All tags with scalars or histograms, sorted."""
        return sorted({*self.scalars, *self.histograms})

    @property
    def scalar_tags(self) -> list[str]:
        """The tags of scalars, in the order of the record: that of a step, and in it the model's
        own order of its variables."""
        return list(self.scalars)

    def scalar(self, tag: str) -> Series:
        """The steps and values of a scalar. Raises KeyError for a tag without any."""
        return _of(tag, self.scalars, "scalars")

    def histogram(self, tag: str) -> Histograms:
        """The histograms of a tensor. Raises KeyError for a tag without any."""
        steps, rows = _of(tag, self.histograms, "histograms")
        edges = np.concatenate([rows[:, :, 0], rows[:, -1:, 1]], axis=1)
        return Histograms(steps, edges, rows[:, :, 2])

    def to_pandas(self) -> Any:
        """All scalars as a pandas DataFrame of float64, with a row for each step and a column for
        each tag; NaN where a step has no such scalar.

        Raises:
          LabError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise LabError("to_pandas needs pandas: pip install pandas") from error
        columns = {
            tag: pandas.Series(series.values, index=series.steps)
            for tag, series in self.scalars.items()
        }
        return pandas.DataFrame(columns).rename_axis("step").sort_index()

    @property
    def checkpoints(self) -> dict[int, str]:
        """The paths of the checkpoints by step, the oldest first."""
        return checkpoint_paths(self.path)

    def weights(self, step: int) -> dict[str, np.ndarray]:
        """The weights and slots of a checkpoint by tag, which loads TensorFlow.

        Raises:
          LabError: there is no checkpoint of that step, or it cannot be read.
        """
        from lab.record.checkpoints import read_tensors

        found = self.checkpoints
        if step not in found:
            there = ", ".join(map(str, found)) or "none"
            raise LabError(f"{self.path} has no checkpoint of step {step}; there are: {there}")
        return read_tensors(found[step])


def _of(tag: str, found: dict[str, Series], kind: str) -> Series:
    if tag not in found:
        near = difflib.get_close_matches(tag, found, 1)
        hint = (
            f"did you mean {near[0]!r}?" if near else f"there are {len(found)} others, see `tags`"
        )
        raise KeyError(f"{tag!r} has no {kind} on record: {hint}")
    return found[tag]
