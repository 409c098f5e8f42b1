"""Devices -> the tf.distribute strategy over them."""

from __future__ import annotations

import tensorflow as tf


def make_strategy() -> tf.distribute.Strategy:
    """MirroredStrategy over all GPUs of this machine, or over its CPU where there is none."""
    gpus = [device.name for device in tf.config.list_logical_devices("GPU")]
    return tf.distribute.MirroredStrategy(gpus or ["/cpu:0"])
