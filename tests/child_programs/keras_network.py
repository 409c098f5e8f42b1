"""A user's file for --model=FILE.py:NAME: a functional Keras model with a state and randomness."""

import keras
from keras import layers


def functional(units: int = 8):
    """Images [28, 28] -> ten logits. The dropout draws from Keras's own generators: one has a seed
    of the user's, the other one what Keras gives it."""
    x = keras.Input([28, 28])
    h = layers.Reshape([14, 2, 28])(x)
    h = layers.Dense(units, activation="relu", name="wide")(layers.Flatten()(h[:, 0]))
    h = layers.Dropout(0.2, seed=11)(layers.BatchNormalization(momentum=0.9, name="norm")(h))
    h = layers.Dense(units, activation="relu", name="narrow")(h)
    h = layers.GaussianNoise(0.1)(layers.Dropout(0.2)(h))
    return keras.Model(x, layers.Dense(10, name="head")(h), name="small")
