"""What the parts of a batch know of one gradient: how far their local ones agree.

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


def products_of_parts(
    squares: tf.Tensor,
    local: Sequence[Sequence[tf.Tensor]],
    reduced: Sequence[tf.Tensor],
    dots: Dots,
    parts: int,
) -> tf.Tensor:
    """`products` of each part, float32 [parts, tensors, 3]; without local gradients [..., 2].

    Args:
      squares: |local|^2, float32 [parts, tensors].
      local: of each part or, where they were not kept, of none.
      dots: the scalar product of each pair of two lists of tensors: float32 [tensors].
      parts: how many there are, over all replicas.
    """
    whole = tf.broadcast_to(dots(reduced, reduced), squares.shape)
    columns = [squares, whole]
    if len(local) == 2 == parts:  # by the law of cosines, without reading them again
        columns.append((whole + squares - squares[::-1]) / 2)
    elif local:
        columns.append(tf.stack([dots(part, reduced) for part in local]))
    return tf.stack(columns, axis=2)


def products(local: Sequence[tf.Tensor], reduced: Sequence[tf.Tensor]) -> tf.Tensor:
    """|local|^2, |reduced|^2 and local . reduced of each tensor: float32 [tensors, 3]."""
    pairs = [((g, g), (whole, whole), (g, whole)) for g, whole in zip(local, reduced, strict=True)]
    return tf.stack([tf.stack([tf.reduce_sum(a * b) for a, b in row]) for row in pairs])


def dots(a: Sequence[tf.Tensor], b: Sequence[tf.Tensor]) -> tf.Tensor:
    """The scalar product of each tensor of `a` with that of `b`: float32 [tensors]."""
    return tf.stack([tf.cast(tf.reduce_sum(x * y), tf.float32) for x, y in zip(a, b, strict=True)])


def scalars(products: tf.Tensor, bounds: Sequence[int], scale: float) -> tf.Tensor:
    """The scalars of a step, float32, in the order of `tags`.

    With g_r the gradient of the mean loss over the b_r examples of part r, and g_B that over all
    B: S = (mean_r |g_r|^2 - |g_B|^2) / (mean_r 1/b_r - 1/B) estimates the trace of the
    covariance of one example's gradient, and G2 = |g_B|^2 - S / B the squared norm of the true
    gradient, both without bias. The noise scale, in examples, is mean(S) / mean(G2) over many
    steps (McCandlish et al., "An Empirical Model of Large-Batch Training", 2018, appendix A).

    Args:
      products: float32 [parts, tensors, 3], from `products`; or [..., 2], for no cosines.
      bounds: part r has the examples bounds[r] to bounds[r + 1] of the batch.
      scale: what the sum of the losses was multiplied by.
    """
    products = tf.concat([products, tf.reduce_sum(products, axis=1, keepdims=True)], axis=1)
    local, reduced, *dots = tf.unstack(products, axis=2)  # each [parts, tensors + 1]
    sizes = tf.constant([b - a for a, b in itertools.pairwise(bounds)], tf.float32)
    batch = float(bounds[-1])
    small = tf.reduce_mean(local / tf.square(scale * sizes)[:, None], axis=0)
    large = reduced[0] / (scale * batch) ** 2
    variance = (small - large) / (tf.reduce_mean(1 / sizes) - 1 / batch)
    columns = [
        tf.sqrt(reduced[:1]),
        tf.sqrt(local),
        *(tf.math.divide_no_nan(dot, tf.sqrt(local) * tf.sqrt(reduced)) for dot in dots),
        variance[None],
        (large - variance / batch)[None],
    ]
    return tf.reshape(tf.transpose(tf.concat(columns, axis=0)), [-1])


def noise_columns(tags: Sequence[str]) -> list[tuple[str, list[int]]]:
    """(prefix of the tags, columns of S and G2) of each tensor, in the columns `tags`."""
    end = "gradient/noise/variance"
    return [(t.removesuffix(end), [i, i + 1]) for i, t in enumerate(tags) if t.endswith(end)]


def noise_scale(variance: float, signal: float) -> float:
    """Sums of S and G2 over the same steps -> the noise scale, in examples; NaN if G2 is not
    above 0, where the steps are too few to tell."""
    return variance / signal if signal > 0 else float("nan")
