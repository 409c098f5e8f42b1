"""Question 5: why do the distributions diverge over the iterations?"""

from __future__ import annotations

import numpy as np

from lab.analysis.drift import drift_ratio, growth_exponent, late_trend
from lab.analysis.runs import Group, Run
from lab.analysis.study import plain_sgd
from lab.report.draft import Draft
from lab.report.figures import above, across, all_of, curve, points, with_interval
from lab.report.questions.common import about_reference, windows
from lab.report.section import Figure, Mark, Section, Series

_FIT_POINTS = 20  # distances on record, for a fit of their growth
_FIRST = 5  # the steps of a run that are its first
_LONG = 50  # steps of a run, of which these are few


@about_reference
def growth(draft: Draft, group: Group) -> Section:
    names = [*group.shown]
    if not names:
        return draft.section("no_matrix")
    _distances_chart(draft, group)
    found = {
        name: draft.mean(f"drift:{name}", f"drift ratio of {name}'s weights", _drifts(group, name))
        for name in names
    }
    ratios = {name: figure for name, figure in found.items() if figure.value is not None}
    known = [_distance_figures(draft, group, name) for name in names]
    if not all(known):
        draft.unknown("power")
    first = {name: _first_steps(draft, group, name) for name in ratios}
    if ratios:
        _drift_bars(draft)
    else:
        draft.unknown("drift")
        draft.command("updates", group)
    late = _late(draft, group)
    _late_chart(draft, group)
    if group.known:
        _controls(draft, group)
    draft.unknown("momentum")
    verdicts = {name: above(figure, 1) for name, figure in ratios.items()}
    straight = [name for name, verdict in verdicts.items() if verdict]
    outcome = (
        "no_updates" if not ratios
        else "cannot_tell" if any(figure.low is None for figure in ratios.values())
        else "drift" if len(straight) == len(names)
        else "mixed" if straight
        else "walk"
    )  # fmt: skip
    return draft.section(outcome, ratios=ratios, straight=straight, first=first, late=late)


def _controls(draft: Draft, group: Group) -> None:
    """What images, and runs beside these, can say."""
    _unlit(draft, group)
    if not all([_shuffled(draft, group), _decayed(draft, group)]):
        draft.command("controls", grid="controls", seeds=3)
    _sharpness(draft)


def _distances(run: Run, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, ||W_t - W_0||) of a layer's weights, at every step that has it or its weights."""
    tag = run.final.shown()[layer]
    start = np.float64(run.initial[tag])
    found = dict(zip(*run.scalars.get(f"{tag}/distance", ((), ())), strict=True))
    for step in run.networks.keys() - {0}:
        found[step] = float(np.linalg.norm(run.networks[step][tag] - start))
    steps = sorted(found)
    return np.array(steps), np.array([found[step] for step in steps])


def _drifts(group: Group, layer: str) -> list[float]:
    """By run, ||W_T - W_0|| / sqrt(sum ||dW_t||^2), where every update is on record."""
    return [
        drift_ratio(_distances(run, layer)[1][-1], updates)
        for run in group.completed
        if (updates := run.every_step(f"{run.final.shown()[layer]}/update/norm")) is not None
    ]


def _first_steps(draft: Draft, group: Group, layer: str) -> Figure:
    """The share of the squared updates that falls on the first steps."""
    shares = []
    for run in group.completed:
        updates = run.every_step(f"{run.final.shown()[layer]}/update/norm")
        if updates is not None and updates.any() and len(updates) >= _LONG:
            squares = np.square(np.float64(updates))
            shares.append(squares[:_FIRST].sum() / squares.sum())
    what = f"share of {layer}'s summed squared updates on the first {_FIRST} steps"
    return draft.mean(f"first_steps:{layer}", what, shares, "%")


def _distance_figures(draft: Draft, group: Group, name: str) -> bool:
    """Returns whether the exponent of the growth is known."""
    exponents, ends = [], []
    for run in group.completed:
        steps, distances = _distances(run, name)
        ends.append(distances[-1] / (np.linalg.norm(run.initial[group.shown[name]]) or np.nan))
        if len(steps) >= _FIT_POINTS:
            exponents.append(growth_exponent(steps, distances))
    what = f"distance of {name}'s weights from their start, in norms of the start"
    draft.mean(f"distance:{name}", what, ends)
    what = f"exponent of {name}'s distance, fitted as a power of the step"
    return draft.mean(f"power:{name}", what, exponents).value is not None


def _distances_chart(draft: Draft, group: Group) -> None:
    series = []
    for name in group.shown:
        found = [_distances(run, name) for run in group.completed]
        steps = found[0][0]
        rows = [distances for own, distances in found if np.array_equal(own, steps)]
        chosen = np.arange(len(steps))
        if len(steps) > 60:
            chosen = windows(np.zeros(len(steps)))[0] - 1
        series.append(curve(name, steps[chosen].tolist(), [row[chosen] for row in rows]))
    farthest = max(series, key=lambda one: one.y[-1])
    scale = "log" if len(farthest.x) > 1 else "linear"
    draft.chart("distance", "step", "norm of W_t - W_0", series,
                scales=(scale, "log"), layer=farthest.name,
                distance=farthest.y[-1], step=farthest.x[-1])  # fmt: skip


def _drift_bars(draft: Draft) -> None:
    rows = {
        group.label: {name: across("", "", _drifts(group, name)) for name in group.shown}
        for group in draft.evidence.featured
    }
    names = dict.fromkeys(name for found in rows.values() for name in found)
    series = []
    for name in names:
        labels = [label for label, found in rows.items() if name in found]
        series.append(points(name, labels, [rows[label][name] for label in labels]))
    every = [y for one in series for y in one.y]
    draft.bars("drift", "distance / root of summed squared steps", series,
               [Mark("random walk", 1)], every=every)  # fmt: skip


