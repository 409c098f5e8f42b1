"""The record of a run as the chain of its steps: loss, gradients, updates, weights."""

from __future__ import annotations

import functools
import math

import numpy as np

from lab.diagnosis.ranges import Ranges, ranges
from lab.record.run import RunReader

# The links in the order of a step. What the model probes is seen in its forward pass, as the loss.
LINKS = ("loss", "probe", "gradient", "update", "weight")
_ROUNDING = 1e-4  # relative, of a norm in float32


class Chain:
    """The record of each link, as float64 [steps, series] in the record's own order.

    Attributes:
      steps: int64 [steps], those with a loss.
      tensors: tags of the trainable variables whose norms are on record.
      probes: names of the probes.
      loss: [steps].
      gradient, update, weight: norms [steps, tensors]; NaN where not on record. The update is that
        before it is rounded, divided by the schedule of its learning rate.
      probe: largest absolute values [steps, probes].
      nonfinite: by tag of a histogram or "loss", the first step with NaN or infinity. Probes and
        activations are left out where that is before the loss, a weight or a gradient has any: they
        may hold infinity on purpose, as masked scores do.
    """

    def __init__(self, run: RunReader) -> None:
        self.run, tags = run, run.scalar_tags
        loss = run.scalar("loss") if "loss" in tags else None
        self.steps = loss.steps if loss else np.zeros(0, np.int64)
        self.loss = loss.values if loss else np.zeros(0)
        self.tensors = [t.removesuffix("/update/norm") for t in tags if t.endswith("/update/norm")]
        if not self.tensors:
            ends = [t.removesuffix("/gradient/norm") for t in tags if t.endswith("/gradient/norm")]
            self.tensors = [t for t in ends if t != "gradient/norm"]
        self.probes = [t.removesuffix("/largest") for t in tags if t.endswith("/largest")]
        self.gradient = self._columns(f"{name}/gradient/norm" for name in self.tensors)
        if not self.tensors and "gradient/norm" in tags:
            self.gradient = self._columns(["gradient/norm"])
        raw = self._columns(f"{name}/update/norm" for name in self.tensors)
        self.applied = raw
        self.update = raw / np.maximum(_shares(run.config, self.steps), 1e-12)[:, None]
        self.weight = self._columns(f"{name}/norm" for name in self.tensors)
        self.probe = self._columns(f"{name}/largest" for name in self.probes)
        self.nonfinite = self._nonfinite(tags)

    def _columns(self, tags: object) -> np.ndarray:
        columns = []
        for tag in tags:  # type: ignore[attr-defined]
            column = np.full(len(self.steps), np.nan)
            if tag in self.run.scalar_tags:
                steps, values = self.run.scalar(tag)
                place = np.searchsorted(self.steps, steps)
                inside = (place < len(column)) & np.isin(steps, self.steps)
                column[place[inside]] = values[inside]
            columns.append(column)
        return np.stack(columns, 1) if columns else np.zeros((len(self.steps), 0))

    def _nonfinite(self, tags: list[str]) -> dict[str, int]:
        found = {t: note["first_step"] for t, note in (self._notes() or {}).items()}
        for tag in tags:
            if tag.endswith("/nonfinite"):
                name = tag.removesuffix("/nonfinite")
                first = int(self.run.scalar(tag).steps[0])
                found[name] = min(first, found.get(name, first))
        bad = np.flatnonzero(~np.isfinite(self.loss))
        if len(bad):
            found["loss"] = int(self.steps[bad[0]])
        of_outputs = {tag for tag in found if tag in self.probes or tag.endswith("/activations")}
        begun = min((found[tag] for tag in found.keys() - of_outputs), default=math.inf)
        return {tag: step for tag, step in found.items() if step >= begun}

    def _notes(self) -> dict[str, dict[str, int]] | None:
        return (self.run.result or {}).get("nonfinite")

    @functools.cached_property
    def ranges(self) -> dict[str, Ranges]:
        """The ranges of each link by its name. An update is out of range where both its norm and
        its norm over the gradient's are: an update that follows its gradient is not its own
        fault, and neither is one that stays while its gradient falls. A loss that has been below 0
        has none: near 0 its logarithm moves far, whatever the loss does."""
        count, negative = len(LINKS) - 1, np.logical_or.accumulate(self.loss < 0)
        found = {
            "loss": ranges(np.where(negative, np.nan, self.loss)[:, None], count),
            "probe": ranges(self.probe, count),
            "gradient": ranges(self.gradient, count),
        }
        alone = ranges(self.update, count)
        with np.errstate(divide="ignore", invalid="ignore"):
            gain = ranges(self.update / self.gradient, count)
        if gain.z.shape == alone.z.shape:
            with np.errstate(invalid="ignore"):
                scores = np.fmin(alone.z / alone.limits[:, None], gain.z / gain.limits[:, None])
            limits = np.where(np.isfinite(alone.limits), 1.0, np.inf)
            found["update"] = Ranges(np.nan_to_num(scores), limits)
        found["weight"] = self._weights
        return found

    @property
    def collapsed(self) -> bool:
        """Whether the run ended with one class for all examples."""
        return (self.run.result or {}).get("collapsed") is not None

    @property
    def began_at_0(self) -> np.ndarray:
        """The tensors of which the first update is all there is: bool [tensors]."""
        if not len(self.steps):
            return np.zeros(len(self.tensors), bool)
        return np.isclose(self.applied[0], self.weight[0], rtol=1e-5, atol=0)

    @property
    def _weights(self) -> Ranges:
        """How far a weight is from the old one less its update, in tolerances: by the triangle
        inequality its norm changes by no more than the update's norm."""
        z = np.zeros_like(self.weight)
        if len(z) > 1:
            with np.errstate(invalid="ignore", over="ignore"):
                change = np.abs(np.diff(self.weight, axis=0))
                allowed = self.applied[1:] + _ROUNDING * np.fmax(self.weight[1:], self.weight[:-1])
                larger = change / np.maximum(allowed, 1e-30)
                lost = np.isfinite(self.applied[1:]) & np.isfinite(self.weight[:-1])
                z[1:] = np.where(np.isnan(larger), 0.0, larger)
                z[1:][lost & ~np.isfinite(self.weight[1:])] = np.inf
        return Ranges(z, np.full(len(z), 1.0 + _ROUNDING))


def _shares(config: dict, steps: np.ndarray) -> np.ndarray:
    """Which share of the learning rate each step has by its warm-up and decay, as
    models/optimizers.py has it: float64 [steps]. 1 for momentum, whose velocity keeps old rates."""
    t = steps.astype(np.float64)
    share = np.ones(len(t))
    if config.get("sgd_momentum"):
        return share
    peak = max(config.get("warmup_steps") or 0, 1)
    decay, total = config.get("learning_rate_decay", "none"), config.get("training_steps") or 1
    done = np.clip((t - peak) / max(total - peak + 1, 1), 0, 1)
    if decay == "linear":
        share = 1 - done
    elif decay == "cosine":
        share = (1 + np.cos(math.pi * done)) / 2
    return np.minimum(t / peak, share) if peak > 1 else share
