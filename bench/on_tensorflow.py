"""TensorFlow: the floor, the notebook's way, and Keras' fit with its TensorBoard callback."""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "tensorflow"
# As TensorFlow decides, and not the lab: it does not use oneDNN on an older CPU.
os.environ.pop("TF_ENABLE_ONEDNN_OPTS", None)
if os.environ.get("ONEDNN_MAX_CPU_ISA") == "AVX2":
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"

import keras
import numpy as np
import tensorflow as tf
from common import (
    ACROSS,
    BLOCKS,
    CLIP,
    EPSILON,
    HEADS,
    NORM_EPSILON,
    PATCH,
    WIDTH,
    Runner,
    Task,
    best,
)
from keras import layers


def make(task: Task) -> Runner:
    if task.name.startswith("floor"):
        return _floor(task)
    if task.name.startswith("notebook's way"):
        return _notebook(task, record="histograms" in task.name)
    if "TensorBoard" in task.name:
        return _fit(task, 1, False, record=True)
    forms = {
        f"steps_per_execution={steps}, jit_compile={jit}": lambda s=steps, j=jit: _fit(task, s, j)
        for steps in (task.chunk, min(10, task.chunk))
        for jit in (False, True)
    }
    return best(task, forms)


def _floor(task: Task) -> Runner:
    """The matrix products of a step, alone: forward, dW of each layer, dX of all but the first."""
    weights = [tf.constant(array) for array in task.weights().values() if array.ndim > 1]
    x_all = tf.constant(task.floats()[: 16 * task.batch].reshape(16, task.batch, -1))

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32)])
    def loop(steps: tf.Tensor) -> list[tf.Tensor]:
        gradients = [tf.zeros_like(w) for w in weights]
        for i in tf.range(steps):
            x = x_all[i % 16]
            with tf.GradientTape() as tape:
                tape.watch(weights)
                for w in weights:
                    x = x @ w
            gradients = tape.gradient(x, weights, output_gradients=x)
        return gradients

    def run(indices: np.ndarray) -> np.ndarray:
        loop(len(indices))[0].numpy()  # when it is there, all is done
        return np.full(len(indices), np.nan)

    return Runner(run, chunk=task.chunk, note="no training, only the products")


