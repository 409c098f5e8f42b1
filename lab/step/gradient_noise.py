"""How far the local gradients of the parts of a batch agree.

A part is a replica's share of the batch or, with micro-batches, a part of that. Its local gradient
is that of its own examples, and the reduced gradient is their sum; both are of the loss as it is
minimized. For the gradient noise scale they are divided to gradients of the mean loss over b_r
examples and over all B.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import tensorflow as tf

Dots = Callable[[Sequence[tf.Tensor], Sequence[tf.Tensor]], tf.Tensor]
WHOLE = ""  # the prefix of the tags of all tensors taken together


def tags(
    names: Sequence[str], parts: int, kind: str = "replica", cosines: bool = True
) -> list[str]:
    """The tags of what `scalars` returns, for each tensor and then for all of them together.

    NAME/gradient/norm: of the reduced gradient; NAME/gradient/KIND_R/norm: of a local one;
    .../cosine: of the angle between that and the reduced one; NAME/gradient/noise/variance and
    .../signal: the estimates S and G2 of this step, see `scalars`.
    """
    of_each = ("norm", "cosine") if cosines else ("norm",)
    local = [f"{kind}_{r}/{what}" for what in of_each for r in range(parts)]
    columns = ["norm", *local, "noise/variance", "noise/signal"]
    prefixes = [*(f"{name}/" for name in names), WHOLE]
    return [f"{prefix}gradient/{column}" for prefix in prefixes for column in columns]


def products(
    squares: tf.Tensor,
    local: Sequence[Sequence[tf.Tensor]],
    reduced: Sequence[tf.Tensor],
    dots: Dots,
    parts: int,
) -> tf.Tensor:
    """|local|^2, |reduced|^2 and, of more than two parts, local . reduced of each tensor of some
    parts: float32 [some, tensors, 2 or 3].

    Args:
      squares: |local|^2, float32 [some, tensors].
      local: of each of these parts or, where they were not kept, of none.
      dots: the scalar product of each pair of two lists of tensors: float32 [tensors].
      parts: how many there are, over all replicas.
    """
    columns = [squares, tf.broadcast_to(dots(reduced, reduced), squares.shape)]
    if local and parts > 2:
        columns.append(tf.stack([dots(part, reduced) for part in local]))
    return tf.stack(columns, axis=2)


def dots(a: Sequence[tf.Tensor], b: Sequence[tf.Tensor]) -> tf.Tensor:
    """The scalar product of each tensor of `a` with that of `b`: float32 [tensors]. Where both are
    the same list, TensorFlow does not write the squares to memory."""
    pairs = [(tf.cast(x, tf.float32), tf.cast(y, tf.float32)) for x, y in zip(a, b, strict=True)]
    if a is b:
        return 2.0 * tf.stack([tf.nn.l2_loss(x) for x, _ in pairs])
    return tf.stack([tf.reduce_sum(x * y) for x, y in pairs])


def scalars(products: tf.Tensor, bounds: Sequence[int], scale: float) -> tf.Tensor:
    """The scalars of a step, float32, in the order of `tags`.

    With g_r the gradient of the mean loss over the b_r examples of part r, and g_B that over all
    B: S = (mean_r |g_r|^2 - |g_B|^2) / (mean_r 1/b_r - 1/B) estimates the trace of the
    covariance of one example's gradient, and G2 = |g_B|^2 - S / B the squared norm of the true
    gradient, both without bias. The noise scale, in examples, is mean(S) / mean(G2) over many
    steps (McCandlish et al., "An Empirical Model of Large-Batch Training", 2018, appendix A).

    Args:
      products: float32 [parts, tensors, 2 or 3], from `products`. Of more than two parts, the
        cosines need the third column.
      bounds: part r has the examples bounds[r] to bounds[r + 1] of the batch.
      scale: what the sum of the losses was multiplied by.
    """
    products = tf.concat([products, tf.reduce_sum(products, axis=1, keepdims=True)], axis=1)
    local, reduced, *dots = tf.unstack(products, axis=2)  # each [parts, tensors + 1]
    if len(bounds) == 3:  # of two parts, by the law of cosines
        dots = [(reduced + local - local[::-1]) / 2]
    sizes = tf.constant([b - a for a, b in itertools.pairwise(bounds)], tf.float32)
    batch = float(bounds[-1])
    small = tf.reduce_mean(local / tf.square(scale * sizes)[:, None], axis=0)
    large = reduced[0] / (scale * batch) ** 2
    variance = (small - large) / (tf.reduce_mean(1 / sizes) - 1 / batch)
    columns = [
        tf.sqrt(reduced[:1]),
        tf.sqrt(local),
        *(_cosine(dot, local, reduced) for dot in dots),
        variance[None],
        (large - variance / batch)[None],
    ]
    return tf.reshape(tf.transpose(tf.concat(columns, axis=0)), [-1])


def _cosine(dot: tf.Tensor, a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Of two vectors, of which a and b are the squared norms."""
    return tf.clip_by_value(tf.math.divide_no_nan(dot, tf.sqrt(a) * tf.sqrt(b)), -1.0, 1.0)


def noise_columns(tags: Sequence[str]) -> list[tuple[str, list[int]]]:
    """(prefix of the tags, columns of S and G2) of each tensor, in the columns `tags`."""
    end = "gradient/noise/variance"
    return [(t.removesuffix(end), [i, i + 1]) for i, t in enumerate(tags) if t.endswith(end)]


def noise_scale(variance: float, signal: float) -> float:
    """Sums of S and G2 over the same steps -> the noise scale, in examples; NaN if G2 is not
    above 0, where the steps are too few to tell."""
    return variance / signal if signal > 0 else float("nan")
