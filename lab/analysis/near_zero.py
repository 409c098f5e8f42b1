"""Question 3: why almost all weights are near 0, and whether they could be 0."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lab.analysis.network import Network, accuracy, evaluate_from, hidden

SHARES = tuple(k / 24 for k in range(25))  # of a pruning curve


def near_zero_shares(
    values: np.ndarray, limits: Sequence[float] = (0.01, 0.05, 0.1)
) -> dict[float, float]:
    """The share of entries with |w| < limit, for each limit."""
    return {limit: float(np.mean(np.abs(values) < limit)) for limit in limits}


@dataclasses.dataclass(frozen=True)
class NaturalScale:
    """How large the first layer's pre-activations z = x W + b are, since many inputs add up.

    square_norm: E||x||^2. weight: the weights' root mean square. implied: weight sqrt(E||x||^2),
    z's root mean square for independent weights of mean 0. measured: z's root mean square.
    """

    square_norm: float
    weight: float
    implied: float
    measured: float


def natural_scale(x: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> NaturalScale:
    """Of inputs [n, n_in] and a layer's weights [n_in, n_out] and bias [n_out]."""
    square_norm = float(np.mean(np.einsum("ij,ij->i", x, x, dtype=np.float64)))
    weight, measured = (
        float(np.sqrt(np.mean(np.square(v, dtype=np.float64))))
        for v in (weights, x @ weights + bias)
    )
    return NaturalScale(square_norm, weight, weight * float(np.sqrt(square_norm)), measured)


def lit_shares(images: np.ndarray) -> np.ndarray:
    """The share of images [n, pixels] in which each pixel is not 0: float64 [pixels]."""
    return np.count_nonzero(images, axis=0) / len(images)


def never_lit(images: np.ndarray) -> np.ndarray:
    """Which pixels are 0 in all the images [n, pixels]: bool [pixels]."""
    return lit_shares(images) == 0


def unmoved_rows(final: np.ndarray, initial: np.ndarray) -> np.ndarray:
    """Which rows of weights [n_in, n_out] hold the very bits that they began with: bool [n_in]."""
    bits = [np.ascontiguousarray(w).view(f"u{w.dtype.itemsize}") for w in (final, initial)]
    return (bits[0] == bits[1]).all(axis=1)


@dataclasses.dataclass(frozen=True)
class Movement:
    """Pixels lit in more than `above` and up to `upto` of the images, and how far their rows went.

    mean, low, high: of the rows' ||w_T - w_0||, the mean and the 10th and 90th percentile; nan
    where there is no such pixel.
    """

    above: float
    upto: float
    pixels: int
    mean: float
    low: float
    high: float


def movement_by_lighting(
    final: np.ndarray,
    initial: np.ndarray,
    shares: np.ndarray,
    edges: Sequence[float] = (0, 1e-3, 1e-2, 1e-1, 1),
) -> list[Movement]:
    """How far h1's rows moved, grouped by `lit_shares`; first the pixels that are never lit."""
    moved = np.linalg.norm(np.float64(final) - initial, axis=1)
    groups = []
    for above, upto in zip((-1, *edges[:-1]), edges, strict=True):
        rows = moved[(shares > above) & (shares <= upto)]
        figures = (rows.mean(), *np.quantile(rows, [0.1, 0.9])) if len(rows) else [np.nan] * 3
        groups.append(Movement(max(above, 0), upto, len(rows), *map(float, figures)))
    return groups


def mean_inputs(network: Network, x: np.ndarray) -> list[np.ndarray]:
    """The mean input of every layer, [n_in] each, over x: training images, not those of a test."""
    return [np.mean(a, axis=0) for a in (x, *hidden(network, x))]


def prune(network: Network, share: float, order: Sequence[np.ndarray]) -> Network:
    """Sets in every layer the first `share` of its weights, in that order of flat places, to 0."""
    pruned = []
    for w, places in zip(network.weights, order, strict=True):
        flat = w.flatten()
        flat[places[: round(share * w.size)]] = 0
        pruned.append(flat.reshape(w.shape))
    return dataclasses.replace(network, weights=tuple(pruned))


def compensate(pruned: Network, network: Network, means: Sequence[np.ndarray]) -> Network:
    """Adds to every bias the input that its units lost on the mean: E[a] (W - W_pruned)."""
    triples = zip(means, network.weights, pruned.weights, strict=True)
    lost = [(mean @ (w - p)).astype(w.dtype) for mean, w, p in triples]
    biases = tuple(b + more for b, more in zip(pruned.biases, lost, strict=True))
    return dataclasses.replace(pruned, biases=biases)


@dataclasses.dataclass(frozen=True, eq=False)
class PruningCurve:
    """Accuracies [shares] with a share of every layer's weights set to 0, biases kept.

    smallest: those of smallest magnitude. compensated: the same ones, their lost mean input added
    to the biases. random: as many at random, the control.
    """

    shares: np.ndarray
    smallest: np.ndarray
    compensated: np.ndarray
    random: np.ndarray


def pruning_curve(
    network: Network,
    x: np.ndarray,
    labels: np.ndarray,
    means: Sequence[np.ndarray],
    rng: np.random.Generator,
    shares: Sequence[float] = SHARES,
) -> PruningCurve:
    """Test accuracy against the share of weights pruned, layer by layer the same share.

    Args:
      means: as `mean_inputs` gives them: a sigmoid's mean is not 0, so what is pruned was not
        only noise but also a constant, which the next bias can hold.

    Source: magnitude pruning as in Han et al., NeurIPS 2015, without training afterwards.
    """
    by_size = [np.argsort(np.abs(w), axis=None, kind="stable") for w in network.weights]
    by_chance = [rng.permutation(w.size) for w in network.weights]
    curves = []
    for share in shares:
        smallest = prune(network, share, by_size)
        product = x @ smallest.weights[0]
        same = (smallest, compensate(smallest, network, means))
        pair = [evaluate_from(one, product, labels).accuracy for one in same]
        curves.append([*pair, accuracy(prune(network, share, by_chance), x, labels)])
    return PruningCurve(np.asarray(shares), *np.array(curves).T)
