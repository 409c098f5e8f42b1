"""Layers: tf.Module over tf.Variable, written out.

A layer creates its variables in its constructor: call it under the strategy's scope. The gradients
are summed over the replicas before they are applied, so that every replica assigns the same value.

A seed is two integers, and the same seed gives the same numbers: give each layer its own.
"""

from __future__ import annotations

import tensorflow as tf

from lab.models.attention import MultiHeadAttention
from lab.models.basic import (
    Activation,
    Conv2D,
    Dense,
    Dropout,
    Embedding,
    Product,
    Seed,
    max_pool,
    split_seed,
)
from lab.models.initial import INITIALIZERS, Initializer, glorot, he, normal
from lab.models.norms import BatchNorm, LayerNorm

__all__ = [
    "ACTIVATIONS",
    "INITIALIZERS",
    "Activation",
    "BatchNorm",
    "Conv2D",
    "Dense",
    "Dropout",
    "Embedding",
    "Initializer",
    "LayerNorm",
    "MultiHeadAttention",
    "Product",
    "Seed",
    "glorot",
    "he",
    "max_pool",
    "normal",
    "split_seed",
]

ACTIVATIONS: dict[str, Activation] = {
    "sigmoid": tf.sigmoid,
    "tanh": tf.tanh,
    "relu": tf.nn.relu,
}
