"""A dense network in NumPy, forward and backward, to hold the model's own figures against."""

import numpy as np
from scipy import special

ACTIVATIONS = {
    "sigmoid": special.expit,
    "tanh": np.tanh,
    "relu": lambda z: np.maximum(z, 0),
}
SLOPES = {
    "sigmoid": lambda a: a * (1 - a),
    "tanh": lambda a: 1 - a**2,
    "relu": lambda a: (a > 0).astype(a.dtype),
}


def forward(weights, activation, x):
    """x, the output of every hidden layer, and the logits; in float64."""
    outputs = [np.float64(x)]
    for i, (w, b) in enumerate(zip(weights.weights, weights.biases, strict=True)):
        z = outputs[-1] @ np.float64(w) + b
        outputs.append(z if i == len(weights.weights) - 1 else ACTIVATIONS[activation](z))
    return outputs


def accuracy(weights, activation, x, labels):
    return np.mean(forward(weights, activation, x)[-1].argmax(axis=1) == labels)


def cross_entropy(weights, activation, x, labels):
    """The mean of logsumexp(z) - z_label."""
    z = forward(weights, activation, x)[-1]
    return np.mean(special.logsumexp(z, axis=1) - z[np.arange(len(z)), labels])


def gradients(weights, activation, x, labels, clip=0.0):
    """Of the summed cross-entropy, by tag: none from examples with p_label < clip."""
    outputs = forward(weights, activation, x)
    p = special.softmax(outputs[-1], axis=1)
    rows = np.arange(len(p))
    delta = p.copy()
    delta[rows, labels] -= 1
    delta[p[rows, labels] < clip] = 0
    found = {}
    for i, name in reversed(list(enumerate(weights.names))):
        found |= {f"{name}/weights": outputs[i].T @ delta, f"{name}/bias": delta.sum(axis=0)}
        delta = delta @ np.float64(weights.weights[i]).T * SLOPES[activation](outputs[i])
    return found
