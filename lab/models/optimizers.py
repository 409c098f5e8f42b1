"""Update rules, written out, and the slots that they keep.

The formulas are those of Keras in TensorFlow 2.7; g is the gradient, t counts steps from 1. With
`epsilon_inside_root` the divisor is sqrt(a + epsilon), as in Keras 3, and not sqrt(a) + epsilon.
The difference is not small: inside, a weight whose gradients stay below sqrt(epsilon) takes steps
that shrink with its gradient, while outside it takes full ones.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import tensorflow as tf

Slots = tuple[tf.Tensor, ...]


@dataclasses.dataclass(frozen=True)
class Rule:
    """The hyperparameters of an update rule, which is a pure and elementwise function of gradient
    and slots.

    A custom rule is a subclass with its own `delta`; one that keeps slots names them:
    `slots = ("m",)`. The rest, below, is the same for every rule.

    Attributes:
      learning_rate: at its peak.
      weight_decay: decoupled, as in Keras 3: learning_rate weight_decay w is subtracted from each
        weight as well, whatever its gradient, and kept out of the slots. Of all variables, biases
        and scales too (Loshchilov and Hutter, ICLR 2019).
      clip_norm: where the norm of all gradients together, as one vector, is larger, all are
        multiplied by clip_norm / norm before the rule sees them; 0: never. A norm that is not
        finite makes all of them NaN (Pascanu, Mikolov and Bengio, ICML 2013).
      warmup: steps over which the learning rate rises to its peak: step t has t / warmup of it
        (Goyal et al., arXiv:1706.02677).
      decay: of the learning rate, "none" or one of DECAYS, from its peak in step max(warmup, 1) to
        0 after the last step.
      slots: their names.
      degree: how a step scales with the loss: times c to this power where the loss is times c,
        but for weight decay and clipping.
      sums_steps: whether a slot holds steps, as it does with momentum: then warm-up and decay
        multiply the gradient, so that steps of the past keep the rate of their time.
    """

    learning_rate: float = 0.01
    _: dataclasses.KW_ONLY
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    warmup: int = 0
    decay: str = "none"

    degree: ClassVar[int] = 0

    @property
    def slots(self) -> tuple[str, ...]:
        return ()

    @property
    def sums_steps(self) -> bool:
        return False

    @property
    def start(self) -> float:
        """The initial value of every entry of every slot."""
        return 0.0

    def delta(self, g: tf.Tensor, t: tf.Tensor, slots: Slots) -> tuple[tf.Tensor, Slots]:
        """What to subtract from the weights, and the next slots; all of the shape of g.

        Args:
          g: gradient, clipped, of the weights' dtype (float32, or float64), any shape.
          t: number of this step, from 1, scalar of the same dtype.
          slots: one tensor of g's shape and dtype for each name in `slots`.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class _Divided(Rule):
    """A rule that divides by the root of a slot."""

    epsilon: float = 1e-7
    epsilon_inside_root: bool = False

    def root(self, a: tf.Tensor) -> tf.Tensor:
        """The divisor."""
        inside = self.epsilon_inside_root
        return tf.sqrt(a + self.epsilon) if inside else tf.sqrt(a) + self.epsilon


@dataclasses.dataclass(frozen=True)
class SGD(Rule):
    """w -= learning_rate g.

    With momentum: velocity = momentum velocity - learning_rate g;  w += velocity, or, with
    `nesterov`, w += momentum velocity - learning_rate g (Polyak 1964; Sutskever et al., ICML 2013,
    in the form of Keras, where w is the point at which the gradient is taken).

    Fails when the learning rate exceeds 2 / (largest curvature), (1 + momentum) times that with
    momentum alone: the loss then grows along that direction. A loss that is summed over a batch has
    that many times the curvature.
    """

    momentum: float = 0.0
    nesterov: bool = False
    degree = 1

    @property
    def slots(self) -> tuple[str, ...]:
        return ("velocity",) if self.momentum else ()

    @property
    def sums_steps(self) -> bool:
        return bool(self.momentum)

    def delta(self, g: tf.Tensor, t: tf.Tensor, slots: Slots) -> tuple[tf.Tensor, Slots]:
        plain = self.learning_rate * g
        if not self.momentum:
            return plain, ()
        (velocity,) = slots
        velocity = self.momentum * velocity - plain
        return (plain - self.momentum * velocity if self.nesterov else -velocity), (velocity,)


