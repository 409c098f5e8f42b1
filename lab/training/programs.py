"""What is compiled for a run, kept for the next run of the same process."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from lab.settings.config import Config
from lab.step.evaluate import Evaluator
from lab.step.loop import TrainLoop
from lab.step.replica import Training


class Compiled(NamedTuple):
    """The compiled parts of a run, and the variables that they work on."""

    training: Training
    loop: TrainLoop
    evaluator: Evaluator | None


class Programs:
    """Keeps the compiled parts of the last run, for one that differs in nothing but its seed: that
    decides the initial values and the order of the examples, neither of which is compiled."""

    def __init__(self) -> None:
        self._key: Any = None
        self._kept: Compiled | None = None

    def find(self, config: Config, training: Training, circumstances: Any) -> Compiled | None:
        """The parts that this run shares with the last one; all others are released.

        Args:
          circumstances: all that decides what is compiled beside the config.
        """
        compiled_too = config.shuffle_labels or "seed" in training.model.passed
        alike = config if compiled_too else dataclasses.replace(config, seed=0)
        key = repr((alike, circumstances))
        if key != self._key:
            self._key, self._kept = key, None
        return self._kept

    def keep(self, compiled: Compiled) -> None:
        """Keeps the parts of the run that was last asked for."""
        self._kept = compiled
