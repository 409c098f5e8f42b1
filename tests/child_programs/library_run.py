"""A user's script: `python library_run.py FOLDER [SIGNAL]`; the signal comes at step 30."""

import os
import sys

import numpy as np

import lab

folder, *numbers = sys.argv[1:]
CENTRES = np.random.default_rng(7).normal(size=(10, 784)).astype(np.float32)


def batch(step):
    if numbers and step == 30:
        os.kill(os.getpid(), int(numbers[0]))
    random = np.random.default_rng([7, step])
    y = random.integers(0, 10, 16).astype(np.int32)
    return CENTRES[y] + random.normal(0, 0.1, (16, 784)).astype(np.float32), y


try:
    run = lab.train(
        model=lambda seed: lab.models.ConvNet(2, units=8, dropout=0.25, batch_norm=True, seed=seed),
        data=lab.Data(batch=batch, test=batch(1000)),
        loss="softmax_cross_entropy",
        optimizer=lab.Adam(0.01),
        steps=60,
        display_step=20,
        steps_per_loop=4,
        checkpoint_every=25,
        logdir=folder,
        name="run",
    )
    print(f"{run.result['status']} at step {run.result['step']}, on return")
except KeyboardInterrupt as error:
    print(f"KeyboardInterrupt: {error}")
