"""The run directory as a worker sees it: what it holds, and what the run writes to it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from lab.errors import LabError
from lab.record.checkpoints import Checkpoint, Checkpoints
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

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Writes result.json, and returns it."""
        self._directory.write(RESULT, result)
        return result

    def close(self) -> None:
        """Unlocks the directory."""
        self._directory.close()


class OtherSession(Session):
    """The session of all workers but the first: they neither read nor write the run directory."""

    def __init__(self, result: dict[str, Any] | None, checkpoint: Checkpoint | None) -> None:
        self.result, self.checkpoint = result, checkpoint

    def recorder(self, watch: Watch) -> AnyRecorder:
        return NullRecorder()

    def save(self, step: int, tensors: Mapping[str, tf.Tensor], state: dict[str, Any]) -> None: ...

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        return result

    def close(self) -> None: ...


def open_session(group: Group, *arguments: Any) -> Session:
    """Opens the session of this worker; arguments as for Session. The first of several workers, the
    chief, sends the others what it has found."""
    if group.alone:
        return Session(*arguments)
    if not group.chief:
        refusal, result, checkpoint = pickle.loads(group.from_chief(b""))
        if refusal:
            raise LabError(f"worker 0 cannot start: {refusal}")
        return OtherSession(result, checkpoint)
    try:
        session = Session(*arguments)
    except LabError as error:
        group.from_chief(pickle.dumps((str(error), None, None)))
        raise
    group.from_chief(pickle.dumps(("", session.result, session.checkpoint)))
    return session
