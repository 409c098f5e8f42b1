"""Ours: the compiled loop and its recorder, as bin/train uses them."""

from __future__ import annotations

import functools
import os

import numpy as np
import tensorflow as tf
from common import Runner, Task

from lab.data import Data
from lab.models.convnet import ConvNet
from lab.models.layers import Dense
from lab.models.mlp import MLP
from lab.models.transformer import Transformer
from lab.record.event_writer import Recorder
from lab.settings.config import Config
from lab.step import placement
from lab.step.loop import TrainLoop
from lab.training import build
from lab.training.problem import matmul_for, problem_with

make_strategy = functools.cache(placement.make_strategy)
# By the end of a contestant's name; the others record nothing.
WATCH = {
    "scalars": (),
    "default record": Config().watch,
    "everything watched": (*Config().watch, "updates", "activations"),
    "histograms": ("weights", "gradients"),
}


class _Heads(tf.Module):
    """Dense layers side by side: the same work in few tensors or in many."""

    def __init__(self, n_in: int, *sizes: int) -> None:
        super().__init__()
        self.heads = [Dense(n_in, size) for size in sizes]

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        y = tf.sigmoid(tf.concat([head(x) for head in self.heads], 1))
        return tf.reduce_mean(tf.reshape(y, [-1, y.shape[1] // 10, 10]), 1)


def _network(task: Task, product: object) -> tf.Module:
    if task.network == "convnet":
        return ConvNet(dropout=0.0)
    if task.network == "transformer":
        return Transformer(matmul=product)
    if task.network == "heads":
        return _Heads(*task.sizes)
    return MLP(task.sizes, matmul=product)


def make(task: Task) -> Runner:
    tf.config.experimental.enable_op_determinism()
    where = task.name.split(", ")[1]
    placement.set_threads(1 if where == "2 replicas" else Config().threads)
    one = os.environ.get("BENCH_DEVICES", "auto")
    strategy = make_strategy("cpu:2" if where == "2 replicas" else one)
    if where == "no strategy":
        strategy = tf.distribute.get_strategy()
    watch = WATCH.get(task.name.split(", ")[-1])
    config = Config(
        loss="softmax_cross_entropy" if task.mean else "clipped_cross_entropy",
        reduction="mean" if task.mean else "sum",
        optimizer=task.rule,
        learning_rate=task.rate,
        batch_size=task.batch,
    )
    product = matmul_for(strategy)
    data = Data(task.images, task.labels)
    problem = problem_with(config, model=lambda: _network(task, product), data=data)
    training, traced = build.make_training(config, problem, strategy)
    weights = task.weights()
    for tag, variable in training.variables.items():
        variable.assign(weights.pop(tag))
    loop = TrainLoop(
        strategy,
        training,
        task.images,
        task.labels,
        watch or (),
        steps_per_loop=task.chunk,
        xla=build.choose_xla(config, strategy, traced),
        traced=traced,
    )
    recorder = None
    if watch is not None:
        recorder = Recorder(task.folder, loop.watch.scalar_tags, loop.watch.tags, loop.watch.sizes)
    step = 1

    def run(indices: np.ndarray) -> np.ndarray:
        nonlocal step
        losses = []
        for rows in task.chunks(indices):
            recorded = loop.run(rows, step, seed=0)
            if recorder:
                recorder.steps(step, recorded)
            losses.append(recorded["scalars"][:, 0])
            step += len(rows)
        if recorder:
            recorder.flush()
        return np.concatenate(losses)

    return Runner(run, chunk=task.chunk)


def about() -> dict[str, object]:
    names = [device.name[1:] for device in tf.config.list_logical_devices()]
    for gpu in tf.config.list_physical_devices("GPU"):
        names = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)]
    return {"tensorflow": tf.__version__, "device": " ".join(names)}
