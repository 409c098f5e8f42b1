"""Question 2: what the distribution of the weights says, and what it leaves out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lab.analysis.network import Network, accuracy


def shuffle(network: Network, layers: Sequence[str], rng: np.random.Generator) -> Network:
    """The entries of each tensor of these layers in a random order within that tensor."""
    names = [name for name in network.tensors() if name.split("/")[0] in layers]
    return network.replace({name: _shuffled(network.tensors()[name], rng) for name in names})


def _shuffled(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(values.ravel()).reshape(values.shape)


@dataclasses.dataclass(frozen=True)
class Shuffle:
    """layers: those shuffled. same_counts: every tensor holds each value as often as before.

    accuracy: after it, on the test images.
    """

    layers: tuple[str, ...]
    same_counts: bool
    accuracy: float


def shuffle_test(
    network: Network, x: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> list[Shuffle]:
    """Each layer shuffled alone, then all of them: how much do the histograms determine?

    Equal counts of every value are equal histograms, whatever their buckets.
    """
    tests = []
    for layers in [*((name,) for name in network.names), network.names]:
        after = shuffle(network, layers, rng)
        pairs = zip(network.tensors().values(), after.tensors().values(), strict=True)
        same = all(np.array_equal(np.sort(a, None), np.sort(b, None)) for a, b in pairs)
        tests.append(Shuffle(layers, same, accuracy(after, x, labels)))
    return tests


def marchenko_pastur_edge(shape: Sequence[int], sigma: float) -> float:
    """sigma (sqrt(n) + sqrt(m)): the largest singular value of n x m noise, as n, m grow.

    Of entries drawn independently with standard deviation sigma. For normal entries the expected
    largest singular value lies below it; single draws reach past it by less than about sigma.
    Source: Marchenko and Pastur 1967; Davidson and Szarek 2001, theorem II.13.
    """
    return float(sigma * (np.sqrt(shape[0]) + np.sqrt(shape[1])))


def _stable_rank(singular: np.ndarray) -> float:
    return float(np.sum(singular**2) / singular[0] ** 2) if singular[0] > 0 else float("nan")


@dataclasses.dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of a layer's weights, largest first, at the end and at the start.

    edge: Marchenko-Pastur's, of the initial law. outside, initial_outside: how many of W_T and of
    W_0 lie above it. above_initial: how many of W_T lie above W_0's own largest, which needs no
    law. stable_rank, initial_stable_rank: ||W||_F^2 / ||W||_2^2.
    """

    singular: np.ndarray
    initial_singular: np.ndarray
    edge: float
    outside: int
    initial_outside: int
    above_initial: int
    stable_rank: float
    initial_stable_rank: float


def spectrum(final: np.ndarray, initial: np.ndarray, sigma: float) -> Spectrum:
    """Of one layer's weights W_T and W_0 [n_in, n_out]; sigma: of the initial law, W_0's.

    A narrow layer has few singular values (ten, for 256 x 10): too few to fit a law to.
    """
    end, start = (np.linalg.svd(np.float64(w), compute_uv=False) for w in (final, initial))
    edge = marchenko_pastur_edge(final.shape, sigma)
    return Spectrum(
        singular=end,
        initial_singular=start,
        edge=edge,
        outside=int(np.sum(end > edge)),
        initial_outside=int(np.sum(start > edge)),
        above_initial=int(np.sum(end > start[0])),
        stable_rank=_stable_rank(end),
        initial_stable_rank=_stable_rank(start),
    )


@dataclasses.dataclass(frozen=True)
class LowRank:
    """Test accuracy with every layer's change cut to `rank`: on top of W_0, and without W_0."""

    rank: int
    accuracy: float
    accuracy_without_initial: float


def low_rank_changes(
    final: Network,
    initial: Network,
    x: np.ndarray,
    labels: np.ndarray,
    ranks: Sequence[int] = (1, 2, 5, 10, 20),
) -> list[LowRank]:
    """acc(W_0 + D_k) and acc(D_k), D_k the best rank-k approximation of W_T - W_0, all layers.

    D_k = sum_{i<=k} s_i u_i v_i^T (Eckart and Young 1936). The biases stay final: as vectors they
    have no rank to cut.
    """
    pairs = list(zip(final.weights, initial.weights, strict=True))
    parts = [np.linalg.svd(w - start, full_matrices=False) for w, start in pairs]
    found = []
    for rank in ranks:
        changes = tuple((u[:, :rank] * s[:rank]) @ v[:rank] for u, s, v in parts)
        kept = tuple(w + change for w, change in zip(initial.weights, changes, strict=True))
        networks = [dataclasses.replace(final, weights=weights) for weights in (kept, changes)]
        found.append(LowRank(rank, *(accuracy(network, x, labels) for network in networks)))
    return found


def row_kurtosis(weights: np.ndarray) -> float:
    """Excess kurtosis of weights [n_in, n_out], each row brought to mean 0 and variance 1 first.

    Without that, rows that moved and rows that did not make a mixture with heavy tails of its
    own. Standardizing a row of m normal entries leaves E[r^4] = 3 (m - 1)/(m + 1), and it is that
    which is subtracted here: 0 for normal rows of any length. Rows without spread are left out.
    """
    rows = np.float64(weights)
    rows = rows - rows.mean(axis=1, keepdims=True)
    deviations = rows.std(axis=1, keepdims=True)
    rows, deviations = rows[deviations[:, 0] > 0], deviations[deviations[:, 0] > 0]
    if not rows.size:
        return float("nan")
    m = rows.shape[1]
    return float(np.mean((rows / deviations) ** 4) - 3 * (m - 1) / (m + 1))
