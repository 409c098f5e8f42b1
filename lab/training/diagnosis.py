"""The figures of a run, from arrays."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

README_BATCH = 256  # the README's accuracy is a mean over test batches of this size

# What result.json says of the last evaluation.
FIGURES = (
    *("test_correct", "test_total", "test_accuracy", "readme_accuracy", "test_loss"),
    *("collapsed", "frozen"),
)


def figures(loss: np.ndarray, predicted: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The figures of an evaluation.

    Args:
      loss: [examples], in nats.
      predicted, labels: classes, [examples].

    Returns:
      test_correct and test_total: counts; test_accuracy: their ratio; readme_accuracy: the
      unweighted mean of the accuracies of batches of 256, the last of which may be short;
      test_loss: the mean, None if it is not finite; collapsed: the class that every example is
      taken for, if there is only one.
    """
    correct = predicted == labels
    batches = np.split(correct, range(README_BATCH, len(correct), README_BATCH))
    mean = float(loss.mean(dtype=np.float64))
    classes = np.unique(predicted)
    return {
        "test_correct": int(correct.sum()),
        "test_total": len(correct),
        "test_accuracy": float(correct.mean()),
        "readme_accuracy": float(np.mean([batch.mean() for batch in batches])),
        "test_loss": mean if math.isfinite(mean) else None,
        "collapsed": int(classes[0]) if len(classes) == 1 and math.isfinite(mean) else None,
    }


def digests(tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """A digest of the bits of each tensor: equal as long as nothing in it changes."""
    return {tag: hashlib.sha256(value.tobytes()).hexdigest() for tag, value in tensors.items()}
