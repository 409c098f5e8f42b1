"""What happens between two calls of the compiled loop, and how many steps such a call takes.

A job has `due(step)`, and is called with what the last loop recorded when it is due.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import tensorflow as tf

from lab.data import Data
from lab.kernels.metrics import accuracy
from lab.settings.config import Config, Settings
from lab.step import gradient_noise
from lab.step.agreement import Group
from lab.step.evaluate import PREDICTED
from lab.step.loop import Recorded
from lab.training.progress import Reporter
from lab.training.session import AnyRecorder, Session
from lab.training.state import FIGURES, TrainingState, most_steps

README_BATCH = 256  # the README's accuracy is a mean over test batches of this size
LOOP_MILLISECONDS = 4000  # a loop takes no longer, but for its first step: a signal waits for it


class LoopLength:
    """How many steps the next call of the compiled loop takes: it ends at evaluations and
    checkpoints. No loop is longer than `most`; `milliseconds` is how long a step of the last took.
    """

    def __init__(self, config: Config, settings: Settings, data: Data) -> None:
        self._last = config.training_steps
        self._every = (config.display_step, settings.checkpoint_every)
        most = most_steps(data, config.batch_size)
        self.most = min(most, settings.steps_per_loop, self._last, *self._every)
        self.milliseconds = 2**31 - 1  # so the first loop has one step, which is timed

    def __call__(self, step: int) -> int:
        """The number of steps after `step`."""
        ends = [(step // every + 1) * every for every in self._every]
        in_time = max(LOOP_MILLISECONDS // self.milliseconds, 1)
        return min(self._last, step + min(self.most, in_time), *ends) - step

    @contextlib.contextmanager
    def timed(self, steps: int) -> Iterator[None]:
        """Measures how long the steps run in the context take."""
        begun = time.monotonic()
        yield
        self.milliseconds = math.ceil(1000 * (time.monotonic() - begun) / steps)


class Profile:
    """Profiles the second loop of this process, or the first if it ends at the `last` step; not
    where the `folder` that takes the profile is empty."""

    def __init__(self, folder: str, last: int) -> None:
        self._folder, self._last, self._loops = folder, last, 0

    def around(self, steps: int) -> AbstractContextManager:
        """The context of the next loop, with its number of steps."""
        self._loops += 1
        if self._folder and (self._loops == 2 or steps == self._last):
            return tf.profiler.experimental.Profile(self._folder)
        return contextlib.nullcontext()


class Evaluation:
    """Records and reports exact figures over the test set."""

    def __init__(self, state: TrainingState, recorder: AnyRecorder, reporter: Reporter) -> None:
        self._state, self._recorder, self._reporter = state, recorder, reporter

    def due(self, step: int) -> bool:
        """Every `display_step` steps, and after the last one."""
        config = self._state.config
        return step == config.training_steps or step % config.display_step == 0

    def left(self, step: int) -> int:
        """How many are due after a step."""
        return _left(step, self._state.config.training_steps, self._state.config.display_step)

    @property
    def tags(self) -> list[str]:
        """Of the scalars that an evaluation records."""
        state = self._state
        names = ["loss", *state.training.metrics] if state.evaluator else []
        moved = state.initial if "norms" in state.config.watch else ()
        scales = [f"{prefix}gradient/noise/scale" for prefix in state.saved["noise"]]
        return [*(f"test-{name}" for name in names), *(f"{n}/distance" for n in moved), *scales]

    def __call__(self, recorded: Recorded) -> None:
        """Evaluates; the loss and metrics of the last batch are reported with it."""
        state, config, saved = self._state, self._state.config, self._state.saved
        found = state.evaluator.run(config.seed) if state.evaluator else {}
        weights = state.weights()
        means = {n: _mean(values) for n, values in found.items() if n != PREDICTED}
        own = state.training.metrics.get("accuracy") is accuracy
        figures = dict.fromkeys(FIGURES) | _figures(found, means, state.data.y_test, own)
        digests = state.digests()
        figures["frozen"] = [tag for tag in digests if digests[tag] == saved["digests"][tag]]
        first = saved.get("first_loss")  # a checkpoint of an older version has none
        if not figures["frozen"] and first is not None and (figures["test_loss"] or 0) < first:
            figures["collapsed"] = None  # slow, not dead: it has learned something and still learns
        earlier = saved["figures"]
        saved |= {"figures": figures, "digests": digests}
        names = ["loss", *state.training.metrics]
        test = {f"test-{name}": mean for name, mean in means.items()}
        if found:
            saved["evaluations"]["step"].append(state.step)
            for name, mean in means.items():
                saved["evaluations"][f"test_{name}"].append(_finite(mean))
        if (figures["frozen"] and not earlier["frozen"]) or (
            figures["collapsed"] is not None and earlier["collapsed"] is None
        ):
            self._reporter.notify(f"step {state.step}: {_standstill(figures)}")
        self._recorder.scalars(state.step, test | self._distances(weights) | self._noise_scales())
        self._recorder.flush()
        values = recorded["scalars"][-1, : len(names)].numpy()
        batch = dict(zip(names, map(float, values), strict=True))
        batch["loss"] /= config.batch_size if config.reduction == "sum" else 1
        self._reporter.evaluated(state.step, batch | test)

    def _distances(self, weights: dict[str, np.ndarray]) -> dict[str, float]:
        if "norms" not in self._state.config.watch:
            return {}
        return {
            f"{name}/distance": float(np.linalg.norm(weights[name].astype(np.float64) - start))
            for name, start in self._state.initial.items()
        }

    def _noise_scales(self) -> dict[str, float]:
        """The gradient noise scales over the steps since the last evaluation."""
        noise = self._state.saved["noise"]
        self._state.saved["noise"] = {prefix: [0.0, 0.0] for prefix in noise}
        return {
            f"{prefix}gradient/noise/scale": gradient_noise.noise_scale(*sums)
            for prefix, sums in noise.items()
        }


def _standstill(figures: dict[str, Any]) -> str:
    """A frozen or collapsed run in words."""
    words = []
    if figures["collapsed"] is not None:
        words.append(f"collapsed, every test example is predicted as class {figures['collapsed']}")
    if figures["frozen"]:
        words.append(f"frozen, not a bit has changed in {', '.join(figures['frozen'])}")
    return "; ".join(words)


def _left(step: int, last: int, every: int) -> int:
    """How many multiples of `every` lie after a step, the last one counted as one."""
    return -(-last // every) - step // every if step < last else 0


def _mean(values: np.ndarray) -> float:
    return float(values.mean(dtype=np.float64))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _figures(
    found: dict[str, np.ndarray],
    means: dict[str, float],
    labels: np.ndarray | None,
    own_accuracy: bool,
) -> dict[str, Any]:
    """What result.json says of an evaluation, see Evaluator.run, with the means of its values.

    test_loss, in nats, and test_metrics: None if not finite. test_accuracy: the lab's own, not a
    metric of the user's with this name, which need not be a share of 1. For classes,
    readme_accuracy: the unweighted mean of the accuracies of batches, the last of which may be
    short; collapsed: the class that every example is taken for, if there is only one (the caller
    takes it back for a run that still learns).
    """
    if not found:
        return {}
    finite = {name: _finite(mean) for name, mean in means.items()}
    loss = finite.pop("loss")
    figures = {"test_total": len(found["loss"]), "test_loss": loss, "test_metrics": finite}
    if own_accuracy:
        figures["test_accuracy"] = finite["accuracy"]
    if PREDICTED in found:
        correct, classes = found[PREDICTED] == labels, np.unique(found[PREDICTED])
        batches = np.split(correct, range(README_BATCH, len(correct), README_BATCH))
        figures |= {
            "test_correct": int(correct.sum()),
            "test_accuracy": float(correct.mean()),
            "readme_accuracy": float(np.mean([batch.mean() for batch in batches])),
            "collapsed": int(classes[0]) if len(classes) == 1 and loss is not None else None,
        }
    return figures


class Checkpointing:
    """Saves checkpoints; `saved` is the step of the last one."""

    def __init__(
        self,
        state: TrainingState,
        session: Session,
        recorder: AnyRecorder,
        group: Group,
        every: int,
    ) -> None:
        self._state, self._session, self._recorder = state, session, recorder
        self._group, self._every = group, every
        self._begun = time.monotonic() - state.saved["seconds"]
        self.saved = state.step

    def due(self, step: int) -> bool:
        """Every `checkpoint_every` steps, and after the last one."""
        return step == self._state.config.training_steps or step % self._every == 0

    def left(self, step: int) -> int:
        """How many are due after a step."""
        return _left(step, self._state.config.training_steps, self._every)

    def __call__(self, recorded: Recorded | None = None) -> None:
        """Saves, after a check that all replicas hold the same values."""
        state = self._state
        self._flush()
        self._group.check_identical(state.training.all_variables)
        self._session.save(state.step, state.tensors(), state.saved)
        self.saved = state.step

    def end(self) -> None:
        """Saves where a signal ended the run, not where NaN did; writes out the record."""
        if self.saved == self._state.step or self._state.broken:
            self._flush()
        else:
            self()

    def _flush(self) -> None:
        self._recorder.flush()
        self._state.saved["seconds"] = time.monotonic() - self._begun
