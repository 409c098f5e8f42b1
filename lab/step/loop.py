"""The compiled loop: many training steps in one call, recorded step by step.

Replicas compute a step (replica.py); here its batch is chosen, its results are assigned, and what
is watched is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from lab.kernels import histograms, xla
from lab.step import gradient_noise, replica
from lab.step.placement import one_program, resident
from lab.step.replica import Step, Training
from lab.step.watch import Watch

Recorded = dict[str, tf.Tensor]


class TrainLoop:
    """Trains a model in place, on data that lies on its devices.

    Args:
      strategy: a tf.distribute strategy; model and optimizer were made under its scope.
      training: what is trained, and how.
      images: uint8 [examples, inputs]; they are divided by 255.
      labels: int32 [examples].
      watch: what to record, see Watch.
      histogram_every: histograms are counted at the steps that this divides.
      steps_per_loop: the most steps that a call of `run` may do.

    Attributes:
      watch: the rows and columns of the record.
      function: the tf.function that `run` calls. On a CPU, for one replica, it is one program of
        XLA's; several replicas exchange their gradients between programs, and on a GPU an
        addition in the wrong order would make runs differ.
      replicas: how many there are, on all workers.

    Raises:
      ValueError: activations are watched of a model that has no such method, or there are more
        replicas than examples in a batch.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        training: Training,
        images: np.ndarray | list[tf.Variable],
        labels: np.ndarray | list[tf.Variable],
        watch: Sequence[str] = (),
        histogram_every: int = 1,
        steps_per_loop: int = 100,
    ) -> None:
        if "activations" in watch and not hasattr(training.model, "activations"):
            raise ValueError(
                f"{type(training.model).__name__} has no method activations(x) that returns a dict "
                "of tensors: add one, or do not watch activations"
            )
        self._strategy, self._training = strategy, training
        self._every, self._most = histogram_every, steps_per_loop
        self._images, self._labels = resident(strategy, images), resident(strategy, labels)
        self.replicas = strategy.num_replicas_in_sync
        size = training.batch_size
        if size < self.replicas:
            raise ValueError(f"a batch of {size} cannot be shared by {self.replicas} replicas")
        # Replica r takes the examples from bounds[r] to bounds[r + 1] of each batch, in which
        # every example counts the same, also where their number does not divide it.
        self._bounds = [size * r // self.replicas for r in range(self.replicas + 1)]
        self.on_gpu = any("GPU" in images.device for images in self._images)
        self._one_program = one_program(strategy)
        self._kinds = watch
        units = self._activation_sizes() if "activations" in watch else {}
        self.watch = Watch(watch, training.variables, units, self.replicas)
        step, count = tf.TensorSpec([], tf.int64, "step"), tf.TensorSpec([], tf.int32)
        rows = tf.TensorSpec([steps_per_loop, size], tf.int32)
        self.function = tf.function(
            self._run,
            input_signature=[rows, count, step],
            jit_compile=self._one_program or None,
            autograph=False,
        )
        self._step = tf.function(
            self._one_step,
            input_signature=[tf.TensorSpec([size], tf.int32, "indices"), step],
            autograph=False,
        )

    def watching(self, watch: Sequence[str]) -> TrainLoop:
        """This loop, on the same model, optimizer and data, with other histograms at every step."""
        data = self._images, self._labels
        return TrainLoop(self._strategy, self._training, *data, watch, steps_per_loop=self._most)

    def largest_gradient(self, indices: np.ndarray) -> float:
        """The largest absolute value of the gradient on one batch, int32 [batch_size]. Nothing is
        updated."""
        x, labels = self._batch(indices, 0)
        done = replica.step(self._training, x, labels, tf.constant(1), list)
        return max(float(tf.reduce_max(tf.abs(g))) for g in done.gradients.values())

    @property
    def step_graph(self) -> tf.Graph:
        """The graph of one step, as the loop calls it."""
        return self._step.get_concrete_function().graph

    def run(self, indices: np.ndarray, first_step: int) -> Recorded:
        """Runs one step for each row of `indices`.

        The first call compiles, also one of no steps; no other compiles the whole loop again.

        Args:
          indices: int32 [steps, batch_size], rows of the training data.
          first_step: the number of the first of these steps, from 1.

        Returns:
          With the steps as first axis, `scalars` float32 [steps, scalar_tags] (loss and accuracy
          are the batch's, before the update) and, where something is watched, the fields of
          histograms.Histograms, 0 at steps without histograms.

        Raises:
          ValueError: these are more than `steps_per_loop` steps.
        """
        steps = len(indices)
        if steps > self._most:
            raise ValueError(f"{steps} steps: make the loop with steps_per_loop={steps}, or more")
        # One program serves calls of all lengths.
        padded = np.zeros([self._most, self._training.batch_size], np.int32)
        padded[:steps] = indices
        # A program of XLA's sees the variables of the device that it runs on, and no others.
        with tf.device(self._images[0].device if self._one_program else None):
            recorded = self.function(padded, tf.constant(steps), tf.constant(first_step, tf.int64))
        return {name: tensor[:steps] for name, tensor in recorded.items()}

    def _run(self, indices: tf.Tensor, steps: tf.Tensor, first_step: tf.Tensor) -> Recorded:
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

    def _one_step(self, indices: tf.Tensor, number: tf.Tensor) -> Recorded:
        outputs = self._strategy.run(self._replica_step, args=(indices, number))
        # What comes out of the replicas was reduced or assigned: it is the same on all of them.
        first = tf.nest.map_structure(
            lambda value: self._strategy.experimental_local_results(value)[0], outputs
        )
        scale, size = self._training.scale, self._training.batch_size
        with tf.name_scope("record"):
            scalars = first["totals"] * [scale, 1 / size]
            if self.watch.norms:
                normed = [first["tensors"][entry.tag] for entry in self.watch.norms]
                squares = xla.squares if not self.on_gpu else _squares
                scalars = tf.concat([scalars, tf.sqrt(squares(normed))], 0)
            if "products" in first:
                noise = gradient_noise.scalars(first["products"], self._bounds, scale)
                scalars = tf.concat([scalars, noise], 0)
            recorded = {"scalars": scalars}
            if self.watch.tags:
                recorded |= self._histograms(first["tensors"], first.get("local"), number)
        return recorded

    def _replica_step(self, indices: tf.Tensor, number: tf.Tensor) -> dict[str, Any]:
        context = tf.distribute.get_replica_context()
        index = int(tf.get_static_value(context.replica_id_in_sync_group))
        with tf.name_scope("batch"):
            share = indices[self._bounds[index] : self._bounds[index + 1]]
            x, labels = self._batch(share, index % len(self._images))

        def reduce(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
            return context.all_reduce(tf.distribute.ReduceOp.SUM, tensors)

        done = replica.step(self._training, x, labels, number, reduce, "activations" in self._kinds)
        self._assign(done)
        outputs: dict[str, Any] = {"totals": done.totals}
        if self.replicas > 1:
            with tf.name_scope("replicas"):
                local, gradients = list(done.local.values()), list(done.gradients.values())
                products = gradient_noise.products(local, gradients)
                outputs["products"] = self._row(index, products)
                outputs = context.all_reduce(tf.distribute.ReduceOp.SUM, outputs)
                if "replicas" in self._kinds:
                    # One by one: integers cannot be reduced in a list.
                    rows = [
                        context.all_reduce("SUM", self._row(index, part))
                        for part in histograms.histograms(local, not self.on_gpu)
                    ]
                    outputs["local"] = [tf.reshape(row, [-1, *row.shape[2:]]) for row in rows]
                gathered = {n: context.all_gather(a, axis=0) for n, a in done.activations.items()}
                done = done._replace(activations=gathered)
        return outputs | {"tensors": self.watch.tensors(done)}

    def _batch(self, indices: tf.Tensor, device: int) -> tuple[tf.Tensor, tf.Tensor]:
        x = tf.cast(tf.gather(self._images[device], indices), tf.float32) / 255.0
        return x, tf.gather(self._labels[device], indices)

    def _assign(self, done: Step) -> None:
        """The only place where training changes a variable: each replica its own copy."""
        all_slots = self._training.optimizer.slots
        with tf.name_scope("update"):
            for (name, variable), slots in zip(
                self._training.variables.items(), all_slots, strict=True
            ):
                for slot, new in zip(slots, done.new_slots[name], strict=True):
                    slot.assign(new)
                variable.assign(done.new_weights[name])

    def _activation_sizes(self) -> dict[str, int]:
        outputs = self._training.model.activations(tf.zeros([1, self._images[0].shape[1]]))
        size = self._training.batch_size
        return {name: output.shape.num_elements() * size for name, output in outputs.items()}

    def _histograms(
        self, tensors: dict[str, tf.Tensor], local: list[tf.Tensor] | None, number: tf.Tensor
    ) -> Recorded:
        def count() -> Recorded:
            # A list at a time: with several replicas each is a program of its own.
            parts = [
                histograms.histograms([tensors[entry.tag] for entry in entries], not self.on_gpu)
                for entries in self.watch.histograms
            ]
            if local:
                parts.append(histograms.Histograms(*local))
            names = histograms.Histograms._fields
            return {n: tf.concat([getattr(part, n) for part in parts], 0) for n in names}

        if self._every == 1:
            return count()
        rows = len(self.watch.tags)
        numbers, whole = tf.zeros([rows]), tf.zeros([rows], tf.int32)
        counts = tf.zeros([rows, histograms.BUCKETS], tf.int32)
        empty = histograms.Histograms(counts, numbers, numbers, whole)._asdict()
        return tf.cond(number % self._every == 0, count, lambda: empty)

    def _row(self, index: int, value: tf.Tensor) -> tf.Tensor:
        """`value` in row `index` of zeros, one row per replica: the sum over them holds all."""
        rows = [tf.zeros_like(value)] * self.replicas
        rows[index] = value
        return tf.stack(rows)


def _squares(tensors: list[tf.Tensor]) -> tf.Tensor:
    return tf.stack([tf.reduce_sum(x * x) for x in tensors])
