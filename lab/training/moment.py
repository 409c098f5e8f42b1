"""The contents of one step of a run."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, repr=False)
class Moment:
    """Everything about one step, recomputed. NumPy arrays by tag.

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
      scalars: loss, metrics and everything else recorded at the step, by tag.
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
