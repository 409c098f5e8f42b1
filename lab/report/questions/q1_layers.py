"""Question 1: which layers should be visualized and analyzed?"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from lab.analysis.resets import update_ratio
from lab.analysis.runs import Group
from lab.analysis.study import DRAWS, ImageMeasurements, load_data
from lab.report.draft import Draft
from lab.report.figures import (
    above,
    across,
    all_of,
    curve,
    listed,
    percent,
    points,
    spoken,
    with_interval,
)
from lab.report.questions.common import (
    POINT,
    about_reference,
    at_chance,
    chance,
    over_draws,
    seeds_halved,
    windows,
)
from lab.report.section import Figure, Mark, Section

_RESETS = {  # by key: (part of a layer, how it is reset, in words)
    "both": ("both", "rewound", "put back to its initial values"),
    "weights": ("weights", "rewound", "put back, weights only"),
    "redrawn": ("both", "redrawn", "redrawn"),
    "redrawn_weights": ("weights", "redrawn", "redrawn, weights only"),
    "bias": ("bias", "rewound", "put back, bias only"),
}
_KINDS = [key for key in _RESETS if key != "bias"]  # resets of what a layer learned
_UNITS = 24  # of the first layer that are shown

Means = dict[str, dict[str, float]]  # accuracies by reset and layer


class _Verdict(NamedTuple):
    """outcome: of the section. lost: the layers of which, going by means, any reset leaves only
    chance."""

    outcome: str
    lost: tuple[str, ...]


@about_reference
def layers(draft: Draft, group: Group) -> Section:
    if not group.known:
        _ratios(draft, group)
        return draft.section("not_applicable")
    measured = draft.evidence.on_images(group)
    outcome, facts = _resets(draft, group, measured) if measured else ("no_images", {})
    _ratios(draft, group)
    if not measured:
        draft.unknown("no_images")
    _noise(draft, group)
    return draft.section(outcome, **facts)


def _draws(measured: Iterable[ImageMeasurements], layer: str, key: str) -> list[np.ndarray]:
    """Accuracies of every run after a reset of that layer, by draw."""
    part, how, _ = _RESETS[key]
    return [
        np.atleast_1d(getattr(reset, how))
        for s in measured
        for reset in s.resets
        if (reset.layer, reset.part) == (layer, part)
    ]


def _means(measured: Iterable[ImageMeasurements], draws: slice = slice(None)) -> Means:
    """Over runs, and over these draws where a reset is drawn."""
    some = list(measured)
    names = dict.fromkeys(reset.layer for reset in some[0].resets)
    return {
        key: {
            name: float(np.mean([a[draws] if len(a) > 1 else a for a in _draws(some, name, key)]))
            for name in names
        }
        for key in _RESETS
    }


def _judge(means: Means, base: float, floor: float) -> _Verdict:
    """What holds under every reset."""
    names = [*means["both"]]
    most, least = ({n: end(means[key][n] for key in _KINDS) for n in names} for end in (max, min))
    spared = [name for name in names if least[name] > base - POINT]
    outcome = (
        "at_chance" if at_chance(Figure("", "", base), floor)
        else "all_spared" if len(spared) == len(names)
        else "spared" if spared
        else "none_spared" if max(most.values()) < base - POINT
        else "depends"
    )  # fmt: skip
    lost = (name for name in names if at_chance(Figure("", "", most[name]), floor))
    return _Verdict(outcome, tuple(lost))


def _lost(found: dict[str, dict[str, Figure]], name: str, floor: float) -> bool | None:
    """Whether any reset of a layer leaves only chance; None where the intervals cannot tell."""
    return all_of([at_chance(found[key][name], floor) for key in _KINDS])


def _resets(draft: Draft, group: Group, measured: dict[int, ImageMeasurements]) -> tuple[str, dict]:
    """Adds the effects of the resets; returns the outcome and its facts."""
    every, floor = list(measured.values()), chance(draft.evidence, group)
    names = group.runs[0].final.names
    base = draft.mean("accuracy", "test accuracy at the end", [s.accuracy for s in every], "%")
    found = {key: {name: _figure(draft, every, name, key) for name in names} for key in _RESETS}
    draft.bars(
        "resets",
        "test accuracy",
        [
            points(words, [spoken(name) for name in names], [found[key][name] for name in names])
            for key, (_, _, words) in _RESETS.items()
        ],
        [Mark("nothing reset", base.value or 0), Mark("most frequent class", floor)],
    )
    _first_layer(draft, group)
    elsewhere = _every_configuration(draft, found["both"])
    lost = {name: _lost(found, name, floor) for name in names}
    _reset_controls(draft, group, measured, floor, {name for name in names if lost[name]})
    for name in names[:-1]:
        _saturation(draft, name, [s.saturation[name] for s in every])
    if untold := [spoken(name) for name in names if lost[name] is None]:
        draft.unknown("lost", layers=untold)
    draft.unknown("trained_beside")
    means = _means(every)
    verdict = _judge(means, base.value or 0, floor)
    lowest = {key: min(means[key], key=means[key].__getitem__) for key in _KINDS}
    most = max((found[key][name] for key in _KINDS for name in names), key=lambda f: f.value or 0)
    facts = {
        "base": base,
        "elsewhere": elsewhere,
        "most": most,
        "lost": [spoken(name) for name in names if lost[name]],
        "lowest": [(spoken(lowest[key]), _RESETS[key][2], found[key][lowest[key]])
                   for key in ("both", "weights")],
        "drawn": sorted(means[key][name] for key in ("redrawn", "redrawn_weights")
                        for name in names),
        "floor": floor,
        "same": len(set(lowest.values())) == 1,
        "spared": [spoken(n) for n in names
                   if min(means[key][n] for key in _KINDS) > (base.value or 0) - POINT],
        "bias": min(found["bias"].values(), key=lambda figure: figure.value or 0),
    }  # fmt: skip
    return verdict.outcome, facts


def _figure(draft: Draft, measured: list[ImageMeasurements], layer: str, key: str) -> Figure:
    what = f"accuracy with {spoken(layer)} {_RESETS[key][2]}"
    name = f"{key}:{layer}" if key.startswith("redrawn") else f"rewound:{layer}:{key}"
    return over_draws(draft, name, what, _draws(measured, layer, key), "%")


def _reset_controls(
    draft: Draft,
    group: Group,
    measured: dict[int, ImageMeasurements],
    floor: float,
    claimed: set[str],
) -> None:
    """claimed: the layers that the answer names, without which but chance is left."""
    off = [abs(s.accuracy - run.result["test_accuracy"])
           for run in group.completed if (s := draft.evidence.of(run).on_images)]  # fmt: skip
    draft.control("same_weights", max(off) <= 0.001, runs=len(off), off=100 * max(off))

    every = list(measured.values())
    base = float(np.mean([s.accuracy for s in every]))
    floored = _judge(_means(every), base, floor).outcome == "at_chance"  # no reset can lower it

    def judge(some: Mapping[int, ImageMeasurements]) -> tuple[Any, str]:
        means = _means(some.values())
        own = float(np.mean([s.accuracy for s in some.values()]))
        most = max(means[key][name] for key in _KINDS for name in means[key])
        verdict = _judge(means, own, floor)
        only = f", {listed([*map(spoken, verdict.lost)])} at chance" if verdict.lost else ""
        claim = verdict.outcome, frozenset(claimed & {*verdict.lost})
        return None if floored else claim, f"one reset leaves {percent(most)} at most{only}"

    seeds_halved(draft, measured, judge)
    verdicts = [_judge(_means(every, slice(i, i + 1)), base, floor) for i in range(DRAWS)]
    same = sum(verdict == _judge(_means(every), base, floor) for verdict in verdicts)
    each = None if floored else same == DRAWS
    draft.control("each_draw", each, same=same, draws=DRAWS)
    for name in group.runs[0].final.names:
        own, fresh = (_draws(every, name, key) for key in ("both", "redrawn"))
        gain = across("", "", [100 * float(a.mean() - b.mean())
                               for a, b in zip(own, fresh, strict=True)], "points")  # fmt: skip
        ends = [across("", "", [float(a.mean()) for a in left], "%") for left in (own, fresh)]
        both = all(at_chance(end, floor) for end in ends)
        draft.control(f"own_start:{name}", None if both else above(gain),
                      layer=spoken(name), gain=gain, floored=both)  # fmt: skip


def _saturation(draft: Draft, name: str, found: list) -> None:
    for key, words in (("low", "at their lower limit"), ("high", "at their upper limit")):
        values = [getattr(one, key) for one in found]
        draft.mean(f"{key}:{name}", f"activations of {spoken(name)} {words}", values, "%")
    note = f"of {found[0].units}"
    what = f"units of {spoken(name)} that hardly vary over the test images"
    draft.mean(f"dead:{name}", what, [s.dead for s in found], note=note)


def _ratios(draft: Draft, group: Group) -> None:
    series = []
    for layer, tag in group.shown.items():
        tags = [f"{tag}/{kind}" for kind in ("update/norm", "norm")]
        pairs = [[run.every_step(tag) for tag in tags] for run in group.completed]
        found = [update_ratio(u, w) for u, w in pairs if u is not None and w is not None]
        if found:
            what = f"update of {spoken(layer)} in norms of its weights, median over the steps"
            draft.mean(f"ratio:{layer}", what, [np.nanmedian(ratio) for ratio in found], least=0)
            steps = windows(found[0])[0]
            series.append(
                curve(spoken(layer), steps.tolist(), [windows(ratio)[1] for ratio in found])
            )
    if not series:
        draft.unknown("ratios")
        draft.command("ratios", group, watch=None)
        return
    fastest = max(series, key=lambda one: one.y[-1])
    draft.chart(
        "ratios", "step", "norm of update / norm of weights", series, [Mark("1e-3", 1e-3)],
        scales=("log", "log"), fastest=fastest.name, end=fastest.y[-1],
    )  # fmt: skip


def _first_layer(draft: Draft, group: Group) -> None:
    run = group.completed[0]
    shape = load_data(draft.evidence.runs.folders[group.data])[0].image_shape
    if not shape:
        return
    weights, start = run.final.weights[0], run.initial.weights[0]
    moved = np.linalg.norm(weights - start, axis=0)
    chosen = np.argsort(-moved, kind="stable")[:_UNITS]
    images = weights[:, chosen].T.reshape(-1, *shape)
    captions = [f"unit {unit}" for unit in chosen]
    least = float(moved[chosen[-1]])
    draft.tiles("units", images, captions, seed=run.seed, count=len(chosen), least=least,
                decay=run.config["weight_decay"])  # fmt: skip


def _every_configuration(draft: Draft, reference: dict[str, Figure]) -> dict[str, Any] | None:
    """Adds the table of all configurations. Returns where another one keeps most without a layer,
    if that is a point more than the reference keeps without any."""
    rows, lowest, elsewhere = [], set(), []
    every = (group.runs[0].final.names for group in draft.evidence.featured)
    names = list(dict.fromkeys(itertools.chain.from_iterable(every)))
    for group in draft.evidence.featured:
        back = [found for run in group.completed if (found := draft.evidence.of(run).rewound)]
        if back:
            figures = {name: across("", "", [one[name] for one in back], "%") for name in back[0]}
            lowest.add(spoken(min(figures, key=lambda name: figures[name].value or 0)))
            base = percent(float(np.mean([r.result["test_accuracy"] for r in group.completed])))
            cells = [with_interval(figures[n]) if n in figures else "" for n in names]
            rows.append((group.label, base, *cells))
            name = max(figures, key=lambda name: figures[name].value or 0)
            told = {"label": group.label, "layer": spoken(name), "base": base}
            elsewhere.append((figures[name].value or 0, told | {"left": figures[name]}))
    columns = ("configuration", "nothing reset", *map(spoken, names))
    draft.table("resets-all", columns, rows, lowest=sorted(lowest))
    most, facts = max(elsewhere, key=lambda one: one[0], default=(0.0, {}))
    limit = max(one.value or 0 for one in reference.values()) + POINT
    return facts if most > limit else None


def _noise(draft: Draft, reference: Group) -> None:
    """Of the first configuration that was trained on several replicas, or in micro-batches."""
    names = reference.runs[0].final.names
    for group in draft.evidence.runs.groups:
        known = False
        for key in ("all", *(f"{layer}/weights" for layer in names)):
            tags = [f"{key}/gradient/noise/{kind}".removeprefix("all/")
                    for kind in ("variance", "signal")]  # fmt: skip
            pairs = [[run.every_step(tag) for tag in tags] for run in group.completed]
            # S and G2 are averaged over the steps each, then divided: a ratio per step is biased.
            scales = [
                float(s.mean() / g2.mean()) if g2.mean() > 0 else np.nan
                for s, g2 in pairs
                if s is not None and g2 is not None
            ]
            layer = spoken(key.partition("/")[0])
            what = "all weights and biases" if key == "all" else f"weights of {layer} alone"
            note = f"examples; {group.label}, batch {group.config['batch_size']}"
            name = f"gradient noise scale, {what}, over all steps"
            known |= draft.mean(f"noise:{key}", name, scales, note=note).value is not None
        if known:
            return
    draft.unknown("noise")
    draft.command("noise", reference, microbatches=2, seeds="100,101,102", watch=None)
