"""Question 4: different weights, the same function: predictions, permutations, paths, features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from lab.analysis.model import Model
from lab.analysis.weights import Weights, distance


class Disagreement(NamedTuple):
    """Shares of examples: on which two classifiers differ, beside what their errors allow.

    independent: how often they would differ, and both_wrong_independent: how often both would be
    wrong, if their errors fell independently.
    """

    share: float
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
    independent = 1 - (1 - error_a) * (1 - error_b) - both / (classes - 1)
    return Disagreement(
        float(np.mean(a != b)), independent, float(np.mean(wrong_a & wrong_b)), both
    )


def permute_hidden(weights: Weights, permutations: Sequence[np.ndarray]) -> Weights:
    """The same function of a dense network, hidden units in another order: j is what p[j] was.

    permutations: integers [units], one for each hidden layer. Columns and bias of a layer move,
    and with them the rows of the next.
    """
    found = Weights(weights)
    for (name, after), p in zip(_hidden(weights), permutations, strict=True):
        found[f"{name}/weights"] = found[f"{name}/weights"][:, p]
        found[f"{name}/bias"] = found[f"{name}/bias"][p]
        found[f"{after}/weights"] = found[f"{after}/weights"][p]
    return found


def _hidden(weights: Weights) -> list[tuple[str, str]]:
    """Every hidden layer, and the layer after it."""
    return list(zip(weights.names[:-1], weights.names[1:], strict=True))


def random_permutations(weights: Weights, rng: np.random.Generator) -> list[np.ndarray]:
    """One permutation for each hidden layer of a dense network."""
    return [rng.permutation(len(b)) for b in weights.biases[:-1]]


class Symmetry(NamedTuple):
    """logits_change: the largest change of a logit, relative to the largest logit; in float32 that
    is some 1e-6, the rounding of sums in another order. distance, norm: ||w - w'||, ||w||."""

    logits_change: float
    distance: float
    norm: float


def symmetry(model: Model, weights: Weights, x: Any, rng: np.random.Generator) -> Symmetry:
    """What a random permutation of a dense network's hidden units changes."""
    other = permute_hidden(weights, random_permutations(weights, rng))
    z, permuted = (np.float64(model.logits(w, x)) for w in (weights, other))
    zero = {tag: np.zeros_like(w) for tag, w in weights.items()}
    change = np.abs(z - permuted).max() / max(np.abs(z).max(), np.finfo(np.float32).tiny)
    return Symmetry(float(change), distance(weights, other), distance(weights, zero))


def interpolate(a: Weights, b: Weights, t: float) -> Weights:
    """(1 - t) a + t b, array by array; exactly a at 0 and b at 1."""
    return a.replace({tag: ((1 - t) * u + t * b[tag]).astype(u.dtype) for tag, u in a.items()})


class Barrier(NamedTuple):
    """The straight path from one network to another: figures [points] at places t in [0, 1].

    cross_entropy_barrier: max_t L(t) - ((1 - t) L(0) + t L(1)), in nats. accuracy_barrier: max_t
    ((1 - t) acc(0) + t acc(1)) - acc(t). Both are 0 or more, since they are 0 at the ends.
    """

    places: np.ndarray
    cross_entropy: np.ndarray
    accuracy: np.ndarray
    cross_entropy_barrier: float
    accuracy_barrier: float


def barrier(model: Model, a: Weights, b: Weights, x: Any, labels: Any, points: int = 25) -> Barrier:
    """Linear interpolation between two weights of one network, both ends evaluated here.

    Source: Frankle et al., ICML 2020; Ainsworth et al., "Git Re-Basin", 2022.
    """
    places = np.linspace(0, 1, points)
    found = []
    # x W_1 is linear in the weights: two products serve all the points.
    start, end = (model.product(w, x) for w in (a, b))
    for t in map(float, places):
        product = None if start is None or end is None else (1 - t) * start + t * end
        found.append(model.evaluate(interpolate(a, b, t), x, labels, product))
    accuracies, losses = np.array(found).T

    def above_the_line(values: np.ndarray) -> float:
        line = (1 - places) * values[0] + places * values[-1]
        return max(float(np.max(values - line)), 0.0)

    return Barrier(places, losses, accuracies, above_the_line(losses), above_the_line(-accuracies))


def match(a: Weights, b: Weights, rng: np.random.Generator) -> list[np.ndarray]:
    """Permutations for which `permute_hidden(b, ...)` lies near a, both dense: weight matching.

    Layer after layer in random order, the assignment p that maximizes the inner product of what
    it moves, sum_j <W_l^a[:, j], W_l^b[:, p_j]> + b_l^a[j] b_l^b[p_j] + <W_{l+1}^a[j],
    W_{l+1}^b[p_j]>, the other layers as they are by then; until no layer gains. With one hidden
    layer that is the nearest permutation; with more it is a local optimum, which depends on the
    order. A tanh's signs and a relu's scales are symmetries too: not searched.

    Source: Ainsworth et al., "Git Re-Basin", 2022, algorithm 1.
    """
    a, b = (Weights({tag: np.float64(w) for tag, w in one.items()}) for one in (a, b))
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
