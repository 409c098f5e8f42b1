"""Loads TensorFlow as the lab's programs do, and then Keras as a model may."""

import sys

from lab.terminal import load_tensorflow

load_tensorflow()
from lab.training import trial  # noqa: E402

assert trial.tf is sys.modules["tensorflow"]
assert "keras" not in sys.modules

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

assert tf.keras.layers.Dense is keras.layers.Dense
assert keras.optimizers.SGD(0.5).learning_rate == 0.5
