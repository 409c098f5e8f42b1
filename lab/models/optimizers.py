"""Update rules, written out, and the slots that they keep.

A rule is a frozen set of hyperparameters with one pure function: gradient and slots in, the
amount to take off the weights and the next slots out, every operation elementwise. `Optimizer`
owns the slots and assigns. The formulas are those of Keras in TensorFlow 2.7; g is the gradient,
t counts steps from 1.

With `epsilon_inside_root` the divisor is sqrt(a + epsilon), as in Keras 3, and not
sqrt(a) + epsilon. The difference is not small: inside, a weight whose gradients stay below
sqrt(epsilon) takes steps that shrink with its gradient, while outside it takes full ones.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

import tensorflow as tf

Slots = tuple[tf.Tensor, ...]


class Rule(Protocol):
    """What `Optimizer` and the table ask of an update rule."""

    slots: ClassVar[tuple[str, ...]]
    # How the step scales with the loss: times c to this power where the loss is times c.
    degree: ClassVar[int]

    @property
    def start(self) -> float:
        """The initial value of every entry of every slot."""

    def delta(self, g: tf.Tensor, t: tf.Tensor, slots: Slots) -> tuple[tf.Tensor, Slots]:
        """What to subtract from the weights, and the next slots; all of the shape of g.

        Args:
          g: gradient, float32, any shape.
          t: number of this step, from 1, float32 scalar.
          slots: one tensor of g's shape for each name in `slots`.
        """


def _root(a: tf.Tensor, epsilon: float, inside: bool) -> tf.Tensor:
    return tf.sqrt(a + epsilon) if inside else tf.sqrt(a) + epsilon


@dataclasses.dataclass(frozen=True)
class SGD:
    """w -= learning_rate g.

    Fails when the learning rate exceeds 2 / (largest curvature): the loss then grows along that
    direction. A loss that is summed over a batch has that many times the curvature.
    """

    learning_rate: float = 0.01

    slots: ClassVar[tuple[str, ...]] = ()
    degree: ClassVar[int] = 1
    start: ClassVar[float] = 0.0

    def delta(self, g: tf.Tensor, t: tf.Tensor, slots: Slots) -> tuple[tf.Tensor, Slots]:
        """See `Rule.delta`."""
        return self.learning_rate * g, ()


@dataclasses.dataclass(frozen=True)
class Adam:
    """m = beta_1 m + (1 - beta_1) g;  v = beta_2 v + (1 - beta_2) g^2;
    w -= learning_rate sqrt(1 - beta_2^t) / (1 - beta_1^t) m / (sqrt(v) + epsilon).

    Kingma and Ba, "Adam", ICLR 2015, in the order of operations of its section 2's last
    paragraph, whose epsilon is not that of Algorithm 1. Fails where gradients are rare and large:
    v forgets them (Reddi et al., ICLR 2018).
    """

    learning_rate: float = 0.01
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7
    epsilon_inside_root: bool = False

    slots: ClassVar[tuple[str, ...]] = ("m", "v")
    degree: ClassVar[int] = 0
    start: ClassVar[float] = 0.0

    def delta(self, g: tf.Tensor, t: tf.Tensor, slots: Slots) -> tuple[tf.Tensor, Slots]:
        """See `Rule.delta`."""
        m, v = slots
        m += (g - m) * (1 - self.beta_1)
        v += (tf.square(g) - v) * (1 - self.beta_2)
        # In float32 as everywhere else: 1 - beta^t loses digits in the first steps, alike in all.
        rate = self.learning_rate * tf.sqrt(1 - self.beta_2**t) / (1 - self.beta_1**t)
        return m * rate / _root(v, self.epsilon, self.epsilon_inside_root), (m, v)


@dataclasses.dataclass(frozen=True)
class RMSProp:
    """a = rho a + (1 - rho) g^2;  w -= learning_rate g / (sqrt(a) + epsilon).

    Hinton, Srivastava and Swersky, "Neural Networks for Machine Learning", lecture 6e, 2012. The
    size of a step does not fall with the gradient, so it never settles at a constant rate.
    """

    learning_rate: float = 0.01
    rho: float = 0.9
    epsilon: float = 1e-7
    epsilon_inside_root: bool = False

    slots: ClassVar[tuple[str, ...]] = ("a",)
    degree: ClassVar[int] = 0
    start: ClassVar[float] = 0.0

    def delta(self, g: tf.Tensor, t: tf.Tensor, slots: Slots) -> tuple[tf.Tensor, Slots]:
        """See `Rule.delta`."""
        (a,) = slots
        a = self.rho * a + (1 - self.rho) * tf.square(g)
        root = _root(a, self.epsilon, self.epsilon_inside_root)
        return self.learning_rate * g / root, (a,)


@dataclasses.dataclass(frozen=True)
class Adagrad:
    """a = a + g^2, from initial_accumulator;  w -= learning_rate g / (sqrt(a) + epsilon).

    Duchi, Hazan and Singer, JMLR 2011. The sum only grows, so large early gradients leave small
    steps for the rest of a run.
    """

    learning_rate: float = 0.01
    initial_accumulator: float = 0.1
    epsilon: float = 1e-7
    epsilon_inside_root: bool = False

    slots: ClassVar[tuple[str, ...]] = ("a",)
    degree: ClassVar[int] = 0

    @property
    def start(self) -> float:
        """The initial accumulator."""
        return self.initial_accumulator

    def delta(self, g: tf.Tensor, t: tf.Tensor, slots: Slots) -> tuple[tf.Tensor, Slots]:
        """See `Rule.delta`."""
        (a,) = slots
        a += tf.square(g)
        root = _root(a, self.epsilon, self.epsilon_inside_root)
        return self.learning_rate * g / root, (a,)


@dataclasses.dataclass(frozen=True)
class Adadelta:
    """a = rho a + (1 - rho) g^2;  d = sqrt(u + epsilon) / sqrt(a + epsilon) g;
    u = rho u + (1 - rho) d^2;  w -= learning_rate d.

    Zeiler, "ADADELTA", arXiv:1212.5701, 2012, whose learning rate is 1: at 0.01 it hardly moves,
    since its first steps are of the size of sqrt(epsilon).
    """

    learning_rate: float = 0.01
    rho: float = 0.95
    epsilon: float = 1e-7

    slots: ClassVar[tuple[str, ...]] = ("a", "u")
    degree: ClassVar[int] = 0
    start: ClassVar[float] = 0.0

    def delta(self, g: tf.Tensor, t: tf.Tensor, slots: Slots) -> tuple[tf.Tensor, Slots]:
        """See `Rule.delta`."""
        a, u = slots
        a = self.rho * a + (1 - self.rho) * tf.square(g)
        d = tf.sqrt(u + self.epsilon) / tf.sqrt(a + self.epsilon) * g
        u = self.rho * u + (1 - self.rho) * tf.square(d)
        return self.learning_rate * d, (a, u)


RULES: dict[str, type] = {
    "sgd": SGD,
    "adam": Adam,
    "rmsprop": RMSProp,
    "adagrad": Adagrad,
    "adadelta": Adadelta,
}


# What multiplies the learning rate, by the share of the steps that are done, from 0 to 1.
# Cosine: Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts.
DECAYS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + tf.cos(math.pi * done)) / 2,
}


class Optimizer(tf.Module):
    """A rule and its slots for given variables.

    Make it under the strategy's scope. `slots` holds, for each variable, one float32 variable of
    its shape for each of the rule's slot names.

    Args:
      rule: of the update.
      variables: what it updates.
      decay: what multiplies the learning rate: from the number of steps done before, float32
        scalar, to a float32 scalar. Without, it stays as it is.
    """

    def __init__(
        self,
        rule: Rule,
        variables: Sequence[tf.Variable],
        decay: Callable[[tf.Tensor], tf.Tensor] | None = None,
    ) -> None:
        super().__init__("optimizer")
        self._decay = decay
        self.rule = rule
        self.variables_ = list(variables)
        self.slots = [
            [
                tf.Variable(
                    tf.fill(w.shape, tf.cast(rule.start, w.dtype)),
                    name=f"{w.name.split(':')[0]}/{slot}",
                    trainable=False,
                    aggregation=tf.VariableAggregation.NONE,
                )
                for slot in rule.slots
            ]
            for w in self.variables_
        ]

    def update(
        self,
        weights: Sequence[tf.Tensor],
        slots: Sequence[Slots],
        gradients: Sequence[tf.Tensor],
        step: tf.Tensor,
    ) -> tuple[list[tf.Tensor], list[Slots], list[tf.Tensor]]:
        """The next weights and slots, and what is subtracted from the weights. Nothing is assigned.

        Args:
          weights, gradients: one for each variable, of its shape.
          slots: for each variable, one tensor of its shape for each of the rule's slots.
          step: number of this step, from 1, integer scalar.
        """
        t = tf.cast(step, tf.float32)
        deltas, news = [], []
        for own, g in zip(slots, gradients, strict=True):
            delta, new = self.rule.delta(g, t, own)
            deltas.append(delta * self._decay(t - 1) if self._decay else delta)
            news.append(new)
        return [w - delta for w, delta in zip(weights, deltas, strict=True)], news, deltas
