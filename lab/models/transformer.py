"""A small transformer: of tokens, or of the patches of an image.

Pre-norm blocks (Xiong et al., ICML 2020) and learned positions; on patches it is the vision
transformer of Dosovitskiy et al. (ICLR 2021), with a mean over the patches for the class token.
"""

from __future__ import annotations

import tensorflow as tf

from lab.models import layers

# The defaults of its runs.
RECIPE = {
    "loss": "softmax_cross_entropy",
    "reduction": "mean",
    "optimizer": "adam",
    "learning_rate": 0.002,
    "learning_rate_decay": "cosine",
    "batch_size": 128,
    "training_steps": 2500,
}

SIDE = 28  # of an image


class Block(tf.Module):
    """x += attention(norm(x));  x += feed_out(gelu(feed_in(norm(x))))."""

    def __init__(
        self,
        width: int,
        heads: int,
        causal: bool,
        qk_norm: bool,
        probe_scores: bool,
        dropout: float,
        seed: layers.Seed,
        matmul: layers.Product,
    ) -> None:
        super().__init__()
        seeds = layers.split_seed(seed, 3)
        self.attention_norm = layers.LayerNorm(width)
        self.attention = layers.MultiHeadAttention(
            width, heads, causal, qk_norm, probe_scores, seeds[0], matmul=matmul
        )
        self.feed_norm = layers.LayerNorm(width)
        self.feed_in = layers.Dense(width, 4 * width, _gelu, seed=seeds[1], matmul=matmul)
        self.feed_out = layers.Dense(4 * width, width, seed=seeds[2], matmul=matmul)
        self.dropout = layers.Dropout(dropout)

    def __call__(self, x: tf.Tensor, training: bool, seeds: list) -> tf.Tensor:
        """float32 [batch, length, width] -> the same shape; two seeds of the dropout."""
        x += self.dropout(self.attention(self.attention_norm(x)), training, seeds[0])
        new = self.feed_out(self.feed_in(self.feed_norm(x)))
        return x + self.dropout(new, training, seeds[1])


class Transformer(tf.Module):
    """Embedding and positions, `depth` blocks, a LayerNorm and the logits.

    Args:
      vocabulary: of the tokens, in and out; 0 for images.
      length: tokens per example; 0 for images.
      width: of a token or patch within the network.
      heads: per block; must divide width.
      depth: number of blocks.
      causal: whether each token attends only to itself and earlier ones.
      qk_norm: whether queries and keys are normalized, see layers.MultiHeadAttention.
      probe_scores: whether to record the blocks' attention scores: `scores`, `scores_1`.
      dropout: fraction of each block's new entries set to 0 in training.
      classes: number of image classes.
      seed: of the initial weights.
      patch: height and width of the pieces of an image.
      matmul: computes all products of matrices, see layers.Dense.

    Raises:
      ValueError: tokens without a length, or patches that do not tile an image.
    """

    def __init__(
        self,
        vocabulary: int = 0,
        length: int = 0,
        width: int = 64,
        heads: int = 4,
        depth: int = 2,
        causal: bool = False,
        qk_norm: bool = False,
        probe_scores: bool = False,
        dropout: float = 0.0,
        classes: int = 10,
        seed: int = 0,
        patch: int = 7,
        matmul: layers.Product = tf.matmul,
    ) -> None:
        super().__init__("transformer")
        if vocabulary and length < 1:
            raise ValueError(f"length={length}: must be at least 1 with vocabulary={vocabulary}")
        if not vocabulary and (patch < 1 or SIDE % patch):
            raise ValueError(f"patch={patch}: must divide {SIDE}")
        self._tokens, self._patch = bool(vocabulary), patch
        if vocabulary:
            self.embedding = layers.Embedding(vocabulary, width, seed=(seed, 0))
        else:
            self.embedding = layers.Dense(patch * patch, width, seed=(seed, 0), matmul=matmul)
            length = (SIDE // patch) ** 2
        first = layers.normal(0.02)((length, width), tf.constant([seed, 1], tf.int64))
        self.positions = tf.Variable(first, name="positions")
        self.blocks = [
            Block(width, heads, causal, qk_norm, probe_scores, dropout, (seed, 3 + i), matmul)
            for i in range(depth)
        ]
        self.norm = layers.LayerNorm(width)
        self.logits = layers.Dense(width, vocabulary or classes, seed=(seed, 2), matmul=matmul)

    def __call__(
        self, x: tf.Tensor, training: bool = False, seed: layers.Seed | None = None
    ) -> tf.Tensor:
        """Integers [batch, length] -> logits, float32 [batch, length, vocabulary]; or images,
        float32 [batch, 28, 28] or [batch, 784] -> logits, float32 [batch, classes].

        Args:
          training: whether entries drop out.
          seed: two integers, of the dropout in this step.
        """
        count = 2 * len(self.blocks)
        seeds = [None] * count if seed is None else layers.split_seed(seed, count)
        x = self.embedding(x if self._tokens else self._patches(x)) + self.positions
        for i, block in enumerate(self.blocks):
            x = block(x, training, seeds[2 * i : 2 * i + 2])
        x = self.norm(x)
        return self.logits(x if self._tokens else tf.reduce_mean(x, 1))

    def _patches(self, x: tf.Tensor) -> tf.Tensor:
        """Images -> [batch, length, patch * patch]."""
        size, across = self._patch, SIDE // self._patch
        x = tf.transpose(tf.reshape(x, [-1, across, size, across, size]), [0, 1, 3, 2, 4])
        return tf.reshape(x, [-1, across * across, size * size])


def _gelu(x: tf.Tensor) -> tf.Tensor:
    return tf.nn.gelu(x, approximate=True)
