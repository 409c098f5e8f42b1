"""Question 4: different weights, the same function: predictions, permutations, paths, features."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lab.analysis.network import Network, distance, evaluate_from, logits


@dataclasses.dataclass(frozen=True)
class Disagreement:
    """Shares of examples: on which two classifiers differ, beside what their errors allow.

    independent: how often they would differ, and both_wrong_independent: how often both would be
    wrong, if their errors fell independently.
    """

    share: float
    error_a: float
    error_b: float
    independent: float
    both_wrong: float
    both_wrong_independent: float


def disagreement(a: np.ndarray, b: np.ndarray, labels: np.ndarray, classes: int) -> Disagreement:
    """Of predicted classes a and b, integers [n].

    With errors e_a, e_b that fall on examples and on the K - 1 wrong classes independently and
    evenly, both agree when both are right or wrong alike:
    1 - (1 - e_a)(1 - e_b) - e_a e_b / (K - 1) is the share of disagreement.
    """
    wrong_a, wrong_b = a != labels, b != labels
    error_a, error_b = float(wrong_a.mean()), float(wrong_b.mean())
    both = error_a * error_b
    return Disagreement(
        share=float(np.mean(a != b)),
        error_a=error_a,
        error_b=error_b,
        independent=1 - (1 - error_a) * (1 - error_b) - both / (classes - 1),
        both_wrong=float(np.mean(wrong_a & wrong_b)),
        both_wrong_independent=both,
    )


def permute_hidden(network: Network, permutations: Sequence[np.ndarray]) -> Network:
    """The same function with hidden units in another order: unit j is what unit p[j] was.

    permutations: integers [units], one for each hidden layer. Columns and bias of a layer move,
    and with them the rows of the next.
    """
    weights, biases = list(network.weights), list(network.biases)
    for i, p in enumerate(permutations):
        weights[i], biases[i] = weights[i][:, p], biases[i][p]
        weights[i + 1] = weights[i + 1][p]
    return dataclasses.replace(network, weights=tuple(weights), biases=tuple(biases))


def random_permutations(network: Network, rng: np.random.Generator) -> list[np.ndarray]:
    """One permutation for each hidden layer."""
    return [rng.permutation(len(b)) for b in network.biases[:-1]]


@dataclasses.dataclass(frozen=True)
class Symmetry:
    """logits_change: max |z - z'| over examples and classes. distance, norm: ||w - w'||, ||w||."""

    logits_change: float
    distance: float
    norm: float


def symmetry(network: Network, x: np.ndarray, rng: np.random.Generator) -> Symmetry:
    """What a random permutation of the hidden units changes: the weights, not the logits.

    Evaluated in float64. In float32 the other order of the sums rounds otherwise, by some 1e-6
    of the largest logit, which would hide what a wrong permutation changes.
    """
    network = network.float64()
    other = permute_hidden(network, random_permutations(network, rng))
    change = np.abs(logits(network, x) - logits(other, x)).max()
    norm = np.sqrt(sum(np.sum(np.square(v, dtype=np.float64)) for v in network.tensors().values()))
    return Symmetry(float(change), distance(network, other), float(norm))


def interpolate(a: Network, b: Network, t: float) -> Network:
    """(1 - t) a + t b, array by array; exactly a at 0 and b at 1."""
    pairs = [zip(u, v, strict=True) for u, v in ((a.weights, b.weights), (a.biases, b.biases))]
    mixed = [tuple(((1 - t) * u + t * v).astype(u.dtype) for u, v in pair) for pair in pairs]
    return dataclasses.replace(a, weights=mixed[0], biases=mixed[1])


@dataclasses.dataclass(frozen=True, eq=False)
class Barrier:
    """The straight path from one network to another: figures [points] at places t in [0, 1].

    cross_entropy_barrier: max_t L(t) - ((1 - t) L(0) + t L(1)), in nats. accuracy_barrier: max_t
    ((1 - t) acc(0) + t acc(1)) - acc(t). Both are 0 or more, since they are 0 at the ends.
    """

    places: np.ndarray
    cross_entropy: np.ndarray
    accuracy: np.ndarray
    cross_entropy_barrier: float
    accuracy_barrier: float


def barrier(a: Network, b: Network, x: np.ndarray, labels: np.ndarray, points: int = 25) -> Barrier:
    """Linear interpolation between networks of one shape, both ends evaluated here.

    Source: Frankle et al., ICML 2020; Ainsworth et al., "Git Re-Basin", 2022.
    """
    # x W_1 is linear in the weights: two products serve all the points.
    start, end = (x @ network.weights[0] for network in (a, b))
    places = np.linspace(0, 1, points)
    found = []
    for t in map(float, places):
        found.append(evaluate_from(interpolate(a, b, t), (1 - t) * start + t * end, labels))
    losses = np.array([one.cross_entropy for one in found])
    accuracies = np.array([one.accuracy for one in found])
    above = losses - ((1 - places) * losses[0] + places * losses[-1])
    below = (1 - places) * accuracies[0] + places * accuracies[-1] - accuracies
    barriers = [max(float(np.max(gap)), 0.0) for gap in (above, below)]
    return Barrier(places, losses, accuracies, *barriers)


def match(a: Network, b: Network, rng: np.random.Generator) -> list[np.ndarray]:
    """Permutations for which `permute_hidden(b, ...)` lies near a: weight matching.

    Layer after layer in random order, the assignment p that maximizes the inner product of what
    it moves, sum_j <W_l^a[:, j], W_l^b[:, p_j]> + b_l^a[j] b_l^b[p_j] + <W_{l+1}^a[j],
    W_{l+1}^b[p_j]>, the other layers as they are by then; until no layer gains. With one hidden
    layer that is the nearest permutation; with more it is a local optimum, which depends on the
    order. A tanh's signs and a relu's scales are symmetries too: not searched.

    Source: Ainsworth et al., "Git Re-Basin", 2022, algorithm 1.
    """
    # Imported here: scipy.optimize loads slowly, and only this and the fits want it.
    from scipy.optimize import linear_sum_assignment

    a, b = a.float64(), b.float64()
    found = [np.arange(len(bias)) for bias in a.biases[:-1]]
    gained = True
    while gained:
        gained = False
        for i in rng.permutation(len(found)):
            now = permute_hidden(b, found)
            gain = a.weights[i].T @ now.weights[i] + np.outer(a.biases[i], now.biases[i])
            gain += a.weights[i + 1] @ now.weights[i + 1].T
            better = linear_sum_assignment(gain, maximize=True)[1]
            rise = gain[np.arange(len(gain)), better].sum() - gain.trace()
            # Beyond rounding, so that equal assignments cannot take turns for ever.
            if rise > 1e-12 * np.abs(gain).sum():
                found[i], gained = found[i][better], True
    return found


def linear_cka(a: np.ndarray, b: np.ndarray) -> float:
    """Linear CKA of two representations [n, units] of the same examples: 0 to 1.

    ||B^T A||_F^2 / (||A^T A||_F ||B^T B||_F), the columns centred; 1 for equal up to rotation and
    scale; nan where one is constant. Show it beside the same figure for untrained networks: with
    many examples of low dimension that is high too.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019.
    """
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    cross, own_a, own_b = (np.linalg.norm(np.float64(u.T @ v)) for u, v in ((b, a), (a, a), (b, b)))
    return float(cross**2 / (own_a * own_b)) if own_a * own_b > 0 else float("nan")
