"""A run that can be asked for any step again: `lab.open_run`."""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from lab.errors import LabError
from lab.record.directory import CONFIG, checkpoint_paths, read_object
from lab.record.run import RunReader
from lab.settings.config import Config
from lab.settings.fields import from_json

if TYPE_CHECKING:
    from lab.training.problem import Problem


@dataclasses.dataclass(frozen=True)
class Moment:
    """Everything of one step, trained again. Arrays are NumPy's, by tag.

    Attributes:
      step: its number, from 1.
      weights, slots, state: after the step: the trainable variables, the optimizer's slots and the
        model's other variables.
      before: the trainable variables before the step.
      gradients: of the loss as it is minimized, summed over the replicas.
      updates: what is subtracted from the weights.
      examples: int32 [batch], which training examples made the batch; None where a function gives
        the batches.
      losses: float32 [batch], of each example.
      activations: what the model probes, and the outputs of its layers where they are watched.
      scalars: loss, metrics and all else that is recorded of the step, by tag.
      differing: the tags of histograms that differ from the recorded ones; empty, unless this
        machine or its TensorFlow computes other last bits than the one that trained the run.
    """

    step: int
    weights: dict[str, np.ndarray]
    before: dict[str, np.ndarray]
    slots: dict[str, np.ndarray]
    state: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]
    updates: dict[str, np.ndarray]
    examples: np.ndarray | None
    losses: np.ndarray
    activations: dict[str, np.ndarray]
    scalars: dict[str, float]
    differing: tuple[str, ...]


class Run(RunReader):
    """A run directory: what it holds, and any of its steps again.

    Args:
      path: of the directory.
      problem: what it trained, where its config does not name it.
    """

    def __init__(self, path: str, problem: Problem | None = None) -> None:
        super().__init__(path)
        self._problem = problem

    def at(self, step: int) -> Moment:
        """Trains again from the nearest checkpoint to a step, and gives all of that step.

        The weights, slots and state are the bits that the run had, on the same kind of device; all
        else comes from another compiled program, and may differ in rounding.

        Args:
          step: from 1 to the last one that was done.

        Raises:
          LabError: there is no such step, or what the run trained is not at hand.
        """
        from lab.training.replay import replay

        return replay(self, step, self._problem)

    def batch(self, step: int) -> np.ndarray:
        """Which training examples made up a step: int32 [batch].

        Raises:
          LabError: a function gave the batches, or the data are not at hand.
        """
        from lab.training.replay import examples_of

        return examples_of(self, step, self._problem)

    @functools.cached_property
    def circumstances(self) -> dict[str, Any]:
        """What decided the numbers beside the config."""
        return read_object(os.path.join(self.path, CONFIG))

    @property
    def checked_config(self) -> Config:
        """The config as the program has it."""
        return Config(**from_json(Config, self.config, f"{self.path}: config."))

    def checkpoint_before(self, step: int) -> tuple[int, str]:
        """The newest checkpoint from which a step can be trained again: its step and its path."""
        found = [(n, path) for n, path in checkpoint_paths(self.path).items() if n < step]
        if not found:
            raise LabError(f"{self.path} has no checkpoint before step {step}")
        return found[-1]


def open_run(path: str | os.PathLike, **objects: Any) -> Run:
    """Opens a run directory, also one that is still being written: open it again for what is new.

    Args:
      **objects: the model, data, loss, metrics and optimizer that `lab.train` was given, where
        these were objects and not names, and steps are to be trained again.

    Raises:
      LabError: it is none.
    """
    run = Run(os.fspath(path))
    if objects:
        from lab.training.replay import problem_with_objects

        run._problem = problem_with_objects(run.checked_config, objects)
    return run
