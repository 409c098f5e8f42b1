"""Update rules that this project did not write, or wrote a second time in float64; the README's
accuracy.

All rules are used alike: `Reference(start, ...)` takes a list of float32 arrays, `apply` takes a
list of gradients, `values` has the weights after it.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf


class Keras:
    """One of Keras 3's optimizers, built by `make`."""

    def __init__(self, start, make):
        self._variables = [keras.Variable(value) for value in start]
        optimizer = make()
        optimizer.build(self._variables)
        self._apply = tf.function(lambda gradients: optimizer.apply(gradients, self._variables))

    def apply(self, gradients):
        self._apply([tf.constant(g) for g in gradients])

    @property
    def values(self):
        return [variable.numpy() for variable in self._variables]


class Kernel:
    """One of TensorFlow's own training kernels."""

    def __init__(self, start, rule, **constants):
        self._rule = getattr(self, f"_{rule}")
        self._constants = constants
        self._variables = [tf.Variable(value) for value in start]
        accumulator = constants.pop("initial_accumulator", 0.0)
        self._slots = [
            [tf.Variable(tf.fill(value.shape, accumulator)) for _ in range(2)] for value in start
        ]
        self._step = 0

    def apply(self, gradients):
        self._step += 1
        for variable, slots, g in zip(self._variables, self._slots, gradients, strict=True):
            handles = [slot.handle for slot in slots]
            self._rule(variable.handle, *handles, tf.constant(g), **self._constants)

    @property
    def values(self):
        return [variable.numpy() for variable in self._variables]

    def _sgd(self, w, a, _b, g, learning_rate, momentum=0.0, nesterov=False):
        if momentum:
            tf.raw_ops.ResourceApplyKerasMomentum(
                var=w, accum=a, lr=learning_rate, grad=g, momentum=momentum, use_nesterov=nesterov
            )
        else:
            tf.raw_ops.ResourceApplyGradientDescent(var=w, alpha=learning_rate, delta=g)

    def _adam(self, w, m, v, g, learning_rate, beta_1, beta_2, epsilon):
        tf.raw_ops.ResourceApplyAdam(
            var=w,
            m=m,
            v=v,
            beta1_power=np.float32(beta_1) ** np.float32(self._step),
            beta2_power=np.float32(beta_2) ** np.float32(self._step),
            lr=learning_rate,
            beta1=beta_1,
            beta2=beta_2,
            epsilon=epsilon,
            grad=g,
        )

    def _adagrad(self, w, a, _b, g, learning_rate, epsilon):
        tf.raw_ops.ResourceApplyAdagradV2(
            var=w, accum=a, lr=learning_rate, epsilon=epsilon, grad=g, update_slots=True
        )

    def _adadelta(self, w, a, u, g, learning_rate, rho, epsilon):
        tf.raw_ops.ResourceApplyAdadelta(
            var=w, accum=a, accum_update=u, lr=learning_rate, rho=rho, epsilon=epsilon, grad=g
        )


class NumPy:
    """The formulas of the reference recipe, of Sutskever et al. (2013), of Loshchilov and Hutter
    (2019) and of Pascanu et al. (2013), in float64."""

    def __init__(
        self,
        start,
        rule,
        inside=False,
        initial_accumulator=0.0,
        weight_decay=0.0,
        clip_norm=0.0,
        **constants,
    ):
        self._rule, self._inside, self._constants = getattr(self, f"_{rule}"), inside, constants
        self._weight_decay, self._clip_norm = weight_decay, clip_norm
        self.values = [value.astype(np.float64) for value in start]
        self._slots = [
            [np.full(value.shape, initial_accumulator, np.float64) for _ in range(2)]
            for value in start
        ]
        self._step = 0

    def apply(self, gradients):
        self._step += 1
        gradients = [np.float64(g) for g in gradients]
        norm = np.linalg.norm(np.concatenate([g.ravel() for g in gradients]))
        if 0 < self._clip_norm < norm:
            gradients = [g * self._clip_norm / norm for g in gradients]
        for i, g in enumerate(gradients):
            delta = self._rule(g, self._slots[i], **self._constants)
            decayed = self._constants["learning_rate"] * self._weight_decay * self.values[i]
            self.values[i] = self.values[i] - delta - decayed

    def _divisor(self, a, epsilon):
        return np.sqrt(a + epsilon) if self._inside else np.sqrt(a) + epsilon

    def _sgd(self, g, slots, learning_rate, momentum=0.0, nesterov=False):
        slots[0] = momentum * slots[0] - learning_rate * g
        return learning_rate * g - momentum * slots[0] if nesterov else -slots[0]

    def _adam(self, g, slots, learning_rate, beta_1, beta_2, epsilon):
        slots[0] = beta_1 * slots[0] + (1 - beta_1) * g
        slots[1] = beta_2 * slots[1] + (1 - beta_2) * g**2
        # TensorFlow and Keras have this one scalar in float32, where 1 - 0.999^t keeps only four
        # or five digits in the first steps; in float64 it would be another number.
        one, t = np.float32(1), np.float32(self._step)
        correction = np.sqrt(one - np.float32(beta_2) ** t) / (one - np.float32(beta_1) ** t)
        return learning_rate * float(correction) * slots[0] / self._divisor(slots[1], epsilon)

    def _rmsprop(self, g, slots, learning_rate, rho, epsilon):
        slots[0] = rho * slots[0] + (1 - rho) * g**2
        return learning_rate * g / self._divisor(slots[0], epsilon)

    def _adagrad(self, g, slots, learning_rate, epsilon):
        slots[0] = slots[0] + g**2
        return learning_rate * g / self._divisor(slots[0], epsilon)

    def _adadelta(self, g, slots, learning_rate, rho, epsilon):
        slots[0] = rho * slots[0] + (1 - rho) * g**2
        d = np.sqrt(slots[1] + epsilon) / np.sqrt(slots[0] + epsilon) * g
        slots[1] = rho * slots[1] + (1 - rho) * d**2
        return learning_rate * d


def readme_accuracy(correct):
    """The README's figure of 10,000 truth values: 39 batches of 256 and one of 16, as equals."""
    assert correct.shape == (10000,)
    return (correct[:9984].reshape(39, 256).mean(1).sum() + correct[9984:].mean()) / 40
