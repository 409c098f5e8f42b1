"""The autopsy of sgd at 0.1: which runs collapsed, why, and from which learning rate on."""

from __future__ import annotations

import math
import statistics

import numpy as np

from lab.analysis.collapse import SPREAD_LIMIT, VitalSigns
from lab.analysis.runs import Group, Run
from lab.analysis.study import Evidence, plain_sgd
from lab.report.draft import SEEDS, Draft
from lab.report.figures import across, points
from lab.report.section import Figure, Mark, Section, Series


def autopsy(evidence: Evidence) -> Section:
    draft = Draft("autopsy", evidence)
    draft.facts["limit"] = SPREAD_LIMIT
    signed = [
        group
        for group in evidence.runs.groups
        if group.known
        and plain_sgd(group.config)
        and any(evidence.of(run).at_end for run in group.runs)
    ]
    if not signed:
        if not evidence.runs.groups or any(group.known for group in evidence.runs.groups):
            draft.command("cliff", grid="cliff", seeds=3)
        return draft.section("no_run")
    dead = [group for group in signed if len(group.completed) < len(group.runs)]
    subject = max(dead or signed, key=lambda g: len(g.runs) - len(g.completed))
    draft.facts["label"] = subject.label
    rates = [g for g in evidence.runs.sweep(subject, "learning_rate") if g in signed]
    rates.sort(key=lambda g: g.config["learning_rate"])
    fallen = [run for run in subject.runs if not run.completed] if dead else subject.runs
    figures = _signs(draft, fallen)
    if dead:
        figures |= _last_step(draft, fallen)
    _cliff(draft, rates)
    _bounds(draft, rates)
    if not dead:
        return draft.section("alive", runs=sum(len(g.runs) for g in signed), **figures)
    alive = [(group, run) for group in rates for run in group.completed]
    flat, beyond = _flat_loss(draft, fallen, alive)
    bad = sum(bool(run.result.get("nonfinite")) for run in fallen)
    draft.control("nonfinite", not bad, bad=bad, runs=len(fallen))
    _without_clip(draft, subject)
    if "last" not in figures:
        draft.unknown("last")
    classes = sorted({str(run.result["collapsed"]) for run in fallen})
    outcome = "flat" if flat else "collapsed"
    return draft.section(outcome, runs=len(subject.runs), fallen=len(fallen),
                         classes=classes, beyond=beyond, **figures)  # fmt: skip


def _signs(draft: Draft, runs: list[Run]) -> dict[str, Figure]:
    """Adds what one step does at both ends of the runs."""
    measured = [draft.evidence.of(run) for run in runs]
    ends = [one.at_end for one in measured if one.at_end]
    firsts = [one.first_step for one in measured if one.first_step]
    spread, median = "spread of an example's logits", "median"
    draft.mean("spread_before", f"{spread} before the first step, {median}",
               [before.spread for before, _ in firsts])  # fmt: skip
    return {
        "spread": draft.mean("spread", f"{spread} after one step, {median}",
                             [after.spread for _, after in firsts]),
        "clip": draft.mean("on_clip", "examples on the clip, at the end",
                           [signs.on_clip for signs in ends], "%"),
        "certain": draft.mean("certain", "examples at p = 1, at the end",
                              [signs.certain for signs in ends], "%"),
    }  # fmt: skip


def _last_step(draft: Draft, runs: list[Run]) -> dict[str, Figure]:
    """The last step that changed the norm of any weights or biases, in the runs of which every norm
    is on record; nothing if there are none, or if they never stopped changing.

    The norm of an update does not tell: it is taken before the weights are rounded.
    """
    last = [step for run in runs if (step := _last_change(run)) not in (None, run.steps)]
    if not last:
        return {}
    what = "the step after which the norms of weights and biases stop changing, median"
    note, median = f"{min(last)} to {max(last)}", statistics.median_low(last)
    figure = Figure("last", what, median, runs=len(last), note=note)
    draft.add(figure)
    return {"last": figure}


