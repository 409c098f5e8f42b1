"""Question 3: why are almost all weights and biases nearly equal to 0?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from lab.analysis.near_zero import crossing
from lab.analysis.runs import Group, Run
from lab.analysis.study import LIMITS, MEAN_EXAMPLES, ImageMeasurements, RunMeasurements
from lab.analysis.weights import Weights
from lab.report.draft import Draft
from lab.report.figures import above, across, curve, percent, points, spoken
from lab.report.questions.common import (
    POINT,
    about_reference,
    at_chance,
    chance,
    over_draws,
    seeds_halved,
)
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
    _by_layer(draft, group, found)
    _histogram(draft, group)
    _by_configuration(draft)
    if not group.known:
        return draft.section("counted", start=start, end=end, bias=bias)
    _never_lit(draft, group)
    scale = _scale(draft, measured) if measured else {}
    pruned = _pruning(draft, measured, chance(draft.evidence, group)) if measured else {}
    if not measured:
        draft.unknown("no_images")

    def judge(runs: Mapping[int, Run]) -> tuple[tuple[str, tuple[str, ...]], str]:
        outcome, far = _judge(runs.values())
        share = float(np.mean([_share(run.final) for run in runs.values()]))
        return (outcome, tuple(far)), f"{percent(share)} end within {_LIMIT} of 0"

    seeds_halved(draft, {run.seed: run for run in group.completed}, judge)
    draft.unknown("from_start")
    outcome, far = _judge(group.completed)
    return draft.section(
        outcome, start=start, end=end, bias=bias, scale=scale, pruned=pruned,
        far=[(spoken(name), share) for name, share in far.items()],
    )  # fmt: skip


def _share(weights: Weights) -> float:
    return float(
        np.mean(np.abs(np.concatenate([w.ravel() for w in weights.matrices().values()])) < _LIMIT)
    )


def _judge(runs: Iterable[Run]) -> tuple[str, dict[str, float]]:
    """The section's outcome, and the final shares of the layers of which most are not near 0."""
    some = list(runs)
    start, end = (
        float(np.mean([_share(w) for w in found]))
        for found in ([run.initial for run in some], [run.final for run in some])
    )
    shares = {
        name: float(np.mean([np.mean(np.abs(run.final[tag]) < _LIMIT) for run in some]))
        for name, tag in some[0].final.shown().items()
    }
    outcome = {(True, True): "stay", (True, False): "left", (False, True): "came",
               (False, False): "not_near"}[start > 0.5, end > 0.5]  # fmt: skip
    return outcome, {name: share for name, share in shares.items() if share < 0.5}


def _by_layer(draft: Draft, group: Group, found: list[RunMeasurements]) -> None:
    for name in group.shown:
        for key, part in (("start", "near_zero_initial"), ("end", "near_zero")):
            for bound in LIMITS:
                shares = [getattr(one, part)[name][bound] for one in found]
                what = f"weights of {spoken(name)} within {bound} of 0, at the {key}"
                draft.mean(f"near_zero:{name}:{key}:{bound}", what, shares, "%")


def _scale(draft: Draft, measured: list[ImageMeasurements]) -> dict[str, Figure]:
    """The sums that reach hidden layer 1, beside what independent weights would give."""
    scales = [s.natural for s in measured]
    note = f"a constant of the data, over the first {MEAN_EXAMPLES:,} training images"
    what = "mean squared norm of an input image"
    draft.add(Figure("square_norm", what, scales[0].square_norm, runs=0, note=note))
    independent = [np.sqrt(s.square_norm) * s.weight for s in scales]
    rms = "root mean square of hidden layer 1's"
    draft.mean("weight_rms", f"{rms} weights, at the end", [s.weight for s in scales])
    sums = f"{rms} input sums"
    found = {
        "independent": draft.mean("independent_rms", f"{sums}, if its weights were independent",
                                  independent),
        "measured": draft.mean("preactivation_rms", sums, [s.measured for s in scales]),
        "shuffled": over_draws(draft, "shuffled_rms", f"{sums}, its weights shuffled",
                               [s.shuffled for s in scales]),
    }  # fmt: skip
    more = across("", "", [s.measured - float(s.shuffled.mean()) for s in scales])
    draft.control("alignment", above(more), **found)
    return found


def _pruning(draft: Draft, measured: list[ImageMeasurements], floor: float) -> dict[str, Figure]:
    """Adds the pruning curves; returns what can be pruned for a point, and what half of them costs.

    floor: the accuracy of chance, which nothing can cost.
    """
    one = measured[0].pruning
    shares = dict.fromkeys(_PRUNED, one.shares) | {"random": one.random_shares}

    def curves(s: ImageMeasurements, key: str) -> np.ndarray:
        """[draws, shares]."""
        return np.atleast_2d(getattr(s.pruning, key))

    def prunable(s: ImageMeasurements, key: str) -> np.ndarray:
        """By draw."""
        limit = s.accuracy - POINT
        return np.array([crossing(shares[key], draw, limit) for draw in curves(s, key)])

    found, costs = {}, {}
    for key, words in _PRUNED.items():
        what = f"of each layer's weights those that can be set to 0 for one point, {words}"
        own = [prunable(s, key) for s in measured]
        found[key] = over_draws(draft, f"prunable:{key}", what, own, "%")
        what = f"accuracy lost when half of each layer's weights are set to 0, {words}"
        half = shares[key].searchsorted(0.5)
        lost = [100 * (s.accuracy - curves(s, key)[:, half]) for s in measured]
        costs[key] = over_draws(draft, f"half:{key}", what, lost, "points")
    gain = [100 * float(prunable(s, "smallest").mean() - prunable(s, "random").mean())
            for s in measured]  # fmt: skip
    floored = at_chance(across("", "", [s.accuracy for s in measured], "%"), floor) is not False
    passed = None if floored else above(across("", "", gain, "points"))
    draft.control("pruning", passed, floored=floored, **found)
    draft.chart(
        "pruning",
        "share of weights set to 0",
        "test accuracy",
        [
            curve(words, shares[key].tolist(), [curves(s, key).mean(axis=0) for s in measured], "%")
            for key, words in _PRUNED.items()
        ],
        costs=costs,
    )
    return {"smallest": found["smallest"], "random": found["random"], "half": costs["smallest"]}


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
        if evidence.of(run).never_lit is not None and not g.config["weight_decay"]
    ]
    equal = [run for _, run in known if evidence.of(run).unmoved == evidence.of(run).never_lit]
    what = "inputs that are 0 in every training image that the run was shown"
    dark = draft.mean("never_lit", what, [one.never_lit or 0 for one in ours])
    what = "inputs whose weights never moved"
    draft.mean("unmoved", what, [one.unmoved for one in ours])
    here = sum(run in equal for run in group.completed)
    if not group.config["weight_decay"]:
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
            figures = [across("", "", [row.mean for row in rows], least=0)
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
    label = "mean distance of an input's weights from their start"
    draft.bars("lighting", label, series, scale="symlog", ends=ends[:1] + ends[1:][-1:])


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
                scales=("linear", "log"), layer=spoken(layer), seed=run.seed,
                start=float(start.std()), end=float(end.std()))  # fmt: skip


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
