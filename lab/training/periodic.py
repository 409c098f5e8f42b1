"""What happens between two calls of the compiled loop, and how many steps such a call takes.

A job has `due(step)`, and is called with what the last loop recorded when it is due.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from lab.data import Dataset
from lab.models import losses
from lab.processes.stop import Stop
from lab.record.event_writer import NullRecorder, Recorder
from lab.settings.config import Config, Settings
from lab.step import gradient_noise
from lab.step.agreement import Group
from lab.step.evaluate import Evaluator
from lab.step.loop import Recorded
from lab.training import diagnosis
from lab.training.progress import Reporter
from lab.training.session import OtherSession, Session
from lab.training.state import TrainingState

LOOP_MILLISECONDS = 4000  # a loop takes no longer, but for its first step: a signal waits for it
LOOP_INDICES = 2**24  # a loop holds the indices of no more examples than that


class LoopLength:
    """How many steps the next call of the compiled loop takes.

    Args:
      last: the last step of the run.
      every: a loop ends where one of these divides the step.
      most: no loop is longer.

    Attributes:
      most: no loop is longer.
    """

    def __init__(self, last: int, every: Sequence[int], most: int) -> None:
        self._last, self._every, self.most = last, every, most
        self._pace = 1  # the first loop shows how long a step takes

    def __call__(self, step: int) -> int:
        """The number of steps after `step`."""
        ends = [(step // n + 1) * n for n in self._every]
        return min(self._last, step + min(self.most, self._pace), *ends) - step

    def took(self, milliseconds: int) -> None:
        """Notes how long a step of the last loop took, at least 1 ms."""
        self._pace = max(LOOP_MILLISECONDS // milliseconds, 1)


def loop_length(config: Config, settings: Settings) -> LoopLength:
    """The loop length of a run: loops end at evaluations and checkpoints."""
    every = (config.display_step, settings.checkpoint_every)
    room = max(LOOP_INDICES // config.batch_size, 1)
    most = min(settings.steps_per_loop, config.training_steps, room, *every)
    return LoopLength(config.training_steps, every, most)


class Profile:
    """Profiles the second loop of this process, or the first if it is the only one.

    Args:
      folder: takes the profile; empty for none.
      last: the last step of the run.
    """

    def __init__(self, folder: str, last: int) -> None:
        self._folder, self._last, self._loops = folder, last, 0

    def due(self, steps: int) -> bool:
        """Whether the next loop, of so many steps, is the one."""
        self._loops += 1
        return bool(self._folder) and (self._loops == 2 or steps == self._last)

    @contextlib.contextmanager
    def around(self, steps: int) -> Iterator[None]:
        """The context of the next loop."""
        due = self.due(steps)
        if due:
            tf.profiler.experimental.start(self._folder)
        yield
        if due:
            tf.profiler.experimental.stop()


class Evaluation:
    """Records and reports exact figures over the test set."""

    def __init__(
        self,
        state: TrainingState,
        evaluator: Evaluator,
        dataset: Dataset,
        recorder: Recorder | NullRecorder,
        reporter: Reporter,
    ) -> None:
        self._state, self._evaluator, self._labels = state, evaluator, dataset.test_labels
        self._recorder, self._reporter = recorder, reporter

    def due(self, step: int) -> bool:
        """Every `display_step` steps, and after the last one."""
        config = self._state.config
        return step == config.training_steps or step % config.display_step == 0

    def __call__(self, recorded: Recorded) -> None:
        """Evaluates; the loss and accuracy of the last batch are reported with it."""
        state, config = self._state, self._state.config
        saved, earlier = state.saved, state.saved["figures"]
        loss, predicted = (tensor.numpy() for tensor in self._evaluator.run())
        figures = diagnosis.figures(loss, predicted, self._labels)
        weights = state.weights()
        before, now = saved["digests"], diagnosis.digests(weights)
        figures["frozen"] = [tag for tag in now if now[tag] == before[tag]]
        saved |= {"figures": figures, "digests": now}
        for key, course in saved["evaluations"].items():
            course.append(state.step if key == "step" else figures[key])
        if (figures["frozen"] and not earlier["frozen"]) or (
            figures["collapsed"] is not None and earlier["collapsed"] is None
        ):
            self._reporter.notify(f"step {state.step}: {self._standstill(figures, loss)}")
        test = {"test-loss": float(loss.mean(dtype=np.float64))}
        test["test-accuracy"] = figures["test_accuracy"]
        self._recorder.scalars(state.step, test | self._distances(weights) | self._noise_scales())
        self._recorder.flush()
        batch_loss, accuracy = recorded["scalars"][-1, :2].numpy()
        examples = config.batch_size if config.reduction == "sum" else 1
        batch = {"loss": batch_loss / examples, "accuracy": accuracy}
        self._reporter.evaluated(state.step, batch | test)

    def _standstill(self, figures: dict, loss: np.ndarray) -> str:
        state = self._state
        clips = state.config.loss == "clipped_cross_entropy"
        return diagnosis.standstill(
            figures["frozen"],
            figures["collapsed"],
            float(np.mean(loss >= losses.CLIPPED)) if clips else None,
            state.loop.largest_gradient(state.batches.indices(state.step, 1)[0]),
        )

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


class Checkpointing:
    """Saves checkpoints.

    Args:
      every: save where this divides the step; also after the last step, and when `stop` is set.

    Attributes:
      saved: the step of the last checkpoint.
    """

    def __init__(
        self,
        state: TrainingState,
        session: Session | OtherSession,
        recorder: Recorder | NullRecorder,
        group: Group,
        stop: Stop,
        every: int,
    ) -> None:
        self._state, self._session, self._recorder = state, session, recorder
        self._group, self._stop, self._every = group, stop, every
        self._begun = time.monotonic() - state.saved["seconds"]
        self.saved = state.step

    def due(self, step: int) -> bool:
        """Every `every` steps, after the last one, and where a signal ends the run."""
        last = self._state.config.training_steps
        return step == last or bool(self._stop.signal) or step % self._every == 0

    def __call__(self, recorded: Recorded | None = None) -> None:
        """Saves, after a check that all replicas hold the same values."""
        state = self._state
        self.flush()
        self._group.check_identical(state.variables())
        self._session.save(state.step, state.tensors(), state.saved)
        self.saved = state.step

    def flush(self) -> None:
        """Writes out the record, and notes the time."""
        self._recorder.flush()
        self._state.saved["seconds"] = time.monotonic() - self._begun
