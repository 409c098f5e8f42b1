"""What the workers of a strategy communicate to each other."""

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

_PIECE = 2**28  # bytes of a message that are sent at a time


class Group:
    """What the workers of a strategy agree on; with one worker, what that one gives."""

    def __init__(self, strategy: tf.distribute.Strategy, cluster: Cluster | None) -> None:
        self._strategy, self._cluster = strategy, cluster
        self.alone = cluster is None
        self.chief = cluster is None or cluster.index == 0  # whether this process writes
        # A function for each shape: TensorFlow warns of one that it has to trace again and again.
        self._compiled = functools.cache(
            lambda shape: tf.function(self._sum).get_concrete_function(
                tf.TensorSpec(shape, tf.int32)
            )
        )

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

    def _gather(self, cluster: Cluster, own: Any) -> np.ndarray:
        """The int32 arrays of all workers, each of one shape: [workers, ...]."""
        own = np.asarray(own, np.int32)
        given = np.zeros((len(cluster.workers), *own.shape), np.int32)
        given[cluster.index] = own
        return self.sum(given)

    def from_chief(self, message: bytes) -> bytes:
        """The chief's message, on every worker; the others' messages are ignored."""
        if self._cluster is None:
            return message
        ends = divmod(len(message), 2**31) if self.chief else (0, 0)  # of int32 each
        high, low = self.sum(np.array(ends, np.int32)).tolist()
        parts = []
        for first in range(0, high * 2**31 + low, _PIECE):
            length = min(_PIECE, high * 2**31 + low - first)
            padded = np.zeros(-(-length // 4) * 4, np.uint8)
            if self.chief:
                padded[:length] = np.frombuffer(message, np.uint8, length, first)
            parts.append(self.sum(padded.view(np.int32)).tobytes()[:length])
        return b"".join(parts)

    def largest(self, *numbers: int) -> list[int]:
        """The maximum of each number, each at least 0, over the workers."""
        if self._cluster is None:
            return list(numbers)
        return self._gather(self._cluster, numbers).max(axis=0).tolist()

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
        others = np.flatnonzero(self._gather(self._cluster, bool(differ))).tolist()
        if differ:
            what = ", ".join(f"{n} is {own[n]}, there {first.get(n)}" for n in differ)
            raise LabError(f"{self._cluster.me} does not do what worker 0 does ({what}): {_ALIKE}")
        if others:
            names = self._cluster.names(others)
            raise LabError(f"{self._cluster.me}: {names} does something else: {_ALIKE}")

    def check_identical(self, variables: Mapping[str, tf.Variable]) -> None:
        """Raises LabError unless every replica holds the same bits of every variable."""
        digest = hashlib.sha256()
        for name, variable in variables.items():
            local = self._strategy.experimental_local_results(variable)
            first, *others = (copy.numpy().tobytes() for copy in local)
            for number, other in enumerate(others, start=1):
                if other != first:
                    raise LabError(_APART.format(name=name, what=f"replica {number}"))
            digest.update(first)
        if self._cluster is None:
            return
        digests = self._gather(self._cluster, np.frombuffer(digest.digest(), np.int32))
        for index, other in enumerate(digests):
            if not np.array_equal(other, digests[0]):
                raise LabError(_APART.format(name="a variable", what=f"worker {index}"))


_ALIKE = "start every worker with the same command, on the same data"
_APART = (
    "{name} is not the same on {what} as on the first: the replicas have diverged, and the "
    "curves are no longer those of one training. Run again; if it happens again, suspect the "
    "hardware, or an update that is not the same everywhere"
)
