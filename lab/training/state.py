"""The state of a run: its step, its variables, and what else a checkpoint must hold."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from lab import machine
from lab.data import Batches, Data, shuffled
from lab.errors import LabError
from lab.kernels.metrics import accuracy
from lab.record.checkpoints import Checkpoint
from lab.settings.config import Config
from lab.step import gradient_noise
from lab.step.evaluate import Evaluator
from lab.step.loop import Recorded, TrainLoop
from lab.step.replica import Training
from lab.step.trace import Traced
from lab.step.watch import GRADIENT_NORM
from lab.training.checks import classes_of, explained
from lab.training.programs import Compiled, Programs
from lab.training.session import Notify

# What result.json says of the last evaluation.
FIGURES = (
    *("test_correct", "test_total", "test_accuracy", "readme_accuracy", "test_loss"),
    *("test_metrics", "collapsed", "frozen"),
)
_RESIDENT = 2**30  # bytes of examples at most that are kept on the devices
_INDICES = 2**24  # numbers of examples at most that a loop is given
_FED = 2**26  # bytes of examples at most that a loop is given, if they do not


class TrainingState:
    """A run's variables and compiled loop, and how far it is trained.

    Args:
      traced: the training's model on a whole batch.
      use_xla: whether XLA compiles the loop. Where it cannot, TensorFlow's own kernels do it.
      max_steps: of a loop.
      programs: of the process's last run. Where this run's are the same, it uses those, and their
        variables are given the values of this run's.

    Attributes:
      step: the last step that is done.
      initial: the weights before the first step, by tag.
      broken: whether NaN or infinity has ended the run.
      evaluator: of the test set; None without one.
      saved: what a checkpoint holds besides the tensors, so that a resumed run ends with
        the same result.json: plain JSON values.
    """

    def __init__(
        self,
        config: Config,
        data: Data,
        strategy: tf.distribute.Strategy,
        training: Training,
        traced: Traced,
        use_xla: bool,
        max_steps: int,
        programs: Programs | None = None,
    ) -> None:
        self.config, self.data, self.strategy, self.training = config, data, strategy, training
        x, y = data.x, data.y
        if config.shuffle_labels:
            y = shuffled(y, config.seed)
        self._x, self._y = x, y
        self._limit = classes_of(training.loss, traced.output)
        self._fed = is_fed(data)
        self.take_seed(config.seed)
        self.classes = training.metrics.get("accuracy") is accuracy and data.y.ndim == 1
        self._compile(traced, use_xla, max_steps, programs or Programs())
        self.initial = self.weights()
        self.step, self.broken = 0, False
        courses = ["step", "test_loss", *(f"test_{name}" for name in training.metrics)]
        self.saved: dict[str, Any] = {
            "figures": dict.fromkeys(FIGURES),
            "evaluations": {name: [] for name in courses},
            "digests": self.digests(),
            "first_loss": None,  # of the first batch, a mean over its examples
            "nonfinite": {},
            "lost": False,  # whether loss or weights have been NaN or infinite
            # By prefix, the sums of S and G2 over the steps since the last evaluation.
            "noise": {prefix: [0.0, 0.0] for prefix, _ in self._noise_columns()},
            "cpus": [{"first_step": 1, "cpu": machine.cpu()}],
            "seconds": 0.0,
        }

    def _compile(self, traced: Traced, use_xla: bool, max_steps: int, programs: Programs) -> None:
        """Makes loop and evaluator, compiled here so that a run's `seconds` are training alone."""
        if programs.kept and self.config.ready_made:
            return self._use(programs.kept)
        self.evaluator = self._make_evaluator()
        config, strategy, (x, y) = self.config, self.strategy, (self._x, self._y)
        if self._fed:
            x, y = (tf.TensorSpec(one.shape[1:], one.dtype) for one in (x, y))
        elif programs.kept:
            x, y = programs.kept.loop.data  # on the devices already
        kinds, every = (*config.watch, GRADIENT_NORM), config.histogram_every
        make = functools.partial(
            TrainLoop, strategy, self.training, x, y, kinds, every, max_steps, traced=traced
        )
        self.loop = make(xla=use_xla)
        try:
            own = Compiled(strategy, self.training, self.loop, self.evaluator)
            if kept := programs.find(own):
                return self._use(kept)
            self.loop.run(self.rows(1, 0), 1, config.seed)
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, ValueError) as error:
            if not use_xla:
                raise
            if self.config.xla == "on":
                why = " ".join(str(error).split())[:200]
                raise LabError(f"--xla=on: XLA cannot compile this network: {why}") from error
            self.loop = make(xla=False)
            self.loop.run(self.rows(1, 0), 1, config.seed)
            own = Compiled(strategy, self.training, self.loop, self.evaluator)
        programs.keep(own)

    def _use(self, kept: Compiled) -> None:
        """Takes the parts of an earlier run, and gives their variables the values of this one's."""
        values = self.tensors()
        self.training, self.loop, self.evaluator = kept.training, kept.loop, kept.evaluator
        self.assign(values)

    def _make_evaluator(self) -> Evaluator | None:
        data = self.data
        if data.x_test is None or data.y_test is None:
            return None
        test = data.x_test, data.y_test
        evaluator = Evaluator(self.strategy, self.training, *test, self.classes)
        with explained("the model cannot be called on the test examples"):
            evaluator.compile()
        return evaluator

    def take_seed(self, seed: int) -> None:
        """Chooses the examples of each step, and draws in it, as a run with this seed does."""
        self.config = dataclasses.replace(self.config, seed=seed)
        self._batches = Batches(seed, len(self.data.x), self.config.batch_size)

    @property
    def status(self) -> str:
        """The status of a run that ends here."""
        if self.step < self.config.training_steps and not self.broken:
            return "interrupted"
        if any(map(self._of_training, self.saved["nonfinite"])):
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

    def tensors(self) -> dict[str, tf.Tensor]:
        """The values of all variables, which later steps leave as they are."""
        variables = self.training.all_variables
        return {name: tf.identity(variable) for name, variable in variables.items()}

    def assign(self, values: Mapping[str, Any]) -> None:
        """Gives every variable its value."""
        for name, variable in self.training.all_variables.items():
            variable.assign(values[name])

    def restore(self, checkpoint: Checkpoint, notify: Notify) -> None:
        """Continues from a checkpoint; warns if it came from a different kind of CPU."""
        self.step, self.saved = checkpoint.step, checkpoint.state
        self.assign(checkpoint.tensors)
        before, now = self.saved["cpus"][-1]["cpu"], machine.cpu()
        if now != before:
            self.saved["cpus"].append({"first_step": self.step + 1, "cpu": now})
            notify(
                f"different CPU ({now}; before: {before}): the rest of this run equals the "
                "uninterrupted one within rounding, but not bit for bit"
            )

    def run(self, steps: int, notify: Notify) -> Recorded:
        """Trains a number of steps, or up to the step in which NaN or infinity ends the run.

        Args:
          notify: is called with a message at the first NaN or infinity.
        """
        first = self.step + 1
        arguments = self.rows(first, steps), first, self.config.seed
        before = self.tensors()
        recorded = self.loop.run(*arguments)
        loss = recorded["scalars"][:, 0].numpy()
        if first == 1 and np.isfinite(loss[0]):
            size = self.config.batch_size if self.config.reduction == "sum" else 1
            self.saved["first_loss"] = float(loss[0]) / size
        finite = all(np.isfinite(values).all() for values in (loss, *self.weights().values()))
        if not finite and not self.saved.get("lost"):
            row, found = self._first_nonfinite(before, arguments, loss)
            self.saved["lost"], notes = True, self.saved["nonfinite"]
            for tag, count in found.items():
                notes.setdefault(tag, {"first_step": first + row, "count": count})
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
        self, before: dict[str, tf.Tensor], arguments: tuple[Any, int, int], loss: np.ndarray
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

    def _of_training(self, tag: str) -> bool:
        """Whether a tag is of the loss, a weight or its gradient, and not of what a model probes or
        gives out, which may hold infinity on purpose."""
        return tag == "loss" or any(f"{tag}/".startswith(f"{n}/") for n in self.training.variables)

    def examples(self, step: int) -> np.ndarray | None:
        """Which training examples make up a step: int32 [batch_size]; None where a function gives
        the batches."""
        return None if self.data.is_function else self._batches.indices(step, 1)[0]

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The x and y of a step, each [batch, ...]."""
        examples = self.examples(step)
        if examples is None:
            return self.data.batch(step, self._limit)
        return self._x[examples], self._y[examples]

    def rows(self, first: int, steps: int) -> Any:
        """What selects the examples of the next steps, see TrainLoop.run."""
        if self.data.is_function:
            batches = [self.data.batch(step, self._limit) for step in range(first, first + steps)]
            if not batches:
                return self._x[None][:0], self._y[None][:0]
            return tuple(np.stack(part) for part in zip(*batches, strict=True))
        if not steps:
            indices = np.zeros([0, self.config.batch_size], np.int32)
        else:
            indices = self._batches.indices(first, steps)
        return (self._x[indices], self._y[indices]) if self._fed else indices

    def _noise_columns(self) -> list[tuple[str, list[int]]]:
        return gradient_noise.noise_columns(self.loop.watch.scalar_tags)


def is_fed(data: Data) -> bool:
    """Whether the training examples are given to the loop, rather than kept on its devices."""
    return data.is_function or data.x.nbytes + data.y.nbytes > _RESIDENT


def most_steps(data: Data, batch_size: int) -> int:
    """The most steps for which a loop can be given the examples, or their numbers."""
    if not is_fed(data):
        return max(_INDICES // batch_size, 1)
    one = batch_size * (data.x[:1].nbytes + data.y[:1].nbytes)
    return max(_FED // max(one, 1), 1)
