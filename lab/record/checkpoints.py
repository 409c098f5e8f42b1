"""Checkpoints: written completely before they count, checked before they are used.

    RUN/checkpoints/step-000001000/variables.index, variables.data-*   TensorFlow's own format
                                   manifest.json

`tf.train.load_checkpoint("RUN/checkpoints/step-000001000/variables")` reads every tensor by its
tag: `h1/weights`, the slots `h1/weights/m`, and `step`. The manifest has the checksum of each
file, and the length of each event file at that step: cut back to it, the record holds every step
exactly once.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from lab.errors import LabError
from lab.record.directory import checkpoint_paths, event_files, read_object, write_file

KEEP = 2  # of the checkpoints after the first, the newest ones


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a run is resumed from: tensors by name, the state saved with them, and by
    file name the length in bytes of each event file at that step."""

    step: int
    tensors: dict[str, np.ndarray]
    state: dict[str, Any]
    events: dict[str, int]


def read_tensors(path: str, pattern: str = ".*") -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by name, of those whose whole names match the pattern.

    Raises:
      LabError: it cannot be read.
    """
    # TensorFlow takes [ ] * ? in a path for a pattern: it gets one that has none.
    with tempfile.TemporaryDirectory() as folder:
        plain = os.path.join(folder, "checkpoint")
        os.symlink(os.path.abspath(path), plain)
        try:
            reader = tf.train.load_checkpoint(os.path.join(plain, "variables"))
            names = set(reader.get_variable_to_shape_map()) - {"step"}
            return {n: reader.get_tensor(n) for n in names if re.fullmatch(pattern, n)}
        except (ValueError, LookupError, RuntimeError, tf.errors.OpError) as error:
            raise LabError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


class Checkpoints:
    """The checkpoints of one run directory; one with another fingerprint is not used."""

    def __init__(self, directory: str, fingerprint: str) -> None:
        self._run, self._fingerprint = directory, fingerprint
        self._folder = os.path.join(directory, "checkpoints")

    def save(self, step: int, tensors: Mapping[str, tf.Tensor], state: dict[str, Any]) -> None:
        """Saves a checkpoint, then deletes those that are no longer needed.

        The event files must have been flushed.

        Raises:
          LabError: it cannot be written; those before it are as they were.
        """
        target = os.path.join(self._folder, f"step-{step:09d}")
        temporary = os.path.join(self._folder, f"unfinished-{os.getpid()}")
        try:
            self._clean()
            os.makedirs(temporary)
            self._write(temporary, step, tensors, state)
            if os.path.exists(target):  # it was found damaged when the run was resumed
                shutil.rmtree(target)
            os.rename(temporary, target)
            _sync(self._folder)
            for path in list(checkpoint_paths(self._run).values())[1:-KEEP]:
                shutil.rmtree(path)
        except (OSError, tf.errors.OpError) as error:
            why = str(error.strerror if isinstance(error, OSError) else error.message)
            self._clean()
            raise LabError(
                f"the checkpoint of step {step} cannot be written to {self._folder} "
                f"({' '.join(why.split())}): free some space and run the same command again to "
                "resume from the one before"
            ) from error

    def _write(
        self, folder: str, step: int, tensors: Mapping[str, tf.Tensor], state: dict[str, Any]
    ) -> None:
        """Writes the files of a checkpoint, and waits until they and the events are on the disk."""
        named = dict(sorted(tensors.items())) | {"step": tf.constant(step, tf.int64)}
        prefix, slices = os.path.join(folder, "variables"), [""] * len(named)
        tf.raw_ops.SaveV2(
            prefix=prefix, tensor_names=[*named], shape_and_slices=slices, tensors=[*named.values()]
        )
        events = event_files(self._run)
        manifest: dict[str, Any] = {
            "step": step,
            "fingerprint": self._fingerprint,
            "files": {name: _sum(os.path.join(folder, name)) for name in os.listdir(folder)},
            "events": {os.path.basename(path): os.path.getsize(path) for path in events},
            "state": state,
        }
        text = json.dumps(manifest | {"sha256": _sum_of(manifest)}, indent=1)
        write_file(os.path.join(folder, "manifest.json"), text)
        made = [os.path.join(folder, name) for name in os.listdir(folder)]
        for path in [*made, *events, folder]:
            _sync(path)

    def newest(self, notify: Callable[[str], None]) -> Checkpoint | None:
        """The newest complete checkpoint; None for a run that has not begun.

        Args:
          notify: is called with a line for each incomplete checkpoint.

        Raises:
          LabError: the run has begun, but no checkpoint of it is whole.
        """
        damaged: list[str] = []
        for step, path in reversed(checkpoint_paths(self._run).items()):
            try:
                found = self._load(path)
            except (OSError, ValueError, KeyError, TypeError, LabError) as error:
                damaged.append(f"{os.path.basename(path)}: {error}")
                continue
            for problem in damaged:
                notify(f"skipping {problem}")
            if damaged:
                notify(f"resuming from the checkpoint of step {step} instead")
            return found
        if damaged or event_files(self._run):
            why = "; ".join(damaged) or "there is none"
            raise LabError(
                f"{self._run} has no checkpoint to resume from ({why}): --overwrite deletes the "
                "run and starts again"
            )
        return None

    def cut_events(self, checkpoint: Checkpoint) -> None:
        """Removes from the record what was written after the checkpoint."""
        for path in event_files(self._run):
            size = checkpoint.events.get(os.path.basename(path))
            if size is None:
                os.remove(path)
            else:
                os.truncate(path, size)

    def _load(self, path: str) -> Checkpoint:
        manifest = read_object(os.path.join(path, "manifest.json"))
        if manifest.pop("sha256", None) != _sum_of(manifest):
            raise ValueError("manifest.json is damaged")
        if manifest["fingerprint"] != self._fingerprint:
            raise ValueError("it belongs to another run")
        for name, expected in manifest["files"].items():
            if _sum(os.path.join(path, name)) != expected:
                raise ValueError(f"{name} is damaged")
        for name, size in manifest["events"].items():
            if os.path.getsize(os.path.join(self._run, name)) < size:
                raise ValueError(f"the event file {name} is shorter than it was then")
        tensors = read_tensors(path)
        return Checkpoint(manifest["step"], tensors, manifest["state"], manifest["events"])

    def _clean(self) -> None:
        """Removes what an unfinished save left."""
        for path in glob.glob(os.path.join(glob.escape(self._folder), "unfinished-*")):
            shutil.rmtree(path, ignore_errors=True)


def _sum(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        content = file.read()
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _sum_of(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sync(path: str) -> None:
    """Waits until a file, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
