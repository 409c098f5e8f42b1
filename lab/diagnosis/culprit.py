"""From an event to the first link that broke, from the record alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from lab.diagnosis.chain import Chain
from lab.diagnosis.events import LARGE, MANY, Departure, Event
from lab.diagnosis.growth import grown


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
      reason: in words, the evidence for the finding, or why there is none.
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
    inside = growth(chain, event)
    if not event.departures or event.departures[0].step > event.step:
        if inside:
            return inside
        reason = "no recorded link left its range before the loss did"
        return Finding("", event.step, reason=reason)
    first = event.departures[0]
    unsure = first.link in ("loss", "probe", "gradient") and not first.note
    if inside and unsure and _creeping(chain, first.step):
        return inside
    if first.note:
        return _exact(chain, event, first)
    few = first.tags if len(first.tags) < MANY * len(chain.tensors) else ()
    if first.link == "weight":
        reason = "its norm changed by more than the norm of its update"
        return Finding("weight", first.step, first.tags[:1], reason=reason)
    if first.link == "update":
        reason = "the update left its range, both by itself and relative to its gradient"
        return Finding("rate", first.step, few, reason=reason)
    return Finding("batch", first.step, reason=_out_together(event, first))


def _out_together(event: Event, first: Departure) -> str:
    """What left its range in the step of the first departure, the forward pass's or a gradient."""
    links = {d.link for d in event.departures if d.step == first.step}
    if {"loss", "gradient"} <= links:
        what = "loss and gradients left their range together"
    else:
        words = {"loss": "the loss left its range", "gradient": "gradients left their range"}
        what = words.get(first.link, f"{first.tags[0]} left its range")
    return f"{what}, on weights whose last updates were in theirs"


def _exact(chain: Chain, event: Event, first: Departure) -> Finding:
    """Of a departure that needs no range."""
    tags, step = first.tags, first.step
    if first.note == "early":
        if first.link == "update":
            share = first.size * LARGE
            times = f"{100 * share:.0f}% of" if share < 1e4 else "far above"
            reason = f"the norm of the update was {times} the weight's"
            return Finding("rate", step, tags[:1], reason=reason)
        return Finding("", step, reason="the loss rose before any range was known")
    if first.note == "zero":
        reason = "its gradient is exactly 0 from here on, while its layer's others are not"
        return Finding("gradient", step, tags, reason=reason)
    if first.note == "dead":
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


def _creeping(chain: Chain, step: int) -> bool:
    """Whether the loss was near its limit before a step, too, and did not jump there."""
    row, found = int(np.searchsorted(chain.steps, step)), chain.ranges["loss"]
    return bool(np.median(found.z[max(row - 8, 0) : row]) > found.limits[row] / 3)


def growth(chain: Chain, event: Event) -> Finding | None:
    """What grew most before an event, or since a plateau began; None if nothing did."""
    plateau = event.kind == "plateau"
    found = grown(chain, int(chain.steps[-1]) if plateau else event.step)
    if not found:
        return None
    facts = {"times": found.times, "rate": found.rate, "what": found.what}
    reason = f"the {found.what} grew {found.times:.3g} times, by {100 * found.rate:.2g}% a step, "
    reason += (f"and the loss ends no lower than it was at step {event.step}" if plateau
               else "before the loss left its range")  # fmt: skip
    return Finding("growth", found.since, (found.name,), reason=reason, facts=facts)
