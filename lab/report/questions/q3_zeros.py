"""Question 3: why are almost all weights and biases nearly equal to 0?"""

from __future__ import annotations

import numpy as np

from lab.analysis.runs import Group, Run
from lab.analysis.study import LIMITS, ImageMeasurements, RunMeasurements
from lab.analysis.weights import Weights
from lab.report.draft import Draft
from lab.report.figures import above, across, curve, percent, points
from lab.report.questions.common import POINT, about_reference
from lab.report.section import Figure, Section, Series

_LIMIT = LIMITS[-1]  # what "near 0" means in the answer
_CURVES = 8  # in one picture, at most
_PRUNED = {  # by key in PruningCurve
    "smallest": "smallest first",
    "compensated": "smallest first, their mean input kept",
    "random": "at random",
}


@about_reference
def zeros(draft: Draft, group: Group) -> Section:
    draft.facts["limit"] = _LIMIT
    if not group.shown:
        return draft.section("no_matrix")
    found = [draft.evidence.of(run) for run in group.completed]
    measured = list(draft.evidence.on_images(group).values())
    start, end, bias = (
        draft.mean(f"near_zero:{key}", f"{what} within {_LIMIT} of 0, at the {when}", shares, "%")
        for key, what, when, shares in (
            ("start", "weights", "start", [_share(run.initial) for run in group.completed]),
            ("end", "weights", "end", [_share(run.final) for run in group.completed]),
            ("bias", "biases", "end", [one.bias_near_zero[_LIMIT] for one in found]),
        )
    )
    far = _by_layer(draft, group, found)
    _histogram(draft, group)
    _by_configuration(draft)
    if not group.known:
        return draft.section("counted", start=start, end=end, bias=bias)
    _never_lit(draft, group)
    scale = _scale(draft, measured) if measured else {}
    pruned = _pruning(draft, measured) if measured else None
    if not measured:
        draft.unknown("no_images")
    draft.unknown("from_start")
    near, left = start.value or 0, (end.value or 0) < 0.5
    outcome = (
        "not_near" if near <= 0.5
        else "left" if left
        else "start" if near > 0.9
        else "many_start"
    )  # fmt: skip
    return draft.section(
        outcome, start=start, end=end, bias=bias, far=far, scale=scale, pruned=pruned
    )


def _share(weights: Weights) -> float:
    return float(
        np.mean(np.abs(np.concatenate([w.ravel() for w in weights.matrices().values()])) < _LIMIT)
    )


def _by_layer(draft: Draft, group: Group, found: list[RunMeasurements]) -> list[tuple[str, Figure]]:
    """Adds the shares; returns the final ones of the layers of which most weights are not near."""
    far: list[tuple[str, Figure]] = []
    for name in group.shown:
        for key, part in (("start", "near_zero_initial"), ("end", "near_zero")):
            for bound in LIMITS:
                shares = [getattr(one, part)[name][bound] for one in found]
                what = f"{name}: |w| < {bound}, at the {key}"
                figure = draft.mean(f"near_zero:{name}:{key}:{bound}", what, shares, "%")
        if (figure.value or 0) < 0.5:
            far.append((name, figure))
    return far


def _scale(draft: Draft, measured: list[ImageMeasurements]) -> dict[str, Figure]:
    """The first layer's pre-activations, beside what independent weights would give."""
    scales = [s.natural for s in measured]
    square = Figure("square_norm", "E‖x‖² of the inputs", scales[0].square_norm, runs=len(measured))
    independent = [np.sqrt(s.square_norm) * s.weight for s in scales]
    draft.add(square)
    rms = "root mean square of h1's"
    draft.mean("weight_rms", f"{rms} weights, at the end", [s.weight for s in scales])
    return {
        "independent": draft.mean(
            "independent_rms", f"{rms} pre-activations, were its weights independent", independent
        ),
        "measured": draft.mean(
            "preactivation_rms", f"{rms} pre-activations", [s.measured for s in scales]
        ),
    }