def _loss(task: Task, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    if task.mean:
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    probability = tf.gather(tf.nn.softmax(logits), labels, batch_dims=1)
    return -tf.reduce_sum(tf.math.log(tf.clip_by_value(probability, CLIP, 1.0)))


def _optimizer(task: Task) -> keras.optimizers.Optimizer:
    if task.rule == "sgd":
        return keras.optimizers.SGD(task.rate)
    return keras.optimizers.Adam(task.rate, epsilon=EPSILON)


def _notebook(task: Task, record: bool) -> Runner:
    """Eager: a tape, Keras' optimizer, one tf.summary.histogram after another."""
    images, labels = tf.constant(task.floats()), tf.constant(task.labels)
    variables = [tf.Variable(array) for array in task.weights().values()]
    optimizer = _optimizer(task)
    writer = tf.summary.create_file_writer(task.folder) if record else None
    done = 0

    def step(row: tf.Tensor) -> tf.Tensor:
        nonlocal done
        x, y = tf.gather(images, row), tf.gather(labels, row)
        done += 1
        with tf.GradientTape() as tape:
            for i in range(0, len(variables), 2):
                x = tf.matmul(tf.sigmoid(x) if i else x, variables[i]) + variables[i + 1]
            loss = _loss(task, y, x)
        gradients = tape.gradient(loss, variables)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        if writer:
            with writer.as_default(step=done):
                for i, (w, g) in enumerate(zip(variables, gradients, strict=True)):
                    tf.summary.histogram(f"variable_{i}", w)
                    tf.summary.histogram(f"variable_{i}/gradient", g)
        return loss

    def run(indices: np.ndarray) -> np.ndarray:
        losses = [step(row) for row in tf.constant(indices)]
        if writer:
            writer.flush()
        return np.array(losses)

    return Runner(run)


class _Gather(layers.Layer):
    """Row numbers to images: the data lies in the model, so that nothing feeds it."""

    def __init__(self, images: np.ndarray) -> None:
        super().__init__()
        self._images = tf.Variable(images, trainable=False)

    def call(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.gather(self._images, rows), tf.float32) / 255


class _Positions(layers.Layer):
    def build(self, shape: tuple[int, ...]) -> None:
        self.positions = self.add_weight(shape=shape[1:])

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return x + self.positions


def _perceptron(task: Task, x: keras.KerasTensor) -> keras.KerasTensor:
    for size in task.sizes[1:-1]:
        x = layers.Dense(size, "sigmoid")(x)
    return layers.Dense(task.sizes[-1])(x)


def _convnet(task: Task, x: keras.KerasTensor) -> keras.KerasTensor:
    x = layers.Reshape([28, 28, 1])(x)
    for channels, padding in ((10, "same"), (20, "valid")):
        x = layers.Conv2D(channels, 5, padding=padding, activation="relu")(x)
        x = layers.MaxPooling2D()(x)
    return layers.Dense(10)(layers.Dense(120, "relu")(layers.Flatten()(x)))


def _transformer(task: Task, x: keras.KerasTensor) -> keras.KerasTensor:
    x = layers.Permute([1, 3, 2, 4])(layers.Reshape([ACROSS, PATCH, ACROSS, PATCH])(x))
    x = _Positions()(layers.Dense(WIDTH)(layers.Reshape([ACROSS**2, PATCH**2])(x)))
    for _ in range(BLOCKS):
        y = layers.LayerNormalization(epsilon=NORM_EPSILON)(x)
        x += layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(y, y)
        y = layers.LayerNormalization(epsilon=NORM_EPSILON)(x)
        y = layers.Dense(4 * WIDTH, lambda x: keras.activations.gelu(x, approximate=True))(y)
        x += layers.Dense(WIDTH)(y)
    x = layers.LayerNormalization(epsilon=NORM_EPSILON)(x)
    return layers.Dense(10)(layers.GlobalAveragePooling1D()(x))


def _model(task: Task) -> keras.Model:
    network = {"convnet": _convnet, "transformer": _transformer}.get(task.network, _perceptron)
    rows = keras.Input((), dtype="int32")
    model = keras.Model(rows, network(task, _Gather(task.images)(rows)))
    # In the order in which they are first used: that of the lab's names.
    for variable, array in zip(model.trainable_variables, task.weights().values(), strict=True):
        variable.assign(array.reshape(variable.shape))
    return model


def _fit(task: Task, steps: int, jit: bool, record: bool = False) -> Runner:
    """fit, over a data set of row numbers. An epoch is a turn, or with `record` a step."""

    def loss(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        return _loss(task, tf.cast(tf.reshape(y, [-1]), tf.int32), logits)

    model = _model(task)
    model.compile(_optimizer(task), loss, steps_per_execution=steps, jit_compile=jit)
    options = {"histogram_freq": 1, "update_freq": 1, "write_graph": False, "profile_batch": 0}
    callbacks = [keras.callbacks.TensorBoard(task.folder, **options)] if record else []
    epochs = 0

    def run(indices: np.ndarray) -> np.ndarray:
        nonlocal epochs
        batches = tf.data.Dataset.from_tensor_slices((indices, task.labels[indices]))
        count, size = (len(indices), 1) if record else (1, len(indices))
        history = model.fit(
            batches.repeat() if size > 1 else batches,
            epochs=epochs + count,
            initial_epoch=epochs,
            steps_per_epoch=size,
            verbose=0,
            callbacks=callbacks,
        )
        epochs += count
        return np.full(len(indices), np.mean(history.history["loss"]))  # fit returns only means

    return Runner(run, chunk=1 if record else task.chunk, turn=1 if record else 3)


def about() -> dict[str, object]:
    names = [device.name[1:] for device in tf.config.list_logical_devices()]
    return {"tensorflow": tf.__version__, "keras": keras.__version__, "device": " ".join(names)}