@dataclasses.dataclass(frozen=True)
class Adam(_Divided):
    """m = beta_1 m + (1 - beta_1) g;  v = beta_2 v + (1 - beta_2) g^2;
    w -= learning_rate sqrt(1 - beta_2^t) / (1 - beta_1^t) m / (sqrt(v) + epsilon).

    Kingma and Ba, "Adam", ICLR 2015, in the order of operations of its section 2's last
    paragraph, whose epsilon is not that of Algorithm 1. Fails where gradients are rare and large:
    v forgets them (Reddi et al., ICLR 2018).
    """

    beta_1: float = 0.9
    beta_2: float = 0.999
    slots = ("m", "v")

    def delta(self, g: tf.Tensor, t: tf.Tensor, slots: Slots) -> tuple[tf.Tensor, Slots]:
        m, v = slots
        m += (g - m) * (1 - self.beta_1)
        v += (tf.square(g) - v) * (1 - self.beta_2)
        # In float32 as everywhere else: 1 - beta^t loses digits in the first steps, alike in all.
        rate = self.learning_rate * tf.sqrt(1 - self.beta_2**t) / (1 - self.beta_1**t)
        return m * rate / self.root(v), (m, v)


@dataclasses.dataclass(frozen=True)
class RMSProp(_Divided):
    """a = rho a + (1 - rho) g^2;  w -= learning_rate g / (sqrt(a) + epsilon).

    Hinton, Srivastava and Swersky, "Neural Networks for Machine Learning", lecture 6e, 2012. The
    size of a step does not fall with the gradient, so it never settles at a constant rate.
    """

    rho: float = 0.9
    slots = ("a",)

    def delta(self, g: tf.Tensor, t: tf.Tensor, slots: Slots) -> tuple[tf.Tensor, Slots]:
        (a,) = slots
        a = self.rho * a + (1 - self.rho) * tf.square(g)
        return self.learning_rate * g / self.root(a), (a,)


@dataclasses.dataclass(frozen=True)
class Adagrad(_Divided):
    """a = a + g^2, from initial_accumulator;  w -= learning_rate g / (sqrt(a) + epsilon).

    Duchi, Hazan and Singer, JMLR 2011. The sum only grows, so large early gradients leave small
    steps for the rest of a run.
    """

    initial_accumulator: float = 0.1
    slots = ("a",)

    @property
    def start(self) -> float:
        return self.initial_accumulator

    def delta(self, g: tf.Tensor, t: tf.Tensor, slots: Slots) -> tuple[tf.Tensor, Slots]:
        (a,) = slots
        a += tf.square(g)
        return self.learning_rate * g / self.root(a), (a,)


@dataclasses.dataclass(frozen=True)
class Adadelta(Rule):
    """a = rho a + (1 - rho) g^2;  d = sqrt(u + epsilon) / sqrt(a + epsilon) g;
    u = rho u + (1 - rho) d^2;  w -= learning_rate d.

    Zeiler, "ADADELTA", arXiv:1212.5701, 2012, whose learning rate is 1: at 0.01 it hardly moves,
    since its first steps are of the size of sqrt(epsilon).
    """

    rho: float = 0.95
    epsilon: float = 1e-7
    slots = ("a", "u")

    def delta(self, g: tf.Tensor, t: tf.Tensor, slots: Slots) -> tuple[tf.Tensor, Slots]:
        a, u = slots
        a = self.rho * a + (1 - self.rho) * tf.square(g)
        d = tf.sqrt(u + self.epsilon) / tf.sqrt(a + self.epsilon) * g
        u = self.rho * u + (1 - self.rho) * tf.square(d)
        return self.learning_rate * d, (a, u)


