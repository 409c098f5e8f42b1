"""The autopsy of sgd at 0.1: who died, of what, and where the cliff is."""

from __future__ import annotations

from collections import Counter

import numpy as np

from lab.analysis.collapse import SPREAD_LIMIT, VitalSigns
from lab.analysis.runs import Group
from lab.analysis.study import Evidence, plain_sgd
from lab.report.figures import across, command, listed, many, number, percent, points, say, value
from lab.report.section import Chart, Control, Figure, Mark, Picture, Section, Series


def _teaching(signs: VitalSigns) -> float:
    """The share of examples that are neither on the clip nor certain."""
    return max(round(1 - signs.on_clip - signs.certain, 9), 0.0)


def _death(group: Group) -> list[float]:
    """By run, the last step that changed the norm of any weights or biases, where every norm is on
    record. (The norm of an update is no measure of it: that is taken before weights are rounded.)
    """
    last = []
    for run in group.runs:
        found = {name: run.every_step(f"{name}/norm") for name in run.final.tensors()}
        norms = {name: norm for name, norm in found.items() if norm is not None and len(norm)}
        if len(norms) < len(found):
            continue
        changed = np.flatnonzero(np.any(np.diff(list(norms.values())) != 0, axis=0))
        starts = {name: np.linalg.norm(w) for name, w in run.initial.tensors().items()}
        first = any(not np.isclose(norms[name][0], starts[name], rtol=1e-5) for name in norms)
        last.append(float(changed[-1] + 2 if len(changed) else first))
    return last


def _death_figure(last: list[float]) -> list[Figure]:
    if not last:
        return []
    name = "the last step that changed a norm of the weights or biases, median"
    note = f"{min(last):.0f} to {max(last):.0f}"
    return [Figure("death", name, float(np.median(last)), runs=len(last), note=note)]


