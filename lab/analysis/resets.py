"""Question 1: which layers matter, how fast they move, and whether their units still respond."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lab.analysis.model import Model
from lab.analysis.weights import Weights


class Reset(NamedTuple):
    """Test accuracies after one layer's `part` ("both" or a tensor's name) was reset, all else
    final. rewound: put back to its own W_0. redrawn: drawn afresh, by draw; none of biases alone,
    which are drawn as 0 and so put back."""

    layer: str
    part: str
    rewound: float
    redrawn: np.ndarray


def reset_layers(
    model: Model,
    final: Weights,
    initial: Weights,
    drawn: Sequence[Weights],
    x: Any,
    labels: Any,
) -> list[Reset]:
    """Every layer, and each of its tensors alone, put back to `initial` and to each of `drawn`.

    Source: Zhang, Bengio and Singer, "Are All Layers Created Equal?", JMLR 2022.
    """
    found = []
    for layer in final.names:
        own = [tag for tag in final if tag.rpartition("/")[0] == layer]
        for part, tags in {"both": own, **{tag.rpartition("/")[2]: [tag] for tag in own}}.items():
            fresh = drawn if any(final[tag].ndim > 1 for tag in tags) else ()
            rewound, *redrawn = (
                model.evaluate(final.replace({t: o[t] for t in tags}), x, labels).accuracy
                for o in (initial, *fresh)
            )
            found.append(Reset(layer, part, rewound, np.array(redrawn)))
    return found


def update_ratio(update_norms: np.ndarray, weight_norms: np.ndarray) -> np.ndarray:
    """||dW_t|| / ||W_t|| by step, of the updates as applied; nan where W_t is 0 (new biases).

    About 1e-3 is a rule of thumb for a healthy rate: a screen, not a law.
    """
    weight_norms = np.float64(weight_norms)
    return np.float64(update_norms) / np.where(weight_norms > 0, weight_norms, np.nan)


class Saturation(NamedTuple):
    """Shares in [0, 1] of a hidden layer's activations at each end, and its dead units.

    low: below 0.05 (sigmoid), below -0.9 (tanh), at 0 (relu). high: above 0.95, above 0.9; 0 for
    relu. dead: units whose standard deviation over the examples is below 0.01. units: how many.
    """

    low: float
    high: float
    dead: int
    units: int


def saturation(activations: np.ndarray, activation: str) -> Saturation:
    """Of one hidden layer's activations [n, units]; tanh's limits are those of the sigmoid, since
    tanh(z) = 2 sigmoid(2z) - 1."""
    low, high = {"sigmoid": (0.05, 0.95), "tanh": (-0.9, 0.9), "relu": (0, np.inf)}[activation]
    at_low = activations <= 0 if activation == "relu" else activations < low
    dead = activations.std(axis=0, dtype=np.float64) < 0.01
    return Saturation(
        float(at_low.mean()), float(np.mean(activations > high)), int(dead.sum()), dead.size
    )
