"""Prints what the record costs: bin/python tests/record_cost.py

The reference model's step with and without record, side by side in one process, in turns of 100
steps; the ratio is the median over the turns. Everything that is recorded is on file when a turn
ends.
"""

import os
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from lab import data, devices, layers, losses, optimizers
from lab.recorder import Recorder
from lab.step import TrainLoop

STEPS, TURNS, WARM_UP = 100, 20, 3
WATCH = {
    "no record": None,
    "scalars": (),
    "default record": ("weights", "gradients"),
    "everything watched": ("weights", "gradients", "updates", "activations"),
}


def main() -> None:
    tf.config.experimental.enable_op_determinism()
    dataset = data.load()
    for rule in ("sgd", "adam"):
        with tempfile.TemporaryDirectory() as folder:
            measure(rule, dataset, folder)


def measure(rule, dataset, folder):
    runs = {}
    for name, watch in WATCH.items():
        strategy = devices.make_strategy()
        with strategy.scope():
            model = layers.MLP([784, 128, 256, 10])
            optimizer = optimizers.Optimizer(optimizers.RULES[rule](), model.trainable_variables)
        loop = TrainLoop(
            strategy,
            model,
            optimizer,
            losses.clipped_cross_entropy,
            1.0,
            dataset.train_images,
            dataset.train_labels,
            256,
            watch or (),
        )
        recorder = None
        if watch is not None:
            recorder = Recorder(os.path.join(folder, name), loop.scalar_tags, loop.tags, loop.sizes)
        runs[name] = (loop, recorder, [])
    batches = data.Batches(0, len(dataset.train_images), 256)
    for turn in range(WARM_UP + TURNS):
        first = turn * STEPS + 1
        indices = batches.indices(first, STEPS)
        for loop, recorder, seconds in runs.values():
            begun = time.perf_counter()
            recorded = loop.run(indices, tf.constant(first, tf.int64))
            if recorder:
                recorder.steps(first, recorded)
                recorder.flush()
            recorded["scalars"].numpy()
            seconds.append((time.perf_counter() - begun) / STEPS)
    base = np.array(runs["no record"][2][WARM_UP:])
    for name, (_, recorder, seconds) in runs.items():
        if recorder:
            recorder.close()
        mine = np.array(seconds[WARM_UP:])
        low, middle, high = np.quantile(mine / base, [0.25, 0.5, 0.75])
        print(
            f"{rule:5} {name:19} {1000 * np.median(mine):.2f} ms a step, "
            f"{middle:.2f} times no record (quartiles {low:.2f} to {high:.2f})"
        )


if __name__ == "__main__":
    main()
