"""Question 1: which layers should be visualized and analyzed?"""

from __future__ import annotations

import itertools

import numpy as np

from lab.analysis.resets import update_ratio
from lab.analysis.runs import Group
from lab.analysis.study import Evidence, Seen, load_data
from lab.compare.statistics import LEVEL, paired_p
from lab.report.figures import (
    above,
    across,
    command,
    curve,
    listed,
    many,
    number,
    percent,
    points,
    say,
)
from lab.report.questions.common import (
    NO_IMAGES,
    POINT,
    chance,
    names_of,
    seeds_missing,
    windows,
    without_runs,
)
from lab.report.section import Bars, Chart, Control, Figure, Mark, Picture, Section, Table, Tiles


def layers(evidence: Evidence) -> Section:
    slug, title = "layers", "1. Which layers should be visualized and analyzed?"
    group = evidence.reference
    if group is None:
        return without_runs(evidence, slug, title)
    seen = list(evidence.seen(group).values())
    names = group.runs[0].final.names
    figures: list[Figure] = []
    pictures = _ratio_pictures(group)
    controls: list[Control] = []
    unknown: list[str] = []
    commands = seeds_missing(evidence, group)
    answer = "These runs cannot say: their images are not at hand."
    if seen:
        base = across("accuracy", "test accuracy at the end", [s.accuracy for s in seen], "%")
        resets = [{(r.layer, r.part): r for r in s.resets} for s in seen]
        rewound = {
            (name, part): across(
                f"rewound:{name}:{part}",
                f"accuracy with {name} put back to its start"
                + ("" if part == "both" else f", {part} alone"),
                [reset[name, part].rewound for reset in resets],
                "%",
            )
            for name, part in itertools.product(names, ("both", "weights", "bias"))
        }
        redrawn = [
            across(f"redrawn:{n}", f"accuracy with {n} drawn afresh",
                   [float(np.mean(reset[n, "both"].redrawn)) for reset in resets], "%")
            for n in names
        ]  # fmt: skip
        figures += [base, *rewound.values(), *redrawn]
        answer = _layers_answer(group, seen, rewound, base)
        floor = chance(evidence, group)
        pictures.insert(
            0,
            Bars(
                "resets",
                "Accuracy after one layer is reset",
                f"{group.label}: the lower the bar, the more hangs on what that layer learnt;"
                " a layer drawn afresh has lost what the others are used to, too.",
                "test accuracy",
                [
                    points("put back to its start", names, [rewound[n, "both"] for n in names]),
                    points("drawn afresh", names, redrawn),
                    points("bias alone put back", names, [rewound[n, "bias"] for n in names]),
                ],
                [Mark("nothing reset", base.value or 0), Mark("most frequent class", floor)],
            ),
        )
        pictures.append(_units(evidence, group))
        pictures.append(_resets_table(evidence))
        off = max(
            abs(s.accuracy - run.result["test_accuracy"])
            for run in group.completed
            if (s := evidence.of(run).seen)
        )
        controls.append(
            Control(
                "The weights read here are those that were trained: nothing reset, their accuracy"
                " is the one on record.",
                f"The largest difference in {many(len(seen), 'run')} is"
                f" {round(off * evidence.runs.table.rows[0].total)} images."
                if evidence.runs.table.rows and evidence.runs.table.rows[0].total
                else f"The largest difference is {percent(off)}.",
                off <= 0.001,
            )
        )
        gaps = [
            np.mean([reset[n, "both"].rewound - np.mean(reset[n, "both"].redrawn) for n in names])
            for reset in resets
        ]
        controls.append(
            Control(
                "If a layer's first values meant nothing to the others, its own start would do no"
                " better than a fresh draw.",
                f"Its own start does better by {percent(float(np.mean(gaps)))} on the mean over"
                " layers and runs.",
                above(across("", "", gaps)),
            )
        )
        for name in names[:-1]:
            figures += _saturation_figures(name, [s.saturation[name] for s in seen])
        unknown.append(
            "That a layer can be put back without loss does not show that it did not need to be"
            " trained: the others were trained beside it."
        )
    else:
        unknown.append(NO_IMAGES)
    ratios = ratio_figures(group)
    figures += ratios
    if not ratios:
        unknown.append("How fast each layer moves: the norms of the updates are not on record.")
        commands.append(("update ratios", command(evidence.runs.logdir, group.config)))
    noise = _noise_figures(evidence)
    figures += noise
    if not noise:
        unknown.append("The gradient noise scale: that wants runs on two replicas or more.")
        line = command(evidence.runs.logdir, group.config, devices="cpu:2", seeds="100,101,102")
        commands.append(("the gradient noise scale by layer", line))
    return Section(slug, title, answer, figures, pictures, controls, unknown, commands)


def _layers_answer(
    group: Group, seen: list[Seen], rewound: dict[tuple[str, str], Figure], base: Figure
) -> str:
    names = list(dict.fromkeys(name for name, _ in rewound))
    order = sorted(names, key=lambda n: rewound[n, "both"].value or 0)
    first, second = order[:2]
    drops = zip(*(rewound_accuracies(seen, name) for name in (first, second)), strict=True)
    apart = len(seen) > 1 and paired_p([a - b for a, b in drops]) <= LEVEL
    falls = [f"{n} to {say(rewound[n, 'both'])}" for n in order]
    lost = {n: (base.value or 0) - (rewound[n, "both"].value or 0) for n in names}
    spared = [n for n in order if lost[n] < 5 * POINT]
    lead = first if apart else f"{first} and {second}"
    tail = "" if apart else ", which these runs cannot rank"
    biases = max(names, key=lambda n: (base.value or 0) - (rewound[n, "bias"].value or 0))
    bias_lost = (base.value or 0) - (rewound[biases, "bias"].value or 0)
    return (
        f"In {group.label} look at {lead} first{tail}: put back to their first values one by one,"
        f" the layers take the accuracy of {say(base)} down: {listed(falls)}"
        + (f", so {listed(spared)} costs little" if spared else ", so none can be left untrained")
        + (
            "; biases matter little"
            if bias_lost < POINT
            else f"; of the biases, that of {biases} alone costs {percent(bias_lost)}"
        )
        + "."
    )


