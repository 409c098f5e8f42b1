"""One training step in one replica: values in, values out, and nothing is assigned."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from lab.errors import LabError
from lab.kernels.inputs import prepare
from lab.kernels.probes import collected

Tensors = dict[str, tf.Tensor]
# (y, output) -> floating [batch, ...]
PerExample = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def per_example(values: tf.Tensor) -> tf.Tensor:
    """Of a loss or metric [batch, ...], its mean over all axes but the first: [batch]. Those of
    half precision become float32: in float16 their sums overflow, in bfloat16 they lose digits."""
    values = tf.cast(values, tf.float32) if values.dtype.size < 4 else values
    axes = list(range(1, values.shape.rank))
    return tf.reduce_mean(values, axes) if axes else values


@dataclasses.dataclass(frozen=True)
class Training:
    """What is trained, and how.

    Attributes:
      model: called as model(x, training, seed, step), of operations that XLA compiles; random ones
        stateless, or runs do not repeat. `variables` are its trainable variables by tag, `state`
        the others, which it assigns in its call. To watch activations it needs a method
        `activations`, from the same arguments to the outputs [batch, ...] by name, its own last.
      optimizer: of the model's trainable variables: `slots`, and a pure function `update`.
      loss: (y, output) -> floating [batch, ...]; the loss of an example is its mean over the
        other axes.
      batch_size: of the global batch, over all replicas.
      scale: what multiplies the sum of the losses over the global batch.
      metrics: by name, what is recorded besides the loss; as `loss`.
      prepare: a batch of x -> what the model is given.
      microbatches: the parts in which a replica computes its share of the batch, one after the
        other.
    """

    model: Any
    optimizer: Any
    loss: PerExample
    batch_size: int
    scale: float = 1.0
    metrics: Mapping[str, PerExample] = dataclasses.field(default_factory=dict)
    prepare: Callable[[tf.Tensor], tf.Tensor] = prepare
    microbatches: int = 1

    @property
    def variables(self) -> dict[str, tf.Variable]:
        """The trainable variables by tag."""
        return self.model.variables

    @property
    def all_variables(self) -> dict[str, tf.Variable]:
        """All that training changes, by the names that checkpoints give it."""
        named, names = dict(self.variables), self.optimizer.rule.slots
        for tag, slots in zip(self.variables, self.optimizer.slots, strict=True):
            named |= {f"{tag}/{name}": slot for name, slot in zip(names, slots, strict=True)}
        return named | self.model.state


def call_seed(
    seed: tf.Tensor, number: tf.Tensor, part: tf.Tensor | int = 0, parts: int = 1
) -> tf.Tensor:
    """The seed of a model's call: int64 [2]. The second entry is negative, since layers begin with
    seeds whose second entry is not.

    Args:
      seed: the run's, int64 scalar.
      number: of the step, from 1, integer scalar; 0 for a call outside training.
      part: which part of the batch it is called on, of so many.
    """
    of_step = -1 - tf.cast(number, tf.int64) * parts - tf.cast(part, tf.int64)
    return tf.stack([seed, of_step])


class Part(NamedTuple):
    """What some examples of a batch give: a replica's share of it, or a part of that.

    Attributes:
      totals: float32 [1 + metrics], the sums of the loss and of each metric.
      losses: floating [examples], under "".
      gradients: of the scaled sum of the losses, in the order of the variables.
      activations: by layer, [examples, ...]; empty unless asked for.
      probes: the tensors that the model probes, by name.
      local: of a share in parts, the gradients of each; empty unless they are kept.
      squares: of a share in parts, the sum of the squares of each gradient: float32 [parts,
        variables].
    """

    totals: tf.Tensor
    losses: Tensors
    gradients: list[tf.Tensor]
    activations: Tensors
    probes: Tensors
    local: Sequence[list[tf.Tensor]] = ()
    squares: tf.Tensor | None = None


class Step(NamedTuple):
    """The tensors of a step; what has one entry for each variable is a dict by its tag.

    Attributes:
      totals: float32 [1 + metrics], the sums of the loss and of each metric over the replica's
        examples.
      losses: floating [share], of each of the replica's examples.
      weights: before the update.
      gradients: the sum of all replicas' gradients.
      updates: what is subtracted from the weights, before it is rounded into them.
      new_weights: after the update.
      new_slots: by variable, the optimizer's next slots.
      activations: by layer, [batch, ...]; empty unless asked for.
      probes: the tensors that the model probes, by name.
      local: the gradients of the replica's share, or of each part of it if they are kept, in the
        order of the variables.
      squares: see Part.
    """

    totals: tf.Tensor
    losses: tf.Tensor
    weights: Tensors
    gradients: Tensors
    updates: Tensors
    new_weights: Tensors
    new_slots: dict[str, tuple[tf.Tensor, ...]]
    activations: Tensors
    probes: Tensors
    local: Sequence[list[tf.Tensor]]
    squares: tf.Tensor | None

    def observed(self) -> Tensors:
        """The tensors that no variable holds afterwards: `losses`, and by `PART/TAG`."""
        found = {"losses": tf.cast(self.losses, tf.float32)}
        for part in ("gradients", "updates", "activations", "probes"):
            found |= {f"{part}/{tag}": tensor for tag, tensor in getattr(self, part).items()}
        return found


def gradient(
    training: Training,
    x: tf.Tensor,
    y: tf.Tensor,
    number: tf.Tensor,
    seed: tf.Tensor,
    activations: bool = False,
) -> Part:
    """Forward and gradient on some examples.

    Args:
      x, y: the examples, [examples, ...].
      number: of this step, from 1, integer scalar.
      seed: int64 [2], for the model's random operations.
      activations: return them, too.
    """
    variables = training.variables
    outputs: Tensors = {}
    with tf.GradientTape() as tape:
        with tf.name_scope("forward"), collected() as probes:
            if activations:
                outputs = training.model.activations(training.prepare(x), True, seed, number)
                output = list(outputs.values())[-1]
            else:
                output = training.model(training.prepare(x), True, seed, number)
        with tf.name_scope("loss"):
            losses = per_example(training.loss(y, output))
            total = tf.reduce_sum(losses)
            scaled = total * training.scale
            measured = (metric(y, output) for metric in training.metrics.values())
            totals = [total, *(tf.reduce_sum(per_example(values)) for values in measured)]
            totals = tf.stack([tf.cast(value, tf.float32) for value in totals])
    with tf.name_scope("gradient"):
        local = _differentiated(tape, scaled, list(variables.values()))
        local = [tf.convert_to_tensor(g) for g in local]  # of a lookup they are sparse
    return Part(totals, {"": losses}, local, outputs, probes)


def _differentiated(
    tape: tf.GradientTape, scaled: tf.Tensor, variables: list[tf.Variable]
) -> list[Any]:
    """The gradients; raises LabError where an operation has none."""
    try:
        return tape.gradient(scaled, variables, unconnected_gradients="zero")
    except LookupError as error:
        if type(error) is not LookupError:  # but of a gradient of the user's own
            raise
        found = re.search(r"(?:op type|no entry for): (\w+)", str(error))
        raise LabError(
            f"the model or the loss uses {found[1] if found else 'an operation'}, which has no "
            "gradient in TensorFlow: use another operation, or tf.custom_gradient"
        ) from error


def step(
    training: Training,
    compute: Callable[[], Part],
    number: tf.Tensor,
    reduce: Callable[[list[tf.Tensor]], list[tf.Tensor]],
    update: Callable[..., tuple],
) -> Step:
    """Forward, gradient, reduction and update of one replica.

    Args:
      compute: gives the gradient of the replica's share of the batch.
      number: of this step, from 1, integer scalar.
      reduce: sums a list of tensors over the replicas.
      update: the optimizer's, which may be compiled.
    """
    variables = training.variables
    weights = [tf.convert_to_tensor(variable) for variable in variables.values()]
    slots = [tuple(map(tf.convert_to_tensor, row)) for row in training.optimizer.slots]
    own = compute()
    with tf.name_scope("reduce"):
        gradients = reduce(own.gradients)
    with tf.name_scope("update"):
        new_weights, new_slots, updates = update(weights, slots, gradients, number)
    lists = weights, gradients, updates, new_weights, new_slots
    by_tag: Any = (dict(zip(variables, values, strict=True)) for values in lists)
    local = [own.gradients] if own.squares is None else own.local
    share = own.totals, own.losses.get(""), *by_tag, own.activations, own.probes
    return Step(*share, local, own.squares)  # type: ignore[call-arg]
