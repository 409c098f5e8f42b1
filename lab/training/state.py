"""Where a run is: its step, its variables, and what else a checkpoint has to hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from lab import machine
from lab.data import Batches
from lab.record.checkpoints import Checkpoint
from lab.settings.config import Config
from lab.step import gradient_noise
from lab.step.loop import Recorded, TrainLoop
from lab.step.replica import Training
from lab.training import diagnosis


class TrainingState:
    """A run's variables, and how far they are trained.

    Attributes:
      step: the last step that is done.
      seconds, figures, evaluations, ...: see `saved`.
      initial: the weights before the first step, by tag.
    """

    def __init__(self, config: Config, training: Training, loop: TrainLoop, batches: Batches):
        self.config, self.training, self.loop, self.batches = config, training, loop, batches
        self.initial = self.weights()
        self.step = 0
        # What a checkpoint holds beside the tensors, so that a run that is resumed ends with the
        # same result.json: plain JSON values.
        self.saved: dict[str, Any] = {
            "figures": dict.fromkeys(diagnosis.FIGURES),
            "evaluations": {"step": [], "test_loss": [], "test_accuracy": []},
            "digests": diagnosis.digests(self.initial),
            "nonfinite": {},
            # By prefix, the sums of S and G2 over the steps since the last evaluation.
            "noise": {prefix: [0.0, 0.0] for prefix, _ in self._noise_columns()},
            "cpus": [{"first_step": 1, "cpu": machine.cpu()}],
            "seconds": 0.0,
        }

    @property
    def effective_learning_rate(self) -> float:
        """The learning rate that would give the same steps on the mean loss."""
        config = self.config
        degree = self.training.optimizer.rule.degree
        factor = config.batch_size**degree if config.reduction == "sum" else 1
        return config.learning_rate * factor

    def weights(self) -> dict[str, np.ndarray]:
        """The weights by tag."""
        return {tag: variable.numpy() for tag, variable in self.training.variables.items()}

    def variables(self) -> dict[str, tf.Variable]:
        """All that training changes, by the names that checkpoints give it."""
        optimizer = self.training.optimizer
        named = dict(self.training.variables)
        for tag, slots in zip(list(named), optimizer.slots, strict=True):
            named |= {f"{tag}/{n}": s for n, s in zip(optimizer.rule.slots, slots, strict=True)}
        return named

    def tensors(self) -> dict[str, tf.Tensor]:
        """The values of `variables`, which later steps leave as they are."""
        return {name: tf.identity(variable) for name, variable in self.variables().items()}

    def assign(self, values: Mapping[str, Any]) -> None:
        """Gives every variable its value."""
        for name, variable in self.variables().items():
            variable.assign(values[name])

    def restore(self, checkpoint: Checkpoint) -> str:
        """Continues from a checkpoint; returns a warning if that was of another kind of CPU."""
        self.step, self.saved = checkpoint.step, checkpoint.state
        self.assign(checkpoint.tensors)
        before, now = self.saved["cpus"][-1]["cpu"], machine.cpu()
        if now == before:
            return ""
        self.saved["cpus"].append({"first_step": self.step + 1, "cpu": now})
        return (
            f"another kind of CPU ({now}; before: {before}): the rest of this run equals the "
            "uninterrupted one within rounding, and not in every bit"
        )

    def run(self, steps: int) -> tuple[Recorded, str]:
        """Trains so many steps, or up to the step in which NaN or infinity ends the run.

        Returns:
          What was recorded, and a message at the first NaN or infinity, else "".
        """
        first = self.step + 1
        arguments = self.batches.indices(first, steps), first
        before = self.tensors()
        recorded, message = self.loop.run(*arguments), ""
        loss, notes = recorded["scalars"][:, 0].numpy(), self.saved["nonfinite"]
        finite = np.isfinite(loss).all() and all(
            np.isfinite(w).all() for w in self.weights().values()
        )
        if not finite and not notes:
            row, found = self._first_nonfinite(before, arguments, loss)
            for tag, count in found.items():
                notes[tag] = {"first_step": first + row, "count": count}
            what = ", ".join(f"{tag} ({count})" for tag, count in found.items())
            message = f"step {first + row}: NaN or infinity in {what}"
            if self.config.on_nonfinite != "continue":
                recorded = {name: tensor[: row + 1] for name, tensor in recorded.items()}
        self.step += int(recorded["scalars"].shape[0])
        for prefix, columns in self._noise_columns():
            sums = recorded["scalars"].numpy()[:, columns].sum(axis=0, dtype=np.float64)
            self.saved["noise"][prefix] = [
                a + float(b) for a, b in zip(self.saved["noise"][prefix], sums, strict=True)
            ]
        return recorded, message

    def _first_nonfinite(
        self, before: dict[str, tf.Tensor], arguments: tuple[np.ndarray, int], loss: np.ndarray
    ) -> tuple[int, dict[str, int]]:
        """Runs the same steps once more and watches everything, see diagnosis.first_nonfinite."""
        after = self.tensors()
        self.assign(before)
        watching = self.loop.watching(("weights", "gradients"))
        counts = watching.run(*arguments)["nonfinite"].numpy()
        self.assign(after)
        row, found = diagnosis.first_nonfinite(watching.watch.tags, counts, loss)
        if not found:  # another program, whose last bits may differ: it did not get that far
            bad = {tag: int((~np.isfinite(w)).sum()) for tag, w in self.weights().items()}
            found = {tag: count for tag, count in bad.items() if count}
        return row, found

    def _noise_columns(self) -> list[tuple[str, list[int]]]:
        return gradient_noise.noise_columns(self.loop.watch.scalar_tags)
