"""The examples of a batch that are to blame: which they are, and what they carry."""

from __future__ import annotations

from typing import Any

import numpy as np

from lab.diagnosis import pictures
from lab.diagnosis.chain import Chain
from lab.diagnosis.culprit import Finding
from lab.diagnosis.ranges import CENTRE, ranges
from lab.errors import LabError

SHIFT = 1e-2  # of the weights along the gradient, in the norm of the whole tensor
LARGE = 10.0  # times the median size of a batch's inputs
_NEARBY = 4  # batches of other steps that the weights are tried on
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
    steps before it; None if there is none."""
    with run.before(int(chain.steps[-1])) as rerun:
        sizes = [_sizes(rerun.batch(int(step))[0]) for step in chain.steps]
        found = ranges(np.array([[size.max()] for size in sizes]))
        rows = np.flatnonzero(found.out[:, 0])
        if not len(rows):
            return None
        row = int(rows[0])
        limit = np.median([size.max() for size in sizes[max(row - CENTRE, 0) : row]])
        bad = np.flatnonzero(sizes[row] > _TIMES * limit).tolist()
        if not bad:
            return None
        times = float(sizes[row].max() / limit)
        reason = f"inputs of its examples are {times:.3g} times as large as any of the steps before"
        return with_examples(run, rerun, int(chain.steps[row]), bad, reason)


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