RULES: dict[str, type] = {
    rule.__name__.lower(): rule for rule in (SGD, Adam, RMSProp, Adagrad, Adadelta)
}

# What multiplies the learning rate, by the share of the steps that are done, from 0 to 1.
# Cosine: Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts.
DECAYS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + tf.cos(math.pi * done)) / 2,
}


class Optimizer(tf.Module):
    """A rule and its slots for given variables; create it under the strategy's scope.

    Args:
      total_steps: of the whole run, over which the rule's decay goes.
      norm: of a list of tensors together, as one vector: what clipping goes by.

    Attributes:
      slots: for each variable, one variable of its shape and dtype for each of the rule's slots.
    """

    def __init__(
        self,
        rule: Rule,
        variables: Sequence[tf.Variable],
        total_steps: int = 1,
        norm: Callable[[Sequence[tf.Tensor]], tf.Tensor] = tf.linalg.global_norm,
    ) -> None:
        super().__init__("optimizer")
        self.rule, self._total_steps, self._norm = rule, total_steps, norm
        self.slots = [
            [
                tf.Variable(
                    tf.fill(w.shape, tf.cast(rule.start, w.dtype)),
                    name=f"{w.name.split(':')[0]}/{slot}",
                    trainable=False,
                )
                for slot in rule.slots
            ]
            for w in variables
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
        if self.rule.clip_norm:
            gradients = self._clipped(gradients)
        deltas, news = [], []
        for w, own, g in zip(weights, slots, gradients, strict=True):
            delta, new = self.change(w, own, g, tf.cast(step, g.dtype))
            deltas.append(delta)
            news.append(new)
        return [w - delta for w, delta in zip(weights, deltas, strict=True)], news, deltas

    def _clipped(self, gradients: Sequence[tf.Tensor]) -> Sequence[tf.Tensor]:
        """The gradients times clip_norm / norm, where their norm is larger."""
        most, kinds = self.rule.clip_norm, {g.dtype for g in gradients}
        if len(kinds) == 1:
            return tf.clip_by_global_norm(gradients, most, self._norm(gradients))[0]
        # Of several dtypes there is no sum.
        norm = self._norm([tf.cast(g, tf.float32) for g in gradients])
        (factor,), _ = tf.clip_by_global_norm([tf.ones([])], most, norm)
        return [g * tf.cast(factor, g.dtype) for g in gradients]

    def like(self, **constants: float) -> Optimizer:
        """This optimizer, without variables, with other constants of its rule."""
        rule = dataclasses.replace(self.rule, **constants)  # type: ignore[arg-type]
        return Optimizer(rule, [], self._total_steps, self._norm)

    def change(
        self, w: tf.Tensor, slots: Slots, g: tf.Tensor, t: tf.Tensor
    ) -> tuple[tf.Tensor, Slots]:
        """What is subtracted from one weight, and its next slots."""
        rule, share = self.rule, self._share(t)
        if share is not None and rule.sums_steps:
            g = g * share
        delta, new = rule.delta(g, t, slots)
        if share is not None and not rule.sums_steps:
            delta = delta * share
        if rule.weight_decay:
            rate = rule.learning_rate * rule.weight_decay
            delta = delta + w * (rate if share is None else rate * share)
        return delta, new

    def _share(self, t: tf.Tensor) -> tf.Tensor | None:
        """Which share of the learning rate step t has, by warm-up and decay; None: all of it."""
        peak = max(self.rule.warmup, 1)
        share = None
        if self.rule.decay != "none":
            # A warm-up that never ends leaves no steps to decay over.
            left = max(self._total_steps - peak + 1, 1)
            share = DECAYS[self.rule.decay](tf.maximum(t - peak, 0) / left)
        if peak > 1:
            share = tf.minimum(t / peak, 1 if share is None else share)
        return share
