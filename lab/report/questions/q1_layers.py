"""Question 1: which layers should be visualized and analyzed?"""

from __future__ import annotations

import itertools

import numpy as np

from lab.analysis.resets import update_ratio
from lab.analysis.runs import Group
from lab.analysis.study import ImageMeasurements, load_data
from lab.report.draft import Draft
from lab.report.figures import above, across, curve, percent, points, with_interval
from lab.report.questions.common import POINT, about_reference, chance, windows
from lab.report.section import Figure, Mark, Section

_RESETS = {  # by key: (part of a layer, how it is reset, in words)
    "both": ("both", "rewound", "put back to its first values"),
    "weights": ("weights", "rewound", "put back to its first values, weights alone"),
    "bias": ("bias", "rewound", "put back to its first values, bias alone"),
    "redrawn": ("both", "redrawn", "drawn afresh"),
}
_UNITS = 24  # of the first layer that are shown


@about_reference
def layers(draft: Draft, group: Group) -> Section:
    if not group.known:
        _ratios(draft, group)
        return draft.section("not_applicable")
    measured = list(draft.evidence.on_images(group).values())
    outcome, facts = _resets(draft, group, measured) if measured else ("no_images", {})
    _ratios(draft, group)
    if not measured:
        draft.unknown("no_images")
    _noise(draft, group)
    return draft.section(outcome, **facts)


def _resets(draft: Draft, group: Group, measured: list[ImageMeasurements]) -> tuple[str, dict]:
    """Adds what the resets show; returns the outcome and its facts."""
    names = group.runs[0].final.names
    base = draft.mean("accuracy", "test accuracy at the end", [s.accuracy for s in measured], "%")
    found: dict[str, dict[str, Figure]] = {
        key: {
            name: draft.mean(
                f"redrawn:{name}" if key == "redrawn" else f"rewound:{name}:{key}",
                f"accuracy with {name} {words}",
                _accuracies(measured, name, part, how),
                "%",
            )
            for name in names
        }
        for key, (part, how, words) in _RESETS.items()
    }
    draft.bars(
        "resets",
        "test accuracy",
        [
            points(words, names, [found[key][name] for name in names])
            for key, (_, _, words) in _RESETS.items()
        ],
        [Mark("nothing reset", base.value or 0),
         Mark("most frequent class", chance(draft.evidence, group))],
    )  # fmt: skip
    _first_layer(draft, group)
    _every_configuration(draft)
    off = [abs(s.accuracy - run.result["test_accuracy"])
           for run in group.completed if (s := draft.evidence.of(run).on_images)]  # fmt: skip
    draft.control("same_weights", max(off) <= 0.001, runs=len(off), off=100 * max(off))
    for name in names:
        own, fresh = (_accuracies(measured, name, "both", how) for how in ("rewound", "redrawn"))
        gain = across("", "", 100 * np.subtract(own, fresh))
        draft.control(f"own_start:{name}", above(gain), layer=name, gain=gain)
    for name in names[:-1]:
        _saturation(draft, name, [s.saturation[name] for s in measured])
    draft.unknown("trained_beside")

    def value(key: str, name: str) -> float:
        return found[key][name].value or 0

    kinds = [key for key in _RESETS if key != "bias"]
    lowest = {key: min(names, key=lambda name: value(key, name)) for key in kinds}
    worst = {name: min(value(key, name) for key in kinds) for name in names}
    spared = [name for name in names if worst[name] > (base.value or 0) - POINT]
    always = [name for name in names if set(lowest.values()) == {name}]
    facts = {
        "base": base,
        "lowest": [(lowest[key], _RESETS[key][2], found[key][lowest[key]]) for key in kinds],
        "always": always,
        "spared": spared,
        "bias": min(found["bias"].values(), key=lambda figure: figure.value or 0),
    }
    outcome = (
        "all_spared" if len(spared) == len(names)
        else "same_layer" if always
        else "spared" if spared
        else "none_spared"
    )  # fmt: skip
    return outcome, facts


def _accuracies(measured: list[ImageMeasurements], layer: str, part: str, how: str) -> list[float]:
    """By run, with that part of a layer reset; the mean over draws, where there are several."""
    return [
        float(np.mean(getattr(reset, how)))
        for s in measured
        for reset in s.resets
        if (reset.layer, reset.part) == (layer, part)
    ]


def _saturation(draft: Draft, name: str, found: list) -> None:
    for key, words in (("low", "at the low end"), ("high", "at the high end")):
        values = [getattr(one, key) for one in found]
        draft.mean(f"{key}:{name}", f"{name}'s activations {words}", values, "%")
    note = f"of {found[0].units}"
    draft.mean(f"dead:{name}", f"{name}'s dead units", [s.dead for s in found], note=note)


def _ratios(draft: Draft, group: Group) -> None:
    series = []
    for layer, tag in group.shown.items():
        tags = [f"{tag}/{kind}" for kind in ("update/norm", "norm")]
        pairs = [[run.every_step(tag) for tag in tags] for run in group.completed]
        found = [update_ratio(u, w) for u, w in pairs if u is not None and w is not None]
        if found:
            what = f"update ratio of {layer}'s weights, median over the steps"
            draft.mean(f"ratio:{layer}", what, [np.nanmedian(ratio) for ratio in found])
            steps = windows(found[0])[0]
            series.append(curve(layer, steps.tolist(), [windows(ratio)[1] for ratio in found]))
    if not series:
        draft.unknown("ratios")
        draft.command("ratios", group)
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
    draft.tiles("units", images, captions, seed=run.seed, count=len(chosen), least=least)


def _every_configuration(draft: Draft) -> None:
    rows, lowest = [], set()
    every = (group.runs[0].final.names for group in draft.evidence.featured)
    names = list(dict.fromkeys(itertools.chain.from_iterable(every)))
    for group in draft.evidence.featured:
        if measured := list(draft.evidence.on_images(group).values()):
            figures = {
                name: across("", "", _accuracies(measured, name, "both", "rewound"), "%")
                for name in group.runs[0].final.names
            }
            lowest.add(min(figures, key=lambda name: figures[name].value or 0))
            base = percent(float(np.mean([s.accuracy for s in measured])))
            cells = [with_interval(figures[n]) if n in figures else "" for n in names]
            rows.append((group.label, base, *cells))
    columns = ("configuration", "nothing reset", *names)
    draft.table("resets-all", columns, rows, lowest=sorted(lowest))


def _noise(draft: Draft, reference: Group) -> None:
    """Of the first configuration that was trained on several replicas."""
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
            what = "all tensors" if key == "all" else f"{key} alone"
            note = f"examples; {group.label}, batch {group.config['batch_size']}"
            name = f"gradient noise scale, {what}, over all steps"
            known |= draft.mean(f"noise:{key}", name, scales, note=note).value is not None
        if known:
            return
    draft.unknown("noise")
    draft.command("noise", reference, devices="cpu:2", seeds="100,101,102")
