"""Question 5: why do the distributions diverge over the iterations?"""

from __future__ import annotations

import numpy as np

from lab.analysis.drift import drift_ratio, growth_exponent, late_trend
from lab.analysis.runs import Group, Run
from lab.analysis.study import Evidence, plain_sgd
from lab.report.figures import (
    above,
    across,
    all_of,
    command,
    curve,
    listed,
    many,
    number,
    points,
    say,
    value,
)
from lab.report.questions.common import seeds_missing, windows, without_runs
from lab.report.section import Bars, Chart, Control, Figure, Mark, Picture, Section, Series

_FIT_POINTS = 20  # distances on record, for a fit of their law
_FITTED = 0.99  # of the last batches' examples right: the training error is near 0


def _distances(run: Run, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, ||W_t - W_0||) of a layer's weights, at every step that has it or its weights."""
    start = np.float64(run.initial.tensors()[f"{layer}/weights"])
    found = dict(zip(*run.scalars.get(f"{layer}/weights/distance", ((), ())), strict=True))
    for step in run.networks.keys() - {0}:
        end = run.networks[step].tensors()[f"{layer}/weights"]
        found[step] = float(np.linalg.norm(end - start))
    steps = sorted(found)
    return np.array(steps), np.array([found[step] for step in steps])


def drift(run: Run, layer: str) -> float | None:
    """||W_T - W_0|| / sqrt(sum ||dW_t||^2) of a layer's weights, if every update is on record."""
    updates = run.every_step(f"{layer}/weights/update/norm")
    return None if updates is None else drift_ratio(_distances(run, layer)[1][-1], updates)


def _drifts(group: Group, layer: str, key: str = "") -> Figure:
    found = [ratio for run in group.completed if (ratio := drift(run, layer)) is not None]
    return across(key, f"drift ratio of {layer}'s weights", found)


def growth(evidence: Evidence) -> Section:
    slug, title = (
        "growth",
        "5. Why do the distributions of weights and biases diverge over the iterations?",
    )
    group = evidence.reference
    if group is None:
        return without_runs(evidence, slug, title)
    runs, names = group.completed, group.runs[0].final.names
    logdir = evidence.runs.logdir
    figures: list[Figure] = []
    unknown: list[str] = []
    commands = seeds_missing(evidence, group)
    pictures: list[Picture] = []
    drifts = [_drifts(group, name, f"drift:{name}") for name in names]
    known = [f for f in drifts if f.value is not None]
    figures += known
    for name in names:
        ends = [_distances(run, name)[1][-1] for run in runs]
        starts = [np.linalg.norm(run.initial.tensors()[f"{name}/weights"]) for run in runs]
        figures.append(
            across(f"distance:{name}", f"distance of {name}'s weights from their start, in norms"
                   " of the start", np.divide(ends, starts))
        )  # fmt: skip
    far = max(figures[len(known) :], key=lambda f: f.value or 0)
    going = f"the weights of {far.key.partition(':')[2]} go {say(far)} times their first norm away"
    if known:
        said = {f.key[6:]: above(f, 1) for f in known}
        by = {v: listed([n for n, one in said.items() if one is v]) for v in set(said.values())}
        forms = {
            True: "by drift, straighter than a random walk, in {}",
            False: "less far than a random walk in {}",
            None: "not told from a random walk in {}",
        }
        answer = (
            f"In {group.label} {going}, "
            + "; ".join(forms[v].format(by[v]) for v in forms if v in by)
            + ": the ratio to a random walk of the same steps is "
            + listed([f"{say(f)} in {f.key[6:]}" for f in known])
        )
        pictures.append(_drift_picture(evidence))
    else:
        answer = (
            f"In {group.label} {going}; whether by drift or by diffusion these runs cannot say,"
            " since they have no norms of the updates on record"
        )
        unknown.append("Drift or diffusion: the norms of the updates are not on record.")
        line = command(logdir, group.config, seeds=len(runs))
        commands.append(("the norms of every update, which newer runs record", line))
    pictures.insert(0, _distance_picture(group))
    powers = _powers(group)
    figures += powers
    if not powers:
        unknown.append("The exponent of growth: the distance is on record at too few steps.")
    late, more = _late(group)
    figures += late
    answer += more + "."
    pictures += _late_pictures(group)
    controls = _growth_controls(evidence, group)
    sharp, picture = _sharpness(evidence)
    figures += sharp
    if picture:
        pictures.append(picture)
        unknown.append(
            "Whether 2/rate holds the sharpness down: it is a heuristic for sgd, measured at the"
            " end only, and does not hold for adaptive rules as it stands."
        )
    for field in ("shuffle_labels", "learning_rate_decay"):
        if len(evidence.runs.sweep(group, field)) < 2:
            gap = ("shuffled labels and decayed rates", command(logdir, grid="controls", seeds=3))
            if gap not in commands:
                commands.append(gap)
    unknown.append(
        "What a momentum does to the ratio: steps that hold on to their direction raise it"
        " without any pull of the loss."
    )
    return Section(slug, title, answer, figures, pictures, controls, unknown, commands)


