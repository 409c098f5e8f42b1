"""Which examples make up each step: a pure function of (seed, epoch, step).

There is no state to save: a run that is resumed at step t reads the same examples as one that
never stopped.
"""

from __future__ import annotations

import numpy as np

from lab.errors import LabError


def permutation(seed: int, epoch: int, examples: int) -> np.ndarray:
    """The order of one epoch: int32 [examples], each example once.

    The order of Philox's raw 64-bit outputs under the key (seed, epoch): NumPy promises that
    stream for good, which it does not for `Generator.permutation`.
    """
    key = np.array([seed, epoch], np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(examples)).astype(np.int32)


def shuffled(labels: np.ndarray, seed: int) -> np.ndarray:
    """The labels in a random order: as many of each class, but unrelated to the images.

    Zhang et al., "Understanding deep learning requires rethinking generalization", ICLR 2017.
    """
    return labels[permutation(seed, 2**64 - 1, len(labels))]


class Batches:
    """Which training examples make up each step.

    The epochs follow one another, and step t (from 1) takes the t-th `batch_size` examples: a
    batch may cross from one epoch into the next, and none is smaller.
    """

    def __init__(self, seed: int, examples: int, batch_size: int) -> None:
        self._seed, self._examples, self._batch_size = seed, examples, batch_size
        self._epochs: dict[int, np.ndarray] = {}  # only a cache

    def indices(self, first_step: int, steps: int) -> np.ndarray:
        """int32 [steps, batch_size]: the examples of `steps` steps from `first_step` (from 1)."""
        if first_step < 1:
            raise LabError(f"there is no step {first_step}: the first one is step 1")
        start = (first_step - 1) * self._batch_size
        stop = start + steps * self._batch_size
        first, last = start // self._examples, (stop - 1) // self._examples
        known = self._epochs
        self._epochs = {
            e: known[e] if e in known else permutation(self._seed, e, self._examples)
            for e in range(first, last + 1)
        }
        row, offset = np.concatenate(list(self._epochs.values())), first * self._examples
        return row[start - offset : stop - offset].reshape(steps, self._batch_size)
