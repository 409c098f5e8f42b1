"""Ours: the compiled loop and its recorder, as bin/train uses them."""

from __future__ import annotations

import functools

import numpy as np
import tensorflow as tf
from common import RATE, Runner, Task

from lab.kernels import xla
from lab.kernels.metrics import accuracy
from lab.models import losses, mlp, optimizers
from lab.models.adapt import Network
from lab.record.event_writer import Recorder
from lab.settings.config import Config
from lab.step import placement
from lab.step.loop import TrainLoop
from lab.step.replica import Training

make_strategy = functools.cache(placement.make_strategy)
# By the end of a contestant's name; the others record nothing.
WATCH = {
    "scalars": (),
    "default record": Config().watch,
    "everything watched": (*Config().watch, "updates", "activations"),
}


def make(task: Task) -> Runner:
    tf.config.experimental.enable_op_determinism()
    placement.set_threads(Config().threads)
    where = task.name.split(", ")[1]
    strategy = make_strategy("cpu:2" if where == "2 replicas" else "auto")
    if where == "no strategy":
        strategy = tf.distribute.get_strategy()
    watch = WATCH.get(task.name.split(", ")[-1])
    with strategy.scope():
        model = mlp.MLP(
            task.sizes, matmul=xla.matmul if placement.one_program(strategy) else tf.matmul
        )
        rule = optimizers.RULES[task.rule](learning_rate=RATE)
        optimizer = optimizers.Optimizer(rule, model.trainable_variables)
    arrays = iter(task.weights())
    for layer in model.layers:
        layer.weights.assign(next(arrays))
        layer.bias.assign(next(arrays))
    loop = TrainLoop(
        strategy,
        Training(
            Network(model),
            optimizer,
            losses.clipped_cross_entropy,
            task.batch,
            metrics={"accuracy": accuracy},
        ),
        task.images,
        task.labels,
        watch or (),
        steps_per_loop=task.chunk,
    )
    recorder = None
    if watch is not None:
        recorder = Recorder(task.folder, loop.watch.scalar_tags, loop.watch.tags, loop.watch.sizes)
    step = 1

    def run(indices: np.ndarray) -> np.ndarray:
        nonlocal step
        losses = []
        for rows in task.chunks(indices):
            recorded = loop.run(rows, step)
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
    return {"tensorflow": tf.__version__, "device": " ".join(names)}
