"""The compiled loop: many training steps in one call, recorded step by step.

Replicas compute: forward, gradient, all-reduce, update. What stands outside `strategy.run`
records. This is the only caller of `strategy.run`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from lab import histograms, losses
from lab.optimizers import Optimizer


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
      model: a tf.Module that maps float32 [batch, inputs] to logits [batch, classes]. To watch
        activations it needs a method `activations` from the same argument to a dict of tensors
        [batch, ...] by name, the logits last.
      optimizer: of the model's trainable variables.
      loss: (labels, logits) -> float32 [batch].
      scale: what multiplies the sum of the losses over the global batch: 1 for the sum, 1 / the
        global batch for the mean.
      images: uint8 [examples, inputs]; they are divided by 255.
      labels: int32 [examples].
      batch_size: of the global batch. Replica r of R takes the examples from r/R to (r+1)/R of it.
      watch: some of weights, gradients, updates, activations.
      histogram_every: histograms are counted at the steps that this divides.

    Attributes:
      tags: of the histograms, in the order of the rows that `run` returns.
      sizes: number of entries of each of them.

    Raises:
      ValueError: activations are watched of a model that has no method of that name.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        model: Any,
        optimizer: Optimizer,
        loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
        scale: float,
        images: np.ndarray | tf.Variable,
        labels: np.ndarray | tf.Variable,
        batch_size: int,
        watch: Sequence[str] = (),
        histogram_every: int = 1,
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
        with strategy.scope():
            # Variables, not constants: every device then holds its own copy.
            self._images = _resident(images, "images")
            self._labels = _resident(labels, "labels")
        self.tags, self.sizes = self._watched()
        self.run = tf.function(
            self._run,
            input_signature=[
                tf.TensorSpec([None, batch_size], tf.int32, "indices"),
                tf.TensorSpec([], tf.int64, "first_step"),
            ],
        )
        self._step = tf.function(
            self._one_step,
            input_signature=[
                tf.TensorSpec([batch_size], tf.int32, "indices"),
                tf.TensorSpec([], tf.int64, "step"),
            ],
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
        )

    def gradient_at_rest(self, indices: np.ndarray) -> tuple[float, float]:
        """Of the gradient on one batch, int32 [batch_size]: the share of entries that are exactly
        0, and the largest absolute value."""
        x = tf.cast(tf.gather(self._images, indices), tf.float32) / 255.0
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(self._loss(tf.gather(self._labels, indices), self._model(x)))
            loss *= self._scale
        gradients = tape.gradient(loss, self._variables, unconnected_gradients="zero")
        entries = np.concatenate([np.abs(gradient).ravel() for gradient in gradients])
        return float(np.mean(entries == 0)), float(entries.max())

    @property
    def step_graph(self) -> tf.Graph:
        """The graph of one step, as the loop calls it."""
        return self._step.get_concrete_function().graph

    def _watched(self) -> tuple[list[str], list[int]]:
        sizes: dict[str, int] = {}
        names = list(zip(self._names, self._variables, strict=True))
        for kind, suffix in (("weights", ""), ("gradients", "/gradient"), ("updates", "/update")):
            if kind in self._watch:
                sizes |= {name + suffix: int(np.prod(w.shape)) for name, w in names}
        if "activations" in self._watch:
            batch = tf.zeros([1, self._images.shape[1]])
            for name, output in self._model.activations(batch).items():
                sizes[f"{name}/activations"] = int(np.prod(output.shape)) * self._batch_size
        return list(sizes), list(sizes.values())

    def _run(self, indices: tf.Tensor, first_step: tf.Tensor) -> dict[str, tf.Tensor]:
        """Runs one step for each row of `indices`.

        Args:
          indices: int32 [steps, batch_size], rows of the training data.
          first_step: int64, the number of the first of these steps, from 1.

        Returns:
          What was recorded, each with the steps as its first axis: `scalars` float32 [steps, 2]
          (the batch's loss and accuracy before the update) and, where something is watched, the
          fields of histograms.Histograms. At steps without histograms their rows are 0.
        """
        steps = tf.shape(indices)[0]
        arrays = {
            name: tf.TensorArray(spec.dtype, steps, element_shape=spec.shape)
            for name, spec in self._step.get_concrete_function().structured_outputs.items()
        }
        for i in tf.range(steps):
            recorded = self._step(indices[i], first_step + tf.cast(i, tf.int64))
            arrays = {name: array.write(i, recorded[name]) for name, array in arrays.items()}
        return {name: array.stack() for name, array in arrays.items()}

    def _one_step(self, indices: tf.Tensor, step: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = self._strategy.run(self._replica_step, args=(indices, step))
        with tf.name_scope("record"):
            totals = self._strategy.reduce("SUM", outputs["totals"], axis=None)
            recorded = {"scalars": totals * [self._scale, 1 / self._batch_size]}
            if self.tags:
                recorded |= self._histograms(outputs, step)
        return recorded

    def _histograms(self, outputs: dict[str, Any], step: tf.Tensor) -> dict[str, tf.Tensor]:
        # What was reduced or assigned is the same on every replica, so that of the first is
        # counted; of activations, each replica has those of its own examples.
        first = [self._strategy.experimental_local_results(x)[0] for x in outputs["same"]]
        shared = [
            tf.concat(self._strategy.experimental_local_results(x), axis=0)
            for x in outputs["sharded"]
        ]

        def count() -> dict[str, tf.Tensor]:
            return histograms.histograms(first + shared)._asdict()

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
        with tf.name_scope("batch"):
            index, replicas = replica.replica_id_in_sync_group, replica.num_replicas_in_sync
            share = indices[
                index * self._batch_size // replicas : (index + 1) * self._batch_size // replicas
            ]
            x = tf.cast(tf.gather(self._images, share), tf.float32) / 255.0
            labels = tf.gather(self._labels, share)
        with tf.GradientTape() as tape:
            with tf.name_scope("forward"):
                if "activations" in self._watch:
                    activations = list(self._model.activations(x).values())
                    logits = activations[-1]
                else:
                    activations, logits = [], self._model(x)
            with tf.name_scope("loss"):
                total = tf.reduce_sum(self._loss(labels, logits))
                scaled = total * self._scale
                correct = tf.equal(losses.predictions(logits), labels)
        with tf.name_scope("gradient"):
            local = tape.gradient(
                scaled, self._variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
        with tf.name_scope("reduce"):
            reduced = replica.all_reduce(tf.distribute.ReduceOp.SUM, local)
        with tf.name_scope("update"):
            before = [tf.identity(w) for w in self._variables] if "updates" in self._watch else []
            after = self._optimizer.apply(reduced, step)
        same = []
        if "weights" in self._watch:
            same += after
        if "gradients" in self._watch:
            same += reduced
        if "updates" in self._watch:
            same += [new - old for new, old in zip(after, before, strict=True)]
        totals = tf.stack([total, tf.reduce_sum(tf.cast(correct, tf.float32))])
        return {"totals": totals, "same": same, "sharded": activations}


class Evaluator:
    """Exact figures of a model on a fixed set of examples.

    Args: as TrainLoop's; `chunk` examples are computed at a time.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        model: Any,
        loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
        images: np.ndarray,
        labels: np.ndarray,
        chunk: int = 1000,
    ) -> None:
        self._model, self._loss, self._chunk = model, loss, chunk
        with strategy.scope():
            self._images = _resident(images, "test_images")
            self._labels = _resident(labels, "test_labels")
        self.run = tf.function(self._run, input_signature=[])

    def _run(self) -> tuple[tf.Tensor, tf.Tensor]:
        """The loss, float32 [examples], and the predicted class, int32 [examples]."""
        examples = self._images.shape[0]
        chunks = -(-examples // self._chunk)
        all_losses = tf.TensorArray(tf.float32, chunks, infer_shape=False, element_shape=[None])
        classes = tf.TensorArray(tf.int32, chunks, infer_shape=False, element_shape=[None])
        for i in tf.range(chunks):
            part = slice(i * self._chunk, tf.minimum((i + 1) * self._chunk, examples))
            logits = self._model(tf.cast(self._images[part], tf.float32) / 255.0)
            all_losses = all_losses.write(i, self._loss(self._labels[part], logits))
            classes = classes.write(i, losses.predictions(logits))
        return all_losses.concat(), classes.concat()


def _resident(array: np.ndarray | tf.Variable, name: str) -> tf.Variable:
    if not isinstance(array, np.ndarray):
        return array
    return tf.Variable(
        array, trainable=False, name=name, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
    )