def _distance_picture(group: Group) -> Picture:
    series, last = [], {}
    for name in group.runs[0].final.names:
        found = [_distances(run, name) for run in group.completed]
        steps = found[0][0]
        found = [pair for pair in found if np.array_equal(pair[0], steps)]
        if len(steps) > 60:
            chosen = windows(np.zeros(len(steps)))[0] - 1
            one = curve(name, steps[chosen].tolist(), [d[chosen] for _, d in found])
        else:
            one = curve(name, steps.tolist(), [d for _, d in found])
        last[name] = one.y[-1]
        series.append(one)
    farthest = max(last, key=lambda name: last[name])
    several = len(series[0].x) > 1
    return Chart(
        "distance",
        "How far each layer's weights are from their start",
        f"{group.label}: {farthest} is farthest, {number(last[farthest])} at step"
        f" {series[0].x[-1]:,}; on these axes a power law is a straight line.",
        "step",
        "norm of W_t - W_0",
        series,
        x_scale="log" if several else "linear",
        y_scale="log",
    )


def _powers(group: Group) -> list[Figure]:
    found: dict[str, list[float]] = {}
    for run in group.completed:
        for name in run.final.names:
            steps, distances = _distances(run, name)
            if len(steps) >= _FIT_POINTS:
                found.setdefault(name, []).append(growth_exponent(steps, distances))
    return [
        across(f"power:{name}", f"exponent of {name}'s distance, fitted as a power of the step",
               exponents)
        for name, exponents in found.items()
    ]  # fmt: skip


def _drift_picture(evidence: Evidence) -> Picture:
    labels = []
    columns: dict[str, list[Figure]] = {}
    for group in evidence.featured:
        figures = {name: _drifts(group, name) for name in group.runs[0].final.names}
        if all(f.value is not None for f in figures.values()):
            labels.append(group.label)
            for name, figure in figures.items():
                columns.setdefault(name, []).append(figure)
    every = [f.value or 0 for figures in columns.values() for f in figures]
    return Bars(
        "drift",
        "Drift or diffusion, by configuration and layer",
        f"1 is a random walk of the same steps; here it is {number(min(every))} to"
        f" {number(max(every))}, above 1 in {sum(v > 1 for v in every)} of {len(every)}.",
        "distance / root of summed squared steps",
        [points(name, labels, figures) for name, figures in columns.items()],
        [Mark("random walk", 1)],
    )


def _norm(run: Run) -> np.ndarray | None:
    """||W_t|| of all layers' weights together, by step."""
    found = [run.every_step(f"{name}/weights/norm") for name in run.final.names]
    kept = [norm for norm in found if norm is not None]
    return np.sqrt(np.sum(np.square(kept), axis=0)) if len(kept) == len(found) else None


