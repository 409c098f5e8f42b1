"""Question 2: how should the weights be distributed?"""

from __future__ import annotations

import numpy as np

from lab.analysis.runs import Group
from lab.analysis.study import Evidence
from lab.report.figures import above, across, command, curve, listed, percent, points, say, value
from lab.report.questions.common import NO_IMAGES, POINT, chance, seeds_missing, without_runs
from lab.report.section import Bars, Chart, Control, Figure, Mark, Picture, Section


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
                  if (f.value or 0) >= (base.value or 0) - POINT]  # fmt: skip
        lost = (base.value or 0) - (shuffled[-1].value or 0)
        same = all(test.same_counts for s in seen for test in s.shuffles)
        if lost < POINT:
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
                    else f"{ranks[-1]} directions a layer give back {value(kept[-1])}."
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
                above(fall) if same else False,
            )
        )
    else:
        unknown.append(NO_IMAGES)
    widest = max(names[:-1], key=lambda n: len(found[0].spectra[n].singular))
    pictures.append(_spectrum_picture(evidence, group, widest))
    starts = [(one.spectra[n], sum(np.sqrt(w.shape)))
              for one in found
              for n, w in zip(names, group.runs[0].final.weights, strict=True)]  # fmt: skip
    past = [s for s, width in starts if s.initial_singular[0] > s.edge * (1 + 1 / width)]
    controls.append(
        Control(
            "The edge is one of noise: the initial weights stand inside it, or past it by less than"
            " one standard deviation of a weight.",
            f"{len(starts) - len(past)} of {len(starts)} initial matrices do.",
            not past,
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
            if (f.value or 0) >= (best.value or 0) - POINT]  # fmt: skip
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
