"""What is compiled for a run, kept for the next run of the same process."""

from __future__ import annotations

from typing import Any, NamedTuple

from lab.settings.config import Config
from lab.step.evaluate import Evaluator
from lab.step.loop import TrainLoop
from lab.step.replica import Training

_LARGEST = 2**24  # weights of a model that is kept: another run may need the memory


class Compiled(NamedTuple):
    """The compiled parts of a run, and the variables that they work on."""

    training: Training
    loop: TrainLoop
    evaluator: Evaluator | None


class Programs:
    """Keeps the compiled parts of the last run, for a run that is compiled alike, see
    Config.seedless."""

    def __init__(self) -> None:
        self._key: Any = None
        self._kept: Compiled | None = None

    def find(self, config: Config, *conditions: Any) -> Compiled | None:
        """The parts that this run can use; releases what it cannot.

        Args:
          conditions: what decides the programs beside the config.
        """
        key = config.seedless, conditions
        if key != self._key:
            self._key, self._kept = key, None
        return self._kept

    def keep(self, compiled: Compiled) -> None:
        """Keeps the parts of the run that was last asked for."""
        variables = compiled.training.variables.values()
        if sum(one.shape.num_elements() for one in variables) <= _LARGEST:
            self._kept = compiled
