"""What a run's figures are, and what is wrong with it where something is. Functions of arrays."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

README_BATCH = 256  # the README's accuracy is a mean over test batches of this size

# What result.json says of the last evaluation.
FIGURES = (
    "test_correct",
    "test_total",
    "test_accuracy",
    "readme_accuracy",
    "test_loss",
    "collapsed",
    "frozen",
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


def first_nonfinite(
    tags: Sequence[str], counts: np.ndarray, loss: np.ndarray
) -> tuple[int, dict[str, int]]:
    """The first step with NaN or infinity, and how many entries of what.

    Args:
      tags: of the columns of `counts`.
      counts: [steps, tags], entries that are NaN or infinite.
      loss: [steps].

    Returns:
      (row of the step, counts by tag, the loss among them); the last row where there is none.
    """
    bad = counts.any(axis=1) | ~np.isfinite(loss)
    row = int(bad.argmax()) if bad.any() else len(bad) - 1
    found = {tag: int(count) for tag, count in zip(tags, counts[row], strict=True) if count}
    if not math.isfinite(loss[row]):
        found = {"loss": 1} | found
    return row, found


def standstill(
    frozen: Sequence[str],
    collapsed: int | None,
    on_clip: float | None,
    largest_gradient: float,
) -> str:
    """A frozen or collapsed run in words, with the likely cause where it was measured.

    Args:
      frozen: tags of the tensors that did not change, bit for bit, since the last evaluation.
      collapsed: the class that every test example is taken for.
      on_clip: share of test examples whose loss sits on its clip; None for a loss without one.
      largest_gradient: the largest absolute value of the gradient on the last batch. (How many
        entries are exactly 0 is no measure: where a probability is all but 1, it depends on the
        CPU and the kernel whether 1 - p is 0 or 6e-8.)
    """
    words = []
    if collapsed is not None:
        words.append(f"collapsed, every test example is taken for class {collapsed}")
    if frozen:
        words.append(f"frozen, not a bit has changed in {', '.join(frozen)}")
    cause = f"the gradient's largest entry is {largest_gradient:.2g}"
    if on_clip:
        cause += (
            f", and {on_clip:.1%} of the test examples sit on the loss's clip, where it is flat"
        )
    return f"{'; '.join(words)} ({cause})"
