"""Question 5, sharpness: the largest eigenvalue of the loss's Hessian."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.sparse.linalg import LinearOperator, eigsh

from lab.analysis.model import Model
from lab.analysis.weights import Weights


class Eigenvalue(NamedTuple):
    """value, and residual: ||H v - value v|| / |value| of its eigenvector v."""

    value: float
    residual: float


def sharpness(
    model: Model,
    weights: Weights,
    x: Any,
    labels: Any,
    rng: np.random.Generator,
    tolerance: float = 1e-3,
) -> Eigenvalue:
    """The largest (most positive) Hessian eigenvalue of the mean cross-entropy over examples x.

    Show it beside 2 / learning rate **on the mean loss** (for a summed loss that is 2 / (batch
    size times the rate)): above it full-batch gradient descent is unstable. For sgd a heuristic;
    for adaptive optimizers it does not hold as it stands.

    By Lanczos's method, to a relative `tolerance`. The loss is the unclipped one.

    Source: Cohen et al., "Gradient Descent on Neural Networks Typically Occurs at the Edge of
    Stability", ICLR 2021.
    """
    product, size = model.hessian_vector_product(weights, x, labels)
    start = rng.normal(size=size)
    if not product(start).any():
        return Eigenvalue(0.0, 0.0)
    hessian = LinearOperator((size, size), product, dtype=np.float64)
    values, vectors = eigsh(hessian, 1, which="LA", tol=tolerance, v0=start)
    value, v = float(values[0]), vectors[:, 0]
    return Eigenvalue(value, float(np.linalg.norm(product(v) - value * v)) / abs(value))
