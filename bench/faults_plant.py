"""Faults that are planted into small runs at a known step: for the benchmark of bin/why."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import tensorflow as tf

import lab
from lab.models.optimizers import Optimizer
from lab.step import replica

BATCH, STEPS = 64, 300
FIRST, LAST = 100, 260  # the steps that a fault is planted at lie between
SHARE = 4  # one example of so many is corrupted


@dataclasses.dataclass(frozen=True)
class Fault:
    """What is planted.

    Attributes:
      name: see FAULTS.
      step: its first step.
      tensor: tag of the tensor that it hits; "" where it hits all.
      place: number of that tensor among the model's variables.
      examples: rows of the batch of `step`, where these are corrupted.
      bit: of the exponent that is flipped.
    """

    name: str
    step: int
    tensor: str = ""
    place: int = -1
    examples: tuple[int, ...] = ()
    bit: int = 30


# By name the kind that bin/why must say.
FAULTS = {
    "examples times 100": "batch",
    "wrong labels": "batch",
    "a NaN pixel": "batch",
    "rate times 30": "rate",
    "flipped exponent bit": "weight",
    "gradient zeroed": "gradient",
    "gradient negated": "gradient",
    "second moment reset": "slots",
    "epsilon 0": "epsilon",
    "loss scale overflows": "overflow",
}
NETWORKS: dict[str, Callable[..., Any]] = {
    "mlp": lambda seed: lab.models.MLP([784, 32, 32, 10], tf.nn.relu, seed=seed),
    "convnet": functools.partial(lab.models.ConvNet, channels=4, units=32, dropout=0.0),
    "transformer": functools.partial(lab.models.Transformer, width=32, heads=2, depth=1),
}
_RATES = {"mlp": 3e-3, "convnet": 3e-3, "transformer": 3e-3}


def choose(name: str, network: str, seed: int) -> Fault:
    """The step, tensor and examples of a fault, drawn from the seed."""
    random = np.random.default_rng([seed, *map(ord, name + network)])
    step = int(random.integers(FIRST, LAST))
    if FAULTS[name] == "batch":
        count = 1 if name == "a NaN pixel" else BATCH // SHARE
        rows = random.choice(BATCH, count, replace=False)
        return Fault(name, step, examples=tuple(sorted(int(row) for row in rows)))
    if FAULTS[name] in ("weight", "gradient"):
        from lab.models.adapt import Network

        variables = Network(_model(network, seed)()).variables
        tags = [tag for tag, v in variables.items() if v.shape.rank > 1]
        tensor = tags[random.integers(len(tags))]
        place, bit = list(variables).index(tensor), int(random.choice([25, 30]))
        return Fault(name, step, tensor, place, bit=bit)
    return Fault(name, step)


def train(network: str, seed: int, fault: Fault | None, logdir: str, **flags: Any) -> Any:
    """A run of STEPS steps with a fault, or without. Train and ask within `planted(fault)`."""
    return lab.train(
        model=_model(network, seed),
        data=lab.Data(batch=functools.partial(_batch, seed, fault), name=network),
        loss="softmax_cross_entropy",
        reduction="mean",
        optimizer=lab.Adam(_RATES[network]),
        steps=STEPS,
        seed=seed,
        checkpoint_every=50,
        watch="norms",  # all that the diagnosis reads
        xla="off",
        logdir=logdir,
        overwrite=True,
        verbose=False,
        **flags,
    )


def _model(network: str, seed: int) -> Callable[[], Any]:
    return functools.partial(NETWORKS[network], seed=seed)


@functools.cache
def _images() -> tuple[np.ndarray, np.ndarray]:
    data = lab.load("mnist")
    return data.x, data.y


def _batch(seed: int, fault: Fault | None, step: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = _images()
    rows = np.random.default_rng([seed, step, 1]).integers(0, len(images), BATCH)
    x, y = images[rows].astype(np.float32) / 255, labels[rows].astype(np.int32)
    if fault and fault.step == step and fault.examples:
        bad = list(fault.examples)
        if fault.name == "examples times 100":
            x[bad] *= 100
        elif fault.name == "wrong labels":
            y[bad] = (y[bad] + 1 + np.arange(len(bad)) % 9) % 10
        else:
            x[bad, 400] = np.nan
    return x, y


@contextlib.contextmanager
def planted(fault: Fault | None) -> Iterator[None]:
    """While it lasts, the steps that are traced have the fault."""
    with contextlib.ExitStack() as stack:
        if fault and fault.name in _OF_GRADIENTS:
            change = functools.partial(_OF_GRADIENTS[fault.name], fault)
            step = functools.partial(_step, replica.step, change)
            stack.enter_context(mock.patch.object(replica, "step", step))
        if fault and fault.name in _OF_UPDATES:
            update = functools.partial(_OF_UPDATES[fault.name], fault, Optimizer.update)
            stack.enter_context(
                mock.patch.object(Optimizer, "update", lambda self, *rest: update(self, *rest))
            )
        yield


def _step(
    original: Any, change: Any, training: Any, compute: Any, number: Any, reduce: Any, *rest: Any
) -> Any:
    def changed(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        return change(number, reduce(tensors))

    return original(training, compute, number, changed, *rest)


def _scaled(fault: Fault, factor: float, number: tf.Tensor, gradients: list) -> list:
    late = tf.cast(number, tf.int64) >= fault.step
    new = list(gradients)
    new[fault.place] = tf.where(late, factor * new[fault.place], new[fault.place])
    return new


def _overflowing(fault: Fault, number: tf.Tensor, gradients: list) -> list:
    """Half precision with a loss scale, which is raised too far at the fault's step."""
    scale = tf.where(tf.cast(number, tf.int64) >= fault.step, 2.0**40, 2.0**10)
    return [tf.cast(tf.cast(g * scale, tf.float16), tf.float32) / scale for g in gradients]