def rewound_accuracies(seen: list[Seen], layer: str) -> list[float]:
    """By run, with a whole layer put back."""
    return [r.rewound for s in seen for r in s.resets if (r.layer, r.part) == (layer, "both")]


def _saturation_figures(name: str, found: list) -> list[Figure]:
    return [
        across(f"low:{name}", f"{name}'s activations at the low end", [s.low for s in found], "%"),
        across(f"high:{name}", f"{name}'s activations at the high end",
               [s.high for s in found], "%"),
        across(f"dead:{name}", f"{name}'s dead units", [s.dead for s in found],
               note=f"of {found[0].units}"),
    ]  # fmt: skip


def _ratios(group: Group, layer: str) -> list[np.ndarray]:
    found = []
    for run in group.completed:
        updates = run.every_step(f"{layer}/weights/update/norm")
        norms = run.every_step(f"{layer}/weights/norm")
        if updates is not None and norms is not None:
            found.append(update_ratio(updates, norms))
    return found


def ratio_figures(group: Group) -> list[Figure]:
    found = {layer: _ratios(group, layer) for layer in group.runs[0].final.names}
    return [
        across(f"ratio:{layer}", f"update ratio of {layer}'s weights, median over the steps",
               [np.nanmedian(ratio) for ratio in ratios])
        for layer, ratios in found.items()
        if ratios
    ]  # fmt: skip


def _ratio_pictures(group: Group) -> list[Picture]:
    series = []
    for layer in group.runs[0].final.names:
        if ratios := _ratios(group, layer):
            steps = windows(ratios[0])[0]
            series.append(curve(layer, steps.tolist(), [windows(ratio)[1] for ratio in ratios]))
    if not series:
        return []
    ends = {one.name: one.y[-1] for one in series}
    fastest = max(ends, key=lambda name: ends[name])
    return [
        Chart(
            "ratios",
            "How far one update moves each layer's weights",
            f"{group.label}: in the end {fastest} moves fastest for its size, by"
            f" {ends[fastest]:.1e} of its norm a step; 1e-3 is a rule of thumb, no law.",
            "step",
            "norm of update / norm of weights",
            series,
            [Mark("1e-3", 1e-3)],
            x_scale="log",
            y_scale="log",
        )
    ]


def _units(evidence: Evidence, group: Group) -> Picture:
    run = group.completed[0]
    rows, columns = load_data(evidence.runs.folders[group.data])[0].image_shape
    weights, start = run.final.weights[0], run.initial.weights[0]
    moved = np.linalg.norm(weights - start, axis=0)
    chosen = np.argsort(-moved, kind="stable")[:24]
    images = weights[:, chosen].T.reshape(-1, rows, columns)
    return Tiles(
        "units",
        "What the first layer looks at",
        f"{group.label}, seed {run.seed}: the incoming weights of the {len(chosen)} units of h1"
        f" that moved farthest, by {number(float(moved[chosen[-1]]))} or more; inputs that are"
        " never lit keep the noise that they began with.",
        images,
        [f"unit {unit}" for unit in chosen],
    )


def _resets_table(evidence: Evidence) -> Picture:
    rows, sensitive = [], set()
    for group in evidence.featured:
        seen = list(evidence.seen(group).values())
        if not seen:
            continue
        cells, means = [], {}
        for name in group.runs[0].final.names:
            figure = across("", "", rewound_accuracies(seen, name), "%")
            means[name] = figure.value or 0
            cells.append(say(figure))
        sensitive.add(min(means, key=lambda name: means[name]))
        rows.append((group.label, percent(float(np.mean([s.accuracy for s in seen]))), *cells))
    return Table(
        "resets-all",
        "Accuracy with one layer put back, every configuration",
        f"The layer that costs most is {listed(sorted(sensitive), 'or')}, by configuration."
        if len(sensitive) > 1
        else f"The layer that costs most is {min(sensitive)} in every configuration.",
        ("configuration", "nothing reset", *names_of(evidence)),
        rows,
    )


def _noise_figures(evidence: Evidence) -> list[Figure]:
    """Of the first configuration that was trained on several replicas."""
    for group in evidence.runs.groups:
        figures = []
        for name in ("", *(f"{layer}/weights/" for layer in names_of(evidence))):
            tags = [f"{name}gradient/noise/{kind}" for kind in ("variance", "signal")]
            pairs = [[run.every_step(tag) for tag in tags] for run in group.completed]
            # S and G2 are averaged each, then divided: see layers.noise_scale.
            scales = [
                float(s.mean() / g2.mean()) if g2.mean() > 0 else np.nan
                for s, g2 in pairs
                if s is not None and g2 is not None
            ]
            if scales:
                what = f"{name.rstrip('/')} alone" if name else "all tensors"
                figures.append(
                    across(f"noise:{name.rstrip('/') or 'all'}",
                           f"gradient noise scale, {what}, over all steps", scales, "",
                           f"examples; {group.label}, batch {group.config['batch_size']}")
                )  # fmt: skip
        if figures:
            return figures
    return []