def _pruning(draft: Draft, measured: list[ImageMeasurements]) -> Figure:
    """Adds the pruning curves; returns how much can go, smallest first, for a point."""

    def prunable(s: ImageMeasurements, key: str) -> float:
        bad = np.flatnonzero(getattr(s.pruning, key) < s.accuracy - POINT)
        return float(s.pruning.shares[bad[0] - 1 if len(bad) else -1])

    found = {
        key: draft.mean(
            f"prunable:{key}",
            f"weights that can be set to 0 for a point of accuracy, {words}",
            [prunable(s, key) for s in measured],
            "%",
        )
        for key, words in _PRUNED.items()
    }
    gain = [prunable(s, "smallest") - prunable(s, "random") for s in measured]
    draft.control("pruning", above(across("", "", gain, "%")), **found)
    shares = measured[0].pruning.shares
    half = shares.searchsorted(0.5)
    draft.chart(
        "pruning",
        "share of weights set to 0",
        "test accuracy",
        [
            curve(words, shares.tolist(), [getattr(s.pruning, key) for s in measured], "%")
            for key, words in _PRUNED.items()
        ],
        half={
            key: float(np.mean([getattr(s.pruning, key)[half] for s in measured]))
            for key in _PRUNED
        },
    )
    return found["smallest"]


def _never_lit(draft: Draft, group: Group) -> None:
    """Inputs that are never lit give their weights no gradient."""
    evidence = draft.evidence
    ours = [evidence.of(run) for run in group.completed]
    if any(one.never_lit is None for one in ours):
        return
    known: list[tuple[Group, Run]] = [
        (g, run)
        for g in evidence.runs.groups
        for run in g.completed
        if evidence.of(run).never_lit is not None
    ]
    equal = [run for _, run in known if evidence.of(run).unmoved == evidence.of(run).never_lit]
    what = "inputs that are 0 in every training image that the run was shown"
    dark = draft.mean("never_lit", what, [one.never_lit or 0 for one in ours])
    draft.mean("unmoved", "rows of h1's weights that never moved", [one.unmoved for one in ours])
    here = sum(run in equal for run in group.completed)
    draft.control(
        "never_lit", here == len(group.completed), dark=dark, here=here,
        runs=len(group.completed), equal=len(equal), all=len(known),
    )  # fmt: skip
    more = [g.label for g, run in known
            if evidence.of(run).unmoved > (evidence.of(run).never_lit or 0)]  # fmt: skip
    if more:
        draft.unknown("unmoved", labels=list(dict.fromkeys(more)))
    series: list[Series] = []
    rare = {}
    for other in evidence.featured:
        lighting = [evidence.of(run).lighting for run in other.completed]
        if lighting and lighting[0] and len(series) < _CURVES:
            figures = [across("", "", [row.mean for row in rows])
                       for rows in zip(*lighting, strict=True)]  # fmt: skip
            places = [
                "never lit" if row.upto == 0 else f"{percent(row.above)} to {percent(row.upto)}"
                for row in lighting[0]
            ]
            series.append(points(other.label, places, figures))
            few, most = figures[1].value, figures[-1].value
            if few is not None and most:
                rare[other.label] = few / most
    ends = sorted(rare.items(), key=lambda pair: pair[1])
    draft.bars("lighting", "mean distance of a row from its start", series, scale="symlog",
               ends=ends[:1] + ends[1:][-1:])  # fmt: skip


def _histogram(draft: Draft, group: Group) -> None:
    run = group.completed[0]
    layer, tag = next(iter(group.shown.items()))
    start, end = (part[tag].ravel() for part in (run.initial, run.final))
    edge = float(np.quantile(np.abs(end), 0.999)) or 1.0
    edges = np.linspace(-edge, edge, 62)
    middles = (edges[1:] + edges[:-1]) / 2
    series = [
        Series(name, middles.tolist(), (np.histogram(w, edges)[0] / w.size).tolist(), style="steps")
        for name, w in (("start", start), ("end", end))
    ]
    draft.chart("weights", "weight", "share of weights per bucket", series,
                scales=("linear", "log"), layer=layer, seed=run.seed, start=float(start.std()),
                end=float(end.std()))  # fmt: skip


def _by_configuration(draft: Draft) -> None:
    rows = [
        (
            group.label,
            across("", "", [_share(run.initial) for run in group.completed], "%"),
            across("", "", [_share(run.final) for run in group.completed], "%"),
        )
        for group in draft.evidence.featured
    ]
    labels, starts, ends = zip(*rows, strict=True)
    draft.bars(
        "near-zero",
        "share of all weights",
        [points("start", labels, starts), points("end", labels, ends)],
        most=max(rows, key=lambda row: (row[1].value or 0) - (row[2].value or 0)),
    )
