"""The autopsy of sgd at 0.1: one step, and which gradients are left after it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from lab.analysis.model import Model
from lab.analysis.weights import Weights
from lab.models.losses import CLIP, CLIPPED, clipped_cross_entropy

CERTAIN = 1e-6  # a loss up to here is that of a probability of 1 within rounding, on every CPU
SPREAD_LIMIT = -math.log(CLIP)  # ln(1e9) = 20.7: logits further apart reach the clip

Batch = tuple[Any, Any]  # x, labels


def sgd_step(
    model: Model, weights: Weights, batch: Batch, learning_rate: float, reduction: str
) -> Weights:
    """W - learning_rate dL/dW, once, for the clipped cross-entropy of this batch."""
    gradients = model.gradients(weights, *batch, clipped_cross_entropy, reduction)
    rate = np.float32(learning_rate)
    return Weights({tag: w - rate * gradients[tag] for tag, w in weights.items()})


class VitalSigns(NamedTuple):
    """What the loss still teaches on a batch; shares in [0, 1].

    spread: median over the examples of max z - min z, against `SPREAD_LIMIT`. on_clip: examples
    with p_label < 1e-9, no gradient. certain: with a p_label of 1 within rounding. unmoved: the
    share of weights and biases that one more sgd step on this batch would leave as they are.
    """

    spread: float
    on_clip: float
    certain: float
    unmoved: float


def vital_signs(
    model: Model, weights: Weights, batch: Batch, learning_rate: float, reduction: str
) -> VitalSigns:
    """Of weights on one batch, in float32 like the training."""
    z, losses = model.losses(weights, *batch, clipped_cross_entropy)
    after = sgd_step(model, weights, batch, learning_rate, reduction)
    unmoved = sum(int(np.sum(after[tag] == w)) for tag, w in weights.items())
    return VitalSigns(
        float(np.median(np.ptp(z, axis=1))),
        float(np.mean(losses >= CLIPPED)),
        float(np.mean(losses <= CERTAIN)),
        unmoved / sum(w.size for w in weights.values()),
    )


def autopsy(
    model: Model,
    weights: Weights,
    batch: Batch,
    next_batch: Batch,
    learning_rate: float,
    reduction: str,
) -> tuple[VitalSigns, VitalSigns]:
    """One sgd step on `batch`: the signs on it before, on `next_batch` after.

    Some entries are unmoved before, too: those of pixels that the whole batch leaves dark.
    """
    after = sgd_step(model, weights, batch, learning_rate, reduction)
    return (
        vital_signs(model, weights, batch, learning_rate, reduction),
        vital_signs(model, after, next_batch, learning_rate, reduction),
    )
