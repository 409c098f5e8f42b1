"""Question 3: why are almost all weights and biases nearly equal to 0?"""

from __future__ import annotations

import numpy as np

from lab.analysis.runs import Group
from lab.analysis.study import LIMITS, Evidence, Seen
from lab.report.figures import (
    above,
    across,
    curve,
    listed,
    many,
    number,
    percent,
    points,
    say,
    value,
)
from lab.report.questions.common import NO_IMAGES, POINT, seeds_missing, without_runs
from lab.report.section import Bars, Chart, Control, Figure, Picture, Section, Series


def zeros(evidence: Evidence) -> Section:
    slug, title = "zeros", "3. Why are almost all weights and biases nearly equal to 0?"
    group = evidence.reference
    if group is None:
        return without_runs(evidence, slug, title)
    runs, found = group.completed, [evidence.of(run) for run in group.completed]
    seen = list(evidence.seen(group).values())
    sizes = {n: w.size for n, w in zip(runs[0].final.names, runs[0].final.weights, strict=True)}
    limit = LIMITS[-1]

    def share(at: dict[str, dict[float, float]], limit: float) -> float:
        return sum(at[n][limit] * size for n, size in sizes.items()) / sum(sizes.values())

    start, end = (
        across(f"near_zero:{key}", f"weights within {limit} of 0, at the {key}",
               [share(getattr(one, part), limit) for one in found], "%")
        for key, part in (("start", "near_zero_initial"), ("end", "near_zero"))
    )  # fmt: skip
    biases = across("near_zero:bias", f"biases within {limit} of 0, at the end",
                    [one.bias_near_zero[limit] for one in found], "%")  # fmt: skip
    figures = [start, end, biases]
    for name in sizes:
        for key, part in (("start", "near_zero_initial"), ("end", "near_zero")):
            figures += [
                across(f"near_zero:{name}:{key}:{bound}", f"{name}: |w| < {bound}, at the {key}",
                       [getattr(one, part)[name][bound] for one in found], "%")
                for bound in LIMITS
            ]  # fmt: skip
    others = {}
    for other in evidence.featured:
        if other.completed:
            nets = [np.concatenate([w.ravel() for w in run.final.weights])
                    for run in other.completed]  # fmt: skip
            others[other.label] = across("", "", [np.mean(np.abs(w) < limit) for w in nets], "%")
    low, high = (f(others, key=lambda name: others[name].value or 0) for f in (min, max))
    near = start.value or 0
    lead = (
        "They begin there" if near > 0.9 else "Many begin there" if near > 0.5 else "They are not"
    )
    answer = (
        f"{lead}: {value(start)} of the weights of {group.label} are within {limit} of 0"
        f" at the start, {say(end)} at the end, and every bias begins at exactly 0"
        f" ({value(biases)} still within {limit})"
    )
    if len(others) > 1:
        answer += (
            f"; by configuration it is {value(others[low])} ({low}) to {value(others[high])}"
            f" ({high}) in the end"
        )
    if seen:
        scales = [s.natural for s in seen]
        square, root, measured = (
            across(key, name, [getattr(s, part) for s in scales])
            for key, name, part in (
                ("square_norm", "E‖x‖² of the inputs", "square_norm"),
                ("weight_rms", "root mean square of h1's weights, at the end", "weight"),
                ("preactivation_rms", "root mean square of h1's pre-activations", "measured"),
            )
        )
        figures += [square, root, measured]
        answer += (
            f"; and it is not small: with E‖x‖² = {value(square)} a root mean square of"
            f" {value(root)} gives h1 pre-activations of {value(measured)}"
        )
    controls: list[Control] = []
    commands = seeds_missing(evidence, group)
    unknown = [] if seen else [NO_IMAGES]
    still = [
        (run, one)
        for g in evidence.runs.groups
        for run in g.completed
        if (one := evidence.of(run)).never_lit is not None
    ]
    if still:
        equal = [run for run, one in still if one.unmoved == one.never_lit]
        ours = [run for run in equal if run in runs]
        figures.append(across("never_lit", "inputs that are 0 in every training image that"
                              " the run was shown",
                              [one.never_lit or 0 for one in found]))  # fmt: skip
        figures.append(across("unmoved", "rows of h1's weights that never moved",
                              [one.unmoved for one in found]))  # fmt: skip
        controls.append(
            Control(
                "Weights that get no gradient stay where they began: as many rows of h1 are"
                " unmoved, bit for bit, as inputs are never lit.",
                f"{value(figures[-2])} such inputs; equal in {len(ours)} of"
                f" {many(len(runs), 'run')} of {group.label}, in {len(equal)} of {len(still)} of"
                " all.",
                len(ours) == len(runs),
            )
        )
        odd = [g.label for g in evidence.runs.groups
               if any(run not in equal for run, _ in still if run in g.runs)]  # fmt: skip
        if odd:
            unknown.append(
                f"Why in {listed(odd)} not only the rows of inputs that are never lit stood still:"
                " units that are saturated pass on no gradient either."
            )
    if seen:
        controls.append(_pruning_control(seen, figures))
    pictures: list[Picture] = [_weights_picture(group), _near_picture(evidence, limit)]
    if still:
        pictures.append(_lighting_picture(evidence))
    if seen:
        pictures.append(_pruning_picture(group, seen))
    unknown.append(
        "Whether the weights near 0 could have been left out from the start: they are pruned here"
        " after training, without training on."
    )
    return Section(slug, title, answer + ".", figures, pictures, controls, unknown, commands)


