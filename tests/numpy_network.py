"""A dense network in NumPy, forward and backward, to hold the model's own figures against."""

import numpy as np
from scipy import special

ACTIVATIONS = {
    "sigmoid": special.expit,
    "tanh": np.tanh,
    "relu": lambda z: np.maximum(z, 0),
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


def gradients(weights, x, labels):
    """Of the summed cross-entropy of a network with sigmoids, by tag."""
    outputs = forward(weights, "sigmoid", x)
    delta = special.softmax(outputs[-1], axis=1)
    delta[np.arange(len(delta)), labels] -= 1
    found = {}
    for i, name in reversed(list(enumerate(weights.names))):
        found |= {f"{name}/weights": outputs[i].T @ delta, f"{name}/bias": delta.sum(axis=0)}
        delta = delta @ np.float64(weights.weights[i]).T * outputs[i] * (1 - outputs[i])
    return found