def _norm(run: Run) -> np.ndarray | None:
    """||W_t|| of all layers' weights together, by step."""
    found = [run.every_step(f"{tag}/norm") for tag in run.final.matrices()]
    kept = [norm for norm in found if norm is not None]
    return np.sqrt(np.sum(np.square(kept), axis=0)) if len(kept) == len(found) else None


def _late(draft: Draft, group: Group) -> dict[str, Figure]:
    """What goes on in the last third of the steps."""
    norms, tests, right = [], [], []
    for run in group.completed:
        norm, accuracy = _norm(run), run.every_step("accuracy")
        evaluations = run.scalars.get("test-loss", (np.empty(0), np.empty(0)))
        if norm is not None and len(norm) > 3:
            norms.append(late_trend(np.arange(1, len(norm) + 1), norm).change)
        if len(evaluations[0]) >= 6:
            tests.append(late_trend(*evaluations).change)
        if accuracy is not None:
            right.append(accuracy[-max(len(accuracy) // 3, 1) :].mean())
    part = "over the last third of the steps"
    return {
        "norm": draft.mean("late_norm", f"relative change of the weights' norm {part}", norms),
        "loss": draft.mean("late_test_loss", f"relative change of the test loss {part}", tests),
        "right": draft.mean("late_accuracy", f"batches' examples right, {part}", right, "%"),
    }


def _late_chart(draft: Draft, group: Group) -> None:
    norms = [norm for run in group.completed if (norm := _norm(run)) is not None]
    tests = [run.scalars.get("test-loss") for run in group.completed]
    kept = [pair for pair in tests if pair is not None and len(pair[0]) > 1]
    if not norms or not kept:
        return
    steps = kept[0][0]
    losses = curve("test loss" + ", nats" * group.known, steps.tolist(),
                   [v for s, v in kept if np.array_equal(s, steps)])  # fmt: skip
    sizes = curve("weights' norm, first step = 1", steps.tolist(),
                  [norm[steps - 1] / (norm[0] or np.nan) for norm in norms])  # fmt: skip
    lowest = int(steps[int(np.argmin(losses.y))])
    draft.chart("late", "step", f"{'nats' if group.known else 'loss'}; ratio", [losses, sizes],
                scales=("linear", "log"), lowest=lowest, last=lowest == steps[-1],
                norm=sizes.y[-1])  # fmt: skip


def _unlit(draft: Draft, group: Group) -> None:
    """Rows of inputs that are never lit get no gradient."""
    lighting = [one.lighting for run in group.completed if (one := draft.evidence.of(run)).lighting]
    if lighting:
        moved = [rows[0].mean for rows in lighting if rows[0].pixels]
        draft.control("unlit", max(moved) == 0 if moved else None, moved=moved)


def _shuffled(draft: Draft, group: Group) -> bool:
    """Compares those that completed: what collapsed stood still for another reason.

    Returns whether there are such runs.
    """

    def total(group: Group) -> Figure:
        ends = [[_distances(run, name)[1][-1] for name in group.shown] for run in group.completed]
        return across("", "", [float(np.linalg.norm(end)) for end in ends])

    groups = draft.evidence.runs.sweep(group, "shuffle_labels")
    others = [other for other in groups if other.config.get("shuffle_labels")]
    own, passed, rows = total(group), [], []
    for other in others:
        figure = total(other)
        rows.append((other.label, figure, len(other.runs) - len(other.completed)))
        ends = own.low, own.high, figure.low, figure.high
        low, high, other_low, other_high = (np.nan if end is None else end for end in ends)
        passed.append(None if np.isnan([low, other_low]).any()
                      else bool(other_high < low or other_low > high))  # fmt: skip
    draft.control("shuffled", all_of(passed) if others else None, own=own, others=rows)
    return bool(others)


def _decayed(draft: Draft, group: Group) -> bool:
    """The drift ratio where the rate decays; returns whether there are such runs."""
    fixed = ("none", group.config.get("learning_rate_decay", "none"))
    rows, verdicts = [], []
    for other in draft.evidence.runs.sweep(group, "learning_rate_decay"):
        if other.config.get("learning_rate_decay", "none") not in fixed and other.completed:
            found = {n: across("", "", _drifts(other, n)) for n in other.shown}
            known = {name: f for name, f in found.items() if f.value is not None}
            verdicts += [above(figure, 1) for figure in known.values()]
            if known:
                rows.append((other.label, [f"{with_interval(f)} in {n}" for n, f in known.items()]))
    draft.control("decayed", all_of(verdicts) if rows else None, rows=rows)
    return bool(rows)


def _sharpness(draft: Draft) -> None:
    labels, found, limits = [], [], []
    for group in draft.evidence.runs.groups:
        values = [s.value for run in group.completed if (s := draft.evidence.of(run).sharpness)]
        rate = group.completed[0].result.get("effective_learning_rate") if values else None
        if rate and plain_sgd(group.config):
            what, note = f"sharpness at the end, {group.label}", f"2/rate is {2 / rate:.3g}"
            found.append(draft.mean(f"sharpness:{group.label}", what, values, note=note))
            labels.append(group.label)
            limits.append(2 / rate)
    if found:
        above_limit = [name for name, f, limit in zip(labels, found, limits, strict=True)
                       if (f.value or 0) > limit]  # fmt: skip
        series = [
            points("sharpness", labels, found),
            Series("2/rate", labels, limits, style="points"),
        ]
        draft.bars("sharpness", "largest Hessian eigenvalue of the mean loss", series, scale="log",
                   above=above_limit)  # fmt: skip
        draft.unknown("sharpness")
