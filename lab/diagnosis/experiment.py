"""A suspect, examined by repeating its step; and the run repeated with one link changed.

What is repeated is the caller's: a run as `lab.open_run` gives it. Nothing else here loads
TensorFlow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lab.diagnosis import examples
from lab.diagnosis.chain import Chain
from lab.diagnosis.culprit import Finding, growth
from lab.diagnosis.events import Event

_TOLERANCE = 0.5  # of a slope: it must be the gradient's norm within this share
_CURVED = 0.2  # of a slope, by which it may differ at smaller distances
_FACTOR = 2.0  # from which on an update is another than the rule's
_LASTING = 8  # steps whose updates are changed: a fault may last
_AHEAD = 32  # steps that an experiment is followed after the event


class Outcome(NamedTuple):
    """What an experiment showed.

    Attributes:
      change: in words, what was changed.
      gone: whether the loss then rises less, by a quarter at least, or stays finite where it did
        not; None where it was not out of its range.
      worst: the median of the four largest ratios of the loss to its range's centre over these
        steps, and `before` the same as the run had it; infinite where a loss is not finite.
    """

    change: str
    gone: bool | None
    worst: float
    before: float


def examine(run: Any, chain: Chain, event: Event, found: Finding) -> Finding:
    """The finding after its step was repeated: more is known, or it is another.

    Raises:
      LabError: the run cannot be repeated.
    """
    found = _examined(run, chain, event, found)
    return _with_operation(run, chain, found) if event.kind == "nonfinite" else found


def _examined(run: Any, chain: Chain, event: Event, found: Finding) -> Finding:
    early = bool(event.departures) and event.departures[0].note == "early"
    if found.kind == "rate" and early:
        return _common_change(run, found)
    if found.kind in ("flat", "gradient", "growth", "weight") or (found.kind and early):
        return found
    # Without a culprit the fault may be later than the lowest loss, and may last to the end.
    step = found.step if found.kind else int(chain.steps[-1])
    with run.before(step) as rerun:
        if bad := examples.nonfinite_inputs(rerun):
            reason = "inputs of this batch are not finite"
            return examples.with_examples(run, rerun, step, bad, reason)
        if found.kind == "overflow":
            return dataclasses.replace(found, checked=True)
        if found.kind in ("rate", "slots", "epsilon"):
            return _update(rerun, found)
        if found.kind == "batch":
            rows, reason = examples.guilty(rerun, chain)
            large = examples.large_inputs(rerun)
            if rows and set(large) & set(rows):
                rows = sorted({*rows, *large})
                reason += f"; {len(large)} have inputs ten times as large as the others"
            if rows:
                return examples.with_examples(run, rerun, step, rows, reason)
        wrong = wrong_gradients(rerun)
    if wrong:
        return _since(run, chain, step, wrong)
    if found.kind == "batch":
        if grown := growth(chain, event):
            return dataclasses.replace(grown, checked=True)
        reason = (
            "other batches have as high a loss on the same weights, all gradients are correct, "
        )
        reason += "and no recorded link left its range before"
        return Finding("", found.step, reason=reason, checked=True)
    return dataclasses.replace(found, checked=True)


def _with_operation(run: Any, chain: Chain, found: Finding) -> Finding:
    """The finding with the first operation whose result was not finite, if the step without XLA
    has one."""
    step = min(chain.nonfinite.values(), default=0)
    if not step:
        return found
    with run.before(step) as rerun:
        if examples.nonfinite_inputs(rerun) or not all(
            np.isfinite(w).all() for w in rerun.weights.values()
        ):
            return found
        operation, part = rerun.first_nonfinite()
    if not operation:
        return found
    reason = (
        f"{found.reason}; NaN or infinity first came from {operation} in the {part} of step {step}"
    )
    return dataclasses.replace(
        found, reason=reason, facts=found.facts | {"operation": operation, "part": part}
    )


def _common_change(run: Any, found: Finding) -> Finding:
    """The finding with the share of the change of the outputs that is the same for all examples:
    |mean_i d_i|^2 / mean_i |d_i|^2, d_i the change of example i's outputs in this step."""
    with run.before(found.step) as rerun:
        updates = rerun.parts().updates
        before = rerun.outputs()
        after = rerun.outputs({tag: w - updates[tag] for tag, w in rerun.weights.items()})
    change = after.astype(np.float64).reshape(len(after), -1) - before.reshape(len(before), -1)
    size = float(np.mean(np.sum(change**2, axis=1)))
    if not np.isfinite(size) or not size:
        return dataclasses.replace(found, checked=True)
    share = float(np.sum(change.mean(axis=0) ** 2)) / size
    reason = f"{found.reason}; {100 * share:.4g}% of what it did to the outputs is the same"
    reason += " for all examples"
    return dataclasses.replace(
        found, reason=reason, checked=True, facts=found.facts | {"common": share}
    )


