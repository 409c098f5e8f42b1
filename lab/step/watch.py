"""What is recorded of each step: a list, so that a new measurement is one entry of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from lab.step import gradient_noise
from lab.step.replica import Step


class Watched(NamedTuple):
    """A tensor of a step that is recorded under a tag.

    tensor: from the step to a floating tensor of `size` entries.
    """

    tag: str
    size: int
    tensor: Callable[[Step], tf.Tensor]


class Watch:
    """The columns and rows of a record, in the order that the training loop returns them.

    Args:
      kinds: what has histograms: some of weights, gradients (reduced over the replicas), updates,
        activations (of the whole batch), and replicas: the local gradient of each replica, where
        there are several. With norms, the Euclidean norms of each weight, gradient and update
        are scalars of every step.
      variables: the trainable variables by name.
      activations: by layer, the entries of its output for the whole batch.
      replicas: how many there are.
      extra: further tensors to take histograms of.

    Attributes:
      histograms: the tensors with histograms; those of a list are counted together.
      norms: the tensors whose Euclidean norms are scalars.
      local: tags of the local gradients' histograms, which each replica counts itself.
      scalar_tags: loss, accuracy, the norms and, with several replicas, what gradient_noise.py
        computes from their gradients.
      tags, sizes: of the histograms, and the number of entries of each.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        variables: Mapping[str, tf.Variable],
        activations: Mapping[str, int] | None = None,
        replicas: int = 1,
        extra: Sequence[Watched] = (),
    ) -> None:
        sizes = {name: int(np.prod(variable.shape)) for name, variable in variables.items()}
        # As it was applied or, where only its norm is asked for, before the rounding.
        update = _applied if "updates" in kinds else _update
        by_kind = {
            "weights": [Watched(n, size, _entry("new_weights", n)) for n, size in sizes.items()],
            "gradients": [
                Watched(f"{n}/gradient", size, _entry("gradients", n)) for n, size in sizes.items()
            ],
            "updates": [Watched(f"{n}/update", size, update(n)) for n, size in sizes.items()],
            "activations": [
                Watched(f"{n}/activations", size, _entry("activations", n))
                for n, size in (activations or {}).items()
            ],
        }
        groups = [entries for kind, entries in by_kind.items() if kind in kinds] + [list(extra)]
        self.histograms = [entries for entries in groups if entries]
        self.norms: list[Watched] = []
        if "norms" in kinds:
            normed = ["weights", "updates", "gradients"]
            # With several replicas, the gradients' are among those of gradient_noise.py.
            self.norms = [
                entry for kind in normed[: 3 if replicas == 1 else 2] for entry in by_kind[kind]
            ]
        self.local: dict[str, int] = {}
        if "replicas" in kinds and replicas > 1:
            for r in range(replicas):
                self.local |= {f"{n}/gradient/replica_{r}": size for n, size in sizes.items()}
        self.scalar_tags = ["loss", "accuracy", *(f"{entry.tag}/norm" for entry in self.norms)]
        if replicas > 1:
            self.scalar_tags += gradient_noise.tags(list(variables), replicas)
        entries = [entry for group in self.histograms for entry in group]
        self.tags = [entry.tag for entry in entries] + list(self.local)
        self.sizes = [entry.size for entry in entries] + list(self.local.values())

    def tensors(self, step: Step) -> dict[str, tf.Tensor]:
        """The watched tensors of a step by tag."""
        entries = [entry for group in [*self.histograms, self.norms] for entry in group]
        return {entry.tag: entry.tensor(step) for entry in entries}


def _entry(field: str, name: str) -> Callable[[Step], tf.Tensor]:
    return lambda step: getattr(step, field)[name]


def _update(name: str) -> Callable[[Step], tf.Tensor]:
    return lambda step: step.updates[name]


def _applied(name: str) -> Callable[[Step], tf.Tensor]:
    return lambda step: step.new_weights[name] - step.weights[name]
