"""The compiled loop: many training steps in one call, recorded step by step.

Replicas compute a step (replica.py); here its batch is chosen, its results are assigned, and what
is watched is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from lab.errors import LabError
from lab.kernels import histograms, xla
from lab.step import gradient_noise, replica
from lab.step.microbatches import Shares
from lab.step.placement import devices, on_gpu, one_program, resident
from lab.step.replica import Step, Training
from lab.step.trace import Traced, trace
from lab.step.watch import Watch

Recorded = dict[str, tf.Tensor]


class TrainLoop:
    """Trains a model in place.

    Args:
      strategy: a tf.distribute strategy; model and optimizer were created under its scope.
      training: what is trained, and how.
      x, y: the training examples, [examples, ...]: arrays to put on the devices, or
        what is already there; or tf.TensorSpec of one example each, where `run` is
        given the batches themselves.
      watch: what to record, see Watch.
      histogram_every: histograms are counted at the steps that this divides.
      steps_per_loop: the maximum number of steps per call of `run`.
      xla: whether XLA compiles: for one replica the whole loop, by default; for several each
        replica's gradient and its update, with the reduction between.
      observe: also return every tensor of the steps.
      traced: the model, if it was traced before on a whole batch.

    Attributes:
      watch: the rows and columns of the record.
      function: the tf.function that `run` calls.
      xla: whether XLA compiles the steps.
      replicas: how many there are, on all workers.

    Raises:
      LabError: activations are watched but the model has no such method, or a probe has the tag
        of another tensor.
      ValueError: there are more replicas, or parts, than examples in a batch.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        training: Training,
        x: Any,
        y: Any,
        watch: Sequence[str] = (),
        histogram_every: int = 1,
        steps_per_loop: int = 100,
        xla: bool | None = None,
        observe: bool = False,
        traced: Traced | None = None,
    ) -> None:
        if "activations" in watch and not training.model.has_activations:
            raise LabError(
                f"{type(training.model.model).__name__} has no method activations(x) that returns a"
                " dict of tensors: add one, use lab.probe, or do not watch activations"
            )
        self._strategy, self._training = strategy, training
        self._every, self._most, self._observe = histogram_every, steps_per_loop, observe
        self._fed = isinstance(x, tf.TensorSpec)
        self._x: Any = x if self._fed else resident(strategy, x)
        self._y: Any = y if self._fed else resident(strategy, y)
        self.replicas = strategy.num_replicas_in_sync
        self._parts = self.replicas * training.microbatches
        self._device = devices(strategy)[0]
        self.on_gpu = on_gpu(strategy)
        single = one_program(strategy)
        self.xla = single if xla is None else xla
        self._one_program = self.xla and single
        self._cpu_program = self._one_program and not self.on_gpu
        self._kinds = watch
        self.watch = self._make_watch(traced)
        wanted = {*watch, *(["probes", "losses"] if observe else ())}
        wanted |= {"local"} if self.watch.keeps_local else set()
        self._shares = Shares(training, self.replicas, self._batch, self._cpu_program, wanted)
        rows, batch, count = self._rows_spec, training.batch_size, tf.TensorSpec([], tf.int32)
        numbers = [tf.TensorSpec([], tf.int64, name) for name in ("step", "seed")]
        self.function = tf.function(
            self._run,
            input_signature=[rows([steps_per_loop, batch]), count, *numbers],
            jit_compile=self._one_program or None,
            autograph=False,
        )
        self._step = tf.function(
            self._one_step, input_signature=[rows([batch]), *numbers], autograph=False
        )

    def _rows_spec(self, axes: list[int]) -> Any:
        """Of what chooses the examples of some steps: their indices, or the examples."""
        if not self._fed:
            return tf.TensorSpec(axes, tf.int32, "indices")
        return tuple(
            tf.TensorSpec([*axes, *one.shape], one.dtype, name)
            for one, name in ((self._x, "x"), (self._y, "y"))
        )

    def _make_watch(self, traced: Traced | None) -> Watch:
        kinds = self._kinds
        parts: list[dict[str, tf.TensorSpec]] = [{}, {}]
        if "activations" in kinds or ("probes" in kinds and not traced):
            size = self._training.batch_size
            x, y = (
                tf.TensorSpec([size, *one.shape], one.dtype)
                if self._fed
                else tf.TensorSpec([size, *one.shape[1:]], one.dtype)
                for one in (self._x, self._y)
            )
            traced = trace(self._strategy, self._training, x, y, "activations" in kinds)
        if traced:
            parts = [traced.activations, traced.probes]
        self._specs = dict(zip(("activations", "probes"), parts, strict=True))
        activations, probes = (
            {name: spec.shape.num_elements() for name, spec in part.items()} for part in parts
        )
        watch = Watch(kinds, self._training, activations, probes, self.replicas)
        if len({*watch.tags}) < len(watch.tags):
            twice = max(watch.tags, key=watch.tags.count)
            raise LabError(f"{twice} is the tag of two tensors: rename the probe")
        return watch

    def watching(self, watch: Sequence[str]) -> TrainLoop:
        """This loop on the same model, optimizer and data, with other histograms at every step."""
        return self._like(watch, steps_per_loop=self._most)

    def observing(self) -> TrainLoop:
        """This loop, returning every tensor of a step, with one step per call."""
        return self._like(self._kinds, steps_per_loop=1, observe=True)

    def _like(self, watch: Sequence[str], **options: Any) -> TrainLoop:
        given = self._strategy, self._training, self._x, self._y, watch
        return TrainLoop(*given, xla=self.xla, **options)

    @property
    def data(self) -> tuple[Any, Any]:
        """x and y, on the devices."""
        return self._x, self._y

    def program(self) -> Any:
        """The concrete function of `function`, traced as it is run."""
        with self._on_device():
            return self.function.get_concrete_function()

    def _on_device(self) -> Any:
        """A program of XLA's sees the variables of the device that it runs on, and no others. Of
        other loops it is where the record is made, which TensorFlow would put on the first GPU."""
        return tf.device(self._device)

    @property
    def step_graph(self) -> tf.Graph:
        """The graph of one step, as the loop calls it."""
        return self._step.get_concrete_function().graph

    def run(self, rows: Any, first_step: int, seed: int) -> Recorded:
        """Runs one step for each row.

        The first call compiles, also one of no steps; no other compiles the whole loop again.

        Args:
          rows: int32 [steps, batch_size], the numbers of the examples of each step; or the
            examples themselves, (x, y), each [steps, batch_size, ...].
          first_step: the number of the first of these steps, from 1.
          seed: for the model's random operations.

        Returns:
          With the steps as first axis, `scalars` float32 [steps, scalar_tags] (loss and metrics
          are the batch's, before the update) and, where something is watched, the fields of
          histograms.Histograms, 0 at steps without histograms. To observe, also `losses`
          and, by `PART/TAG`, the gradients, updates, activations and probes.

        Raises:
          ValueError: there are more than `steps_per_loop` steps.
        """
        arrays = rows if isinstance(rows, tuple) else (rows,)
        steps = len(arrays[0])
        if steps > self._most:
            raise ValueError(f"{steps} steps: make the loop with steps_per_loop={steps}, or more")
        if steps < self._most:  # one program serves calls of all lengths
            padded = [np.zeros([self._most, *one.shape[1:]], one.dtype) for one in arrays]
            for whole, one in zip(padded, arrays, strict=True):
                whole[:steps] = one
            arrays = tuple(padded)
        given = arrays if self._fed else arrays[0]
        with self._on_device():
            numbers = tf.constant(first_step, tf.int64), tf.constant(seed, tf.int64)
            recorded = self.function(given, tf.constant(steps), *numbers)
        return {name: tensor[:steps] for name, tensor in recorded.items()}

    def _run(self, rows: Any, steps: tf.Tensor, first_step: tf.Tensor, seed: tf.Tensor) -> Recorded:
        arrays = {
            name: tf.TensorArray(spec.dtype, self._most, element_shape=spec.shape)
            for name, spec in self._step.get_concrete_function().structured_outputs.items()
        }

        def body(i: tf.Tensor, arrays: dict[str, tf.TensorArray]) -> tuple:
            own = tf.nest.map_structure(lambda array: array[i], rows)
            recorded = self._step(own, first_step + tf.cast(i, tf.int64), seed)
            return i + 1, {name: array.write(i, recorded[name]) for name, array in arrays.items()}

        # (With a maximum number of iterations XLA would compile for each number of steps anew.)
        _, arrays = tf.while_loop(lambda i, _: i < steps, body, (0, arrays))
        return {name: array.stack() for name, array in arrays.items()}

    def _one_step(self, rows: Any, number: tf.Tensor, seed: tf.Tensor) -> Recorded:
        xla.note_own_graph()  # reductions have custom gradients, too
        outputs = self._strategy.run(self._replica_step, args=(rows, number, seed))
        # What comes out of the replicas was reduced or assigned: it is the same on all of them.
        first = tf.nest.map_structure(
            lambda value: self._strategy.experimental_local_results(value)[0], outputs
        )
        training, noise = self._training, []
        size = training.batch_size
        with tf.name_scope("record"):
            batch = first["totals"] * [training.scale, *[1 / size] * len(training.metrics)]
            if "products" in first:
                products = first["products"], self._shares.bounds
                noise = [gradient_noise.scalars(*products, training.scale)]
            kernels = self.on_gpu, self._cpu_program
            recorded = {"scalars": self.watch.scalars(batch, first["tensors"], noise, *kernels)}
            if self.watch.tags:
                recorded |= self._histograms(first["tensors"], first.get("local"), number)
        return recorded | first.get("observed", {})

    def _replica_step(self, rows: Any, number: tf.Tensor, seed: tf.Tensor) -> dict[str, Any]:
        context = tf.distribute.get_replica_context()
        index = int(tf.get_static_value(context.replica_id_in_sync_group))
        with tf.name_scope("batch"):
            compute = self._shares.compute(rows, number, seed, index)

        def reduce(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
            return context.all_reduce(tf.distribute.ReduceOp.SUM, tensors)

        update = self._training.optimizer.update
        if self.xla and not self._one_program:
            # A nested function cannot synchronize the variables that a model assigns.
            if not self._training.model.state:
                compute = tf.function(compute, jit_compile=True, autograph=False)
            update = tf.function(update, jit_compile=True, autograph=False)
        done = replica.step(self._training, compute, number, reduce, update)
        self._assign(done, context)
        outputs: dict[str, Any] = {"totals": done.totals}
        if self._parts > 1:
            with tf.name_scope("replicas"):
                outputs["products"] = self._row(index, self._shares.products(done))
                if self.replicas > 1:
                    outputs = context.all_reduce(tf.distribute.ReduceOp.SUM, outputs)
                products = outputs["products"]
                outputs["products"] = tf.reshape(products, [self._parts, *products.shape[-2:]])
                if "replicas" in self._kinds:
                    local = [g for part in done.local for g in part]
                    # One by one: integers cannot be reduced in a list.
                    rows = [
                        context.all_reduce("SUM", self._row(index, part))
                        for part in histograms.histograms(local, gpu=self.on_gpu)
                    ]
                    outputs["local"] = [tf.reshape(row, [-1, *row.shape[2:]]) for row in rows]
                if self.replicas > 1:
                    done = self._gathered(done, context)
        if self._observe:
            outputs["observed"] = done.observed()
        return outputs | {"tensors": self.watch.tensors(done)}

    def _gathered(self, done: Step, context: Any) -> Step:
        """The step with what belongs to examples of all replicas."""
        parts = {"activations": done.activations, "probes": done.probes}
        if "probes" not in self._kinds and not self._observe:
            parts["probes"] = {}
        gathered: dict[str, Any] = {
            name: {tag: context.all_gather(a, axis=0) for tag, a in part.items()}
            for name, part in parts.items()
        }
        for name, part in self._specs.items():  # as traced: NCCL tells none
            for tag in part.keys() & gathered[name].keys():
                gathered[name][tag].set_shape(part[tag].shape)
        if self._observe:
            gathered["losses"] = context.all_gather(done.losses, axis=0)
        return done._replace(**gathered)

    def _batch(self, rows: Any, replica: int) -> tuple[tf.Tensor, tf.Tensor]:
        """The examples that `rows` are, or whose numbers they are."""
        if self._fed:
            return rows
        device = replica % len(self._x.variables)
        return self._x.rows(device, rows), self._y.rows(device, rows)

    def _assign(self, done: Step, context: Any) -> None:
        """The only place where training changes a variable: each replica its own copy. But for the
        state, which the model has assigned in its call: its floating variables are averaged over
        the replicas."""
        all_slots = self._training.optimizer.slots
        with tf.name_scope("update"):
            for (name, variable), slots in zip(
                self._training.variables.items(), all_slots, strict=True
            ):
                for slot, new in zip(slots, done.new_slots[name], strict=True):
                    slot.assign(new)
                variable.assign(done.new_weights[name])
            if self.replicas > 1:
                for variable in self._training.model.state.values():
                    if variable.dtype.is_floating:
                        own = tf.convert_to_tensor(variable)
                        variable.assign(context.all_reduce(tf.distribute.ReduceOp.MEAN, own))

    def _histograms(
        self, tensors: dict[str, tf.Tensor], local: list[tf.Tensor] | None, number: tf.Tensor
    ) -> Recorded:
        def count() -> Recorded:
            # A list at a time: with several replicas each is a program of its own.
            parts = [
                histograms.histograms([tensors[entry.tag] for entry in entries], gpu=self.on_gpu)
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
