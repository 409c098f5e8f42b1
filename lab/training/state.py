"""Where a run is: its step, its variables, and what else a checkpoint has to hold."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from lab import data, machine
from lab.data import Data
from lab.record.checkpoints import Checkpoint
from lab.settings.config import Config
from lab.step import gradient_noise
from lab.step.evaluate import Evaluator
from lab.step.loop import Recorded, TrainLoop
from lab.training import build
from lab.training.session import Notify

# What result.json says of the last evaluation.
FIGURES = (
    *("test_correct", "test_total", "test_accuracy", "readme_accuracy", "test_loss"),
    *("collapsed", "frozen"),
)


class TrainingState:
    """A run's variables and compiled loop, of at most `max_steps`, and how far it is trained.

    Attributes:
      step: the last step that is done.
      initial: the weights before the first step, by tag.
      broken: whether NaN or infinity has ended the run.
      saved: what a checkpoint holds beside the tensors, so that a run that is resumed ends with
        the same result.json: plain JSON values.
    """

    def __init__(
        self, config: Config, dataset: Data, strategy: tf.distribute.Strategy, max_steps: int
    ) -> None:
        self.config, self.dataset, self.strategy = config, dataset, strategy
        self.training = build.make_training(config, dataset, strategy)
        images, labels = dataset.x, dataset.y
        if config.shuffle_labels:
            labels = data.shuffled(labels, config.seed)
        kinds, every = config.watch, config.histogram_every
        self.loop = TrainLoop(strategy, self.training, images, labels, kinds, every, max_steps)
        model, loss = self.training.model, self.training.loss
        test = Evaluator(strategy, model, loss, dataset.x_test, dataset.y_test)
        self.evaluate = test.run
        # Compiled here, so that a run's `seconds` are training alone.
        self.loop.run(np.zeros([0, config.batch_size], np.int32), 1)
        self.evaluate.get_concrete_function()
        self._batches = data.Batches(config.seed, len(images), config.batch_size)
        self.initial = self.weights()
        self.step, self.broken = 0, False
        self.saved: dict[str, Any] = {
            "figures": dict.fromkeys(FIGURES),
            "evaluations": {"step": [], "test_loss": [], "test_accuracy": []},
            "digests": self.digests(),
            "nonfinite": {},
            # By prefix, the sums of S and G2 over the steps since the last evaluation.
            "noise": {prefix: [0.0, 0.0] for prefix, _ in self._noise_columns()},
            "cpus": [{"first_step": 1, "cpu": machine.cpu()}],
            "seconds": 0.0,
        }

    @property
    def status(self) -> str:
        """The status of a run that ends here."""
        if self.step < self.config.training_steps and not self.broken:
            return "interrupted"
        if self.saved["nonfinite"]:
            return "nonfinite"
        return "completed" if self.saved["figures"]["collapsed"] is None else "collapsed"

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

    def digests(self) -> dict[str, str]:
        """A digest of the bits of each weight: equal as long as nothing in it changes."""
        weights = self.weights().items()
        return {tag: hashlib.sha256(value.tobytes()).hexdigest() for tag, value in weights}

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

    def restore(self, checkpoint: Checkpoint, notify: Notify) -> None:
        """Continues from a checkpoint; warns if that was of another kind of CPU."""
        self.step, self.saved = checkpoint.step, checkpoint.state
        self.assign(checkpoint.tensors)
        before, now = self.saved["cpus"][-1]["cpu"], machine.cpu()
        if now != before:
            self.saved["cpus"].append({"first_step": self.step + 1, "cpu": now})
            notify(
                f"another kind of CPU ({now}; before: {before}): the rest of this run equals the "
                "uninterrupted one within rounding, and not in every bit"
            )

    def run(self, steps: int, notify: Notify) -> Recorded:
        """Trains so many steps, or up to the step in which NaN or infinity ends the run.

        Args:
          notify: is called with a message at the first NaN or infinity.
        """
        first = self.step + 1
        arguments = self._batches.indices(first, steps), first
        before = self.tensors()
        recorded = self.loop.run(*arguments)
        loss, notes = recorded["scalars"][:, 0].numpy(), self.saved["nonfinite"]
        finite = all(np.isfinite(values).all() for values in (loss, *self.weights().values()))
        if not finite and not notes:
            row, found = self._first_nonfinite(before, arguments, loss)
            notes |= {tag: {"first_step": first + row, "count": n} for tag, n in found.items()}
            what = ", ".join(f"{tag} ({count})" for tag, count in found.items())
            notify(f"step {first + row}: NaN or infinity in {what}")
            if self.config.on_nonfinite == "stop":
                self.broken = True
                recorded = {name: tensor[: row + 1] for name, tensor in recorded.items()}
        scalars = recorded["scalars"].numpy()
        self.step += len(scalars)
        for prefix, columns in self._noise_columns():
            sums = scalars[:, columns].sum(axis=0, dtype=np.float64)
            self.saved["noise"][prefix] = (sums + self.saved["noise"][prefix]).tolist()
        return recorded

    def _first_nonfinite(
        self, before: dict[str, tf.Tensor], arguments: tuple[np.ndarray, int], loss: np.ndarray
    ) -> tuple[int, dict[str, int]]:
        """Runs the same steps once more and watches everything.

        Returns:
          (row of the first step with NaN or infinity, the number of such entries by tag).
        """
        after = self.tensors()
        self.assign(before)
        watching = self.loop.watching(("weights", "gradients"))
        counts = watching.run(*arguments)["nonfinite"].numpy()
        self.assign(after)
        bad = counts.any(axis=1) | ~np.isfinite(loss)
        row = int(bad.argmax()) if bad.any() else len(bad) - 1
        found = {"loss": int(~np.isfinite(loss[row]))}
        found |= dict(zip(watching.watch.tags, counts[row].tolist(), strict=True))
        if not any(found.values()):  # another program, with other last bits: it did not get so far
            found = {tag: int((~np.isfinite(w)).sum()) for tag, w in self.weights().items()}
        return row, {tag: count for tag, count in found.items() if count}

    def largest_gradient(self) -> float:
        """The largest absolute value of the gradient on the last batch."""
        return self.loop.largest_gradient(self._batches.indices(self.step, 1)[0])

    def _noise_columns(self) -> list[tuple[str, list[int]]]:
        return gradient_noise.noise_columns(self.loop.watch.scalar_tags)
