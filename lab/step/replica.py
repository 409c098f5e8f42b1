"""One training step in one replica: values in, values out, and nothing is assigned."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from lab.kernels.metrics import predictions

Tensors = dict[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Training:
    """What is trained, and how.

    Attributes:
      model: a tf.Module that maps float32 [batch, inputs] to logits [batch, classes], of operations
        that XLA compiles; random ones stateless, or runs do not repeat. To watch activations it
        needs a method `activations`, from the same argument to the outputs [batch, ...] by name,
        the logits last.
      optimizer: of the model's trainable variables: `slots`, and a pure function `update`.
      loss: (labels, logits) -> float32 [batch].
      batch_size: of the global batch, over all replicas.
      scale: what multiplies the sum of the losses over the global batch.
    """

    model: Any
    optimizer: Any
    loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    batch_size: int
    scale: float = 1.0

    @property
    def variables(self) -> dict[str, tf.Variable]:
        """The trainable variables by name, numbered where several have the same."""
        named: dict[str, tf.Variable] = {}
        for variable in self.model.trainable_variables:
            name = variable.name.split(":")[0]
            tags = (f"{name}_{number}" if number else name for number in itertools.count())
            named[next(tag for tag in tags if tag not in named)] = variable
        return named


class Step(NamedTuple):
    """The tensors of a step; what has one entry for each variable is a dict by its name.

    Attributes:
      totals: float32 [2], the sum of the losses and the number of correct predictions over the
        replica's examples.
      weights: before the update.
      local: the gradient of this replica's examples.
      gradients: the sum of all replicas' local gradients.
      updates: what is subtracted from the weights, before it is rounded into them.
      new_weights: after the update.
      new_slots: by variable, the optimizer's next slots.
      activations: by layer, [batch, ...]; empty unless asked for.
    """

    totals: tf.Tensor
    weights: Tensors
    local: Tensors
    gradients: Tensors
    updates: Tensors
    new_weights: Tensors
    new_slots: dict[str, tuple[tf.Tensor, ...]]
    activations: Tensors


def step(
    training: Training,
    x: tf.Tensor,
    labels: tf.Tensor,
    number: tf.Tensor,
    reduce: Callable[[list[tf.Tensor]], list[tf.Tensor]],
    activations: bool = False,
) -> Step:
    """Forward, gradient, reduction and update of one replica.

    Args:
      x, labels: the replica's share of the batch, float32 [share, inputs] and int32 [share].
      number: of this step, from 1, integer scalar.
      reduce: sums a list of tensors over the replicas.
      activations: return them, too.
    """
    variables = training.variables
    weights = [tf.convert_to_tensor(variable) for variable in variables.values()]
    slots = [tuple(map(tf.convert_to_tensor, row)) for row in training.optimizer.slots]
    outputs: Tensors = {}
    with tf.GradientTape() as tape:
        with tf.name_scope("forward"):
            if activations:
                outputs = training.model.activations(x)
            logits = list(outputs.values())[-1] if activations else training.model(x)
        with tf.name_scope("loss"):
            total = tf.reduce_sum(training.loss(labels, logits))
            scaled = total * training.scale
            correct = tf.equal(predictions(logits), labels)
            totals = tf.stack([total, tf.reduce_sum(tf.cast(correct, tf.float32))])
    with tf.name_scope("gradient"):
        local = tape.gradient(scaled, list(variables.values()), unconnected_gradients="zero")
        local = [tf.convert_to_tensor(g) for g in local]  # of a lookup they are sparse
    with tf.name_scope("reduce"):
        gradients = reduce(local)
    with tf.name_scope("update"):
        new_weights, new_slots, updates = training.optimizer.update(
            weights, slots, gradients, number
        )
    lists = weights, local, gradients, updates, new_weights, new_slots
    by_name = (dict(zip(variables, values, strict=True)) for values in lists)
    return Step(totals, *by_name, outputs)  # type: ignore[call-arg]
