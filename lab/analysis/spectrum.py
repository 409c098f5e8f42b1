"""Question 2: what the distribution of the weights says, and what it leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lab.analysis.model import Model
from lab.analysis.weights import Weights

RANKS = (1, 2, 5, 10, 20)


def shuffle(weights: Weights, layers: Sequence[str], rng: np.random.Generator) -> Weights:
    """The entries of each tensor of these layers in a random order within that tensor."""
    tags = [tag for tag in weights if tag.rpartition("/")[0] in layers]
    return weights.replace(
        {t: rng.permutation(weights[t].ravel()).reshape(weights[t].shape) for t in tags}
    )


class Shuffle(NamedTuple):
    """layers: those shuffled. same_counts: every tensor holds each value as often as before, so
    that its histogram is the same in any buckets. accuracy: on the test images, by draw."""

    layers: tuple[str, ...]
    same_counts: bool
    accuracy: np.ndarray


def shuffle_test(
    model: Model, weights: Weights, x: Any, labels: Any, rng: np.random.Generator, draws: int
) -> list[Shuffle]:
    """Each layer shuffled alone, then all of them: how much do the histograms determine?"""
    tests = []
    for layers in [*((name,) for name in weights.names), weights.names]:
        drawn = [shuffle(weights, layers, rng) for _ in range(draws)]
        same = (
            np.array_equal(np.sort(w, None), np.sort(after[t], None))
            for after in drawn
            for t, w in weights.items()
        )
        accuracies = [model.evaluate(after, x, labels).accuracy for after in drawn]
        tests.append(Shuffle(layers, all(same), np.array(accuracies)))
    return tests


class Spectrum(NamedTuple):
    """Singular values of a layer's weights, largest first, at the end and at the start.

    edge: Marchenko-Pastur's, of noise with the root mean square of W_0. outside, initial_outside:
    how many of W_T and of W_0 lie above it. stable_rank, initial_stable_rank: ||W||_F^2/||W||_2^2.
    """

    singular: np.ndarray
    initial_singular: np.ndarray
    edge: float
    outside: int
    initial_outside: int
    stable_rank: float
    initial_stable_rank: float


def spectrum(final: np.ndarray, initial: np.ndarray) -> Spectrum:
    """Of one layer's weights W_T and W_0 [n, m].

    The edge is sigma (sqrt(n) + sqrt(m)); single normal draws reach past it by less than about
    sigma. Source: Marchenko and Pastur 1967; Davidson and Szarek 2001, theorem II.13.
    """
    end, start = (np.linalg.svd(np.float64(w), compute_uv=False) for w in (final, initial))
    sigma = np.sqrt(np.mean(np.float64(initial) ** 2))
    edge = float(sigma * np.sqrt(initial.shape).sum())
    outside = [int(np.sum(s > edge)) for s in (end, start)]
    ranks = [float(np.sum(s**2) / s[0] ** 2) if s[0] > 0 else np.nan for s in (end, start)]
    return Spectrum(end, start, edge, *outside, *ranks)


class LowRank(NamedTuple):
    """Test accuracy with every layer's change cut to `rank`: on top of W_0, and without W_0."""

    rank: int
    accuracy: float
    accuracy_without_initial: float


def low_rank_changes(
    model: Model,
    final: Weights,
    initial: Weights,
    x: Any,
    labels: Any,
    ranks: Sequence[int] = RANKS,
) -> list[LowRank]:
    """acc(W_0 + D_k) and acc(D_k), D_k the best rank-k approximation of W_T - W_0, all layers.

    Biases stay final: they have no rank to cut.
    """
    parts = {
        tag: np.linalg.svd(w - initial[tag], full_matrices=False)
        for tag, w in final.matrices().items()
    }
    found = []
    for k in ranks:
        alone = {tag: (u[:, :k] * s[:k]) @ v[:k] for tag, (u, s, v) in parts.items()}
        kept = {tag: initial[tag] + change for tag, change in alone.items()}
        both = (model.evaluate(final.replace(w), x, labels).accuracy for w in (kept, alone))
        found.append(LowRank(k, *both))
    return found
