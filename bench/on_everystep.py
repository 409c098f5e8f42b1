"""Ours: the compiled loop and its recorder, as bin/train uses them."""

from __future__ import annotations

import functools

import numpy as np
import tensorflow as tf
from common import RATE, Made, Task
from common import about as say

from lab.kernels import xla
from lab.models import losses, mlp, optimizers
from lab.record.event_writer import Recorder
from lab.settings.config import Config
from lab.step import placement
from lab.step.loop import TrainLoop
from lab.step.placement import one_program
from lab.step.replica import Training

# Variants by the end of their names; those that say nothing train on one replica.
WATCH = {
    "no record": None,
    "no strategy": None,
    "2 replicas": None,
    "scalars": (),
    "default record": Config().watch,
    "everything watched": (*Config().watch, "updates", "activations"),
}


def make(task: Task) -> Made:
    tf.config.experimental.enable_op_determinism()
    placement.set_threads(Config().threads)
    where, _, what = task.variant.rpartition(", ")
    watch = WATCH[what]
    strategy = _strategy(where or what)
    with strategy.scope():
        model = mlp.MLP(task.sizes, matmul=xla.matmul if one_program(strategy) else tf.matmul)
        rule = optimizers.RULES[task.rule](learning_rate=RATE)
        optimizer = optimizers.Optimizer(rule, model.trainable_variables)
    arrays = iter(task.weights())
    for layer in model.layers:
        layer.weights.assign(next(arrays))
        layer.bias.assign(next(arrays))
    loop = TrainLoop(
        strategy,
        Training(model, optimizer, losses.clipped_cross_entropy, task.batch),
        task.images,
        task.labels,
        watch or (),
        steps_per_loop=task.chunk,
    )
    recorder = None
    if watch is not None:
        recorder = Recorder(task.folder, loop.watch.scalar_tags, loop.watch.tags, loop.watch.sizes)
    done = 0

    def run(indices: np.ndarray) -> np.ndarray:
        nonlocal done
        scalars = []
        for start in range(0, len(indices), task.chunk):
            rows = indices[start : start + task.chunk]
            recorded = loop.run(rows, done + 1)
            if recorder:
                recorder.steps(done + 1, recorded)
            scalars.append(recorded["scalars"])
            done += len(rows)
        if recorder:
            recorder.flush()
        return np.concatenate([part[:, 0] for part in scalars])

    return Made(run, chunk=task.chunk)


@functools.cache
def _strategy(name: str) -> tf.distribute.Strategy:
    if name == "no strategy":
        return tf.distribute.get_strategy()
    return placement.make_strategy("cpu:2" if name == "2 replicas" else "auto")


def about() -> dict:
    """See common.about."""
    names = [device.name for device in tf.config.list_logical_devices()]
    return say(tensorflow=tf.__version__, device=" ".join(name[1:] for name in names))
