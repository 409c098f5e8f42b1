"""Examples as pictures made of characters, for a terminal."""

from __future__ import annotations

import math

import numpy as np

_SHADES = " .:-=+*#%@"
_WIDTH = 28  # characters at most of a picture


def side_by_side(x: np.ndarray) -> list[str]:
    """The lines of some examples side by side; none if they are not images.

    Args:
      x: [n, side * side], [n, height, width] or [n, height, width, channels]. The smallest value
        of an image is drawn as a blank, the largest finite one as the darkest character.
    """
    side = math.isqrt(x.shape[1]) if x.ndim == 2 else 0
    if side * side >= 64 and side * side == x.shape[1]:
        x = x.reshape(len(x), side, side)
    if x.ndim == 4 and x.shape[3] in (1, 3, 4):
        x = x[..., :3].mean(axis=3)
    if x.ndim != 3 or min(x.shape[1:]) < 8 or not len(x) or x.dtype.kind not in "fiu":
        return []
    drawn = [_lines(np.asarray(one, np.float64)) for one in x]
    return ["  ".join(parts).rstrip() for parts in zip(*drawn, strict=True)]


def _lines(image: np.ndarray) -> list[str]:
    """A character is twice as high as wide."""
    known = np.isfinite(image)
    values = image[known]
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    scaled = np.where(known, (image - low) / max(high - low, 1e-30), 1.0)
    every = max(math.ceil(image.shape[1] / _WIDTH), 1)
    rows, columns = scaled.shape[0] // (2 * every), scaled.shape[1] // every
    blocks = scaled[: rows * 2 * every, : columns * every]
    means = blocks.reshape(rows, 2 * every, columns, every).mean(axis=(1, 3))
    shades = np.minimum((means * len(_SHADES)).astype(int), len(_SHADES) - 1)
    return ["".join(_SHADES[shade] for shade in row) for row in shades]
