"""Question 3: why almost all weights are near 0, and whether they could be 0."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lab.analysis.model import Model
from lab.analysis.weights import Weights

LIMITS = (0.01, 0.05, 0.1)  # of |w|
SHARES = tuple(k / 16 for k in range(17))  # of a pruning curve
RANDOM_SHARES = (0, 1 / 32, 1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4, 1 / 2, 3 / 4, 1)  # many draws


def near_zero_shares(values: np.ndarray) -> dict[float, float]:
    """The share of entries with |w| < limit, for each of `LIMITS`."""
    some = values.size > 0
    return {lim: float(np.mean(np.abs(values) < lim)) if some else np.nan for lim in LIMITS}


class NaturalScale(NamedTuple):
    """How large the first layer's pre-activations z = x W + b are, since many inputs add up.

    square_norm: E||x||^2, a constant of the data. weight: the weights' root mean square; times the
    root of square_norm, it is what z would have with independent weights of mean 0. measured: z's
    root mean square. shuffled: the same by draw, W's entries in a random order.
    """

    square_norm: float
    weight: float
    measured: float
    shuffled: np.ndarray


def natural_scale(
    weights: Weights, x: np.ndarray, rng: np.random.Generator, draws: int
) -> NaturalScale:
    """Of the first layer on inputs [n, n_in]."""

    def rms(values: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))

    w, b = weights.weights[0], weights.biases[0]
    orders = (rng.permutation(w.ravel()).reshape(w.shape) for _ in range(draws))
    shuffled = np.array([rms(x @ other + b) for other in orders])
    square_norm = float(np.square(x).sum(axis=1).mean(dtype=np.float64))
    return NaturalScale(square_norm, rms(w), rms(x @ w + b), shuffled)


def lit_shares(images: np.ndarray) -> np.ndarray:
    """The share of images [n, pixels] in which each pixel is not 0: float64 [pixels]."""
    return np.count_nonzero(images, axis=0) / len(images)


def unmoved_rows(final: np.ndarray, initial: np.ndarray) -> np.ndarray:
    """Which rows of weights [n_in, n_out] hold the very bits that they began with: bool [n_in]."""
    bits = [np.ascontiguousarray(w).view(f"u{w.dtype.itemsize}") for w in (final, initial)]
    return (bits[0] == bits[1]).all(axis=1)


class Movement(NamedTuple):
    """Pixels lit in more than `above` and up to `upto` of the images, and their rows' mean
    ||w_T - w_0||; nan where there is no such pixel."""

    above: float
    upto: float
    pixels: int
    mean: float


def movement_by_lighting(end: np.ndarray, start: np.ndarray, shares: np.ndarray) -> list[Movement]:
    """How far h1's rows moved, grouped by `lit_shares`; first the pixels that are never lit."""
    moved = np.linalg.norm(np.float64(end) - start, axis=1)
    groups = []
    for above, upto in itertools.pairwise((-1, 0, 1e-3, 1e-2, 1e-1, 1)):
        rows = moved[(shares > above) & (shares <= upto)]
        mean = float(rows.mean()) if len(rows) else np.nan
        groups.append(Movement(max(above, 0), upto, len(rows), mean))
    return groups


def prune(weights: Weights, share: float, order: Mapping[str, np.ndarray]) -> Weights:
    """Sets of every tensor in `order`, flat places by tag, the first `share` of them to 0."""
    pruned = {tag: weights[tag].copy() for tag in order}
    for tag, places in order.items():
        pruned[tag].flat[places[: round(share * places.size)]] = 0
    return weights.replace(pruned)


def compensate(pruned: Weights, weights: Weights, means: Mapping[str, np.ndarray]) -> Weights:
    """Adds to every bias the input that its units lost: E[a] (W - W_pruned), E[a] in `means`."""
    lost = {name: mean @ (weights[f"{name}/weights"] - pruned[f"{name}/weights"])
            for name, mean in means.items()}  # fmt: skip
    return pruned.replace({f"{n}/bias": pruned[f"{n}/bias"] + more for n, more in lost.items()})


class PruningCurve(NamedTuple):
    """Accuracies by share of every matrix's entries that is set to 0, biases kept.

    smallest: those of smallest magnitude. compensated: the same ones, their lost mean input added
    to the biases. random: as many at random, the control, of several draws [draws, random_shares].
    """

    shares: np.ndarray
    smallest: np.ndarray
    compensated: np.ndarray
    random_shares: np.ndarray
    random: np.ndarray


def pruning_curve(
    model: Model,
    weights: Weights,
    examples: tuple[Any, Any],
    train: Any,
    rng: np.random.Generator,
    draws: int,
    shares: Sequence[float] = SHARES,
    random_shares: Sequence[float] = RANDOM_SHARES,
) -> PruningCurve:
    """Magnitude pruning, as in Han et al., NeurIPS 2015, without training afterwards.

    train: images for the mean inputs. A sigmoid's mean is not 0: what is pruned was not only noise
    but also a constant, which the next bias can hold.
    """
    inputs = [np.asarray(train), *model.hidden(weights, train).values()]
    means = dict(zip(weights.names, (a.mean(axis=0) for a in inputs), strict=True))
    matrices = weights.matrices().items()
    by_size = {tag: np.argsort(np.abs(w), axis=None, kind="stable") for tag, w in matrices}
    by_chance = [{tag: rng.permutation(w.size) for tag, w in matrices} for _ in range(draws)]

    def accuracy(pruned: Weights) -> float:
        return model.evaluate(pruned, *examples).accuracy

    smallest = [prune(weights, share, by_size) for share in shares]
    found = [accuracy(w) for w in smallest]
    compensated = [accuracy(compensate(w, weights, means)) for w in smallest]
    ends = {s: found[i] for i, s in enumerate(shares) if s in (0, 1)}  # in whatever order
    random = [
        [ends[s] if s in ends else accuracy(prune(weights, s, order)) for s in random_shares]
        for order in by_chance
    ]
    return PruningCurve(*map(np.array, (shares, found, compensated, random_shares, random)))


def crossing(shares: np.ndarray, accuracies: np.ndarray, limit: float) -> float:
    """The share at which an accuracy first falls below a limit, linear between two shares; the
    first share if it begins there, the last one if it never does."""
    low = accuracies < limit
    first = int(low.argmax()) if low.any() else -1
    if first < 1:
        return float(shares[first])
    ends = [first, first - 1]
    return float(np.interp(limit, accuracies[ends], shares[ends]))
