"""Question 1: which layers matter, how fast they move, and whether their units still respond."""

from __future__ import annotations

import dataclasses

import numpy as np

from lab.analysis.network import Law, Network, accuracy, hidden

PARTS: dict[str, tuple[str, ...]] = {
    "both": ("weights", "bias"),
    "weights": ("weights",),
    "bias": ("bias",),
}


def rewind(final: Network, initial: Network, layer: str, part: str = "both") -> Network:
    """`final` with one layer's weights, bias or both put back to those of `initial`."""
    names = [f"{layer}/{name}" for name in PARTS[part]]
    return final.replace({name: initial.tensors()[name] for name in names})


def rerandomize(
    final: Network, layer: str, draw: Law, rng: np.random.Generator, part: str = "both"
) -> Network:
    """`final` with one layer drawn afresh: weights by the law `draw`, the bias as it begins, 0."""
    tensors = final.tensors()
    fresh = {}
    for name in (f"{layer}/{name}" for name in PARTS[part]):
        old = tensors[name]
        fresh[name] = draw(old.shape, rng) if name.endswith("weights") else np.zeros_like(old)
    return final.replace(fresh)


@dataclasses.dataclass(frozen=True)
class Reset:
    """Test accuracies after one layer's `part` (both, weights, bias) was reset, all else final.

    rewound: put back to its own W_0. redrawn: drawn afresh, one accuracy a draw.
    """

    layer: str
    part: str
    rewound: float
    redrawn: tuple[float, ...]


def reset_layers(
    final: Network,
    initial: Network,
    x: np.ndarray,
    labels: np.ndarray,
    draw: Law,
    rng: np.random.Generator,
    draws: int = 1,
) -> list[Reset]:
    """Every layer, and its weights and bias alone, rewound and drawn afresh.

    A fresh bias is 0, as is a rewound one: for the bias alone the two are one, and `redrawn` holds
    it once. Source: Zhang, Bengio and Singer, "Are All Layers Created Equal?", JMLR 2022.
    """
    inputs = [x, *hidden(final, x)]
    resets = []
    for i, layer in enumerate(final.names):
        # What stands before the layer does not change: start at its input.
        end, start = final.after(i), initial.after(i)
        for part in PARTS:
            count = 1 if part == "bias" else draws
            fresh = [rerandomize(end, layer, draw, rng, part) for _ in range(count)]
            redrawn = tuple(accuracy(network, inputs[i], labels) for network in fresh)
            rewound = accuracy(rewind(end, start, layer, part), inputs[i], labels)
            resets.append(Reset(layer, part, rewound, redrawn))
    return resets


def update_ratio(update_norms: np.ndarray, weight_norms: np.ndarray) -> np.ndarray:
    """||dW_t|| / ||W_t|| by step, of the updates as applied; nan where W_t is 0 (new biases).

    About 1e-3 is a rule of thumb for a healthy rate: a screen, not a law.
    """
    update_norms, weight_norms = np.float64(update_norms), np.float64(weight_norms)
    moving = weight_norms > 0
    return np.divide(update_norms, weight_norms, out=np.full(moving.shape, np.nan), where=moving)


@dataclasses.dataclass(frozen=True)
class Saturation:
    """Shares in [0, 1] of a hidden layer's activations at each end, and its dead units.

    low: below 0.05 (sigmoid), below -0.9 (tanh), at 0 (relu). high: above 0.95, above 0.9; 0 for
    relu. dead: units whose standard deviation over the examples is below 0.01. units: how many.
    """

    low: float
    high: float
    dead: int
    units: int


def saturation(activations: np.ndarray, activation: str) -> Saturation:
    """Of one hidden layer's activations [n, units].

    tanh(z) = 2 sigmoid(2z) - 1, so its limits are those of the sigmoid.
    """
    low, high = {"sigmoid": (0.05, 0.95), "tanh": (-0.9, 0.9), "relu": (0, np.inf)}[activation]
    at_low = activations <= 0 if activation == "relu" else activations < low
    deviations = activations.std(axis=0, dtype=np.float64)
    at_high = activations > high
    return Saturation(
        float(at_low.mean()), float(at_high.mean()), int(np.sum(deviations < 0.01)), len(deviations)
    )


@dataclasses.dataclass(frozen=True)
class NoiseScale:
    """noise: S, trace of one example's gradient covariance; signal: G2, |true gradient|^2.

    scale = S / G2, in examples: batches far below it are mostly noise, far above it mostly waste.
    nan where G2 did not come out above 0: too few steps, or too much noise, to tell.
    """

    noise: float
    signal: float
    scale: float


def noise_scale(
    small_norms2: np.ndarray,
    big_norms2: np.ndarray,
    small_batch: int,
    big_batch: int,
) -> NoiseScale:
    """The simple gradient noise scale of a tensor, from two batch sizes b < B.

    G2 = mean_t (B |g_B|^2 - b |g_b|^2) / (B - b)
    S = mean_t (|g_b|^2 - |g_B|^2) / (1/b - 1/B)

    Each is averaged over the steps, then they are divided: a mean of ratios would be biased.

    Args:
      small_norms2, big_norms2: |g_b|^2 and |g_B|^2 of the **mean** loss's gradients, by step;
        several g_b a step (local gradients of replicas) as a second axis. Norms of a summed loss
        must be divided by the batch size first, |g|^2 by its square.

    Raises:
      ValueError: unless 0 < b < B.

    Source: McCandlish et al., "An Empirical Model of Large-Batch Training", 2018, appendix A.1.
    """
    b, big = small_batch, big_batch
    if not 0 < b < big:
        raise ValueError(f"batches of {b} and {big}: the noise scale wants 0 < small < big")
    small2, big2 = np.mean(np.float64(small_norms2)), np.mean(np.float64(big_norms2))
    g2 = (big * big2 - b * small2) / (big - b)
    s = (small2 - big2) / (1 / b - 1 / big)
    return NoiseScale(float(s), float(g2), float(s / g2) if g2 > 0 else float("nan"))
