"""A network's weights: arrays by tag, in the order of the layers. Of the perceptron tags are
`LAYER/PART`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

SHOWN = 8  # of the matrices of a network


class Weights(dict[str, np.ndarray]):
    """Every array by its tag. `weights` and `biases` are the perceptron's, layer by layer."""

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> Weights:
        """From `h1/weights`, `h1/bias`, ..., `logits/bias`, in any order; other names are ignored.

        Raises:
          ValueError: one of them is missing, or their shapes do not fit together.
        """
        numbers = {int(m[1]) for name in tensors if (m := re.fullmatch(r"h(\d+)/weights", name))}
        names = [*(f"h{i + 1}" for i in range(len(numbers))), "logits"]
        tags = [f"{name}/{part}" for name in names for part in ("weights", "bias")]
        if missing := [tag for tag in tags if tag not in tensors]:
            raise ValueError(f"no {', '.join(missing)} among the tensors {', '.join(tensors)}")
        found = cls({tag: np.asarray(tensors[tag]) for tag in tags})
        width = None
        for name, w, b in zip(names, found.weights, found.biases, strict=True):
            if w.ndim != 2 or b.shape != w.shape[1:] or width not in (None, len(w)):
                raise ValueError(
                    f"{name}: weights {w.shape}, bias {b.shape} do not fit {width or 'any'} inputs"
                )
            width = len(b)
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """The layers."""
        return tuple(dict.fromkeys(tag.rpartition("/")[0] for tag in self))

    @property
    def weights(self) -> tuple[np.ndarray, ...]:
        return tuple(self[f"{name}/weights"] for name in self.names)

    @property
    def biases(self) -> tuple[np.ndarray, ...]:
        return tuple(self[f"{name}/bias"] for name in self.names)

    def replace(self, tensors: Mapping[str, np.ndarray]) -> Weights:
        """The same, with some arrays in the place of its own."""
        assert tensors.keys() <= self.keys()
        return Weights({**self, **tensors})

    def shown(self) -> dict[str, str]:
        """What is looked at one by one: the tags of arrays of rank 2 or more, by tag without
        `/weights`; of many, `SHOWN` at even distances."""
        tags = [tag for tag, w in self.items() if w.ndim > 1]
        if len(tags) > SHOWN:
            tags = [tags[i] for i in np.linspace(0, len(tags) - 1, SHOWN).round().astype(int)]
        return {tag.removesuffix("/weights"): tag for tag in tags}

    def matrices(self) -> dict[str, np.ndarray]:
        """By tag, the arrays of rank 2 or more, with all axes but the last folded into one."""
        return {tag: w.reshape(-1, w.shape[-1]) for tag, w in self.items() if w.ndim > 1}


def distance(a: Mapping[str, np.ndarray], b: Mapping[str, Any]) -> float:
    """The root of the summed squared differences of all weights and biases."""
    return float(np.sqrt(sum(np.sum(np.square(np.float64(a[tag]) - b[tag])) for tag in a)))
