"""Attention with several heads."""

from __future__ import annotations

import math

import tensorflow as tf

from lab.kernels.probes import probe
from lab.models.basic import Dense, Seed, split_seed
from lab.models.norms import LayerNorm


class MultiHeadAttention(tf.Module):
    """softmax(Q K' / sqrt(width / heads)) V in each head, and a Dense layer over all of them
    (Vaswani et al., "Attention is all you need", NeurIPS 2017).

    Args:
      width: of x, and of all heads together.
      heads: their number, which divides width.
      causal: whether a position sees no later one.
      qk_norm: whether each head's queries and keys pass a LayerNorm of their own, which keeps the
        softmax from saturating (Dehghani et al., ICML 2023).
      probe_scores: whether the scores, float32 [batch, heads, positions, positions], are on record
        before a mask and the softmax, as `scores`; of further layers as `scores_1`, ...
      seed: two integers, of which each of the four Dense layers takes its own.

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
    ) -> None:
        super().__init__(name)
        if heads < 1 or width % heads:
            raise ValueError(f"heads={heads}: must divide width={width}")
        self._heads, self._causal, self._probed = heads, causal, probe_scores
        seeds = split_seed(seed, 4)
        self.query = Dense(width, width, seed=seeds[0])
        self.key = Dense(width, width, seed=seeds[1])
        self.value = Dense(width, width, seed=seeds[2])
        self.output = Dense(width, width, seed=seeds[3])
        self.query_norm = LayerNorm(width // heads) if qk_norm else None
        self.key_norm = LayerNorm(width // heads) if qk_norm else None

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """float32 [batch, positions, width] -> the same shape."""
        with tf.name_scope(self.name):
            query, key, value = (self._split(layer(x)) for layer in self._projections)
            if self.query_norm and self.key_norm:
                query, key = self.query_norm(query), self.key_norm(key)
            query /= math.sqrt(query.shape[-1])
            scores = tf.matmul(query, key, transpose_b=True)
            if self._probed:
                probe("scores", scores)
            if self._causal:
                place = tf.range(x.shape[1])
                scores = tf.where(place[:, None] >= place, scores, scores.dtype.min)
            seen = tf.matmul(tf.nn.softmax(scores), value)
            return self.output(tf.reshape(tf.transpose(seen, [0, 2, 1, 3]), [-1, *x.shape[1:]]))

    @property
    def _projections(self) -> tuple[Dense, Dense, Dense]:
        return self.query, self.key, self.value

    def _split(self, x: tf.Tensor) -> tf.Tensor:
        """[batch, positions, width] -> [batch, heads, positions, width / heads]."""
        x = tf.reshape(x, [-1, x.shape[1], self._heads, x.shape[2] // self._heads])
        return tf.transpose(x, [0, 2, 1, 3])
