"""What is recorded of each step: a list, so that a new measurement is one entry of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from lab.kernels import xla
from lab.step import gradient_noise
from lab.step.replica import Step, Tensors, Training

GRADIENT_NORM = "gradient_norm"  # a kind of watch: `gradient/norm` over all tensors


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
        activations and probes (of the whole batch) and, with several parts, replicas (the gradient
        of each). With norms, those of each weight, gradient and update are scalars of
        every step, and the ratio of an update's to its weight's.
      activations: by layer, the entries of its output for the whole batch.
      probes: by name, the entries of a probed tensor for the whole batch.
      replicas: how many there are. With micro-batches, the parts of a batch are theirs.

    Attributes:
      histograms: the tensors with histograms; those of a list are counted together.
      scalar_tags: loss, the metrics, the norms, `gradient/norm`, the largest finite absolute value
        of each probe and, with several parts, what gradient_noise.py measures.
      keeps_local: whether the gradient of each part is needed, and not only its norm.
      tags, sizes: of the histograms, and the number of entries of each; those of the parts come
        last.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        training: Training,
        activations: Mapping[str, int],
        probes: Mapping[str, int],
        replicas: int,
    ) -> None:
        variables = training.variables
        sizes = {name: variable.shape.num_elements() for name, variable in variables.items()}
        self._names, self._probes = list(sizes), list(probes) if "probes" in kinds else []
        # As it was applied or, where only its norm is asked for, before the rounding.
        update = _applied if "updates" in kinds else _entry("updates")
        by_kind = {
            "weights": _all("", sizes, _entry("new_weights")),
            "gradients": _all("/gradient", sizes, _entry("gradients")),
            "updates": _all("/update", sizes, update),
            "activations": _all("/activations", activations, _entry("activations")),
            "probes": _all("", probes, _entry("probes")),
        }
        groups = [by_kind[kind] for kind in by_kind if kind in kinds]
        self.histograms = [entries for entries in groups if entries]
        # With several parts, the gradients' norms are among those of gradient_noise.py.
        parts = replicas * training.microbatches
        kind = "replica" if parts == replicas else "part"
        normed = ["weights", "updates", "gradients"] if "norms" in kinds else []
        if parts > 1:
            normed = normed[:2]
        elif GRADIENT_NORM in kinds and not normed:
            normed = ["gradients"]
        self._norms = [entry for kind in normed for entry in by_kind[kind]]
        self._ratios, self._total = "norms" in kinds, bool(normed) and parts == 1
        self.scalar_tags = ["loss", *training.metrics]
        self.scalar_tags += [f"{entry.tag}/norm" for entry in self._norms]
        local: dict[str, int] = {}
        # Of two parts they take no more memory than their sum and the second one.
        wanted = bool({"norms", "replicas"} & {*kinds})
        self.keeps_local = wanted or training.microbatches <= 2
        if parts > 1:
            self.scalar_tags += gradient_noise.tags(self._names, parts, kind, self.keeps_local)
            for r in range(parts) if "replicas" in kinds else ():
                local |= {f"{name}/gradient/{kind}_{r}": size for name, size in sizes.items()}
        if self._total:
            self.scalar_tags.append("gradient/norm")
        if self._ratios:
            self.scalar_tags += [f"{name}/update/ratio" for name in self._names]
        self.scalar_tags += [f"{name}/largest" for name in self._probes]
        entries = [entry for group in self.histograms for entry in group]
        self.tags = [*(entry.tag for entry in entries), *local]
        self.sizes = [*(entry.size for entry in entries), *local.values()]

    def tensors(self, step: Step) -> Tensors:
        """The watched tensors of a step by tag."""
        entries = [entry for group in [*self.histograms, self._norms] for entry in group]
        return {entry.tag: entry.tensor(step) for entry in entries}

    def scalars(
        self,
        batch: tf.Tensor,
        tensors: Tensors,
        noise: Sequence[tf.Tensor],
        on_gpu: bool,
        cpu_program: bool,
    ) -> tf.Tensor:
        """The scalars of a step: float32 [scalar_tags].

        Args:
          batch: float32 [1 + metrics], the loss and the metrics of the whole batch.
          tensors: see `tensors`.
          noise: what gradient_noise.scalars gives, if there are several parts.
          on_gpu: whether the step runs on a GPU.
          cpu_program: whether this is compiled for a CPU, with the whole loop.
        """
        parts = [batch]
        ends: list[Any] = []
        if self._norms:
            normed = [tf.cast(tensors[entry.tag], tf.float32) for entry in self._norms]
            squares = gradient_noise.dots(normed, normed) if on_gpu else xla.squares(normed)
            norms = tf.sqrt(squares)
            parts.append(norms)
            count = len(self._names)
            if self._total:
                ends.append(tf.sqrt(tf.reduce_sum(squares[-count:], keepdims=True)))
            if self._ratios:
                ends.append(tf.math.divide_no_nan(norms[count : 2 * count], norms[:count]))
        if self._probes:
            ends.append(_largest([tensors[name] for name in self._probes], cpu_program))
        return tf.concat([*parts, *noise, *ends], 0)


_OfName = Callable[[str, Step], tf.Tensor]


def _all(suffix: str, sizes: Mapping[str, int], tensor: _OfName) -> list[Watched]:
    return [Watched(n + suffix, size, functools.partial(tensor, n)) for n, size in sizes.items()]


def _entry(field: str) -> _OfName:
    return lambda name, step: getattr(step, field)[name]


def _applied(name: str, step: Step) -> tf.Tensor:
    return step.new_weights[name] - step.weights[name]


def _largest(tensors: list[tf.Tensor], cpu_program: bool) -> tf.Tensor:
    """The largest finite absolute value of each tensor, 0 of none: float32 [T]."""
    flat = [tf.abs(tf.cast(tf.reshape(x, [-1]), tf.float32)) for x in tensors]
    if cpu_program:
        groups = xla.grouped(flat)
        return tf.maximum(xla.in_order(groups, xla.largest(groups)), 0.0)
    return tf.stack([tf.reduce_max(tf.where(tf.math.is_finite(x), x, 0.0)) for x in flat])
