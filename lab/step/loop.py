"""The compiled loop: many training steps in one call, recorded step by step.

Replicas compute: forward, gradient, all-reduce, update. What stands outside `strategy.run`
records. Nothing else trains in replicas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from lab.kernels import histograms, xla
from lab.models import losses
from lab.models.optimizers import Optimizer
from lab.step import gradient_noise
from lab.step.placement import resident


def variable_tags(variables: Sequence[tf.Variable]) -> list[str]:
    """A distinct tag for each variable: its name, numbered where several have the same."""
    tags: list[str] = []
    for variable in variables:
        name = tag = variable.name.split(":")[0]
        number = 1
        while tag in tags:
            tag, number = f"{name}_{number}", number + 1
        tags.append(tag)
    return tags


class TrainLoop:
    """Trains a model in place, on data that lies on its devices.

    Args:
      strategy: a tf.distribute strategy; model and optimizer were made under its scope.
      model: a tf.Module that maps float32 [batch, inputs] to logits [batch, classes], of operations
        that XLA compiles; random ones stateless, or runs do not repeat. To watch
        activations it needs a method `activations` from the same argument to a dict of tensors
        [batch, ...] by name, the logits last.
      optimizer: of the model's trainable variables.
      loss: (labels, logits) -> float32 [batch].
      scale: what multiplies the sum of the losses over the global batch: 1 for the sum, 1 / the
        global batch for the mean.
      images: uint8 [examples, inputs]; they are divided by 255.
      labels: int32 [examples].
      batch_size: of the global batch. Replica r of R takes the examples from r/R to (r+1)/R of it;
        every example counts the same, also where R does not divide the batch.
      watch: what has histograms: some of weights, gradients (reduced over the replicas), updates,
        activations (of the whole batch), and replicas: the local gradient of each replica, where
        there are several. With norms, the Euclidean norms of each weight, gradient and update
        are scalars of every step.
      histogram_every: histograms are counted at the steps that this divides.
      steps_per_loop: the most steps that a call of `run` may do.

    Attributes:
      function: the tf.function that `run` calls. On a CPU, for one replica, it is one program of
        XLA's; several replicas exchange their gradients between programs, and on a GPU an
        addition in the wrong order would make runs differ.
      replicas: how many there are, on all workers.
      scalar_tags: of the scalars, in the order of the columns that `run` returns: loss and
        accuracy, the norms and, with several replicas, what replicas.py says of their gradients.
      tags: of the histograms, in the order of the rows that `run` returns.
      sizes: number of entries of each of them.

    Raises:
      ValueError: activations are watched of a model that has no method of that name, or there are
        more replicas than examples in a batch.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        model: Any,
        optimizer: Optimizer,
        loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
        scale: float,
        images: np.ndarray | list[tf.Variable],
        labels: np.ndarray | list[tf.Variable],
        batch_size: int,
        watch: Sequence[str] = (),
        histogram_every: int = 1,
        steps_per_loop: int = 100,
    ) -> None:
        if "activations" in watch and not hasattr(model, "activations"):
            raise ValueError(
                f"{type(model).__name__} has no method activations(x) that returns a dict of "
                "tensors: add one, or do not watch activations"
            )
        self._strategy, self._model, self._optimizer = strategy, model, optimizer
        self._loss, self._scale = loss, scale
        self._batch_size, self._every = batch_size, histogram_every
        self._watch = tuple(watch)
        self._variables = list(model.trainable_variables)
        self._names = variable_tags(self._variables)
        self._images = resident(strategy, images)
        self._labels = resident(strategy, labels)
        self.replicas = count = strategy.num_replicas_in_sync
        # Replica r takes the examples from bounds[r] to bounds[r + 1] of each batch.
        self._bounds = [batch_size * r // count for r in range(count + 1)]
        if batch_size < count:
            raise ValueError(f"a batch of {batch_size} cannot be shared by {count} replicas")
        self.on_gpu = any("GPU" in images.device for images in self._images)
        self._xla = not self.on_gpu
        self.scalar_tags = ["loss", "accuracy"]
        self._normed: list[str] = []
        if "norms" in watch:
            # With several replicas, the gradients' are among what replicas.py says.
            kinds = ("", "/update", "/gradient")[: 3 if count == 1 else 2]
            self._normed = [name + kind for kind in kinds for name in self._names]
        self.scalar_tags += [f"{tag}/norm" for tag in self._normed]
        if count > 1:
            self.scalar_tags += gradient_noise.tags(self._names, count)
        self.tags, self.sizes = self._watched()
        self._most = steps_per_loop
        self._one_program = self._xla and count == 1
        self.function = tf.function(
            self._run,
            input_signature=[
                tf.TensorSpec([steps_per_loop, batch_size], tf.int32, "indices"),
                tf.TensorSpec([], tf.int32, "steps"),
                tf.TensorSpec([], tf.int64, "first_step"),
            ],
            jit_compile=self._one_program or None,
            autograph=False,
        )
        self._step = tf.function(
            self._one_step,
            input_signature=[
                tf.TensorSpec([batch_size], tf.int32, "indices"),
                tf.TensorSpec([], tf.int64, "step"),
            ],
            autograph=False,
        )

    def watching(self, watch: Sequence[str]) -> TrainLoop:
        """This loop, on the same model, optimizer and data, with other histograms at every step."""
        return TrainLoop(
            self._strategy,
            self._model,
            self._optimizer,
            self._loss,
            self._scale,
            self._images,
            self._labels,
            self._batch_size,
            watch,
            steps_per_loop=self._most,
        )

    def largest_gradient(self, indices: np.ndarray) -> float:
        """The largest absolute value of the gradient on one batch, int32 [batch_size]. Nothing is
        updated."""
        x = tf.cast(tf.gather(self._images[0], indices), tf.float32) / 255.0
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(self._loss(tf.gather(self._labels[0], indices), self._model(x)))
            loss *= self._scale
        gradients = tape.gradient(loss, self._variables, unconnected_gradients="zero")
        return max(float(tf.reduce_max(tf.abs(gradient))) for gradient in gradients)

    @property
    def step_graph(self) -> tf.Graph:
        """The graph of one step, as the loop calls it."""
        return self._step.get_concrete_function().graph

    def _watched(self) -> tuple[list[str], list[int]]:
        sizes: dict[str, int] = {}
        self._kinds: list[list[str]] = []  # tags that are counted together
        names = list(zip(self._names, self._variables, strict=True))
        for kind, suffix in (("weights", ""), ("gradients", "/gradient"), ("updates", "/update")):
            if kind in self._watch:
                these = {name + suffix: int(np.prod(w.shape)) for name, w in names}
                self._kinds.append(list(these))
                sizes |= these
        if "activations" in self._watch:
            batch = tf.zeros([1, self._images[0].shape[1]])
            these = {
                f"{name}/activations": int(np.prod(output.shape)) * self._batch_size
                for name, output in self._model.activations(batch).items()
            }
            self._kinds.append(list(these))
            sizes |= these
        if "replicas" in self._watch and self._strategy.num_replicas_in_sync > 1:
            # They are counted by their replicas.
            for r in range(self._strategy.num_replicas_in_sync):
                sizes |= {f"{n}/gradient/replica_{r}": int(np.prod(w.shape)) for n, w in names}
        return list(sizes), list(sizes.values())

    def run(self, indices: np.ndarray, first_step: int) -> dict[str, tf.Tensor]:
        """Runs one step for each row of `indices`.

        The first call compiles, also one of no steps; no other compiles the whole loop again.

        Args:
          indices: int32 [steps, batch_size], rows of the training data.
          first_step: the number of the first of these steps, from 1.

        Returns:
          What was recorded, each with the steps as its first axis: `scalars` float32 [steps,
          scalar_tags] (loss and accuracy are the batch's, before the update) and, where something
          is watched, the fields of histograms.Histograms. At steps without histograms their rows
          are 0.

        Raises:
          ValueError: these are more than `steps_per_loop` steps.
        """
        steps = len(indices)
        if steps > self._most:
            raise ValueError(f"{steps} steps: make the loop with steps_per_loop={steps}, or more")
        # One program serves calls of all lengths.
        padded = np.zeros([self._most, self._batch_size], np.int32)
        padded[:steps] = indices
        # A program of XLA's sees the variables of the device that it runs on, and no others.
        with tf.device(self._images[0].device if self._one_program else None):
            recorded = self.function(padded, tf.constant(steps), tf.constant(first_step, tf.int64))
        return {name: tensor[:steps] for name, tensor in recorded.items()}

    def _run(
        self, indices: tf.Tensor, steps: tf.Tensor, first_step: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        arrays = {
            name: tf.TensorArray(spec.dtype, self._most, element_shape=spec.shape)
            for name, spec in self._step.get_concrete_function().structured_outputs.items()
        }

        def body(i: tf.Tensor, arrays: dict[str, tf.TensorArray]) -> tuple:
            recorded = self._step(indices[i], first_step + tf.cast(i, tf.int64))
            return i + 1, {name: array.write(i, recorded[name]) for name, array in arrays.items()}

        # (With a maximum number of iterations XLA would compile for each number of steps anew.)
        _, arrays = tf.while_loop(lambda i, _: i < steps, body, (0, arrays))
        return {name: array.stack() for name, array in arrays.items()}

    def _one_step(self, indices: tf.Tensor, step: tf.Tensor) -> dict[str, tf.Tensor]:
        with xla.one_program(self._one_program):
            outputs = self._strategy.run(self._replica_step, args=(indices, step))
        # What comes out of the replicas was reduced or assigned: it is the same on all of them.
        first = tf.nest.map_structure(
            lambda value: self._strategy.experimental_local_results(value)[0], outputs
        )
        with tf.name_scope("record"):
            scalars = first["totals"] * [self._scale, 1 / self._batch_size]
            if self._normed:
                normed = [first["tensors"][tag] for tag in self._normed]
                if self._xla:
                    squares = xla.squares(normed)
                else:
                    squares = tf.stack([tf.reduce_sum(x * x) for x in normed])
                scalars = tf.concat([scalars, tf.sqrt(squares)], 0)
            if "products" in first:
                said = gradient_noise.scalars(first["products"], self._bounds, self._scale)
                scalars = tf.concat([scalars, said], 0)
            recorded = {"scalars": scalars}
            if self.tags:
                recorded |= self._histograms(first["tensors"], first.get("local"), step)
        return recorded

    def _histograms(
        self,
        tensors: dict[str, tf.Tensor],
        local: list[tf.Tensor] | None,
        step: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        def count() -> dict[str, tf.Tensor]:
            # A kind at a time: with several replicas each is a program of its own.
            parts = [
                histograms.histograms([tensors[tag] for tag in kind], self._xla)
                for kind in self._kinds
            ]
            if local:
                parts.append(histograms.Histograms(*local))
            names = histograms.Histograms._fields
            return {n: tf.concat([getattr(part, n) for part in parts], 0) for n in names}

        if self._every == 1:
            return count()
        # Zeros of the dtypes and shapes that count() has.
        empty = {
            "counts": tf.zeros([len(self.tags), histograms.BUCKETS], tf.int32),
            "low": tf.zeros([len(self.tags)]),
            "high": tf.zeros([len(self.tags)]),
            "nonfinite": tf.zeros([len(self.tags)], tf.int32),
        }
        return tf.cond(step % self._every == 0, count, lambda: empty)

    def _replica_step(self, indices: tf.Tensor, step: tf.Tensor) -> dict[str, Any]:
        replica = tf.distribute.get_replica_context()
        several = replica.num_replicas_in_sync > 1
        index = int(tf.get_static_value(replica.replica_id_in_sync_group))
        with tf.name_scope("batch"):
            share = indices[self._bounds[index] : self._bounds[index + 1]]
            own = index % len(self._images)
            x = tf.cast(tf.gather(self._images[own], share), tf.float32) / 255.0
            labels = tf.gather(self._labels[own], share)
        with tf.GradientTape() as tape:
            with tf.name_scope("forward"):
                if "activations" in self._watch:
                    activations = self._model.activations(x)
                    logits = list(activations.values())[-1]
                else:
                    activations, logits = {}, self._model(x)
            with tf.name_scope("loss"):
                total = tf.reduce_sum(self._loss(labels, logits))
                scaled = total * self._scale
                correct = tf.equal(losses.predictions(logits), labels)
                totals = tf.stack([total, tf.reduce_sum(tf.cast(correct, tf.float32))])
        with tf.name_scope("gradient"):
            local = tape.gradient(
                scaled, self._variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            local = [tf.convert_to_tensor(g) for g in local]  # of a lookup they are sparse
        with tf.name_scope("reduce"):
            reduced = replica.all_reduce(tf.distribute.ReduceOp.SUM, local)
        with tf.name_scope("update"):
            before = [tf.identity(w) for w in self._variables] if "updates" in self._watch else []
            after, deltas = self._optimizer.apply(reduced, step)
        tensors = dict(zip(self._names, after, strict=True))
        tensors |= {f"{n}/gradient": g for n, g in zip(self._names, reduced, strict=True)}
        # As it was applied, or, where only its norm is asked for, before the rounding.
        applied = [new - old for new, old in zip(after, before, strict=True)] if before else deltas
        tensors |= {f"{n}/update": u for n, u in zip(self._names, applied, strict=True)}
        outputs: dict[str, Any] = {"totals": totals}
        if several:
            with tf.name_scope("replicas"):
                outputs["products"] = self._row(index, gradient_noise.products(local, reduced))
                outputs = replica.all_reduce(tf.distribute.ReduceOp.SUM, outputs)
                if "replicas" in self._watch:
                    # One by one: integers cannot be reduced in a list.
                    rows = [
                        replica.all_reduce("SUM", self._row(index, part))
                        for part in histograms.histograms(local, self._xla)
                    ]
                    rows = [tf.reshape(row, [-1, *row.shape[2:]]) for row in rows]
                    outputs["local"] = rows
                activations = {n: replica.all_gather(a, axis=0) for n, a in activations.items()}
        tensors |= {f"{name}/activations": part for name, part in activations.items()}
        used = tensors.keys() & {*self.tags, *self._normed}
        return outputs | {"tensors": {tag: tensors[tag] for tag in sorted(used)}}

    def _row(self, index: int, value: tf.Tensor) -> tf.Tensor:
        """`value` in row `index` of zeros, one row a replica: the sum over them holds all."""
        rows = [tf.zeros_like(value)] * (len(self._bounds) - 1)
        rows[index] = value
        return tf.stack(rows)
