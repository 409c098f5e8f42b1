"""The autopsy of sgd at 0.1: one step, and which gradients are left after it."""

from __future__ import annotations

import dataclasses

import numpy as np

from lab.analysis.network import CLIP, Network, softmax
from lab.analysis.sharpness import backward, flatten, forward

CERTAIN = 1 - 1e-6  # a probability from here on is 1 within rounding, on every CPU
SPREAD_LIMIT = float(np.log(1 / CLIP))  # ln(1e9) = 20.7: logits further apart reach the clip


def clipped_gradients(
    network: Network, x: np.ndarray, labels: np.ndarray, reduction: str = "sum"
) -> dict[str, np.ndarray]:
    """Gradients of the recipe's clipped cross-entropy, by tensor, in the arrays' precision.

    With p = softmax(z) and y the label: where p_y < 1e-9 the clip passes nothing, dL/dz = 0
    exactly. Elsewhere dL/dz_j = p_j - [j = y], which vanishes where p_y has been rounded to 1 and
    p_j is below what float32 can hold.

    reduction: sum over the batch, as the recipe has it, or mean.
    """
    outputs = forward(network, x)
    p = softmax(outputs[-1])
    rows = np.arange(len(x))
    delta = p.copy()
    delta[rows, labels] -= 1
    delta[p[rows, labels] < CLIP] = 0
    if reduction == "mean":
        delta /= delta.dtype.type(len(x))
    deltas, _ = backward(network, outputs, delta)
    gradients = {}
    for name, a, d in zip(network.names, outputs, deltas, strict=False):
        gradients[f"{name}/weights"], gradients[f"{name}/bias"] = a.T @ d, d.sum(axis=0)
    return gradients


def sgd_step(
    network: Network,
    x: np.ndarray,
    labels: np.ndarray,
    learning_rate: float,
    reduction: str = "sum",
) -> Network:
    """W - learning_rate dL/dW, once, for the clipped cross-entropy of this batch."""
    gradients = clipped_gradients(network, x, labels, reduction)
    rate = np.float32(learning_rate)
    return network.replace(
        {name: w - rate * gradients[name] for name, w in network.tensors().items()}
    )


@dataclasses.dataclass(frozen=True)
class VitalSigns:
    """What the loss still teaches on a batch; shares in [0, 1].

    spread: median over the examples of max z - min z, against `SPREAD_LIMIT`. least_spread: its
    minimum. on_clip: p_label < 1e-9, no gradient. certain: p_label is 1 within rounding.
    predicted, predicted_share: the class said most often, and how often. unmoved: the share of
    weights and biases that one more sgd step on this batch would leave as they are.
    """

    spread: float
    least_spread: float
    on_clip: float
    certain: float
    predicted: int
    predicted_share: float
    unmoved: float


def vital_signs(
    network: Network,
    x: np.ndarray,
    labels: np.ndarray,
    learning_rate: float,
    reduction: str = "sum",
) -> VitalSigns:
    """Of a network on one batch, in float32 like the training; rate and reduction as `sgd_step`."""
    z = forward(network, x)[-1]
    p = softmax(z)[np.arange(len(x)), labels]
    spreads = np.ptp(z, axis=1)
    counts = np.bincount(z.argmax(axis=1))
    moved = sgd_step(network, x, labels, learning_rate, reduction)
    unmoved = flatten(moved) == flatten(network)
    return VitalSigns(
        spread=float(np.median(spreads)),
        least_spread=float(spreads.min()),
        on_clip=float(np.mean(p < CLIP)),
        certain=float(np.mean(p >= CERTAIN)),
        predicted=int(counts.argmax()),
        predicted_share=float(counts.max() / len(x)),
        unmoved=float(unmoved.mean()),
    )


def autopsy(
    network: Network,
    batch: tuple[np.ndarray, np.ndarray],
    next_batch: tuple[np.ndarray, np.ndarray],
    learning_rate: float,
    reduction: str = "sum",
) -> tuple[VitalSigns, VitalSigns]:
    """One sgd step on `batch` (x, labels): the signs on it before, on `next_batch` after.

    Some entries are 0 before, too: those of pixels that the whole batch leaves dark.
    """
    after = sgd_step(network, *batch, learning_rate, reduction)
    pairs = ((network, batch), (after, next_batch))
    before, then = (vital_signs(n, *b, learning_rate, reduction) for n, b in pairs)
    return before, then
