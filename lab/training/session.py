"""The run directory as a worker sees it: what lies there, and what the run writes to it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from lab.errors import LabError
from lab.record.checkpoints import Checkpoints
from lab.record.directory import RESULT, RunDirectory
from lab.record.event_writer import NullRecorder, Recorder
from lab.record.result_file import finished_result
from lab.step.agreement import Group
from lab.step.watch import Watch

AnyRecorder = Recorder | NullRecorder
Notify = Callable[[str], None]  # takes a message for the user


class Session:
    """The run directory of a run with one process, locked until `close`. Arguments as those of
    RunDirectory.

    Attributes:
      result: of a run that is finished; None otherwise.
      checkpoint: the newest one, from which the run is to be resumed; None for a new run.

    Raises:
      LabError: as RunDirectory and Checkpoints.newest.
    """

    def __init__(
        self, path: str, identity: dict[str, Any], fingerprint: str, overwrite: bool, notify: Notify
    ) -> None:
        self._directory = RunDirectory(path, identity, fingerprint, overwrite)
        try:
            self._checkpoints = Checkpoints(path, fingerprint)
            self.result = finished_result(path)
            self.checkpoint = None if self.result else self._checkpoints.newest(notify)
        except BaseException:
            self.close()
            raise

    def recorder(self, watch: Watch) -> AnyRecorder:
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
            group.from_chief(pickle.dumps((str(error), None, None)))
            raise
        group.from_chief(pickle.dumps(("", self.result, self.checkpoint)))

    def finish(self, result: dict[str, Any]) -> None:
        super().finish(result)
        self._group.largest(0)  # lets the other workers end


class OtherSession(Session):
    """The session of every other worker: it neither reads nor writes the run directory."""

    def __init__(self, group: Group) -> None:
        self._group = group
        refusal, self.result, self.checkpoint = pickle.loads(group.from_chief(b""))
        if refusal:
            raise LabError(f"worker 0 cannot start: {refusal}")

    def recorder(self, watch: Watch) -> AnyRecorder:
        return NullRecorder()

    def save(self, step: int, tensors: Mapping[str, tf.Tensor], state: dict[str, Any]) -> None: ...

    def finish(self, result: dict[str, Any]) -> None:
        self._group.largest(0)  # the chief is done: it would miss a worker that ends before

    def close(self) -> None: ...


def open_session(group: Group, *arguments: Any) -> Session:
    """The session of this worker; arguments as those of Session."""
    if group.alone:
        return Session(*arguments)
    return ChiefSession(group, *arguments) if group.chief else OtherSession(group)