def _prunable(s: Seen, curve: str) -> float:
    """The largest share that can be pruned, and all below it, for less than a point."""
    bad = np.flatnonzero(getattr(s.pruning, curve) < s.accuracy - POINT)
    return float(s.pruning.shares[bad[0] - 1 if len(bad) else -1])


def _pruning_control(seen: list[Seen], figures: list[Figure]) -> Control:
    by = {
        key: across(f"prunable:{key}", f"weights that can be set to 0 for a point, {words}",
                    [_prunable(s, key) for s in seen], "%")
        for key, words in (
            ("smallest", "smallest first"),
            ("compensated", "their mean input kept"),
            ("random", "at random"),
        )
    }  # fmt: skip
    figures += by.values()
    gain = across("", "", [_prunable(s, "smallest") - _prunable(s, "random") for s in seen], "%")
    return Control(
        "If small weights did not matter less than others, pruning them would cost as much as"
        " pruning at random.",
        f"For one point of accuracy {say(by['smallest'])} can go, {say(by['compensated'])} with"
        f" their mean input added to the biases, {say(by['random'])} at random.",
        above(gain),
    )


def _weights_picture(group: Group) -> Picture:
    run = group.completed[0]
    weights, start = run.final.weights[0].ravel(), run.initial.weights[0].ravel()
    edge = float(np.quantile(np.abs(weights), 0.999))
    edges = np.linspace(-edge, edge, 62)
    middles = (edges[1:] + edges[:-1]) / 2
    series = [
        Series(name, middles.tolist(), (np.histogram(w, edges)[0] / w.size).tolist(), style="steps")
        for name, w in (("start", start), ("end", weights))
    ]
    return Chart(
        "weights",
        "h1's weights at the start and at the end",
        f"{group.label}, seed {run.seed}: the standard deviation goes from"
        f" {number(float(start.std()))} to {number(float(weights.std()))}.",
        "weight",
        "share of weights a bucket",
        series,
        y_scale="log",
    )


def _near_picture(evidence: Evidence, limit: float) -> Picture:
    labels: list[str] = []
    starts: list[Figure] = []
    ends: list[Figure] = []
    for group in evidence.featured:
        labels.append(group.label)
        for figures, part in ((starts, "initial"), (ends, "final")):
            nets = [getattr(run, part).weights for run in group.completed]
            shares = [np.mean(np.abs(np.concatenate([w.ravel() for w in n])) < limit) for n in nets]
            figures.append(across("", "", shares, "%"))
    most = max(zip(labels, starts, ends, strict=True),
               key=lambda row: (row[1].value or 0) - (row[2].value or 0))  # fmt: skip
    return Bars(
        "near-zero",
        f"Weights within {limit} of 0",
        f"{most[0]} leaves farthest: from {value(most[1])} to {value(most[2])}.",
        "share of all weights",
        [points("start", labels, starts), points("end", labels, ends)],
    )


def _lighting_picture(evidence: Evidence) -> Picture:
    series: list[Series] = []
    rare: dict[str, float] = {}
    for group in evidence.featured:
        found = [evidence.of(run).lighting for run in group.completed]
        if not found or not found[0] or len(series) == 8:
            continue
        places = [_lit(row.above, row.upto) for row in found[0]]
        figures = [across("", "", [one[i].mean for one in found]) for i in range(len(places))]
        series.append(points(group.label, places, figures))
        rows = dict(zip(places, figures, strict=True))
        few, much = rows[places[1]].value, rows[places[-1]].value
        if few is not None and much:
            rare[group.label] = few / much
    see = "Rows of inputs that are never lit do not move."
    if rare:
        low, high = (f(rare, key=lambda name: rare[name]) for f in (min, max))
        see = (
            f"Rows lit in less than one image in 1,000 move {percent(rare[low])} as far as those"
            f" lit in more than a tenth under {low}"
            + (f", {percent(rare[high])} under {high}." if high != low else ".")
        )
    return Bars(
        "lighting",
        "How far h1's rows moved, by how often their input is lit",
        see,
        "mean distance of a row from its start",
        series,
        y_scale="symlog",
    )


def _lit(above: float, upto: float) -> str:
    return "never lit" if upto == 0 else f"{percent(above)} to {percent(upto)}"


def _pruning_picture(group: Group, seen: list[Seen]) -> Picture:
    half = seen[0].pruning.shares.searchsorted(0.5)
    at_half = {
        key: float(np.mean([getattr(s.pruning, key)[half] for s in seen]))
        for key in ("smallest", "random")
    }
    return Chart(
        "pruning",
        "Accuracy with a share of every layer's weights set to 0",
        f"{group.label}: with half of them gone {percent(at_half['smallest'])} is left if they are"
        f" the smallest, {percent(at_half['random'])} if chosen at random.",
        "share of weights set to 0",
        "test accuracy",
        [
            curve(name, seen[0].pruning.shares.tolist(),
                  [getattr(s.pruning, key) for s in seen], "%")
            for key, name in (
                ("smallest", "smallest"),
                ("compensated", "smallest, mean input kept"),
                ("random", "at random"),
            )
        ],
    )  # fmt: skip
