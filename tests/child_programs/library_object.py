"""A user's script where TensorFlow runs before the first run: `python library_object.py FOLDER`."""

import sys

import numpy as np
import tensorflow as tf

import lab


class Net(tf.Module):
    def __init__(self):
        super().__init__()
        self.w = tf.Variable(tf.random.normal([4, 2]))

    def __call__(self, x):
        return x @ self.w


x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
data = lab.Data(x, (x[:, 0] > 0).astype(np.int32))
run = lab.train(model=Net(), data=data, batch_size=8, steps=3, logdir=sys.argv[1])
print(run.result["status"], run.at(2).step)