def autopsy(evidence: Evidence) -> Section:
    runs, logdir = evidence.runs, evidence.runs.logdir
    title = "The autopsy of sgd at 0.1"
    signed = [
        group
        for group in runs.groups
        if plain_sgd(group.config) and any(evidence.of(run).at_end for run in group.runs)
    ]
    dead = [g for g in signed if len(g.completed) < len(g.runs)]
    cliff = ("where sgd dies, rate by rate", command(logdir, grid="cliff", seeds=3))
    if not signed:
        answer = "These runs cannot say: none is plain sgd on the clipped loss with its images."
        return Section("autopsy", title, answer, commands=[cliff])
    subject = max(dead or signed, key=lambda g: len(g.runs) - len(g.completed))
    title = f"The autopsy of {subject.label}" if dead else "The autopsy: is there a death?"
    rates = sorted(runs.sweep(subject, "learning_rate"), key=lambda g: g.config["learning_rate"])
    rates = [group for group in rates if group in signed]
    fallen = [run for run in subject.runs if not run.completed] if dead else subject.runs
    ends = [signs for run in fallen if (signs := evidence.of(run).at_end)]
    firsts = [pair for run in fallen if (pair := evidence.of(run).first_step)]
    spread = across("spread", "spread of an example's logits after one step, median",
                    [after.spread for _, after in firsts])  # fmt: skip
    clip, certain, unmoved = (
        across(key, name, [getattr(signs, key) for signs in ends], "%")
        for key, name in (
            ("on_clip", "examples on the clip, at the end"),
            ("certain", "examples at p = 1, at the end"),
            ("unmoved", "weights that one more step leaves as they are, bit for bit"),
        )
    )
    figures = [
        across("spread_before", "spread of an example's logits before the first step, median",
               [before.spread for before, _ in firsts]),
        spread, clip, certain, unmoved,
        *_death_figure(_death(subject)),
    ]  # fmt: skip
    figures = [figure for figure in figures if figure.value is not None]
    limit = f"the clip begins at ln(1e9) = {SPREAD_LIMIT:.1f}"
    alive = [run for g in rates for run in g.completed]
    leaps = [
        (g.label, after.spread)
        for g in rates
        for run in g.completed
        if (pair := evidence.of(run).first_step) and (after := pair[1])
    ]
    beyond = [label for label, spread in leaps if spread > SPREAD_LIMIT]
    if dead:
        classes = Counter(run.result["collapsed"] for run in fallen)
        answer = (
            f"{subject.label} died in {len(fallen)} of {many(len(subject.runs), 'run')}: in the end"
            f" {value(clip)} of a batch sits on the clip and {value(certain)} at p = 1, where the"
            f" loss is flat, one more step would leave {value(unmoved)} of the weights as they are,"
            f" and every test image is taken for class {listed(sorted(map(str, classes)), 'or')};"
            f" its first step had driven an example's logits {say(spread)} apart ({limit}"
            + (
                f", which {many(len(beyond), 'run')} that live had crossed too)."
                if beyond
                else ")."
            )
        )
    else:
        answer = (
            f"No death: {many(sum(len(g.runs) for g in signed), 'run')} of plain sgd, all alive;"
            f" at {subject.label} the first step drives an example's logits {say(spread)} apart"
            f" ({limit})."
        )
    controls = []
    if dead and alive:
        lively = [_teaching(signs) for run in alive if (signs := evidence.of(run).at_end)]
        left = [_teaching(signs) for signs in ends]
        controls.append(
            Control(
                "If the flat loss is the cause, runs that live at other rates still have examples"
                " that are neither on the clip nor at p = 1, and dead ones have none.",
                f"At least {percent(min(lively))} of a batch in {many(len(lively), 'living run')},"
                f" at most {percent(max(left))} in {many(len(left), 'dead one')}.",
                min(lively) > max(left) and max(left) == 0,
            )
        )
    if dead and leaps:
        among = f" ({listed(list(dict.fromkeys(beyond)))})" if beyond else ""
        controls.append(
            Control(
                "If crossing the clip in one step killed a run, rates that live would stay below it"
                " after one step.",
                f"The median example of {len(beyond)} of {many(len(leaps), 'living run')} is beyond"
                f" ln(1e9) after one step{among}; the farthest is"
                f" {number(max(spread for _, spread in leaps))} apart.",
                not beyond,
            )
        )
    if dead:
        bad = [run for run in fallen if run.result.get("nonfinite")]
        controls.append(
            Control(
                "It is not a NaN.",
                f"{many(len(bad), 'dead run')} of {len(fallen)} had NaN or infinity on record.",
                not bad,
            )
        )
        stable = [g for g in runs.sweep(subject, "loss") if g.config["loss"].startswith("softmax")]
        lost = [run for g in stable for run in g.runs if not run.completed]
        total = sum(len(g.runs) for g in stable)
        controls.append(
            Control(
                "If the clip is the cause, the same runs on the loss without it live.",
                f"{total - len(lost)} of {many(total, 'run')} of {stable[0].label} live."
                if stable
                else "No such run is here.",
                not lost if stable else None,
            )
        )
    commands = []
    if dead and not stable:
        config = {**subject.config, "loss": "softmax_cross_entropy"}
        commands.append(
            ("the same rate on a loss without a clip", command(logdir, config, seeds=5))
        )
    fates = [(g.config["learning_rate"], len(g.completed) == len(g.runs)) for g in rates]
    lowest = min((rate for rate, lives in fates if not lives), default=None)
    highest = max((r for r, lives in fates if lives and r < (lowest or np.inf)), default=None)
    unknown = []
    if lowest is None or highest is None or lowest > 1.6 * highest:
        commands.append(cliff)
        unknown.append(
            f"Where between {number(highest)} and {number(lowest)} death begins: no rate between"
            " was run."
            if lowest and highest
            else "Where death begins: these runs are all on one side of it."
        )
    if not _death(subject) and dead:
        unknown.append("The step of death: the norms of the weights are not on record.")
    return Section(
        "autopsy", title, answer, figures, _cliff_pictures(evidence, rates), controls, unknown,
        commands,
    )  # fmt: skip


def _cliff_pictures(evidence: Evidence, rates: list[Group]) -> list[Picture]:
    if len(rates) < 2:
        return []
    x = [group.config["learning_rate"] for group in rates]
    collapsed = [1 - len(g.completed) / len(g.runs) for g in rates]
    accuracies = [
        across("", "", [run.result["test_accuracy"] for run in g.runs], "%") for g in rates
    ]
    deadly = [rate for rate, share in zip(x, collapsed, strict=True) if share > 0]
    best = max(zip(accuracies, x, strict=True), key=lambda pair: pair[0].value or 0)
    spreads = [
        across("", "", [p[1].spread for run in g.runs if (p := evidence.of(run).first_step)])
        for g in rates
    ]
    above = [rate for rate, f in zip(x, spreads, strict=True) if (f.value or 0) > SPREAD_LIMIT]
    return [
        Chart(
            "cliff",
            "The cliff",
            f"Accuracy is highest at {best[1]:g}"
            + (
                f"; from {min(deadly):g} on runs collapse."
                if deadly
                else "; no run collapses at any of these rates."
            ),
            "learning rate",
            "share of test images, of runs",
            [
                points("test accuracy", x, accuracies),
                Series("runs that collapse", x, collapsed, style="dashes"),
            ],
            x_scale="log",
        ),
        Chart(
            "spread",
            "How far one step drives the logits apart",
            f"From a rate of {min(above):g} on the median example is beyond ln(1e9) after one step."
            if above
            else "At none of these rates does one step take the median example beyond ln(1e9).",
            "learning rate",
            "max - min of an example's logits",
            [points("after the first step", x, spreads)],
            [Mark("ln(1e9), the clip", SPREAD_LIMIT)],
            x_scale="log",
            y_scale="log",
        ),
    ]
