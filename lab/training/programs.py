"""The compiled parts of a run, kept for the next run of the same process."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import tensorflow as tf

from lab.settings.config import Config
from lab.step.digest import program_digest
from lab.step.evaluate import Evaluator
from lab.step.loop import TrainLoop
from lab.step.placement import Resident, devices
from lab.step.replica import Training


@dataclasses.dataclass(frozen=True, eq=False)
class Compiled:
    """The compiled parts of a run, and the variables that they work on."""

    strategy: tf.distribute.Strategy
    training: Training
    loop: TrainLoop
    evaluator: Evaluator | None

    @functools.cached_property
    def _digests(self) -> list[str | None]:
        """Of each program; equal where they differ at most in the values of their variables."""
        loop, variables = self.loop, self.training.all_variables
        if isinstance(loop.data[0], Resident):
            data = dict(zip("xy", loop.data, strict=True)).items()
            variables |= {f"{name} {i}": v for name, a in data for i, v in enumerate(a.variables)}
        programs = [loop.program(), *(self.evaluator.compile() if self.evaluator else ())]
        watch = loop.watch.scalar_tags, loop.watch.tags, loop.watch.sizes
        made = watch, list(self.training.metrics), loop.xla, devices(self.strategy)
        return [program_digest(one, self.strategy, variables, made) for one in programs]

    @property
    def comparable(self) -> bool:
        """Whether all that decides the programs is known."""
        return None not in self._digests

    def same(self, other: Compiled) -> bool:
        """Whether the other's programs differ at most in the values of their variables."""
        return self.comparable and self._digests == other._digests


class Programs:
    """Keeps the compiled parts of the last run, for a run that differs from it in the seed alone.

    Args:
      largest: weights of a model that is kept, at most: another run may need the memory.

    Attributes:
      kept: the parts of the last run, if this one may be able to use them.
    """

    def __init__(self, largest: int = 0) -> None:
        self._largest = largest
        self._key: Any = None
        self.kept: Compiled | None = None

    def begin(self, config: Config, data: str, devices: str, steps: int) -> None:
        """Releases what a run cannot use, before anything is made for it.

        Args:
          data: digest of the run's data, which lie on the devices beside the programs.
          devices: as Settings.devices.
          steps: of a loop, at most.
        """
        key = config.seedless, data, devices, steps, config.shuffle_labels and config.seed
        if key != self._key:
            self._key, self.kept = key, None

    def find(self, own: Compiled) -> Compiled | None:
        """The kept parts, if they match the run's own; otherwise they are released."""
        if self.kept and not self.kept.same(own):
            self.kept = None
        return self.kept

    def keep(self, own: Compiled) -> None:
        """Keeps the run's own parts, unless the model is too large or nothing can use them."""
        sizes = [one.shape.num_elements() for one in own.training.variables.values()]
        if sum(sizes) <= self._largest and own.comparable:
            self.kept = own
