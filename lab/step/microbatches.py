"""A replica's share of a batch in parts, one after the other: micro-batches.

Each part is what a replica's share is elsewhere: it has random numbers of its own, it normalizes
its own examples, and it starts from the state that the model had before the step.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from lab.step import gradient_noise
from lab.step.replica import Part, Training, gradient

_PER_EXAMPLE = ("losses", "activations", "probes")


def sizes(share: int, parts: int) -> list[int]:
    """How many examples each part of a share has: as equal as can be, the larger ones first."""
    return [share // parts + (k < share % parts) for k in range(parts)]


@dataclasses.dataclass(frozen=True)
class Shares:
    """Computes the gradients of replicas' shares, each in as many parts as the training says.

    Attributes:
      batch: (what chooses some examples, replica) -> their x and y.
      dots: the scalar product of each pair of two lists of tensors: float32 [tensors].
      several: whether there are several replicas.
      activations, probes, losses: whether they are wanted.
      local: whether the gradient of each part is wanted, and not its norm alone.
    """

    training: Training
    batch: Callable[[Any, int], tuple[tf.Tensor, tf.Tensor]]
    dots: gradient_noise.Dots
    several: bool
    activations: bool
    probes: bool
    losses: bool
    local: bool

    def compute(
        self, rows: Any, sizes: list[int], number: tf.Tensor, replica: int, replicas: int
    ) -> Callable[[], Part]:
        """What computes the gradient of one share.

        Args:
          rows: what chooses the share's examples: tensors [share, ...].
          sizes: of its parts, see `sizes`.
          number: of the step, from 1, integer scalar.
        """
        if len(sizes) == 1:
            x, y = self.batch(rows, replica)
            seed = self.training.call_seed(number, replica, replicas)
            return functools.partial(gradient, self.training, x, y, number, seed, self.activations)

        def of_part(own: Any, part: tf.Tensor) -> Part:
            x, y = self.batch(own, replica)
            seed = self.training.call_seed(
                number, replica * len(sizes) + part, replicas * len(sizes)
            )
            found = gradient(self.training, x, y, number, seed, self.activations)
            losses = found.losses if self.losses else {}
            return found._replace(losses=losses, probes=found.probes if self.probes else {})

        return functools.partial(self._in_parts, rows, sizes, of_part)

    def _in_parts(self, rows: Any, sizes: list[int], of_part: Callable[..., Part]) -> Part:
        state = self.training.model.state
        before = {name: tf.convert_to_tensor(variable) for name, variable in state.items()}
        sums: list[tf.Tensor] = []
        found: list[dict[str, tf.Tensor]] = []  # [parts, ...] each
        first, number = 0, 0
        for size, count in collections.Counter(sizes).items():
            own = [one[first : first + size * count] for one in tf.nest.flatten(rows)]
            own = [tf.reshape(one, [count, size, *one.shape[1:]]) for one in own]

            def part(k: tf.Tensor, own: Any = own, number: int = number) -> Any:
                chosen = tf.nest.pack_sequence_as(rows, [one[k] for one in own])
                return self._part(of_part, chosen, number + k, before)

            repeat = _one_by_one if self.several else _in_a_loop
            sums, each = repeat(part, count, sums)
            found.append(each)
            first, number = first + size * count, number + count
        return self._whole(sums, found, len(sizes))

    def _part(self, of_part: Any, rows: Any, number: tf.Tensor, before: Any) -> Any:
        """(what is summed over the parts, what is returned of each)."""
        state = self.training.model.state
        for name, variable in state.items():
            variable.assign(before[name])
        part = of_part(rows, number)
        after = [tf.convert_to_tensor(v) for v in state.values() if v.dtype.is_floating]
        each = {"squares": self.dots(part.gradients, part.gradients)}
        for field in _PER_EXAMPLE:
            value = getattr(part, field)
            each |= {f"{field}/{tag}": tensor for tag, tensor in value.items()}
        if self.local:
            each |= {f"local/{i}": g for i, g in enumerate(part.gradients)}
        return [part.totals, *part.gradients, *after], each

    def _whole(self, sums: list[tf.Tensor], found: list[dict[str, tf.Tensor]], parts: int) -> Part:
        count = len(self.training.variables)
        totals, gradients, after = sums[0], sums[1 : count + 1], sums[count + 1 :]
        floating = [v for v in self.training.model.state.values() if v.dtype.is_floating]
        for variable, total in zip(floating, after, strict=True):
            variable.assign(total / parts)
        fields: dict[str, Any] = {field: {} for field in _PER_EXAMPLE}
        for name in found[0]:
            field, _, tag = name.partition("/")
            if field in fields:
                flat = [tf.reshape(one[name], [-1, *one[name].shape[2:]]) for one in found]
                fields[field][tag] = tf.concat(flat, 0)
        local: Sequence[list[tf.Tensor]] = ()
        if self.local:
            of_each = [[g for one in found for g in tf.unstack(one[f"local/{i}"])]
                       for i in range(count)]  # fmt: skip
            local = [list(part) for part in zip(*of_each, strict=True)]
        squares = tf.concat([one["squares"] for one in found], 0)
        return Part(totals, gradients=gradients, local=local, squares=squares, **fields)


def _one_by_one(part: Any, count: int, sums: list[tf.Tensor]) -> Any:
    rows = []
    for k in range(count):
        with tf.control_dependencies(sums):  # so that the part before is done, and its memory free
            own, each = part(tf.constant(k))
        sums = [a + b for a, b in zip(sums, own, strict=True)] if sums else own
        rows.append(each)
    return sums, {name: tf.stack([row[name] for row in rows]) for name in rows[0]}


def _in_a_loop(part: Any, count: int, sums: list[tf.Tensor]) -> Any:
    function = tf.function(part, autograph=False).get_concrete_function(tf.TensorSpec([], tf.int32))
    own, each = function.structured_outputs
    sums = sums or [tf.zeros(one.shape, one.dtype) for one in own]
    arrays = {
        name: tf.TensorArray(one.dtype, count, element_shape=one.shape)
        for name, one in each.items()
    }

    def body(k: tf.Tensor, sums: list[tf.Tensor], arrays: dict[str, tf.TensorArray]) -> tuple:
        own, each = function(k)
        sums = [a + b for a, b in zip(sums, own, strict=True)]
        return k + 1, sums, {name: array.write(k, each[name]) for name, array in arrays.items()}

    _, sums, arrays = tf.while_loop(
        lambda k, *_: k < count, body, (0, sums, arrays), parallel_iterations=1
    )
    return sums, {name: array.stack() for name, array in arrays.items()}
