"""A run of which any step can be recomputed: `lab.open_run`."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from lab.record.run import RunReader
from lab.training.moment import Moment

if TYPE_CHECKING:
    from lab.diagnosis.why import Diagnosis
    from lab.training.problem import Problem
    from lab.training.replay import Replay
    from lab.training.rerun import Rerun


class Run(RunReader):
    """A run directory: its contents, and any of its steps recomputed.

    Args:
      path: of the directory.
      problem: what it trained, if its config does not name it.
    """

    def __init__(self, path: str, problem: Problem | None = None) -> None:
        super().__init__(path)
        self._problem = problem
        self._replay: Replay | None = None

    def __repr__(self) -> str:
        """Its path and how far it is."""
        result = self.result or {"status": "not ended"}
        step = f" at step {result['step']:,}" if "step" in result else ""
        return f"Run of {self.path}, {result['status']}{step}"

    def at(self, step: int) -> Moment:
        """Retrains from the nearest checkpoint up to a step, and returns everything of that step.

        Weights, slots and state are bit-identical to the run's, on the same kind of device; all
        else comes from another compiled program, and may differ in rounding. The first call
        compiles; the run keeps what it needs for others.

        Args:
          step: from 1 to the last one that was done.

        Raises:
          LabError: there is no such step, or what the run trained is not available.
        """
        return self._replays().at(step)

    def before(self, step: int) -> AbstractContextManager[Rerun]:
        """The run as it was before a step, as a context: what the step does, and what it would do
        if one thing were changed. Within the context the run cannot be asked for another step.

        Raises:
          LabError: as `at`.
        """
        return self._replays().before(step)

    def why(self, repeat: bool = True, experiments: bool = False) -> Diagnosis:
        """Diagnoses what broke first in the run: see `bin/why`.

        Args:
          repeat: examine the step in question by retraining it, where possible.
          experiments: also repeat the run with the suspected link changed.
        """
        from lab.diagnosis.why import diagnose

        return diagnose(self, repeat, experiments)

    def _replays(self) -> Replay:
        from lab.training.replay import Replay

        if self._replay is None:
            self._replay = Replay(self, self._problem)
        return self._replay

    def batch(self, step: int) -> np.ndarray:
        """Which training examples made up a step: int32 [batch].

        Raises:
          LabError: there is no such step, a function gave the batches, or the data are missing.
        """
        from lab.training.replay import examples_of

        return examples_of(self, step, self._problem)


def open_run(path: str | os.PathLike, **objects: Any) -> Run:
    """Opens a run directory, even one still being written: open it again to see what is new.

    Args:
      **objects: the model, data, loss, metrics and optimizer that `lab.train` was given, where
        these were objects and not names, and steps are to be retrained.

    Raises:
      LabError: it is not a run directory.
    """
    run = Run(os.fspath(path))
    if objects:
        from lab.training.replay import problem_with_objects

        run._problem = problem_with_objects(run, objects)
    return run
