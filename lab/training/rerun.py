"""A run just before one of its steps: what the step does, and what it would do if changed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from lab.training.state import TrainingState

LOOP = 100  # steps of a call of the compiled loop

Arrays = dict[str, np.ndarray]


class Parts(NamedTuple):
    """The parts of a step, by tag.

    Attributes:
      gradients, updates: as Moment has them.
      slots: after the step, by TAG/SLOT.
      expected, expected_slots: what the run's update rule makes of these gradients and of the slots
        before the step, computed apart from the loop.
      without_epsilon, with_epsilon: the updates of the same rule with an epsilon of 0 and of 1e-7;
        {} for a rule without one.
    """

    gradients: Arrays
    updates: Arrays
    slots: Arrays
    expected: Arrays
    expected_slots: Arrays
    without_epsilon: Arrays
    with_epsilon: Arrays


class Rerun:
    """A run as it was before a step; created by Replay.before from the state trained up to it.

    Attributes:
      step: the number of the step.
      weights: the trainable variables before it, by tag.
    """

    def __init__(self, state: TrainingState, observing: Any, step: int) -> None:
        self.step, self._state, self._observing = step, state, observing
        self._before = state.tensors()
        self._saved = state.saved
        self.weights = {tag: self._before[tag].numpy() for tag in state.training.variables}

    def batch(self, of: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The x and y of a step, by default this one, each [batch, ...]."""
        return self._state.batch(of or self.step)

    def losses(self, changed: Mapping[str, np.ndarray] | None = None, of: int = 0) -> np.ndarray:
        """The loss of each example of a batch, at the weights before the step: float32 [batch].

        Args:
          changed: weights that take the place of the run's own, by tag.
          of: the number of the step whose batch is taken; by default this one's.
        """
        return self._observed(changed or {}, of or self.step)["losses"][0].numpy()

    def _observed(self, changed: Mapping[str, np.ndarray], of: int) -> dict[str, tf.Tensor]:
        self._state.assign({**self._before, **changed})
        return self._observing.run(self._state.rows(of, 1), self.step, self._state.config.seed)

    def outputs(self, changed: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
        """The model's output for the batch at the weights before the step: [batch, ...].

        Args:
          changed: weights that take the place of the run's own, by tag.
        """
        self._state.assign({**self._before, **(changed or {})})
        return self._forward()[0].numpy()

    def _forward(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Output and losses of the batch, operation by operation."""
        training, (x, y) = self._state.training, self.batch()
        seed, number = tf.zeros([2], tf.int64), tf.constant(self.step, tf.int64)
        output = training.model(training.prepare(tf.constant(x)), True, seed, number)
        return output, training.loss(tf.constant(y), output)

    def first_nonfinite(self) -> tuple[str, str]:
        """The first operation of the step whose result holds NaN or infinity, in the order of the
        computation, and "forward pass" or "gradient"; ("", "") if there is none.

        TensorFlow's own check (tf.debugging.enable_check_numerics), on the step without XLA.
        """
        self._state.assign(self._before)
        part = "forward pass"
        tf.debugging.enable_check_numerics()
        try:
            with tf.GradientTape() as tape:
                losses = self._forward()[1]
            part = "gradient"
            tape.gradient(losses, [*self._state.training.variables.values()])
        except tf.errors.InvalidArgumentError as error:
            name = re.search(r'op "(\w+)"', error.message)
            return (name[1], part) if name else ("", "")
        finally:
            tf.debugging.disable_check_numerics()
        return "", ""

    def parts(self) -> Parts:
        """Gradients, updates and slots of the step, and what the rule computes from them."""
        state, observed = self._state, self._observed({}, self.step)
        training, after = state.training, state.tensors()
        tags = list(training.variables)
        gradients, updates = (
            {tag: observed[f"{kind}/{tag}"][0] for tag in tags} for kind in ("gradients", "updates")
        )
        rule = training.optimizer.rule
        clipped = gradients
        if rule.clip_norm:
            some, _ = tf.clip_by_global_norm(list(gradients.values()), rule.clip_norm)
            clipped = dict(zip(tags, some, strict=True))
        expected, slots = self._by_rule(clipped, {})
        others: list[Arrays] = [{}, {}]
        if hasattr(rule, "epsilon"):
            others = [self._by_rule(clipped, {"epsilon": e})[0] for e in (0.0, 1e-7)]
        return Parts(
            {tag: g.numpy() for tag, g in gradients.items()},
            {tag: u.numpy() for tag, u in updates.items()},
            {name: after[name].numpy() for name in slots},
            expected, slots, *others,
        )  # fmt: skip

    def _by_rule(self, gradients: dict[str, tf.Tensor], other: Any) -> tuple[Arrays, Arrays]:
        optimizer = self._state.training.optimizer
        optimizer = optimizer.like(**other) if other else optimizer
        updates, slots = {}, {}
        for tag, g in gradients.items():
            own = tuple(self._before[f"{tag}/{slot}"] for slot in optimizer.rule.slots)
            delta, new = optimizer.change(self._before[tag], own, g, tf.cast(self.step, g.dtype))
            updates[tag] = delta.numpy()
            for slot, value in zip(optimizer.rule.slots, new, strict=True):
                slots[f"{tag}/{slot}"] = value.numpy()
        return updates, slots

    def onward(
        self,
        until: int,
        steps: int = 0,
        share: float = 0.0,
        put_back: str = "",
        by_rule: bool = False,
    ) -> np.ndarray:
        """The loss as it is minimized of each step from this one to `until`, if something were
        changed: float64 [until - step + 1]. Ends early if NaN or infinity appears after the
        changed steps.

        Args:
          steps: of so many steps, from this one on, the weights change by `share` of the update
            alone; of a share of 0 the slots stay, too, as if the batch had been left out.
          put_back: tag of a tensor that is given, after this step, its old value less the update.
          by_rule: whether these steps have the update and the slots that the rule makes of their
            gradients instead.
        """
        state, found = self._state, []
        update = self.parts().updates[put_back] if put_back else None
        state.assign(self._before)
        state.step, state.saved = self.step - 1, self._saved | {"lost": True}
        while state.step < until:
            early = state.step < self.step - 1 + max(steps, bool(put_back))
            before = state.tensors() if early else {}
            ruled = self._ruled(before, state.step + 1) if early and by_rule else {}
            recorded = state.run(1 if early else min(LOOP, until - state.step), ignore)
            found += recorded["scalars"][:, 0].numpy().tolist()
            if early and update is not None:
                state.assign(state.tensors() | {put_back: before[put_back] - update})
            elif ruled:
                state.assign(state.tensors() | ruled)
            elif early:
                state.assign(_between(before, state.tensors(), share, self.weights))
            if not (np.isfinite(found[-1]) or early) or (share and np.isnan(found[-1])):
                break
        return np.array(found)

    def _ruled(self, before: dict[str, tf.Tensor], step: int) -> dict[str, Any]:
        """Weights and slots after a step as the rule has it; the state is `before` again."""
        parts = Rerun(self._state, self._observing, step).parts()
        self._state.assign(before)
        weights = {tag: before[tag] - update for tag, update in parts.expected.items()}
        return weights | parts.expected_slots


def _between(before: Any, after: Any, share: float, weights: Any) -> dict[str, Any]:
    """The weights that lie a share of the way from `before` to `after`, with the slots of after;
    of a share of 0 all is as it was before."""
    if not share:
        return before
    moved = {tag: before[tag] + share * (after[tag] - before[tag]) for tag in weights}
    return after | moved


def ignore(text: str) -> None:
    """Discards a message."""
