"""Question 4: different weights, the same function: predictions, permutations, paths, features."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import connected_components

from lab.analysis.model import Model
from lab.analysis.weights import Weights, distance


class Disagreement(NamedTuple):
    """Shares of examples: on which two classifiers differ, and on which both are wrong; and what
    both would be if their errors fell independently."""

    share: float
    independent: float
    both_wrong: float
    both_wrong_independent: float


def disagreement(a: np.ndarray, b: np.ndarray, labels: np.ndarray, classes: int) -> Disagreement:
    """Of predicted classes a and b, integers [n], with errors e_a and e_b.

    Independent ones, even on the K - 1 wrong classes, disagree on 1 - (1 - e_a)(1 - e_b) -
    e_a e_b / (K - 1) of the examples.
    """
    wrong_a, wrong_b = a != labels, b != labels
    error_a, error_b, both, share = (
        float(np.mean(v)) for v in (wrong_a, wrong_b, wrong_a & wrong_b, a != b)
    )
    independent = 1 - (1 - error_a) * (1 - error_b) - error_a * error_b / (classes - 1)
    return Disagreement(share, independent, both, error_a * error_b)


def _hidden(weights: Weights) -> list[tuple[str, str, str]]:
    """Of every hidden layer the tags of its weights, its bias and the next layer's weights."""
    pairs = itertools.pairwise(weights.names)
    return [(f"{name}/weights", f"{name}/bias", f"{after}/weights") for name, after in pairs]


def permute_hidden(weights: Weights, permutations: Sequence[np.ndarray]) -> Weights:
    """The same function, hidden units in another order: unit j is what unit p[j] was.

    permutations: integers [units], one for each hidden layer.
    """
    found = Weights(weights)
    for (w, bias, after), p in zip(_hidden(weights), permutations, strict=True):
        found |= {w: found[w][:, p], bias: found[bias][p], after: found[after][p]}
    return found


def random_permutations(weights: Weights, rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.permutation(weights[bias].size) for _, bias, _ in _hidden(weights)]


class Symmetry(NamedTuple):
    """logits_change: the largest change of a logit, relative to the largest logit; in float32 that
    is some 1e-6, the rounding of sums in another order. distance, norm: ||w - w'||, ||w||."""

    logits_change: float
    distance: float
    norm: float


def symmetry(model: Model, weights: Weights, x: Any, rng: np.random.Generator) -> Symmetry:
    """What a random permutation of the hidden units changes."""
    other = permute_hidden(weights, random_permutations(weights, rng))
    z, permuted = (np.float64(model.logits(w, x)) for w in (weights, other))
    change = np.abs(z - permuted).max() / max(np.abs(z).max(), np.finfo(np.float32).tiny)
    norm = distance(weights, dict.fromkeys(weights, 0.0))
    return Symmetry(float(change), distance(weights, other), norm)


class Barrier(NamedTuple):
    """The straight path between two weights: figures [points] at places t in [0, 1].

    cross_entropy_barrier: max_t L(t) - ((1 - t) L(0) + t L(1)), in nats. accuracy_barrier: the
    same of 1 - accuracy. Both are 0 or more.
    """

    places: np.ndarray
    cross_entropy: np.ndarray
    accuracy: np.ndarray
    cross_entropy_barrier: float
    accuracy_barrier: float


def barrier(model: Model, a: Weights, b: Weights, x: Any, labels: Any, points: int = 11) -> Barrier:
    """Linear interpolation (Frankle et al., ICML 2020), both ends evaluated here."""
    places, found = np.linspace(0, 1, points), []
    # x W_1 is linear in the weights: two products serve all the points.
    start, end = (model.product(w, x) for w in (a, b))
    for t in map(float, places):
        mixed = Weights({tag: np.float32((1 - t) * w + t * b[tag]) for tag, w in a.items()})
        found.append(model.evaluate(mixed, x, labels, (1 - t) * start + t * end))
    accuracies, losses = np.array(found).T

    def rise(values: np.ndarray) -> float:
        line = (1 - places) * values[0] + places * values[-1]
        return max(float(np.max(values - line)), 0.0)

    return Barrier(places, losses, accuracies, rise(losses), rise(-accuracies))


