"""A replica's share of a batch, computed in sequential parts: micro-batches.

Each part is what a replica's share is elsewhere: it has random numbers of its own, it normalizes
its own examples, and it starts from the state that the model had before the step; but for Keras's
seed generators, which count what they draw.
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import tensorflow as tf

from lab.kernels import xla
from lab.step import gradient_noise
from lab.step.replica import Part, Step, Training, call_seed, gradient

# So many parts have operations of their own. More are the body of a loop, which takes no longer to
# compile for many; but it copies each gradient, and within it replicas cannot synchronize, as
# BatchNorm's averages do even with one.
_UNROLLED = 2
_SEEDS = "seed_generator"  # in the tags of their states
_PER_EXAMPLE = ("losses", "activations", "probes")


class Shares:
    """Computes the gradients of the replicas' shares, each in as many parts as the training says.

    Args:
      batch: (what chooses some examples, replica) -> their x and y.
      cpu_program: whether the loop is a program of XLA's for a CPU.
      wanted: of `activations`, `probes`, `losses` and `local`, what is; the last is the gradient
        of each part, beside its norm.

    Attributes:
      bounds: part p has the examples bounds[p] to bounds[p + 1] of each batch. Every example counts
        the same, also where their number is not divided.

    Raises:
      ValueError: there are more replicas than examples in a batch, or more parts than in a share.
    """

    def __init__(
        self,
        training: Training,
        replicas: int,
        batch: Callable[[Any, int], tuple[tf.Tensor, tf.Tensor]],
        cpu_program: bool,
        wanted: Collection[str],
    ) -> None:
        size, parts = training.batch_size, training.microbatches
        if size < replicas:
            raise ValueError(f"a batch of {size} cannot be shared by {replicas} replicas")
        if size // replicas < parts:
            raise ValueError(f"a share of {size // replicas} examples cannot have {parts} parts")
        self._training, self._replicas, self._batch = training, replicas, batch
        self._dots: gradient_noise.Dots = xla.dots if cpu_program else gradient_noise.dots
        self._wanted = wanted
        ends = [size * r // replicas for r in range(replicas + 1)]
        self._shares = list(itertools.starmap(slice, itertools.pairwise(ends)))
        sizes = (_sizes(share.stop - share.start, parts) for share in self._shares)
        self.bounds = [0, *itertools.accumulate(itertools.chain.from_iterable(sizes))]

    def compute(
        self, rows: Any, number: tf.Tensor, seed: tf.Tensor, replica: int
    ) -> Callable[[], Part]:
        """What computes the gradient of a replica's share.

        Args:
          rows: what chooses the examples of the batch: tensors [batch, ...].
          number: of the step, from 1, integer scalar.
          seed: the run's, int64 scalar.
        """
        share = self._shares[replica]
        rows = tf.nest.map_structure(lambda one: one[share], rows)
        size, replicas = share.stop - share.start, self._replicas
        training, count = self._training, self._training.microbatches
        layers = "activations" in self._wanted
        if count == 1:
            x, y = self._batch(rows, replica)
            own = call_seed(seed, number, replica, replicas)
            return functools.partial(gradient, training, x, y, number, own, layers)

        def of_part(own: Any, part: tf.Tensor) -> Part:
            x, y = self._batch(own, replica)
            of_call = call_seed(seed, number, replica * count + part, replicas * count)
            found = gradient(training, x, y, number, of_call, layers)
            losses = found.losses if "losses" in self._wanted else {}
            probes = found.probes if "probes" in self._wanted else {}
            return found._replace(losses=losses, probes=probes)

        return functools.partial(self._in_parts, rows, _sizes(size, count), of_part)

    def products(self, done: Step) -> tf.Tensor:
        """What gradient_noise.scalars needs of a replica's parts: float32 [parts, tensors, 2 or
        3]."""
        squares = done.squares
        if squares is None:
            squares = self._dots(done.local[0], done.local[0])[None]
        reduced, parts = list(done.gradients.values()), len(self.bounds) - 1
        return gradient_noise.products(squares, done.local, reduced, self._dots, parts)

    def _in_parts(self, rows: Any, sizes: list[int], of_part: Callable[..., Part]) -> Part:
        state = self._training.model.state
        before = {n: tf.convert_to_tensor(v) for n, v in state.items() if _SEEDS not in n}
        sums: list[tf.Tensor] = []
        found: list[dict[str, tf.Tensor]] = []  # [parts, ...] each
        first, number = 0, 0
        synchronized = self._replicas > 1 or any(
            variable.aggregation != tf.VariableAggregation.NONE for variable in state.values()
        )
        unrolled = synchronized or len(sizes) <= _UNROLLED
        repeat = _one_by_one if unrolled else _in_a_loop
        for size, count in collections.Counter(sizes).items():
            own = _rows(rows, first, size, count)
            part = functools.partial(self._part, of_part, own, number, before)
            zero = _zero_after(found[-1]["squares"]) if found else tf.constant(0)
            sums, each = repeat(part, count, zero, sums)
            found.append(each)
            first, number = first + size * count, number + count
        return self._whole(sums, found, len(sizes))

    def _part(self, of_part: Any, rows: Any, first: int, before: Any, k: tf.Tensor) -> Any:
        """(what is summed over the parts, what is returned of each) of part first + k."""
        state = self._training.model.state
        for name, value in before.items():
            state[name].assign(value)
        part = of_part(tf.nest.map_structure(lambda one: tf.gather(one, k), rows), first + k)
        after = [tf.convert_to_tensor(v) for v in state.values() if v.dtype.is_floating]
        each = {"squares": self._dots(part.gradients, part.gradients)}
        for field in _PER_EXAMPLE:
            value = getattr(part, field)
            each |= {f"{field}/{tag}": tensor for tag, tensor in value.items()}
        if "local" in self._wanted:
            each |= {f"local/{i}": g for i, g in enumerate(part.gradients)}
            return [part.totals, *after], each
        return [part.totals, *after, *part.gradients], each

    def _whole(self, sums: list[tf.Tensor], found: list[dict[str, tf.Tensor]], parts: int) -> Part:
        count = len(self._training.variables)
        floating = [v for v in self._training.model.state.values() if v.dtype.is_floating]
        totals, gradients = sums[0], sums[1 + len(floating) :]
        for variable, total in zip(floating, sums[1 : 1 + len(floating)], strict=True):
            variable.assign(total / parts)
        fields: dict[str, Any] = {field: {} for field in _PER_EXAMPLE}
        for name in found[0]:
            field, _, tag = name.partition("/")
            if field in fields:
                flat = [tf.reshape(one[name], [-1, *one[name].shape[2:]]) for one in found]
                fields[field][tag] = tf.concat(flat, 0)
        local: Sequence[list[tf.Tensor]] = ()
        if "local" in self._wanted:
            of_each = [[g for one in found for g in tf.unstack(one[f"local/{i}"])]
                       for i in range(count)]  # fmt: skip
            local = [list(part) for part in zip(*of_each, strict=True)]
            gradients = [functools.reduce(tf.add, one) for one in of_each]
        squares = tf.concat([one["squares"] for one in found], 0)
        return Part(totals, gradients=gradients, local=local, squares=squares, **fields)


def _sizes(share: int, parts: int) -> list[int]:
    """How many examples each part of a share has: as equal as can be, the larger ones first."""
    return [share // parts + (k < share % parts) for k in range(parts)]


def _rows(rows: Any, first: int, size: int, count: int) -> Any:
    """Of tensors [share, ...] so many parts from one example on: [count, size, ...]."""

    def of(one: tf.Tensor) -> tf.Tensor:
        own = one[first : first + size * count]
        return tf.reshape(own, [count, size, *one.shape[1:]])

    return tf.nest.map_structure(of, rows)


def _zero_after(squares: tf.Tensor) -> tf.Tensor:
    """int32 0, once the gradients are there of which these are the sums of squares.

    What is computed after it does not begin before, while the memory of a part is still taken. XLA
    does not know of control dependencies, and orders by values alone; sums of squares are never -1.
    """
    return tf.cast(tf.equal(tf.reduce_sum(squares), -1.0), tf.int32)


def _one_by_one(part: Any, count: int, zero: tf.Tensor, sums: list[tf.Tensor]) -> Any:
    rows = []
    for k in range(count):
        own, each = part(zero + k)
        zero = _zero_after(each["squares"])
        sums = [a + b for a, b in zip(sums, own, strict=True)] if sums else own
        rows.append(each)
    return sums, {name: tf.stack([row[name] for row in rows]) for name in rows[0]}


def _in_a_loop(part: Any, count: int, zero: tf.Tensor, sums: list[tf.Tensor]) -> Any:
    number = tf.TensorSpec([], tf.int32)
    function = tf.function(lambda k: part(k), autograph=False).get_concrete_function(number)
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
        lambda k, *_: k < count, body, (zero, sums, arrays), parallel_iterations=1
    )
    return sums, {name: array.stack() for name, array in arrays.items()}
