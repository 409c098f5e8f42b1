"""Question 5: why do the distributions diverge over the iterations?"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from lab.analysis.drift import drift_ratio, growth_exponent, late_trend, span_ratio
from lab.analysis.runs import Group, Run
from lab.analysis.study import plain_sgd
from lab.report.draft import Draft
from lab.report.figures import (
    above,
    across,
    all_of,
    curve,
    listed,
    number,
    points,
    some_of,
    spoken,
    with_interval,
)
from lab.report.questions.common import about_reference, seeds_halved, windows
from lab.report.retrain import phases_of, spans_of
from lab.report.section import Figure, Mark, Section, Series

_FIT_POINTS = 20  # distances on record, for a fit of their growth
RATIO = "distance covered, relative to a random walk of the same steps"
PHASES = {"jolt": "in the jolt", "fall": "while the loss falls", "after": "after the fall"}


@about_reference
def growth(draft: Draft, group: Group) -> Section:
    names = [*group.shown]
    if not names:
        return draft.section("no_matrix")
    measured = [run for run in group.completed if phases_of(run)]
    found = {phase: _phase(draft, group, phase) for phase in ("jolt", "fall", "after")}
    falls = [figure for figure in found["fall"].values() if figure.value is not None]
    if falls:
        _phases_chart(draft, found)
    _distances_chart(draft, group)
    known_powers = [_distance_figures(draft, group, name) for name in names]
    if not all(known_powers):
        draft.unknown("power")
    ratios = [
        draft.mean(f"drift:{n}", f"{spoken(n)}: {RATIO}, over the whole run, jolt included",
                   _drifts(group, n), least=0)
        for n in names
    ]  # fmt: skip
    known = any(figure.value is not None for figure in ratios)
    if not known:
        draft.unknown("drift")
        draft.command("updates", group, watch=None)
    elif not falls:
        draft.unknown("phases")
    late = _late(draft, group)
    _late_chart(draft, group)
    if falls:
        _halves(draft, group, found)
    if group.known:
        _controls(draft, group)
    if falls:
        draft.unknown("border")
    draft.unknown("momentum")
    straight, onward = ([spoken(name) for name, figure in found[phase].items() if above(figure, 1)]
                        for phase in ("fall", "after"))  # fmt: skip
    later = [above(f, 1) for f in found["after"].values() if f.value is not None]
    outcome = (
        "no_updates" if not known
        else "no_phases" if not falls
        else "cannot_tell" if falls[0].low is None
        else "walk" if not straight
        else "drift" if onward or not later
        else "drift_then_unclear" if None in later
        else "drift_then_back"
    )  # fmt: skip
    return draft.section(outcome, phases=found, straight=some_of(straight, names),
                         onward=onward and some_of(onward, names), same=straight == onward,
                         first=_jolts(draft, group, names), late=late,
                         borders=[phases_of(run) for run in measured],
                         steps=group.completed[0].steps)  # fmt: skip


def _ratio(run: Run, layer: str, phase: str) -> float:
    """The mean ratio of a layer over a phase; nan where there is no such phase or no record."""
    tag = run.final.shown()[layer]
    updates = run.every_step(f"{tag}/update/norm")
    if updates is None:
        return float("nan")
    weights = {step: network[tag] for step, network in run.networks.items()}
    return span_ratio(weights, updates, spans_of(run).get(phase, []))


def _phase(draft: Draft, group: Group, phase: str) -> dict[str, Figure]:
    """By layer."""
    return {
        name: draft.mean(f"{phase}:{name}", f"{spoken(name)}: {RATIO}, {PHASES[phase]}",
                         [_ratio(run, name, phase) for run in group.completed], least=0)
        for name in group.shown
    }  # fmt: skip


def _phases_chart(draft: Draft, found: dict[str, dict[str, Figure]]) -> None:
    series = [
        points(
            spoken(name), [PHASES[phase] for phase in found], [one[name] for one in found.values()]
        )
        for name in found["fall"]
    ]
    draft.bars("phases", RATIO, series, [Mark("random walk", 1)])


def _halves(draft: Draft, group: Group, found: dict[str, dict[str, Figure]]) -> None:
    """The answer again, layer by layer, from half of each phase and from half of the seeds."""
    known = {(phase, name): figure.value for phase in ("fall", "after")
             for name, figure in found[phase].items() if figure.value is not None}  # fmt: skip
    rows, kept = [], []
    for (phase, name), whole in known.items():
        own = [_ratio(run, name, f"{phase}, {half} half")
               for half in ("first", "second") for run in group.completed]  # fmt: skip
        halves = [across("", "", own[: len(own) // 2]), across("", "", own[len(own) // 2 :])]
        rows.append((spoken(name), PHASES[phase], halves))
        kept += [(half.value > 1) == (whole > 1) for half in halves if half.value is not None]
    draft.control("run_halves", all(kept) if kept else None, rows=rows, kept=kept)
    ratios = {
        run.seed: {place: _ratio(run, place[1], place[0]) for place in known}
        for run in group.completed
    }
    ratios = {seed: own for seed, own in ratios.items() if np.isfinite([*own.values()]).all()}

    def judge(some: Mapping[int, dict[tuple[str, str], float]]) -> tuple[Any, str]:
        means = {place: float(np.mean([own[place] for own in some.values()])) for place in known}
        words = [f"{spoken(n)} {PHASES[phase]} {number(m, 3)}" for (phase, n), m in means.items()]
        return tuple(mean > 1 for mean in means.values()), listed(words)

    if ratios:
        seeds_halved(draft, ratios, judge)
    again = [same for run in group.completed for same in run.again.values()]
    if again:
        draft.control("again", all(again), same=sum(again), total=len(again))


def _controls(draft: Draft, group: Group) -> None:
    """What images, and runs beside these, can say."""
    _unlit(draft, group)
    _shuffled(draft, group)
    _decayed(draft, group)
    _sharpness(draft)


def _distances(run: Run, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, ||W_t - W_0||) of a layer's weights, at every step that has it or its weights."""
    return _distances_with(run, layer, tuple(run.networks))