def match(a: Weights, b: Weights, rng: np.random.Generator) -> list[np.ndarray]:
    """Permutations for which `permute_hidden(b, ...)` is close to a: weight matching.

    Layer after layer in random order, the assignment that maximizes the inner product with a of
    what it moves, until no layer gains. With one hidden layer that is the nearest permutation; with
    more a local optimum. A tanh's signs and a relu's scales are symmetries too: not searched.

    Source: Ainsworth et al., "Git Re-Basin", 2022, algorithm 1.
    """
    a, b = (Weights({tag: np.float64(w) for tag, w in one.items()}) for one in (a, b))
    layers = _hidden(a)
    found = [np.arange(a[bias].size) for _, bias, _ in layers]
    gained = True
    while gained:
        gained = False
        for i in rng.permutation(len(found)):
            now, (w, bias, after) = permute_hidden(b, found), layers[i]
            gain = a[w].T @ now[w] + np.outer(a[bias], now[bias]) + a[after] @ now[after].T
            better = linear_sum_assignment(gain, maximize=True)[1]
            rise = gain[np.arange(len(gain)), better].sum() - gain.trace()
            # Beyond rounding, so that equal assignments cannot take turns for ever.
            if rise > 1e-12 * np.abs(gain).sum():
                found[i], gained = found[i][better], True
    return found


class Families(NamedTuple):
    """Pairs by their barriers, cut at the widest gap between two neighbours on a log scale.

    low: the highest barrier below the gap. high: the lowest above it. below: how many pairs lie
    below. members: the items that these pairs connect, largest family first. whole: whether all
    pairs within these families lie below, and some pair above. p: of as many
    barriers drawn uniformly between the lowest and the highest, how often a gap is as wide.
    """

    low: float
    high: float
    below: int
    members: list[tuple[int, ...]]
    whole: bool
    p: float


def families(barriers: Mapping[tuple[int, int], float], floor: float = 1e-3) -> Families | None:
    """Of barriers by pair; None if there are fewer than three pairs, or no gap.

    floor: what is lower counts as this.
    """
    values = np.sort([max(value, floor) for value in barriers.values()])
    gaps = np.diff(np.log(values))
    if len(values) < 3 or not gaps.max() > 0:
        return None
    below = int(gaps.argmax()) + 1
    close = [pair for pair, value in barriers.items() if max(value, floor) < values[below]]
    items = sorted({item for pair in barriers for item in pair})
    joined = np.zeros((len(items), len(items)))
    for pair in close:
        joined[tuple(map(items.index, pair))] = 1
    labels = connected_components(joined, directed=False)[1]
    groups = [tuple(items[i] for i in np.flatnonzero(labels == k)) for k in range(labels.max() + 1)]
    members = sorted((g for g in groups if len(g) > 1), key=lambda g: (-len(g), g))
    within = sum(math.comb(len(g), 2) for g in members)
    drawn = np.random.default_rng(0).uniform(values[0], values[-1], (999, len(values)))
    drawn[:, 0], drawn[:, -1] = values[0], values[-1]
    widest = np.diff(np.log(np.sort(drawn))).max(axis=1)
    p = float(np.mean(np.append(widest, np.inf) >= gaps.max()))
    ends = float(values[below - 1]), float(values[below])
    return Families(*ends, below, members, within == below, p)


class Division(NamedTuple):
    """difference: a mean over pairs within families, less that over pairs across. p: the share of
    all ways to deal the items to families of these sizes in which it is as large or larger."""

    difference: float
    p: float


def divided(
    likeness: Mapping[tuple[int, int], float], members: Sequence[Sequence[int]]
) -> Division:
    """A permutation test (scipy's), of all orders of up to 7 items and of 9,999 of more."""
    items = sorted({item for pair in likeness for item in pair})
    alike = np.full((len(items), len(items)), np.nan)
    for pair, value in likeness.items():
        alike[tuple(map(items.index, pair))] = value
    family = [next((k for k, g in enumerate(members) if item in g), -1) for item in items]
    pairs = np.triu_indices(len(items), 1)

    def difference(labels: np.ndarray) -> float:
        one, other = labels[pairs[0]], labels[pairs[1]]
        within = (one == other) & (one >= 0)
        values = alike[pairs]
        return float(values[within].mean() - values[~within].mean())

    found = scipy.stats.permutation_test(
        (family,), difference, permutation_type="pairings", vectorized=False, n_resamples=9999,
        alternative="greater", rng=0,
    )  # fmt: skip
    return Division(float(found.statistic), float(found.pvalue))


def linear_cka(a: np.ndarray, b: np.ndarray) -> float:
    """Linear CKA of two representations [n, units] of the same examples: 0 to 1.

    ||B^T A||_F^2 / (||A^T A||_F ||B^T B||_F), the columns centred; nan where one is constant.
    Untrained networks have a high one, too: compare with theirs.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019.
    """
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    cross, own_a, own_b = (np.linalg.norm(np.float64(u.T @ v)) for u, v in ((b, a), (a, a), (b, b)))
    return float(cross**2 / (own_a * own_b)) if own_a * own_b > 0 else float("nan")
