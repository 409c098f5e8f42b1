"""Question 5, sharpness: the largest eigenvalue of the loss's Hessian."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from lab.analysis.network import ACTIVATIONS, Network, softmax

# First and second derivative of each activation, from its value a.
_SLOPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sigmoid": lambda a: a * (1 - a),
    "tanh": lambda a: 1 - a**2,
    "relu": lambda a: (a > 0).astype(a.dtype),
}
_BENDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sigmoid": lambda a: a * (1 - a) * (1 - 2 * a),
    "tanh": lambda a: -2 * a * (1 - a**2),
    "relu": np.zeros_like,
}


def forward(network: Network, x: np.ndarray) -> list[np.ndarray]:
    """x, the activations of every hidden layer, and the logits."""
    outputs = [x]
    for i, (w, b) in enumerate(zip(network.weights, network.biases, strict=True)):
        z = outputs[-1] @ w + b
        outputs.append(z if i == len(network.weights) - 1 else ACTIVATIONS[network.activation](z))
    return outputs


def backward(
    network: Network, outputs: list[np.ndarray], delta: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Backpropagation of delta = dL/dlogits [n, classes].

    Returns:
      dL/dz and, for the hidden layers, dL/da, both [n, units], first layer first.
    """
    deltas, errors = [delta], []
    for w, a in zip(network.weights[:0:-1], outputs[-2:0:-1], strict=True):
        errors.append(deltas[-1] @ w.T)
        deltas.append(errors[-1] * _SLOPES[network.activation](a))
    return deltas[::-1], errors[::-1]


def flatten(network: Network) -> np.ndarray:
    """All arrays in one vector, in the order of `Network.tensors`."""
    return np.concatenate([v.ravel() for v in network.tensors().values()])


def unflatten(network: Network, vector: np.ndarray) -> Network:
    """A network of the same shapes from such a vector."""
    tensors = network.tensors()
    ends = np.cumsum([v.size for v in tensors.values()])
    pieces = zip(tensors.items(), np.split(vector, ends[:-1]), strict=True)
    return network.replace({name: piece.reshape(v.shape) for (name, v), piece in pieces})


def hessian_vector_product(
    network: Network, x: np.ndarray, labels: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """v -> H v, H the Hessian of the mean cross-entropy over x in all weights and biases.

    Pearlmutter's R operator, the derivative along v of forward and backward pass, exactly:
    R{z} = R{a} W + a V_W + V_b, R{a'} = f'(z) R{z}, and back R{dz} = f'(z) R{da} + f''(z) R{z} da.
    About four times the cost of a forward pass. v is as `flatten` orders it.

    The loss is the unclipped one. relu's f'' is taken for 0, its kink for 0 slope.

    Source: Pearlmutter, "Fast Exact Multiplication by the Hessian", Neural Computation 1994.
    """
    outputs = forward(network, x)
    p = softmax(outputs[-1])
    n = p.dtype.type(len(x))
    delta = p.copy()
    delta[np.arange(len(x)), labels] -= 1
    deltas, errors = backward(network, outputs, delta / n)
    slopes = [_SLOPES[network.activation](a) for a in outputs[1:-1]]
    bends = [_BENDS[network.activation](a) * e for a, e in zip(outputs[1:-1], errors, strict=True)]

    def product(vector: np.ndarray) -> np.ndarray:
        along = unflatten(network, vector.astype(p.dtype))
        r_z: list[np.ndarray] = []
        r_a = [x]  # by place in `outputs`; the first, R{x} = 0, is never used
        for i, (w, v, vb) in enumerate(
            zip(network.weights, along.weights, along.biases, strict=True)
        ):
            r = outputs[i] @ v + vb
            if i:
                r += r_a[i] @ w
            r_z.append(r)
            if i < len(slopes):
                r_a.append(slopes[i] * r)
        last = p * r_z[-1]
        r_delta = (last - p * last.sum(axis=1, keepdims=True)) / n
        pieces = []
        for i in reversed(range(len(network.weights))):
            r_w = outputs[i].T @ r_delta
            if i:
                r_w += r_a[i].T @ deltas[i]
            pieces += [r_delta.sum(axis=0), r_w.ravel()]
            if i:
                r_error = r_delta @ network.weights[i].T + deltas[i] @ along.weights[i].T
                r_delta = slopes[i - 1] * r_error + bends[i - 1] * r_z[i - 1]
        return np.concatenate(pieces[::-1])

    return product


@dataclasses.dataclass(frozen=True)
class Eigenvalue:
    """value: v^T H v of the last v. residual: ||H v - value v|| / |value|. products: how many."""

    value: float
    residual: float
    products: int


def power_iteration(
    hvp: Callable[[np.ndarray], np.ndarray],
    size: int,
    rng: np.random.Generator,
    iterations: int = 100,
    tolerance: float = 0.02,
) -> Eigenvalue:
    """The largest (most positive) eigenvalue of a symmetric H, from products H v alone.

    v <- H v / ||H v||, from a random v, until the residual is below the tolerance; the error of
    the value is then below residual times value, and far less where it stands apart. That finds
    the eigenvalue of largest magnitude: if it is negative, the same on H - value I. A residual
    above the tolerance says that the iterations did not suffice.
    """
    found = _power_iteration(hvp, size, rng, iterations, tolerance)
    if found.value >= 0:
        return found
    low = found.value
    top = _power_iteration(lambda v: hvp(v) - low * v, size, rng, iterations, tolerance)
    value = top.value + low
    residual = top.residual * top.value / abs(value) if value else float("inf")
    return Eigenvalue(value, residual, found.products + top.products)


def _power_iteration(
    hvp: Callable[[np.ndarray], np.ndarray],
    size: int,
    rng: np.random.Generator,
    iterations: int,
    tolerance: float,
) -> Eigenvalue:
    v = rng.normal(size=size)
    v /= np.linalg.norm(v)
    value, residual, products = 0.0, float("inf"), 0
    while products < iterations and residual > tolerance:
        product = np.float64(hvp(v))
        products += 1
        value, norm = float(v @ product), float(np.linalg.norm(product))
        if norm == 0:
            return Eigenvalue(0.0, 0.0, products)
        residual = float(np.linalg.norm(product - value * v)) / abs(value) if value else np.inf
        v = product / norm
    return Eigenvalue(value, residual, products)


def sharpness(
    network: Network,
    x: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    iterations: int = 100,
    tolerance: float = 0.02,
) -> Eigenvalue:
    """The largest Hessian eigenvalue of the mean cross-entropy over training examples x.

    Show it beside 2 / learning rate **on the mean loss** (for a summed loss that is 2 / (batch
    size times the rate)): above it full-batch gradient descent is unstable. For sgd a heuristic;
    for adaptive optimizers it does not hold as it stands.

    Source: Cohen et al., "Gradient Descent on Neural Networks Typically Occurs at the Edge of
    Stability", ICLR 2021.
    """
    hvp = hessian_vector_product(network, x, labels)
    size = sum(v.size for v in network.tensors().values())
    return power_iteration(hvp, size, rng, iterations, tolerance)