@functools.lru_cache(100)
def _distances_with(
    run: Run, layer: str, networks: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """networks: the steps at which the run's weights are known by now."""
    tag = run.final.shown()[layer]
    start = np.float64(run.initial[tag])
    found = dict(zip(*run.scalars.get(f"{tag}/distance", ((), ())), strict=True))
    for step in {*networks} - {0}:
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


def _jolts(draft: Draft, group: Group, names: list[str]) -> dict[str, Figure]:
    """By layer, the share of the squared updates that falls on the jolt; {} without one."""
    jolts = [(run, found.jolt) for run in group.completed if (found := phases_of(run))]
    if not any(jolt for _, jolt in jolts):
        return {}
    shares: dict[str, list[float]] = {name: [] for name in names}
    for run, jolt in jolts:
        for name in names:
            updates = run.every_step(f"{run.final.shown()[name]}/update/norm")
            if updates is not None and updates.any():
                squares = np.square(np.float64(updates))
                shares[name].append(squares[:jolt].sum() / squares.sum())
    what = "share of the whole run's summed squared updates that falls on the jolt"
    return {name: draft.mean(f"first_steps:{name}", f"{spoken(name)}: {what}", shares[name], "%")
            for name in names}  # fmt: skip


def _distance_figures(draft: Draft, group: Group, name: str) -> bool:
    """Returns whether the exponent of the growth is known."""
    exponents, ends = [], []
    for run in group.completed:
        steps, distances = _distances(run, name)
        ends.append(distances[-1] / (np.linalg.norm(run.initial[group.shown[name]]) or np.nan))
        if len(steps) >= _FIT_POINTS:
            exponents.append(growth_exponent(steps, distances))
    what = f"distance of {spoken(name)} from its start, in norms of the start"
    draft.mean(f"distance:{name}", what, ends, least=0)
    what = f"exponent of the distance of {spoken(name)}, fitted as a power of the step"
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
        series.append(curve(spoken(name), steps[chosen].tolist(), [row[chosen] for row in rows]))
    farthest = max(series, key=lambda one: one.y[-1])
    scale = "log" if len(farthest.x) > 1 else "linear"
    draft.chart("distance", "step", "norm of W_t - W_0", series,
                scales=(scale, "log"), layer=farthest.name,
                distance=farthest.y[-1], step=farthest.x[-1])  # fmt: skip


def _norm(run: Run) -> np.ndarray | None:
    """||W_t|| of all layers' weights together, by step."""
    found = [run.every_step(f"{tag}/norm") for tag in run.final.matrices()]
    kept = [norm for norm in found if norm is not None]
    return np.sqrt(np.sum(np.square(kept), axis=0)) if len(kept) == len(found) else None


def _late(draft: Draft, group: Group) -> dict[str, Figure]:
    """What happens in the last third of the steps."""
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
    """Rows of inputs that are never lit get no gradient; only weight decay moves them."""
    lighting = [one.lighting for run in group.completed if (one := draft.evidence.of(run)).lighting]
    if lighting and not group.config["weight_decay"]:
        moved = [rows[0].mean for rows in lighting if rows[0].pixels]
        draft.control("unlit", max(moved) == 0 if moved else None, moved=moved)


def _shuffled(draft: Draft, group: Group) -> None:
    """Runs that differ in the labels alone: of the reference's rate or, where those with shuffled
    labels died, of another one."""

    def total(group: Group) -> Figure:
        ends = [[_distances(run, name)[1][-1] for name in group.shown] for run in group.completed]
        return across("", "", [float(np.linalg.norm(end)) for end in ends], least=0)

    rows, passed, rates = [], [], [group.config["learning_rate"]]
    for like in draft.evidence.runs.sweep(group, "learning_rate", "shuffle_labels"):
        if like.config.get("shuffle_labels"):
            continue
        beside = draft.evidence.runs.sweep(like, "shuffle_labels")
        for other in (one for one in beside if one.config.get("shuffle_labels")):
            own, figure = total(like), total(other)
            dead = len(other.runs) - len(other.completed)
            rows.append((like.label, own, other.label, figure, dead))
            rates.append(other.config["learning_rate"])
            if other.completed:
                ends = own.low, own.high, figure.low, figure.high
                low, high, other_low, other_high = (np.nan if e is None else e for e in ends)
                passed.append(bool(other_high < low or other_low > high) or None)
    draft.control("shuffled", all_of(passed) if passed else None, rows=rows)
    if not passed:  # of such labels sgd dies at the reference's rate
        rate = float(f"{min(rates) / 10:g}")
        draft.command("shuffled", group, learning_rate=rate, shuffle_labels="false,true", seeds=3)


def _decayed(draft: Draft, group: Group) -> None:
    """The drift ratio where the rate decays: of whole runs, with their jolt, it decides nothing."""
    fixed = ("none", group.config.get("learning_rate_decay", "none"))
    rows = []
    for other in draft.evidence.runs.sweep(group, "learning_rate_decay"):
        if other.config.get("learning_rate_decay", "none") not in fixed and other.completed:
            found = {n: across("", "", _drifts(other, n), least=0) for n in other.shown}
            known = {name: f for name, f in found.items() if f.value is not None}
            if known:
                words = [f"{with_interval(f)} in {spoken(n)}" for n, f in known.items()]
                rows.append((other.label, words))
    draft.control("decayed", None, rows=rows)
    if not rows:
        others = sorted({"linear", "cosine"} - {*fixed})
        draft.command("decayed", group, learning_rate_decay=",".join(others), seeds=3)


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
        limited = zip(labels, found, limits, strict=True)
        sides = [(name, above(figure, limit)) for name, figure, limit in limited]
        edge = Series("2/rate", labels, limits, style="points")
        series = [points("sharpness", labels, found), edge]
        draft.bars("sharpness", "largest Hessian eigenvalue of the mean loss", series, scale="log",
                   sides=sides)  # fmt: skip
        draft.unknown("sharpness")