def _faster(fault: Fault, original: Any, self: Any, weights: Any, slots: Any, *rest: Any) -> Any:
    _, news, deltas = original(self, weights, slots, *rest)
    step = tf.cast(rest[-1], tf.int64)
    factor = tf.where((step >= fault.step) & (step < fault.step + 3), 30.0, 1.0)
    deltas = [factor * delta for delta in deltas]
    return [w - delta for w, delta in zip(weights, deltas, strict=True)], news, deltas


def _forgotten(fault: Fault, original: Any, self: Any, weights: Any, slots: Any, *rest: Any) -> Any:
    keep = tf.where(tf.cast(rest[-1], tf.int64) == fault.step, 0.0, 1.0)
    return original(self, weights, [(m, keep * v) for m, v in slots], *rest)


def _divided(fault: Fault, original: Any, self: Any, weights: Any, slots: Any, *rest: Any) -> Any:
    """With an epsilon of 0 from the fault's step on."""
    found = original(self, weights, slots, *rest)
    rule = self.rule
    self.rule = dataclasses.replace(rule, epsilon=0.0)
    other = original(self, weights, slots, *rest)
    self.rule = rule
    late = tf.cast(rest[-1], tf.int64) >= fault.step
    return tf.nest.map_structure(lambda a, b: tf.where(late, b, a), found, other)


def _flipped(fault: Fault, original: Any, self: Any, weights: Any, *rest: Any) -> Any:
    """One bit of the largest weight of a tensor for which that bit is 0, after the update."""
    new, news, deltas = original(self, weights, *rest)
    bits = tf.bitcast(tf.reshape(new[fault.place], [-1]), tf.int32)
    zero = tf.bitwise.bitwise_and(bits, 1 << fault.bit) == 0
    at = tf.argmax(tf.where(zero, tf.abs(tf.reshape(new[fault.place], [-1])), -1.0))
    flip = tf.one_hot(at, tf.size(bits), on_value=1 << fault.bit, off_value=0, dtype=tf.int32)
    now = tf.cast(rest[-1], tf.int64) == fault.step
    bits = tf.bitwise.bitwise_xor(bits, tf.where(now, flip, 0))
    new[fault.place] = tf.reshape(tf.bitcast(bits, tf.float32), new[fault.place].shape)
    return new, news, deltas


_OF_GRADIENTS = {
    "gradient zeroed": lambda fault, *rest: _scaled(fault, 0.0, *rest),
    "gradient negated": lambda fault, *rest: _scaled(fault, -1.0, *rest),
    "loss scale overflows": _overflowing,
}
_OF_UPDATES = {
    "rate times 30": _faster,
    "second moment reset": _forgotten,
    "epsilon 0": _divided,
    "flipped exponent bit": _flipped,
}
