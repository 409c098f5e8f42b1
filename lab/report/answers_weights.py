"""Questions 1 to 3: which layers, what distribution, why near 0."""

from __future__ import annotations

import itertools

import numpy as np

from lab.report.growth import thin
from lab.report.layers import update_ratio
from lab.report.measure import LIMITS, Evidence, Seen, load_data
from lab.report.runs import Group
from lab.report.story import Bars, Chart, Control, Figure, Mark, Picture, Section, Series, Tiles
from lab.report.story import Table as Rows
from lab.report.words import (
    across,
    command,
    curve,
    listed,
    many,
    number,
    percent,
    points,
    say,
    value,
)
from lab.statistics import LEVEL, paired_p

_SEEDS = 5
_POINT = 0.01  # an accuracy lost


def without_runs(evidence: Evidence, slug: str, title: str) -> Section:
    """A question that no run here can answer."""
    fill = ("a run", command(evidence.runs.logdir, seeds=_SEEDS))
    return Section(slug, title, "These runs cannot say: none completed.", commands=[fill])


def seeds_missing(evidence: Evidence, group: Group) -> list[tuple[str, str]]:
    """The command for intervals, where there are too few runs for them."""
    if len(group.completed) >= 3:
        return []
    line = command(evidence.runs.logdir, group.config, seeds=_SEEDS)
    return [(f"intervals: {_SEEDS} seeds of {group.label}", line)]


NO_IMAGES = "All that needs images: the data of these runs are not at hand."