def _last_change(run: Run) -> int | None:
    """The last step that changed a norm, 0 if none did; None if not every norm is on record."""
    found = {name: run.every_step(f"{name}/norm") for name in run.final}
    norms = {name: norm for name, norm in found.items() if norm is not None and len(norm)}
    if len(norms) < len(found):
        return None
    changed = np.flatnonzero(np.any(np.diff(list(norms.values())) != 0, axis=0))
    starts = {name: np.linalg.norm(w) for name, w in run.initial.items()}
    first = any(not np.isclose(norms[name][0], starts[name], rtol=1e-5) for name in norms)
    return int(changed[-1]) + 2 if len(changed) else int(first)


def _flat_loss(draft: Draft, fallen: list[Run], alive: list[tuple[Group, Run]]) -> tuple[bool, int]:
    """Compares with runs that live at other rates.

    Returns:
      (whether the loss is flat on every example of the collapsed ones, how many of the others
      crossed the clip in their first step).
    """

    def learning(signs: VitalSigns) -> float:
        """The share of examples that are neither on the clip nor certain."""
        return max(round(1 - signs.on_clip - signs.certain, 9), 0.0)

    of = draft.evidence.of
    lively = [learning(signs) for _, run in alive if (signs := of(run).at_end)]
    left = [learning(signs) for run in fallen if (signs := of(run).at_end)]
    spreads = [(g.label, pair[1].spread) for g, run in alive if (pair := of(run).first_step)]
    beyond = [label for label, spread in spreads if spread > SPREAD_LIMIT]
    if lively and left:
        draft.control("flat_loss", min(lively) > max(left) and max(left) == 0,
                      lively=lively, left=left)  # fmt: skip
    if spreads:
        draft.control("crossing", not beyond, beyond=beyond, runs=len(spreads),
                      labels=list(dict.fromkeys(beyond)),
                      farthest=max(spread for _, spread in spreads))  # fmt: skip
    return bool(left) and max(left) == 0, len(beyond)


def _without_clip(draft: Draft, subject: Group) -> None:
    sweep = draft.evidence.runs.sweep(subject, "loss")
    groups = [group for group in sweep if group.config["loss"].startswith("softmax")]
    runs = [run for group in groups for run in group.runs]
    lost = sum(not run.completed for run in runs)
    draft.control("without_clip", not lost if runs else None, lost=lost, runs=len(runs),
                  other=groups[0].label if groups else "")  # fmt: skip
    if not runs:
        draft.command("without_clip", subject, loss="softmax_cross_entropy", seeds=SEEDS)


def _bounds(draft: Draft, rates: list[Group]) -> None:
    """What is not known of the rate from which on runs collapse."""
    collapse = {g.config["learning_rate"]: len(g.completed) < len(g.runs) for g in rates}
    lowest = min((rate for rate, bad in collapse.items() if bad), default=math.nan)
    below = [rate for rate, bad in collapse.items() if not bad and rate < lowest]
    highest = max(below, default=math.nan)
    if not lowest <= 1.6 * highest:
        draft.unknown("bounds", lowest=lowest, highest=highest, both=lowest > highest)
        draft.command("cliff", grid="cliff", seeds=3)


def _cliff(draft: Draft, rates: list[Group]) -> None:
    if len(rates) < 2:
        return
    x = [group.config["learning_rate"] for group in rates]
    collapsed = [1 - len(g.completed) / len(g.runs) for g in rates]
    accuracies = [across("", "", [r.result["test_accuracy"] for r in g.runs], "%") for g in rates]
    best = max(zip(accuracies, x, strict=True), key=lambda pair: pair[0].value or 0)[1]
    draft.chart(
        "cliff",
        "learning rate",
        "share of test images, of runs",
        [points("test accuracy", x, accuracies),
         Series("runs that collapse", x, collapsed, style="dashes")],
        scales=("log", "linear"),
        best=best,
        deadly=[f"{rate:g}" for rate, share in zip(x, collapsed, strict=True) if share > 0],
    )  # fmt: skip
    of = draft.evidence.of
    spreads = [across("", "", [p[1].spread for run in g.runs if (p := of(run).first_step)])
               for g in rates]  # fmt: skip
    draft.chart(
        "spread",
        "learning rate",
        "max - min of an example's logits",
        [points("after the first step", x, spreads)],
        [Mark("ln(1e9), the clip", SPREAD_LIMIT)],
        scales=("log", "log"),
        beyond=[rate for rate, f in zip(x, spreads, strict=True) if (f.value or 0) > SPREAD_LIMIT],
    )
