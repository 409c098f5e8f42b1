"""TensorFlow: the floor, the notebook's way, and Keras' fit with its TensorBoard callback."""

from __future__ import annotations

import functools
import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf
from common import CLIP, EPSILON, RATE, Made, Task, best
from common import about as say


def make(task: Task) -> Made:
    name, _, record = task.variant.partition(", ")
    return {"floor": _floor, "notebook": _notebook, "Keras fit": _keras}[name](task, record)


def _floor(task: Task, record: str) -> Made:
    """The matrix products of a step, alone: forward, dW of each layer, dX of all but the first."""
    weights = [tf.constant(array) for array in task.weights()[::2]]
    x_all = tf.constant(task.floats()[: 16 * task.batch].reshape(16, task.batch, -1))

    def products(x: tf.Tensor) -> list[tf.Tensor]:
        outputs = [x]
        for w in weights:
            outputs.append(outputs[-1] @ w)
        back = outputs.pop()
        gradients = []
        for x, w in zip(reversed(outputs), reversed(weights), strict=True):
            gradients.append(tf.matmul(x, back, transpose_a=True))
            if x is not outputs[0]:
                back = tf.matmul(back, w, transpose_b=True)
        return gradients

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32)])
    def loop(steps: tf.Tensor) -> list[tf.Tensor]:
        gradients = [tf.zeros_like(w) for w in reversed(weights)]
        for i in tf.range(steps):
            gradients = products(x_all[i % 16])
        return gradients

    def run(indices: np.ndarray) -> np.ndarray:
        loop(len(indices))[-1].numpy()  # when it is there, all is done
        return np.full(len(indices), np.nan)

    return Made(run, chunk=task.chunk, note="no training, only the products")


def _loss(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Of each example."""
    probability = tf.gather(tf.nn.softmax(logits), labels, batch_dims=1)
    return -tf.math.log(tf.clip_by_value(probability, CLIP, 1.0))


def _optimizer(rule: str) -> keras.optimizers.Optimizer:
    if rule == "sgd":
        return keras.optimizers.SGD(RATE)
    return keras.optimizers.Adam(RATE, epsilon=EPSILON)


def _notebook(task: Task, record: str) -> Made:
    """Eager: a tape, Keras' optimizer, one tf.summary.histogram after another."""
    images, labels = tf.constant(task.floats()), tf.constant(task.labels)
    variables = [tf.Variable(array) for array in task.weights()]
    optimizer = _optimizer(task.rule)
    writer = tf.summary.create_file_writer(task.folder) if record else None
    done = 0

    def run(indices: np.ndarray) -> np.ndarray:
        nonlocal done
        losses = []
        for row in tf.constant(indices):
            x, y = tf.gather(images, row), tf.gather(labels, row)
            done += 1
            with tf.GradientTape() as tape:
                for i in range(0, len(variables), 2):
                    x = tf.matmul(tf.sigmoid(x) if i else x, variables[i]) + variables[i + 1]
                loss = tf.reduce_sum(_loss(y, x))
            losses.append(loss)
            gradients = tape.gradient(loss, variables)
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
            if writer:
                with writer.as_default(step=done):
                    for tag, w, g in zip(task.tags, variables, gradients, strict=True):
                        tf.summary.histogram(tag, w)
                        tf.summary.histogram(f"{tag}/gradient", g)
        if writer:
            writer.flush()
        return np.array(losses)

    return Made(run)


class _Gather(keras.layers.Layer):
    """Row numbers to images: the data lies in the model, so that nothing feeds it."""

    def __init__(self, images: np.ndarray) -> None:
        super().__init__()
        self._images = tf.Variable(images, trainable=False)

    def call(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.gather(self._images, rows), tf.float32) / 255


def _keras(task: Task, record: str) -> Made:
    """fit, over a data set of row numbers."""
    if record:
        return _fit(task, 1, False, record)
    forms = {}
    for steps, jit in ((task.chunk, False), (task.chunk, True), (10, True)):
        name = f"steps_per_execution={steps}, jit_compile={jit}"
        forms[name] = functools.partial(_fit, task, steps, jit)
    return best(task, forms)


def _fit(task: Task, steps: int, jit: bool, record: str = "") -> Made:
    hidden = [keras.layers.Dense(size, "sigmoid") for size in task.sizes[1:-1]]
    logits = keras.layers.Dense(task.sizes[-1], name="logits")
    model = keras.Sequential(
        [keras.Input((), dtype="int32"), _Gather(task.images), *hidden, logits]
    )
    arrays = iter(task.weights())
    for layer in [*hidden, logits]:
        layer.set_weights([next(arrays), next(arrays)])

    def loss(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(_loss(tf.cast(tf.reshape(y, [-1]), tf.int32), logits))

    model.compile(_optimizer(task.rule), loss, steps_per_execution=steps, jit_compile=jit)
    each_step = record == "TensorBoard each step"
    callbacks = []
    if record:
        callbacks = [
            keras.callbacks.TensorBoard(
                task.folder, histogram_freq=1, update_freq=1, write_graph=False, profile_batch=0
            )
        ]
    epochs = 0

    def run(indices: np.ndarray) -> np.ndarray:
        nonlocal epochs
        batches = tf.data.Dataset.from_tensor_slices((indices, task.labels[indices]))
        count, size = (len(indices), 1) if each_step else (1, len(indices))
        history = model.fit(
            batches.repeat() if size > 1 else batches,
            epochs=epochs + count,
            initial_epoch=epochs,
            steps_per_epoch=size,
            verbose=0,
            callbacks=callbacks,
        )
        epochs += count
        return np.full(len(indices), np.mean(history.history["loss"]))  # it tells only means

    return Made(run, chunk=1 if record else task.chunk, turn=1 if each_step else 3)


def about() -> dict:
    """See common.about."""
    devices = [device.name[1:] for device in tf.config.list_logical_devices()]
    return say(tensorflow=tf.__version__, keras=keras.__version__, device=" ".join(devices))