def _late(group: Group) -> tuple[list[Figure], str]:
    """What goes on in the last third: figures, and words for the answer."""
    runs = group.completed
    figures = []
    norms = [norm for run in runs if (norm := _norm(run)) is not None]
    if norms:
        trends = [late_trend(np.arange(1, len(n) + 1), n).change for n in norms if len(n) > 2]
        figures.append(across("late_norm", "relative change of the weights' norm over the last"
                              " third of the steps", trends))  # fmt: skip
    tests = [
        late_trend(*series).change
        for run in runs
        if len((series := run.scalars.get("test-loss", ((), ())))[0]) >= 6
    ]
    if tests:
        figures.append(across("late_test_loss", "relative change of the test loss over the last"
                              " third of the steps", tests))  # fmt: skip
    accuracies = [run.every_step("accuracy") for run in runs]
    right = across("late_accuracy", "batches' examples right, over the last third of the steps",
                   [a[-max(len(a) // 3, 1) :].mean() for a in accuracies if a is not None],
                   "%")  # fmt: skip
    figures.append(right)
    by_key = {figure.key: figure for figure in figures}
    words = ""
    if grown := by_key.get("late_norm"):
        rises = above(grown)
        words = (
            f"; in the last third the weights' norm {'still rises' if rises else 'changes'} by a"
            f" share of {say(grown)}, with {value(right)} of the batches' examples right"
            + (" (the fit is near its end)" if (right.value or 0) >= _FITTED else "")
        )
        if test := by_key.get("late_test_loss"):
            words += f" and the test loss changing by {say(test)} of itself"
    return figures, words


def _late_pictures(group: Group) -> list[Picture]:
    norms = [norm for run in group.completed if (norm := _norm(run)) is not None]
    tests = [run.scalars.get("test-loss") for run in group.completed]
    kept = [pair for pair in tests if pair is not None and len(pair[0]) > 1]
    if not norms or not kept:
        return []
    steps = kept[0][0]
    values = [v for s, v in kept if np.array_equal(s, steps)]
    losses = curve("test loss, nats", steps.tolist(), values)
    base = [norm[steps - 1] / norm[0] for norm in norms]
    sizes = curve("weights' norm, first step = 1", steps.tolist(), base)
    lowest = int(np.argmin(losses.y))
    turn = "at the last evaluation" if lowest == len(steps) - 1 else f"at step {steps[lowest]:,}"
    return [
        Chart(
            "late",
            "Norm of the weights and test loss",
            f"{group.label}: the test loss is lowest {turn}; the norm ends at"
            f" {number(sizes.y[-1])} times that of the first step.",
            "step",
            "nats; ratio",
            [losses, sizes],
            y_scale="log",
        )
    ]


def _sharpness(evidence: Evidence) -> tuple[list[Figure], Picture | None]:
    labels, found, limits = [], [], []
    for group in evidence.runs.groups:
        values = [s.value for run in group.completed if (s := evidence.of(run).sharpness)]
        rate = group.completed[0].result.get("effective_learning_rate") if values else None
        if rate and plain_sgd(group.config):
            labels.append(group.label)
            found.append(across(f"sharpness:{group.label}", f"sharpness at the end, {group.label}",
                                values, note=f"2/rate is {2 / rate:.3g}"))  # fmt: skip
            limits.append(2 / rate)
    if not found:
        return [], None
    above = [name for name, f, limit in zip(labels, found, limits, strict=True)
             if (f.value or 0) > limit]  # fmt: skip
    picture = Bars(
        "sharpness",
        "Sharpness at the end, beside 2/rate",
        f"It stands above 2/rate in {listed(above)}."
        if above
        else "It stays below 2/rate in every configuration of sgd here.",
        "largest Hessian eigenvalue of the mean loss",
        [points("sharpness", labels, found), Series("2/rate", labels, limits, style="points")],
        y_scale="log",
    )
    return found, picture


def _growth_controls(evidence: Evidence, group: Group) -> list[Control]:
    runs, controls = group.completed, []
    dark = [evidence.of(run) for run in runs if evidence.of(run).never_lit is not None]
    if dark:
        still = [one.lighting[0].mean for one in dark if one.lighting and one.lighting[0].pixels]
        controls.append(
            Control(
                "What gets no gradient does not diverge: the rows of inputs never lit stay.",
                f"They moved by {number(max(still))} in {many(len(still), 'run')}."
                if still
                else "These data have no such input.",
                max(still) == 0 if still else None,
            )
        )
    shuffled = evidence.runs.sweep(group, "shuffle_labels")
    controls.append(_shuffled(group, [g for g in shuffled if g.config.get("shuffle_labels")]))
    rates = evidence.runs.sweep(group, "learning_rate_decay")
    fixed = ("none", group.config.get("learning_rate_decay", "none"))
    controls.append(
        _decayed([g for g in rates if g.config.get("learning_rate_decay", "none") not in fixed])
    )
    return controls


def _total(run: Run) -> float:
    """||W_T - W_0|| of all layers' weights together."""
    ends = [_distances(run, name)[1][-1] for name in run.final.names]
    return float(np.linalg.norm(ends))


def _shuffled(group: Group, others: list[Group]) -> Control:
    """Compares those that completed: what collapsed stood still for another reason."""
    claim = "If the data's order pulls the weights, with shuffled labels they go another distance."
    if not others:
        return Control(claim, "No such run is here.", None)
    own = across("", "", [_total(run) for run in group.completed])
    words = [f"{group.label}: {say(own)}"]
    passed: list[bool | None] = []
    for other in others:
        figure = across("", "", [_total(run) for run in other.completed])
        dead = len(other.runs) - len(other.completed)
        fate = f", {dead} of {many(len(other.runs), 'run')} collapsed" if dead else ""
        words.append(f"{other.label}: {say(figure)}{fate}")
        if own.low is None or own.high is None or figure.low is None or figure.high is None:
            passed.append(None)
        else:
            passed.append(figure.high < own.low or figure.low > own.high)
    return Control(claim, f"Distance from the start: {'; '.join(words)}.", all_of(passed))


def _decayed(others: list[Group]) -> Control:
    claim = (
        "If it were the steps' noise alone that carries the weights away, the ratio to a random"
        " walk of the same steps would be 1 or less where the rate decays, too."
    )
    ratios = {
        (g.label, name): f
        for g in others
        for name in (g.completed[0].final.names if g.completed else ())
        if (f := _drifts(g, name)).value is not None
    }
    if not ratios:
        return Control(claim, "No such run is here that has its updates on record.", None)
    words = [
        f"{label}: "
        + listed([f"{say(f)} in {n}" for (one, n), f in ratios.items() if one == label])
        for label in dict.fromkeys(label for label, _ in ratios)
    ]
    return Control(claim, "; ".join(words) + ".", all_of([above(f, 1) for f in ratios.values()]))
