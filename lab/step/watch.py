"""What is recorded of each step: a list, so that a new measurement is one entry of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

from lab.step import gradient_noise
from lab.step.replica import Step


class Watched(NamedTuple):
    """A tensor of a step that is recorded under a tag.

    Attributes:
      tensor: from the step to a floating tensor of `size` entries.
    """

    tag: str
    size: int
    tensor: Callable[[Step], tf.Tensor]


class Watch:
    """The columns and rows of a record, in the order that the training loop returns them.

    Args:
      kinds: what has histograms: some of weights, gradients (reduced over the replicas), updates,
        activations (of the whole batch) and, with several replicas, replicas (the gradient of
        each). With norms, those of each weight, gradient and update are scalars of every step.
      variables: the trainable variables by name.
      activations: by layer, the entries of its output for the whole batch.

    Attributes:
      histograms: the tensors with histograms; those of a list are counted together.
      norms: the tensors whose Euclidean norms are scalars.
      scalar_tags: loss, accuracy, the norms and, with several replicas, those of gradient_noise.py.
      tags, sizes: of the histograms, and the number of entries of each; the replicas' come last.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        variables: Mapping[str, tf.Variable],
        activations: Mapping[str, int],
        replicas: int,
    ) -> None:
        sizes = {name: variable.shape.num_elements() for name, variable in variables.items()}
        # As it was applied or, where only its norm is asked for, before the rounding.
        update = _applied if "updates" in kinds else _entry("updates")
        by_kind = {
            "weights": _all("", sizes, _entry("new_weights")),
            "gradients": _all("/gradient", sizes, _entry("gradients")),
            "updates": _all("/update", sizes, update),
            "activations": _all("/activations", activations, _entry("activations")),
        }
        groups = [by_kind[kind] for kind in by_kind if kind in kinds]
        self.histograms = [entries for entries in groups if entries]
        # With several replicas, the gradients' norms are among those of gradient_noise.py.
        normed = ["weights", "updates", "gradients"][: 3 if replicas == 1 else 2]
        self.norms = [e for kind in normed for e in by_kind[kind] if "norms" in kinds]
        self.scalar_tags = ["loss", "accuracy", *(f"{entry.tag}/norm" for entry in self.norms)]
        local: dict[str, int] = {}
        if replicas > 1:
            self.scalar_tags += gradient_noise.tags(list(variables), replicas)
            for r in range(replicas) if "replicas" in kinds else ():
                local |= {f"{name}/gradient/replica_{r}": size for name, size in sizes.items()}
        entries = [entry for group in self.histograms for entry in group]
        self.tags = [*(entry.tag for entry in entries), *local]
        self.sizes = [*(entry.size for entry in entries), *local.values()]

    def tensors(self, step: Step) -> dict[str, tf.Tensor]:
        """The watched tensors of a step by tag."""
        entries = [entry for group in [*self.histograms, self.norms] for entry in group]
        return {entry.tag: entry.tensor(step) for entry in entries}


_OfName = Callable[[str, Step], tf.Tensor]


def _all(suffix: str, sizes: Mapping[str, int], tensor: _OfName) -> list[Watched]:
    return [Watched(n + suffix, size, functools.partial(tensor, n)) for n, size in sizes.items()]


def _entry(field: str) -> _OfName:
    return lambda name, step: getattr(step, field)[name]


def _applied(name: str, step: Step) -> tf.Tensor:
    return step.new_weights[name] - step.weights[name]
