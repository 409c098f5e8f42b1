"""What a step of a run is made of, and what is on record of how it came about."""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import numpy as np

from lab.errors import LabError
from lab.record.directory import CONFIG, checkpoint_paths, read_object
from lab.record.run import RunReader
from lab.settings.config import Config
from lab.settings.fields import from_json


@dataclasses.dataclass(frozen=True, repr=False)
class Moment:
    """Everything of one step, trained again. Arrays are NumPy's, by tag.

    Attributes:
      step: its number, from 1.
      weights, slots, state: after the step: the trainable variables, the optimizer's slots and the
        model's other variables.
      before: the trainable variables before the step.
      gradients: of the loss as it is minimized, summed over replicas and micro-batches.
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

    def __repr__(self) -> str:
        """The step, its loss and the shapes of the arrays, by tag."""
        count, loss = len(self.scalars), self.losses.mean()
        lines = [f"Moment of step {self.step}, mean loss {loss:.4g}, {count} scalars"]
        batch = {} if self.examples is None else {"examples": self.examples}
        parts = {"weights, before, gradients, updates": self.weights, "slots": self.slots,
                 "state": self.state, "activations": self.activations,
                 "batch": batch | {"losses": self.losses}}  # fmt: skip
        for name, arrays in parts.items():
            if arrays:
                shapes = (f"{tag} {list(array.shape)}" for tag, array in arrays.items())
                lines.append(f"  {name}: {', '.join(shapes)}")
        return "\n".join(lines)


class StoredRun(RunReader):
    """A run directory, and what decided the numbers in it."""

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
