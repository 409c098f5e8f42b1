"""The run directory as a worker sees it: what lies there, and what the run writes to it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from lab.errors import LabError
from lab.record.checkpoints import Checkpoint, Checkpoints
from lab.record.directory import RESULT, RunDirectory
from lab.record.event_writer import NullRecorder, Recorder
from lab.record.result_file import finished_result
from lab.step.agreement import Group
from lab.step.watch import Watch


class Session:
    """The run directory of a run with one process, locked until `close`.

    Args:
      path: of the directory.
      identity: all that decides what the run gives: plain JSON values by name.
      fingerprint: of the identity.
      overwrite: delete what an earlier run left there.
      notify: is called with each message for the user.

    Attributes:
      result: of a run that is finished; None otherwise.
      checkpoint: the newest one, from which the run is to be resumed; None for a new run.

    Raises:
      LabError: as RunDirectory and Checkpoints.newest.
    """

    def __init__(
        self,
        path: str,
        identity: dict[str, Any],
        fingerprint: str,
        overwrite: bool,
        notify: Callable[[str], None],
    ) -> None:
        self._directory = RunDirectory(path, identity, fingerprint, overwrite)
        try:
            self._checkpoints = Checkpoints(path, fingerprint)
            self.result = finished_result(path)
            self.checkpoint = None if self.result else self._checkpoints.newest(notify)
        except BaseException:
            self.close()
            raise

    def recorder(self, watch: Watch) -> Recorder | NullRecorder:
        """A recorder that continues the record after the checkpoint."""
        if self.checkpoint:
            self._checkpoints.cut_events(self.checkpoint)
        return Recorder(self._directory.path, watch.scalar_tags, watch.tags, watch.sizes)

    def save(self, step: int, tensors: Mapping[str, tf.Tensor], state: dict[str, Any]) -> None:
        """Saves a checkpoint, see Checkpoints.save."""
        self._checkpoints.save(step, tensors, state)

    def finish(self, result: dict[str, Any]) -> None:
        """Writes result.json."""
        self._directory.write(RESULT, result)

    def close(self) -> None:
        """Unlocks the directory."""
        self._directory.close()


class ChiefSession(Session):
    """The session of the first of several workers, which sends the others what they need."""

    def __init__(self, group: Group, *arguments: Any) -> None:
        self._group = group
        try:
            super().__init__(*arguments)
        except LabError as error:
            group.from_chief(_packed(str(error), None, None))
            raise
        group.from_chief(_packed("", self.result, self.checkpoint))

    def finish(self, result: dict[str, Any]) -> None:
        """Writes result.json, and lets the other workers end."""
        super().finish(result)
        self._group.largest(0)


class OtherSession:
    """The session of every other worker: it neither reads nor writes the run directory."""

    def __init__(self, group: Group) -> None:
        self._group = group
        refusal, self.result, self.checkpoint = _unpacked(group.from_chief(b""))
        if refusal:
            raise LabError(f"worker 0 cannot start: {refusal}")

    def recorder(self, watch: Watch) -> NullRecorder:
        """A recorder that records nothing."""
        return NullRecorder()

    def save(self, step: int, tensors: Mapping[str, tf.Tensor], state: dict[str, Any]) -> None:
        """The chief saves."""

    def finish(self, result: dict[str, Any]) -> None:
        """Returns after the chief has written result.json: it would miss a worker that ends."""
        self._group.largest(0)

    def close(self) -> None:
        """Nothing is locked."""


def open_session(
    group: Group,
    path: str,
    identity: dict[str, Any],
    fingerprint: str,
    overwrite: bool,
    notify: Callable[[str], None],
) -> Session | OtherSession:
    """The session of this worker; arguments as those of Session."""
    arguments = (path, identity, fingerprint, overwrite, notify)
    if group.alone:
        return Session(*arguments)
    return ChiefSession(group, *arguments) if group.chief else OtherSession(group)


def _packed(refusal: str, result: dict[str, Any] | None, checkpoint: Checkpoint | None) -> bytes:
    header: dict[str, Any] = {"refusal": refusal, "result": result}
    arrays = {}
    if checkpoint:
        arrays = dict(checkpoint.tensors)
        header |= {name: getattr(checkpoint, name) for name in ("step", "state", "events")}
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def _unpacked(message: bytes) -> tuple[str, dict[str, Any] | None, Checkpoint | None]:
    with np.load(io.BytesIO(message)) as arrays:
        tensors = dict(arrays)
    header = json.loads(tensors.pop("header").tobytes())
    checkpoint = None
    if "step" in header:
        checkpoint = Checkpoint(header["step"], tensors, header["state"], header["events"])
    return header["refusal"], header["result"], checkpoint
