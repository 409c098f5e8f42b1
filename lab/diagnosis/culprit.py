"""From an event to the first link that broke, from the record alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from lab.diagnosis.chain import Chain
from lab.diagnosis.events import GAP, Departure, Event, firsts

_MANY = 0.5  # share of the tensors from which on a departure is of all
_GROWN = 3.0  # a series that has grown so many times before an event
_SMALL = 0.1  # of the median norm: tensors below do not count
_BACK = 200  # steps before an event in which it may have grown


@dataclasses.dataclass(frozen=True)
class Finding:
    """What broke first.

    Attributes:
      kind: "batch", "gradient" (a tensor's gradient is lost, or not the loss's), "rate", "slots",
        "epsilon" (the update against its gradient), "weight", "growth", "flat", "overflow" (a
        gradient that is not finite while the loss is), or "" for cannot say.
      step: of the culprit.
      tensors: tags; empty where it is all of them, or none.
      examples: of the batch: numbers of training examples, or rows where a function gives them.
      rows: the same examples as rows of the batch.
      reason: in words, what the finding rests on, or why it cannot be said.
      checked: whether the step was repeated, and agrees.
      facts: figures by name.
    """

    kind: str
    step: int
    tensors: tuple[str, ...] = ()
    examples: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    reason: str = ""
    checked: bool = False
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


def first_link(chain: Chain, event: Event) -> Finding:
    """The first link of an event that left its range, and what that says."""
    grown = growth(chain, event)
    if not event.departures:
        if grown:
            return grown
        reason = "no recorded link left its range before the loss did"
        return Finding("", event.step, reason=reason)
    first = event.departures[0]
    unsure = first.link in ("loss", "probe", "gradient") and not first.note
    if grown and unsure and _creeping(chain, first.step):
        return grown
    if first.note:
        return _exact(chain, event, first)
    few = first.tags if len(first.tags) < _MANY * len(chain.tensors) else ()
    if first.link == "weight":
        reason = "its norm changed by more than the norm of its update"
        return Finding("weight", first.step, first.tags[:1], reason=reason)
    if first.link == "update":
        reason = "the update left its range, by itself and against its gradient"
        return Finding("rate", first.step, few, reason=reason)
    where = "loss and gradients" if first.link == "loss" else "gradients"
    reason = f"{where} left their range at once, on weights whose last updates were in theirs"
    return Finding("batch", first.step, reason=reason)


def _exact(chain: Chain, event: Event, first: Departure) -> Finding:
    """Of a departure that needs no range."""
    tags, step = first.tags, first.step
    if first.note == "early":
        reason = "the update was as large as the weight itself"
        if first.link == "update":
            return Finding("rate", step, tags[:1], reason=reason)
        return Finding("", step, reason="the loss rose before any range was known")
    if first.note == "zero":
        if len(tags) < _MANY * len(chain.tensors) and not _whole_layers(chain, tags):
            reason = "its gradient is exactly 0 from here on, while its layer's others are not"
            return Finding("gradient", step, tags, reason=reason)
        reason = "these gradients are 0 from here on, or too small to change a float32 weight"
        return Finding("flat", step, tags, reason=reason)
    if first.link == "gradient":
        reason = "the gradient is not finite, while the loss and the weights are"
        return Finding("overflow", step, tags[:1], reason=reason, facts={"tensors": tags})
    if first.link == "update":
        reason = "the update is not finite, while the gradient is"
        return Finding("epsilon", step, tags[:1], reason=reason, facts={"tensors": tags})
    if first.link == "weight":
        return Finding("weight", step, tags[:1], reason="it is not finite, while its update is")
    reason = "the loss is not finite, while the weights are and nothing before it left its range"
    return Finding("batch", step, reason=reason)


def _whole_layers(chain: Chain, tags: tuple[str, ...]) -> bool:
    """Whether all tensors of the layers of some tags are among them."""
    layers = {tag.rpartition("/")[0] for tag in tags}
    return all(t in tags for t in chain.tensors if t.rpartition("/")[0] in layers)


def _creeping(chain: Chain, step: int) -> bool:
    """Whether the loss was near its limit before a step, too, and did not jump there."""
    row, found = int(np.searchsorted(chain.steps, step)), chain.ranges["loss"]
    return bool(np.median(found.z[max(row - 8, 0) : row]) > found.limits[row] / 3)


def growth(chain: Chain, event: Event) -> Finding | None:
    """The norm or probe that grew most, and steadily, before an event; None if none did so."""
    row = int(np.searchsorted(chain.steps, event.step))
    start = max(row - _BACK, 0)
    if row - start < 2 * GAP:
        return None
    parts = [("norm of ", chain.tensors, chain.weight), ("", chain.probes, chain.probe)]
    best: Finding | None = None
    weights = chain.weight[row - 1][np.isfinite(chain.weight[row - 1])]
    least = _SMALL * float(np.median(weights)) if len(weights) else 0.0
    for what, names, values in parts:
        for name, column in zip(names, values[start:row].T, strict=True):
            if not (np.isfinite(column) & (column > 0)).all() or column[-1] < least:
                continue
            logs = np.log(column)
            half = len(logs) // 2
            times = float(np.exp(logs[-1] - logs[half]))  # in the latter half alone
            steady = np.mean(np.diff(logs[half:]) > 0)
            rate = (logs[-1] - logs[half]) / (len(logs) - 1 - half)
            if times < _GROWN or steady < 0.6 or (best and times < best.facts["times"]):
                continue
            slopes = (logs[GAP:] - logs[:-GAP])[: half - GAP] / GAP
            slow = np.flatnonzero(slopes < rate / 2)  # it grows since the last of these
            back = half - (int(slow[-1]) + GAP // 2 if len(slow) else 0)
            since = int(chain.steps[start + half - back])
            a_step = float(np.expm1(rate))
            facts = {"times": times, "rate": a_step, "what": f"{what}{name}"}
            reason = f"the {what}{name} grew {times:.3g} times before the loss left its range, by "
            reason += f"{100 * a_step:.2g}% a step"
            if back > 2:  # steps of growth that foretell the rest
                early = (logs[half] - logs[half - back]) / back
                due = chain.steps[start + half] + (logs[-1] - logs[half]) / early
                reason += f"; up to step {chain.steps[start + half]} it was due at step {due:.0f}"
                facts["due"] = float(due)
            best = Finding("growth", since, (name,), reason=reason, facts=facts)
    return best


def margin(events: list[Event], event: Event) -> float:
    """By how much the first departures of an event are farther out of their ranges than those of
    any event before it; inf without any."""
    sizes = [d.size for e in events if e.step < event.step for d in e.departures]
    return max((d.size for d in firsts(event)), default=0.0) / max(sizes) if sizes else np.inf