def unseen(run: Any, chain: Chain) -> Finding | None:
    """For a run without an event: inputs out of their range, a batch with too many large losses,
    or a gradient that is not the loss's in the last step; None if there is none of them."""
    step = int(chain.steps[-1])
    if found := examples.unlike_inputs(run, chain) or examples.unlike_losses(run, chain):
        return found
    with run.before(step) as rerun:
        wrong = wrong_gradients(rerun)
    return _since(run, chain, step, wrong) if wrong else None


def _update(rerun: Any, found: Finding) -> Finding:
    """Which part of an update does not follow the rule: its slots, its epsilon, or its rate."""
    parts = rerun.parts()
    moved = [tag for tag in parts.updates if np.any(parts.updates[tag])]
    off = [
        name
        for name, slot in parts.slots.items()
        if name.rpartition("/")[0] in moved and _apart(slot, parts.expected_slots[name])
    ]
    if off:
        names = tuple(dict.fromkeys(name.rpartition("/")[0] for name in off))
        kinds = ", ".join(sorted({name.rpartition("/")[2] for name in off}))
        reason = f"the slots {kinds} are not what the rule computes from the previous slots"
        tensors = names if len(names) < len(moved) / 2 else ()
        return dataclasses.replace(
            found, kind="slots", tensors=tensors, reason=reason, checked=True
        )
    factors = {tag: _times(parts.updates[tag], parts.expected[tag]) for tag in moved}
    high = [tag for tag, factor in factors.items() if factor > _FACTOR]
    small = [tag for tag in moved if _by_epsilon(parts, tag)]
    if small and len(high) <= len(moved) / 2:
        reason = "it divides by almost 0: with an epsilon of 1e-7 it is in its range"
        tensors = tuple(t for t in (*found.tensors, *small) if t in small)
        return dataclasses.replace(
            found, kind="epsilon", tensors=tensors[:1], reason=reason, checked=True,
            facts=found.facts | {"tensors": tuple(small)},
        )  # fmt: skip
    if high:
        middle = float(np.median([factors[tag] for tag in high]))
        reason = f"the update is {middle:.3g} times what the rule computes from gradient and slots"
        tensors = () if len(high) > len(moved) / 2 else tuple(high)
        return dataclasses.replace(
            found, kind="rate", tensors=tensors, reason=reason, checked=True,
            facts=found.facts | {"times": middle},
        )  # fmt: skip
    reason = "gradient, slots and update follow the rule: its rate is too high here"
    return dataclasses.replace(found, kind="rate", reason=reason, checked=True)


def _apart(one: np.ndarray, other: np.ndarray) -> bool:
    difference = np.linalg.norm(one.astype(np.float64) - other)
    return not difference <= 0.01 * np.linalg.norm(other) + 1e-12


def _times(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one) / max(float(np.linalg.norm(other)), 1e-30))


def _by_epsilon(parts: Any, tag: str) -> bool:
    """Whether an update is what an epsilon of 0 gives, and not what 1e-7 gives."""
    if not parts.with_epsilon or not np.isfinite(parts.gradients[tag]).all():
        return False
    update, large = parts.updates[tag], parts.with_epsilon[tag]
    if not np.isfinite(update).all():
        return bool(np.isfinite(large).all())
    return _times(update, large) > _FACTOR and _times(update, parts.without_epsilon[tag]) < 1.5


def wrong_gradients(rerun: Any) -> dict[str, float]:
    """The tensors whose gradient is not that of the loss, with the slope along it over its norm.

    The loss is taken at the weights shifted by SHIFT both ways along the gradient g / |g|: the
    central difference must be |g|. A slope says nothing that is lost in rounding, or is another at
    smaller shifts: the loss is too curved there.
    """
    gradients = rerun.parts().gradients
    found = _slopes(rerun, examples.SHIFT, gradients)
    if not found:
        return {}
    # The loss as it is minimized is the mean times a factor that all tensors share.
    scale = 1 / float(np.median([abs(slope) for slope in found.values()]))
    wrong = {tag: scale * s for tag, s in found.items() if not 1 - _TOLERANCE <= scale * s <= 2}
    for shift in (examples.SHIFT / 2, examples.SHIFT / 4, examples.SHIFT / 8):
        for tag, slope in _slopes(rerun, shift, {tag: gradients[tag] for tag in wrong}).items():
            if abs(scale * slope - wrong[tag]) > _CURVED * abs(wrong[tag]):
                del wrong[tag]
    return wrong


