"""The examples of a batch that are to blame: which they are, and what they carry."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy  # its parts load when they are first used

from lab.diagnosis import pictures
from lab.diagnosis.chain import Chain
from lab.diagnosis.culprit import Finding
from lab.diagnosis.ranges import CENTRE, FALSE_ALARMS, ranges
from lab.errors import LabError

SHIFT = 1e-2  # of the weights along the gradient, in the norm of the whole tensor
LARGE = 10.0  # times the median size of a batch's inputs
_NEARBY = 4  # batches of other steps that the weights are tried on
_TOP = 0.05  # of the losses of some batches: those that count as large
_TIMES = 2.0  # from which on inputs are other than those before
_PICTURES = 4  # examples that are drawn


def nonfinite_inputs(rerun: Any) -> list[int]:
    x, _ = rerun.batch()
    if x.dtype.kind != "f":
        return []
    return np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1)).tolist()


def _sizes(x: np.ndarray) -> np.ndarray:
    """The root mean square of the inputs of each example: float64 [batch]."""
    return np.sqrt(np.mean(np.square(x.reshape(len(x), -1), dtype=np.float64), axis=1))


def large_inputs(rerun: Any) -> list[int]:
    x, _ = rerun.batch()
    if x.dtype.kind != "f":
        return []
    sizes = _sizes(x)
    return np.flatnonzero(sizes > LARGE * np.median(sizes)).tolist()


def unlike_inputs(run: Any, chain: Chain) -> Finding | None:
    """The first step whose batch has an example with inputs larger than their range, over the
    steps before it, and _TIMES their usual size; None if there is none."""
    with run.before(int(chain.steps[-1])) as rerun:
        sizes = [_sizes(rerun.batch(int(step))[0]) for step in chain.steps]
        largest = np.array([size.max() for size in sizes])
        for row in np.flatnonzero(ranges(largest[:, None]).out[:, 0]):
            usual = np.median(largest[max(row - CENTRE, 0) : row])
            if bad := np.flatnonzero(sizes[row] > _TIMES * usual).tolist():
                times = f"{largest[row] / usual:.3g}"
                reason = f"inputs of its examples are {times} times as large as those before"
                return with_examples(run, rerun, int(chain.steps[row]), bad, reason)
    return None


def unlike_losses(run: Any, chain: Chain) -> Finding | None:
    """The step whose loss deviates most, if too many of its examples are among those with the
    largest losses, on the same weights, of its batch and of the next ones, which these weights have
    not been trained on; None otherwise, and near the end of the run.

    If its examples are like the others, their number among the largest of all follows a
    hypergeometric distribution. FALSE_ALARMS is shared by all steps, as the step is the worst of
    them. The examples that are named are as many of the largest as there are too many.
    """
    deviations = chain.ranges["loss"].z[:, 0]
    worst = int(deviations.argmax())
    step, last = int(chain.steps[worst]), int(chain.steps[-1])
    with run.before(step) as rerun:
        others = range(step + 1, min(step + 2 * _NEARBY, last) + 1)
        losses = rerun.losses()
        pooled = np.concatenate([losses, *(rerun.losses(of=s) for s in others)])
        if len(others) < _NEARBY or not np.isfinite(pooled).all():
            return None
        top = max(int(_TOP * len(pooled)), 1)
        count = int(np.sum(losses > np.sort(pooled)[-top - 1]))
        chance = scipy.stats.hypergeom.sf(count - 1, len(pooled), len(losses), top)
        if chance > FALSE_ALARMS / len(chain.steps):
            return None
        expected = top * len(losses) / len(pooled)
        bad = np.sort(np.argsort(-losses)[: round(count - expected)]).tolist()
        reason = f"on the same weights {count} of the {top} largest losses of {1 + len(others)} "
        reason += f"batches are this one's, where chance gives {expected:.2g}"
        return with_examples(run, rerun, step, bad, reason)


def with_examples(run: Any, rerun: Any, step: int, rows: list[int], reason: str) -> Finding:
    """The examples in some rows of a step's batch, with their labels where these are classes."""
    x, y = rerun.batch(step)
    facts = {"labels": y[rows].tolist()} if y.ndim == 1 and y.dtype.kind in "iu" else {}
    facts["pictures"] = pictures.side_by_side(x[rows[:_PICTURES]])
    if step == rerun.step:
        facts |= _shares(rerun, rows)
    try:
        numbers = run.batch(step)[rows]
    except LabError:  # a function gives the batches
        numbers = np.array(rows)
    examples = tuple(int(n) for n in numbers)
    return Finding("batch", step, (), examples, tuple(rows), reason, True, facts)


def _shares(rerun: Any, rows: list[int]) -> dict[str, float]:
    """Which share of the batch's loss and of its gradient some rows carry; {} where these are not
    finite. The gradient's is that of the slope along it: the central difference of each example's
    loss, at the weights shifted by SHIFT both ways, over the sum of all."""
    losses, gradients = rerun.losses().astype(np.float64), rerun.parts().gradients
    norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in gradients.values()))
    if not np.isfinite(losses).all() or not np.isfinite(norm) or not norm:
        return {}
    up, down = (
        rerun.losses({tag: w + (sign * SHIFT / norm * gradients[tag]).astype(w.dtype)
                      for tag, w in rerun.weights.items()}).astype(np.float64)
        for sign in (1, -1)
    )  # fmt: skip
    slopes = up - down
    return {
        "loss_share": float(losses[rows].sum() / losses.sum()),
        "gradient_share": float(slopes[rows].sum() / slopes.sum()),
    }


def guilty(rerun: Any, chain: Chain) -> tuple[list[int], str]:
    """The rows of a batch that carry its jump: those with the largest losses, without which the
    mean is no higher than that of any other batch near by on the same weights. None if it is so
    anyway."""
    losses = rerun.losses()
    last = int(chain.steps[-1])
    steps = [s for s in range(rerun.step - _NEARBY, rerun.step + _NEARBY + 1)
             if 1 <= s <= last and s != rerun.step]  # fmt: skip
    nearby = [float(rerun.losses(of=s).mean()) for s in steps]
    usual, most = (float(f(nearby)) if nearby else 0.0 for f in (np.median, np.max))
    if not np.isfinite(losses).all():
        bad = np.flatnonzero(~np.isfinite(losses)).tolist()
        return bad if np.isfinite(nearby).any() else [], "their losses are not finite"
    if losses.mean() <= max(1.5 * usual, most):
        return [], ""
    order = np.argsort(-losses)
    rest = (losses.sum() - np.cumsum(losses[order])) / np.maximum(np.arange(len(losses))[::-1], 1)
    count = int((rest <= most).argmax()) + 1
    share = losses[order[:count]].sum() / losses.sum()
    times = losses.mean() / max(usual, 1e-30)
    reason = (
        f"on the same weights the batch's loss is {times:.3g} times that of the batches around it, "
        f"and {count} of its {len(losses)} examples carry {share:.0%} of it"
    )
    return sorted(order[:count].tolist()), reason
