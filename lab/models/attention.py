"""Attention with several heads."""

from __future__ import annotations

import math

import tensorflow as tf

from lab.kernels.probes import probe
from lab.models.basic import Dense, Product, Seed, check_last_axis, split_seed
from lab.models.norms import LayerNorm


class MultiHeadAttention(tf.Module):
    """softmax(Q K' / sqrt(width / heads)) V in each head, and a Dense layer over all of them
    (Vaswani et al., "Attention is all you need", NeurIPS 2017).

    Args:
      width: of x, and of all heads together.
      heads: their number, which must divide width.
      causal: whether each position attends only to itself and earlier ones.
      qk_norm: whether each head's queries and keys go through their own LayerNorm, which keeps the
        softmax from saturating (Dehghani et al., ICML 2023).
      probe_scores: whether the scores, float32 [batch, heads, positions, positions], are on record
        before a mask and the softmax, as `scores`; of further layers as `scores_1`, ...
      seed: two integers, of which each of the four Dense layers takes its own.
      matmul: computes all products, see Dense.

    Raises:
      ValueError: `heads` does not divide `width`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        causal: bool = False,
        qk_norm: bool = False,
        probe_scores: bool = False,
        seed: Seed = (0, 0),
        name: str | None = None,
        matmul: Product = tf.matmul,
    ) -> None:
        super().__init__(name)
        if heads < 1 or width % heads:
            raise ValueError(f"heads={heads}: must divide width={width}")
        self._heads, self._causal, self._probed = heads, causal, probe_scores
        self._matmul = matmul
        seeds = split_seed(seed, 4)
        self.query = Dense(width, width, seed=seeds[0])
        self.key = Dense(width, width, seed=seeds[1])
        self.value = Dense(width, width, seed=seeds[2])
        self.output = Dense(width, width, seed=seeds[3], matmul=matmul)
        self.query_norm = LayerNorm(width // heads) if qk_norm else None
        self.key_norm = LayerNorm(width // heads) if qk_norm else None

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """float32 [batch, positions, width] -> the same shape."""
        with tf.name_scope(self.name):
            query, key, value = self._projected(x)
            if self.query_norm and self.key_norm:
                query, key = self.query_norm(query), self.key_norm(key)
            query /= math.sqrt(query.shape[-1])
            scores = self._matmul(query, tf.linalg.matrix_transpose(key))
            if self._probed:
                probe("scores", scores)
            if self._causal:
                place = tf.range(x.shape[1])
                scores = tf.where(place[:, None] >= place, scores, scores.dtype.min)
            seen = self._matmul(tf.nn.softmax(scores), value)
            return self.output(tf.reshape(tf.transpose(seen, [0, 2, 1, 3]), [-1, *x.shape[1:]]))

    def _projected(self, x: tf.Tensor) -> list[tf.Tensor]:
        """Queries, keys and values, each [batch, heads, positions, width / heads].

        They are one product: the gradient of one with 3 width columns takes less time than those
        of three.
        """
        layers, width = (self.query, self.key, self.value), self.query.weights.shape[0]
        check_last_axis(x, width, "a MultiHeadAttention")
        weights = tf.concat([layer.weights for layer in layers], 1)
        bias = tf.concat([layer.bias for layer in layers], 0)
        y = self._matmul(tf.reshape(x, [-1, width]), weights) + bias
        y = tf.reshape(y, [-1, x.shape[1], 3, self._heads, width // self._heads])
        return tf.unstack(tf.transpose(y, [2, 0, 3, 1, 4]))