def _slopes(rerun: Any, shift: float, gradients: Mapping[str, np.ndarray]) -> dict[str, float]:
    """By tensor, the slope of the mean loss along the gradient, over the gradient's norm."""
    found = {}
    for tag, g in gradients.items():
        norm = float(np.linalg.norm(g))
        if not np.isfinite(norm) or norm == 0:
            continue
        step = (shift * g / norm).astype(g.dtype)
        weights = rerun.weights[tag]
        up, down = (
            rerun.losses({tag: weights + sign * step}).astype(np.float64).mean() for sign in (1, -1)
        )
        if abs(up - down) > 1e-5 * (abs(up) + abs(down)):
            found[tag] = (up - down) / (2 * shift) / norm
    return found


def _since(run: Any, chain: Chain, step: int, wrong: dict[str, float]) -> Finding:
    """The first step whose gradient is wrong in a tensor, found by bisection."""
    tag = min(wrong, key=lambda t: wrong[t])
    low, high = 0, step
    while high - low > 1:
        middle = (low + high) // 2
        with run.before(middle) as rerun:
            if tag in wrong_gradients(rerun):
                high = middle
            else:
                low = middle
    what = "points uphill" if wrong[tag] < 0 else "is not the slope of the loss"
    reason = f"the gradient on record {what}: the loss changes by {wrong[tag]:.3g} of what it says"
    return Finding("gradient", high, (tag,), reason=reason, checked=True)


def repeat_changed(run: Any, chain: Chain, event: Event, found: Finding) -> Outcome | None:
    """Repeats the run from before the culprit's step with that link changed; None where there is
    nothing to change, or no later step to look at."""
    step, lost = found.step, event.kind == "nonfinite"
    last = run.config.get("training_steps") if lost else int(chain.steps[-1])
    until = min(max(event.step, step) + _AHEAD, last)
    changes: dict[str, Any] = {}
    if found.kind == "batch":
        change, changes = f"without the batch of step {step}", {"steps": 1}
    elif found.kind == "epsilon":
        change, changes = f"without the update of step {step}", {"steps": 1}
    elif found.kind in ("rate", "slots"):
        if found.kind == "slots" or "times" in found.facts:
            change, changes = "with what the rule computes from the gradients", {"by_rule": True}
            changes["steps"] = min(_LASTING, until - step + 1)
        else:  # a rate that is too high is so at all steps
            change, changes = "with a tenth of the update", {"share": 0.1}
            changes["steps"] = until - step + 1
        change += f" in steps {step} to {step + changes['steps'] - 1}"
    elif found.kind == "weight":
        change, changes = f"with {found.tensors[0]} put back", {"put_back": found.tensors[0]}
    if not changes:
        return None
    with run.before(step) as rerun:
        losses = rerun.onward(until, **changes)
    row = int(np.searchsorted(chain.steps, step))
    centre = float(np.median(chain.loss[max(row - 32, 0) : row])) if row else chain.loss[0]
    after = slice(1 if found.kind == "batch" else 0, None)  # the batch's own loss stays
    if not len(losses[after]):
        return None  # no step comes after it
    new, old = (_high(part[after] / centre) for part in (losses, chain.loss[row:][: len(losses)]))
    if lost:
        gone = bool(np.isfinite(losses[after]).all() and len(losses) == until - step + 1)
        return Outcome(change, gone, new, np.inf)
    out = chain.ranges["loss"].out[row : row + len(losses), 0][after].any()
    early = any(d.link == "loss" and d.note == "early" for d in event.departures)  # before ranges
    if not (out or early):
        return Outcome(change, None, new, old)
    return Outcome(change, bool(new < 0.75 * old), new, old)


def _high(ratios: np.ndarray) -> float:
    """The median of the four highest; inf where one is not finite, or none is left."""
    finite = len(ratios) and np.isfinite(ratios).all()
    return float(np.median(np.sort(ratios)[-4:])) if finite else np.inf
