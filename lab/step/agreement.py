"""What the workers of a strategy tell each other."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from lab.errors import LabError
from lab.processes.cluster import Cluster


class Group:
    """What the workers of a strategy agree on. With one worker, what that one says."""

    def __init__(self, strategy: tf.distribute.Strategy, cluster: Cluster | None) -> None:
        self._strategy, self._cluster = strategy, cluster
        # A function for each shape: TensorFlow warns of one that it has to trace again and again.
        self._compiled = functools.cache(
            lambda shape: tf.function(self._sum).get_concrete_function(
                tf.TensorSpec(shape, tf.int32)
            )
        )

    @property
    def chief(self) -> bool:
        """Whether this process is the one that writes."""
        return self._cluster is None or self._cluster.index == 0

    @property
    def alone(self) -> bool:
        """Whether there is but one worker."""
        return self._cluster is None

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The sum of int32 arrays over the workers, each with one of the same shape."""
        if self._cluster is None:
            return values
        return self._compiled(values.shape)(tf.constant(values, tf.int32)).numpy()

    def _sum(self, values: tf.Tensor) -> tf.Tensor:
        replicas = len(self._strategy.extended.worker_devices)

        def reduce(own: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            first = context.replica_id_in_sync_group % replicas == 0  # one for each worker
            return context.all_reduce("SUM", tf.where(first, own, tf.zeros_like(own)))

        reduced = self._strategy.run(reduce, (values,))
        return self._strategy.experimental_local_results(reduced)[0]

    def from_chief(self, message: bytes) -> bytes:
        """The chief's message, on every worker; what the others give is not looked at."""
        if self._cluster is None:
            return message
        length = int(self.sum(np.array([len(message) if self.chief else 0]))[0])
        padded = np.zeros(-(-length // 4) * 4, np.uint8)
        if self.chief:
            padded[:length] = np.frombuffer(message, np.uint8)
        return self.sum(padded.view(np.int32)).tobytes()[:length]

    def largest(self, *numbers: int) -> list[int]:
        """Of each number, each at least 0, the largest that a worker gives."""
        if self._cluster is None:
            return list(numbers)
        given = np.zeros([len(self._cluster.workers), len(numbers)], np.int32)
        given[self._cluster.index] = numbers
        return [int(number) for number in self.sum(given).max(axis=0)]

    def check_alike(self, settings: Mapping[str, Any]) -> None:
        """Raises LabError, on every worker, unless all were started with these settings.

        Args:
          settings: plain JSON values by name.
        """
        if self._cluster is None:
            return
        own = json.loads(json.dumps(settings))
        first = json.loads(self.from_chief(json.dumps(settings).encode()))
        differ = [name for name in own if own[name] != first.get(name)]
        flags = np.zeros(len(self._cluster.workers), np.int32)
        flags[self._cluster.index] = bool(differ)
        others = [int(i) for i in np.flatnonzero(self.sum(flags))]
        if differ:
            what = ", ".join(f"{n} is {own[n]}, there {first.get(n)}" for n in differ)
            raise LabError(f"{self._cluster.me} does not do what worker 0 does ({what}): {_ALIKE}")
        if others:
            names = self._cluster.names(others)
            raise LabError(f"{self._cluster.me}: {names} does something else: {_ALIKE}")

    def check_identical(self, variables: Mapping[str, tf.Variable]) -> None:
        """Raises LabError unless every replica holds the same bits of every variable."""
        for name, variable in variables.items():
            local = self._strategy.experimental_local_results(variable)
            for number, other in enumerate(local[1:], start=1):
                if other.numpy().tobytes() != local[0].numpy().tobytes():
                    raise LabError(_APART.format(name=name, what=f"replica {number}"))
        if self._cluster is None:
            return
        digest = hashlib.sha256()
        for variable in variables.values():
            digest.update(variable.numpy().tobytes())
        own = np.zeros((len(self._cluster.workers), 8), np.int32)
        own[self._cluster.index] = np.frombuffer(digest.digest(), np.int32)
        for index, other in enumerate(digests := self.sum(own)):
            if not np.array_equal(other, digests[0]):
                raise LabError(_APART.format(name="a variable", what=f"worker {index}"))


_ALIKE = "start every worker with the same command, on the same data"
_APART = (
    "{name} is not the same on {what} as on the first: the replicas have come apart, and the "
    "curves are no longer those of one training. Run again; if it happens again, suspect the "
    "hardware, or an update that is not the same everywhere"
)