def chance(evidence: Evidence, group: Group) -> float:
    """The accuracy of always saying the most frequent class of the test set."""
    labels = load_data(evidence.runs.folders[group.data])[0].test_labels
    return float(np.bincount(labels).max() / len(labels))


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
            reset[n, "both"].rewound - np.mean(reset[n, "both"].redrawn)
            for reset, n in itertools.product(resets, names)
        ]
        controls.append(
            Control(
                "If a layer's first values meant nothing to the others, its own start would do no"
                " better than a fresh draw.",
                f"Its own start does better by {percent(float(np.mean(gaps)))} on the mean over"
                " layers and runs.",
                bool(np.mean(gaps) > 0),
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
    spared = [n for n in order if lost[n] < 5 * _POINT]
    lead = first if apart else f"{first} and {second}"
    tail = "" if apart else ", which these runs cannot rank"
    biases = max(names, key=lambda n: (base.value or 0) - (rewound[n, "bias"].value or 0))
    bias_lost = (base.value or 0) - (rewound[biases, "bias"].value or 0)
    return (
        f"In {group.label} look at {lead} first{tail}: put back to their first values one by one,"
        f" the layers take the accuracy of {say(base)} down: {listed(falls)}"
        + (f", so {listed(spared)} can be spared" if spared else ", so none can be left out")
        + (
            "; biases matter little"
            if bias_lost < _POINT
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


def windows(values: np.ndarray, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """(last steps, means) of `count` windows of about equal width in log t, of a value a step."""
    edges = thin(np.arange(1, len(values) + 1), count)
    starts = np.concatenate([[0], edges[:-1] + 1])
    return edges + 1, np.add.reduceat(values, starts) / np.diff([*starts, edges[-1] + 1])


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
    for group in evidence.runs.groups:
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
    return Rows(
        "resets-all",
        "Accuracy with one layer put back, every configuration",
        f"The layer that costs most is {listed(sorted(sensitive), 'or')}, by configuration."
        if len(sensitive) > 1
        else f"The layer that costs most is {min(sensitive)} in every configuration.",
        ("configuration", "nothing reset", *group_names(evidence)),
        rows,
    )


def group_names(evidence: Evidence) -> tuple[str, ...]:
    assert evidence.reference
    return evidence.reference.runs[0].final.names


def _noise_figures(evidence: Evidence) -> list[Figure]:
    """Of the first configuration that was trained on several replicas."""
    for group in evidence.runs.groups:
        figures = []
        for name in ("", *(f"{layer}/weights/" for layer in group_names(evidence))):
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


def distribution(evidence: Evidence) -> Section:
    slug, title = "distribution", "2. How should the weights be distributed?"
    group = evidence.reference
    if group is None:
        return without_runs(evidence, slug, title)
    seen = list(evidence.seen(group).values())
    found = [evidence.of(run) for run in group.completed]
    names = group.runs[0].final.names
    figures: list[Figure] = []
    pictures: list[Picture] = []
    controls: list[Control] = []
    unknown: list[str] = []
    commands = seeds_missing(evidence, group)
    outside = {}
    for name in names:
        spectra = [one.spectra[name] for one in found]
        outside[name] = across(
            f"outside:{name}",
            f"{name}'s singular values beyond the edge, at the end",
            [s.outside for s in spectra],
            "",
            f"of {len(spectra[0].singular)}",
        )
        figures += [
            outside[name],
            across(f"outside_initial:{name}", f"{name}'s singular values beyond it, at the start",
                   [s.initial_outside for s in spectra]),
            across(f"stable_rank:{name}", f"{name}'s stable rank, at the end",
                   [s.stable_rank for s in spectra]),
            across(f"stable_rank_initial:{name}", f"{name}'s stable rank, at the start",
                   [s.initial_stable_rank for s in spectra]),
            across(f"kurtosis:{name}", f"{name}'s excess kurtosis, rows standardized, at the end",
                   [one.kurtosis[name][1] for one in found]),
        ]  # fmt: skip
    beyond = [f"{value(outside[n])} of {outside[n].note[3:]} in {n}" for n in names]
    answer = (
        f"What training adds stands in few directions: in {group.label} {listed(beyond)} of the"
        " singular values lie beyond the edge of noise."
    )
    if seen:
        base = across("accuracy", "test accuracy at the end", [s.accuracy for s in seen], "%")
        shuffled = [
            across(f"shuffled:{'+'.join(test.layers)}",
                   f"accuracy with the entries of {listed(test.layers)} shuffled",
                   [s.shuffles[i].accuracy for s in seen], "%")
            for i, test in enumerate(seen[0].shuffles)
        ]  # fmt: skip
        ranks = [low.rank for low in seen[0].low_rank]
        kept, alone = (
            [
                across(f"{key}:{rank}", f"accuracy with {words} {rank}",
                       [getattr(s.low_rank[i], part) for s in seen], "%")
                for i, rank in enumerate(ranks)
            ]
            for key, words, part in (
                ("rank", "every layer's change cut to rank", "accuracy"),
                ("rank_alone", "nothing but the change, cut to rank", "accuracy_without_initial"),
            )
        )  # fmt: skip
        figures = [base, *shuffled, *kept, *alone, *figures]
        floor = chance(evidence, group)
        enough = [r for r, f in zip(ranks, kept, strict=True)
                  if (f.value or 0) >= (base.value or 0) - _POINT]  # fmt: skip
        lost = (base.value or 0) - (shuffled[-1].value or 0)
        same = all(test.same_counts for s in seen for test in s.shuffles)
        if lost < _POINT:
            answer = (
                f"These runs cannot say: {group.label} is at {say(base)}, and shuffling its weights"
                f" leaves {say(shuffled[-1])}."
            )
        else:
            answer = (
                "A histogram does not say: with the entries of every layer shuffled the histograms"
                f" of {group.label} are the same, count for count, and the accuracy falls from"
                f" {say(base)} to {say(shuffled[-1])}; what counts is the order, and of it "
                + (
                    f"{enough[0]} directions a layer give the accuracy back to within a point"
                    f" ({value(kept[ranks.index(enough[0])])})."
                    if enough
                    else f"even {ranks[-1]} directions a layer give back no more than"
                    f" {value(kept[-1])}."
                )
            )
        places = [listed(test.layers) if len(test.layers) == 1 else "all"
                  for test in seen[0].shuffles]  # fmt: skip
        pictures.append(
            Bars(
                "shuffles",
                "Accuracy after the entries of a layer are shuffled",
                f"Every histogram is what it was; the accuracy is between"
                f" {percent(min(f.value or 0 for f in shuffled))} and"
                f" {percent(max(f.value or 0 for f in shuffled))}.",
                "test accuracy",
                [points("shuffled", places, shuffled)],
                [Mark("not shuffled", base.value or 0), Mark("most frequent class", floor)],
            )
        )
        pictures.append(
            Chart(
                "ranks",
                "Accuracy with the change of every layer cut to a rank",
                f"With {ranks[-1]} directions {value(kept[-1])} is back,"
                f" and {value(alone[-1])} without the initial weights.",
                "rank kept",
                "test accuracy",
                [points("on the initial weights", ranks, kept),
                 points("without them", ranks, alone, "dashes")],
                [Mark("whole", base.value or 0)],
                x_scale="log",
            )
        )  # fmt: skip
        falls = [s.accuracy - s.shuffles[-1].accuracy for s in seen]
        fall = across("", "", falls, "%")
        controls.append(
            Control(
                "If the histograms determined the function, the shuffled networks would keep their"
                " accuracy.",
                f"Equal counts of every value: {'yes' if same else 'no'}; the accuracy falls by"
                f" {say(fall)}.",
                same and (fall.value or 0) > 0 and (fall.low is None or fall.low > 0),
            )
        )
    else:
        unknown.append(NO_IMAGES)
    widest = max(names[:-1], key=lambda n: len(found[0].spectra[n].singular))
    pictures.append(_spectrum_picture(evidence, group, widest))
    beyond_edge = sum(one.spectra[n].initial_outside for one in found for n in names)
    total = sum(len(one.spectra[n].singular) for one in found for n in names)
    controls.append(
        Control(
            "The edge is one of noise: the initial weights stand inside it, but for chance at"
            " the rim.",
            f"{beyond_edge} of {total:,} initial singular values are beyond it.",
            beyond_edge <= 0.01 * total,
        )
    )
    scales = evidence.runs.sweep(group, "init_stddev", "initializer")
    if len({g.config["init_stddev"] for g in scales}) > 2:
        pictures.append(scale_picture(scales))
    else:
        unknown.append("How much the scale of the initial weights decides.")
        line = command(evidence.runs.logdir, grid="init_scale", seeds=3)
        commands.append(("the initial scale, from 0.005 to 1", line))
    unknown.append(
        "A best distribution: these are the distributions that training reached, not those that it"
        " was made to keep."
    )
    return Section(slug, title, answer, figures, pictures, controls, unknown, commands)


def _spectrum_picture(evidence: Evidence, group: Group, name: str) -> Picture:
    spectra = [evidence.of(run).spectra[name] for run in group.completed]
    x = list(range(1, len(spectra[0].singular) + 1))
    outside = [s.outside for s in spectra]
    return Chart(
        "spectrum",
        f"Singular values of {name}'s weights",
        f"{group.label}: {_between(outside)} of {len(x)} stand beyond the Marchenko-Pastur edge of"
        f" the initial law at the end, {_between([s.initial_outside for s in spectra])} at the"
        " start.",
        "place",
        "singular value",
        [curve("end", x, [s.singular for s in spectra]),
         curve("start", x, [s.initial_singular for s in spectra])],
        [Mark("edge of noise", spectra[0].edge)],
        y_scale="log",
    )  # fmt: skip


def _between(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def scale_picture(scales: list[Group]) -> Picture:
    """Accuracy against the initial scale; sgd and others in a series each would be other sweeps."""
    normal = sorted(
        (g for g in scales if g.config["initializer"] == "normal" and g.config["init_stddev"] > 0),
        key=lambda g: g.config["init_stddev"],
    )
    x = [g.config["init_stddev"] for g in normal]
    accuracies = [across("", "", [r.result["test_accuracy"] for r in g.runs], "%") for g in normal]
    best = max(accuracies, key=lambda f: f.value or 0)
    good = [s for s, f in zip(x, accuracies, strict=True)
            if (f.value or 0) >= (best.value or 0) - _POINT]  # fmt: skip
    others = [g for g in scales if g.config["initializer"] != "normal"]
    marks = [
        Mark(g.config["initializer"], float(np.mean([r.result["test_accuracy"] for r in g.runs])))
        for g in others
    ]
    return Chart(
        "scales",
        "Accuracy against the scale of the initial weights",
        f"{normal[0].config['optimizer']} {normal[0].config['learning_rate']:g}: initial standard"
        f" deviations of {listed([f'{s:g}' for s in good])} come within a point of the best.",
        "standard deviation of the initial weights",
        "test accuracy",
        [points("normal", x, accuracies)],
        marks,
        x_scale="log",
    )


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
    for other in evidence.runs.groups:
        if other.completed:
            nets = [np.concatenate([w.ravel() for w in run.final.weights])
                    for run in other.completed]  # fmt: skip
            others[other.label] = across("", "", [np.mean(np.abs(w) < limit) for w in nets], "%")
    low, high = (f(others, key=lambda name: others[name].value or 0) for f in (min, max))
    answer = (
        f"They begin there: {value(start)} of the weights of {group.label} are within {limit} of 0"
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
                ("square_norm", "E||x||^2 of the inputs", "square_norm"),
                ("weight_rms", "root mean square of h1's weights, at the end", "weight"),
                ("preactivation_rms", "root mean square of h1's pre-activations", "measured"),
            )
        )
        figures += [square, root, measured]
        answer += (
            f"; and it is not small: with E||x||^2 = {value(square)} a root mean square of"
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
        equal = [one for _, one in still if one.unmoved == one.never_lit]
        dark = sorted({one.never_lit for _, one in still if one.never_lit is not None})
        figures.append(across("never_lit", "inputs that are 0 in every training image",
                              [one.never_lit or 0 for one in found]))  # fmt: skip
        figures.append(across("unmoved", "rows of h1's weights that never moved",
                              [one.unmoved for one in found]))  # fmt: skip
        controls.append(
            Control(
                "Weights that get no gradient stay where they began: as many rows of h1 are"
                " unmoved, bit for bit, as inputs are never lit.",
                f"Equal in {len(equal)} of {many(len(still), 'run')}"
                f" ({listed([number(d) for d in dark], 'or')} such inputs).",
                len(equal) == len(still),
            )
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
    bad = np.flatnonzero(getattr(s.pruning, curve) < s.accuracy - _POINT)
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
        (gain.value or 0) > 0 and (gain.low is None or gain.low > 0),
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
    for group in evidence.runs.groups:
        if not group.completed:
            continue
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
    for group in evidence.runs.groups:
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
