"""What is compiled for a run, kept for the next run of the same process."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from lab.kernels import xla
from lab.settings.config import Config
from lab.step.evaluate import Evaluator
from lab.step.loop import TrainLoop
from lab.step.replica import Training


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The compiled parts of a run, and the variables that they work on."""

    training: Training
    loop: TrainLoop
    evaluator: Evaluator | None

    @functools.cached_property
    def _digests(self) -> list[str | None]:
        """What decides the programs; None for what cannot be compared."""
        return [self.loop.digest(), *(self.evaluator.digests() if self.evaluator else ())]

    def same(self, other: Compiled) -> bool:
        """Whether the other's programs differ at most in the values of their variables."""
        return None not in self._digests and self._digests == other._digests


class Programs:
    """Keeps the compiled parts of the last run, for a run that differs from it in the seed alone.

    Args:
      largest: weights of a model that is kept, at most: another run may need the memory.
    """

    def __init__(self, largest: int = 0) -> None:
        self._largest = largest
        self._key: Any = None
        self._kept: Compiled | None = None
        self._gradients: set[str] = set()  # custom ones of the kept parts

    @contextlib.contextmanager
    def of(self, config: Config, data: str) -> Iterator[None]:
        """The time of a run. Releases first what it cannot use, and at the end what is not kept.

        Args:
          data: a digest of the run's, which lie on the devices with the programs.
        """
        key = config.seedless, data, config.shuffle_labels and config.seed
        if key != self._key:
            self._release()
            self._key = key
        kept, before = self._kept, xla.custom_gradients()
        try:
            yield
        finally:
            new = xla.custom_gradients() - before
            if self._kept in (None, kept):
                xla.release_gradients(new)
            else:
                self._gradients = new

    def find(self, own: Compiled) -> Compiled | None:
        """The kept parts, if they are the same as the run's own; else they are released."""
        if self._kept and not self._kept.same(own):
            self._release()
        return self._kept

    def keep(self, compiled: Compiled) -> None:
        """Keeps the parts of the run."""
        variables = compiled.training.variables.values()
        if sum(one.shape.num_elements() for one in variables) <= self._largest:
            self._kept = compiled

    def _release(self) -> None:
        self._kept = None
        xla.release_gradients(self._gradients)
        self._gradients = set()
