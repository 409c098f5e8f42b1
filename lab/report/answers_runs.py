"""Questions 4 and 5: why runs end alike, and how their weights leave the start."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from lab.report.answers_weights import NO_IMAGES, seeds_missing, windows, without_runs
from lab.report.growth import GrowthFit, drift_ratio, growth_fit, late_trend
from lab.report.measure import Evidence, Paired, plain_sgd
from lab.report.runs import Group, Run
from lab.report.story import Bars, Chart, Control, Figure, Mark, Picture, Section, Series
from lab.report.words import (
    across,
    command,
    curve,
    listed,
    many,
    number,
    over_pairs,
    percent,
    points,
    say,
    value,
)

_ALIGNED = 0.01  # a barrier, in accuracy: pairs below it count as aligned
_FITTED = 0.99  # of the last batches' examples right: the training error is near 0


def sameness(evidence: Evidence) -> Section:
    slug, title = "sameness", "4. Why do different models have the same performance?"
    group = evidence.reference
    if group is None:
        return without_runs(evidence, slug, title)
    pairs = evidence.paired[group.label]
    seen = evidence.seen(group)
    figures: list[Figure] = []
    pictures: list[Picture] = []
    controls: list[Control] = []
    unknown = [] if seen else [NO_IMAGES]
    commands = seeds_missing(evidence, group)
    table = evidence.runs.table
    alike = [pair for pair in table.pairs if pair.p_holm > 0.05]
    if not pairs:
        answer = (
            f"These runs cannot say: {group.label} has no two completed runs whose images are"
            " at hand."
        )
    else:

        def of(key: str, name: str, take: Callable[[Paired], float], unit: str = "") -> Figure:
            return over_pairs(key, name, {k: take(pair) for k, pair in pairs.items()}, unit)

        share = of(
            "disagreement",
            "test images on which two seeds disagree",
            lambda p: p.disagreement.share,
            "%",
        )
        independent = of(
            "independent",
            "the same, were their errors independent",
            lambda p: p.disagreement.independent,
            "%",
        )
        both = of(
            "both_wrong",
            "test images on which both are wrong",
            lambda p: p.disagreement.both_wrong,
            "%",
        )
        chance = of(
            "both_wrong_independent",
            "the same, were their errors independent",
            lambda p: p.disagreement.both_wrong_independent,
            "%",
        )
        before = of(
            "barrier:before",
            "cross-entropy barrier, before matching, in nats",
            lambda p: p.before.cross_entropy_barrier,
        )
        after = of(
            "barrier:after",
            "cross-entropy barrier, after matching, in nats",
            lambda p: p.after.cross_entropy_barrier,
        )
        fell = of(
            "accuracy_barrier:before",
            "accuracy barrier, before matching",
            lambda p: p.before.accuracy_barrier,
            "%",
        )
        left = of("accuracy_barrier:after", "accuracy barrier, after matching",
                  lambda p: p.after.accuracy_barrier, "%")  # fmt: skip
        hidden = group.runs[0].final.names[:-1]
        cka, untrained = (
            [
                over_pairs(f"{key}:{n}", f"linear CKA of {n}, {words}",
                           {k: getattr(p, key)[n] for k, p in pairs.items()})
                for n in hidden
            ]
            for key, words in (("cka", "trained"), ("cka_untrained", "untrained"))
        )  # fmt: skip
        aligned = [p for p in pairs.values() if p.after.accuracy_barrier < _ALIGNED]
        figures += [share, independent, both, chance, before, after, fell, left, *cka, *untrained]
        figures.append(
            Figure("aligned", "pairs with an accuracy barrier below a point after matching",
                   len(aligned), runs=len(group.completed), note=f"of {len(pairs)}")
        )  # fmt: skip
        less = share.value is not None and share.value < (independent.value or 0)
        answer = (
            ("They are nearly the same function" if less else "They are not the same function")
            + f": two seeds of {group.label} disagree on {say(share)} of the test images, where"
            f" independent errors would on {value(independent)}; and"
            + (
                f" most of the way between them is the order of the hidden units: matched, the"
                f" barrier on the straight line falls from {say(before)} to {say(after)} nats, and"
                if (after.value or 0) < (before.value or 0) / 2
                else f" the order of the hidden units does not explain the way between them: the"
                f" barrier goes from {say(before)} to {say(after)} nats, and"
            )
            + f" {len(aligned)} of {many(len(pairs), 'pair')} lie within a point of accuracy."
        )
        pictures += [_disagreement_picture(evidence), _barrier_picture(group, pairs)]
        pictures.append(
            Bars(
                "cka",
                "How alike the hidden layers' activations are",
                f"{group.label}: linear CKA of {hidden[-1]} is {value(cka[-1])} between trained"
                f" seeds, {value(untrained[-1])} between untrained ones.",
                "linear CKA",
                [points("trained", hidden, cka), points("untrained", hidden, untrained)],
            )
        )
        controls.append(
            Control(
                "If training made the layers alike, trained ones are more alike than untrained"
                " ones.",
                "; ".join(
                    f"{n}: {say(a)} against {say(b)}"
                    for n, a, b in zip(hidden, cka, untrained, strict=True)
                )
                + ".",
                all((a.value or 0) > (b.value or 0) for a, b in zip(cka, untrained, strict=True)),
            )
        )
        if 0 < len(aligned) < len(pairs):
            unknown.append(
                f"Whether the {many(len(pairs) - len(aligned), 'pair')} that did not align could:"
                " matching finds a local optimum, not the best permutation."
            )
    if seen:
        worst = max(s.symmetry.logits_change for s in seen.values())
        near = min(s.symmetry.distance / s.symmetry.norm for s in seen.values())
        figures += [
            across("permuted_logits", "largest change of a logit when hidden units are permuted",
                   [s.symmetry.logits_change for s in seen.values()]),
            across("permuted_distance", "distance of the permuted weights, in norms of the weights",
                   [s.symmetry.distance / s.symmetry.norm for s in seen.values()]),
        ]  # fmt: skip
        controls.insert(
            0,
            Control(
                "The order of the hidden units is no part of the function: permuted, the weights"
                " are far away and the logits the same within rounding.",
                f"The weights move by {number(near)} norms or more, no logit by more than"
                f" {worst:.0e}.",
                worst < 1e-5 and near > 0.1,
            ),
        )
        again = max(s.rematched for s in seen.values())
        controls.insert(
            1,
            Control(
                "Matching finds a permutation where there is one: a permuted copy has no barrier"
                " to its original.",
                f"The largest of {many(len(seen), 'run')} is {again:.1g} nats.",
                again < 1e-5,
            ),
        )
    if table.pairs:
        figures.append(
            Figure("alike", "pairs of configurations that cannot be told apart by accuracy",
                   len(alike), runs=0, note=f"of {len(table.pairs)}, Holm's correction")
        )  # fmt: skip
    unknown.append(
        "What the network of another configuration would share with these: weights are compared"
        " within one configuration only."
    )
    return Section(slug, title, answer, figures, pictures, controls, unknown, commands)


def _disagreement_picture(evidence: Evidence) -> Picture:
    labels: list[str] = []
    shares: list[Figure] = []
    independents: list[Figure] = []
    for label, pairs in evidence.paired.items():
        if pairs:
            labels.append(label)
            for figures, key in ((shares, "share"), (independents, "independent")):
                values = {k: getattr(p.disagreement, key) for k, p in pairs.items()}
                figures.append(over_pairs("", "", values, "%"))
    ratios = {
        name: (a.value or 0) / b.value
        for name, a, b in zip(labels, shares, independents, strict=True)
        if b.value
    }
    see = "No pair errs."
    if ratios:
        low, high = (f(ratios, key=lambda name: ratios[name]) for f in (min, max))
        see = (
            f"Two seeds disagree {percent(ratios[low])} as often as independent errors would"
            f" ({low})" + (f" to {percent(ratios[high])} ({high})." if low != high else ".")
        )
    return Bars(
        "disagreement",
        "Test images on which two seeds disagree",
        see,
        "share of test images",
        [points("two seeds", labels, shares), points("independent errors", labels, independents)],
    )


def _barrier_picture(group: Group, pairs: dict[tuple[int, int], Paired]) -> Picture:
    places = next(iter(pairs.values())).before.places
    series = [
        points(
            name,
            places.tolist(),
            [
                over_pairs("", "", {k: getattr(p, key).cross_entropy[i] for k, p in pairs.items()})
                for i in range(len(places))
            ],
        )
        for key, name in (("before", "as trained"), ("after", "units matched"))
    ]
    highest = [max(one.y) for one in series]
    return Chart(
        "barrier",
        "Cross-entropy on the straight line from one seed to another",
        f"{group.label}, mean of {many(len(pairs), 'pair')}: at its highest {number(highest[0])}"
        f" nats as trained, {number(highest[1])} with the units matched.",
        "place between the two",
        "test cross-entropy, nats",
        series,
    )


def _distances(run: Run, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, ||W_t - W_0||) of a layer's weights: of every step on record, else of checkpoints."""
    every = run.every_step(f"{layer}/weights/distance")
    if every is not None:
        return np.arange(1, run.steps + 1), every
    steps = sorted(run.networks.keys() - {0})
    start = np.float64(run.initial.tensors()[f"{layer}/weights"])
    ends = [run.networks[step].tensors()[f"{layer}/weights"] for step in steps]
    return np.array(steps), np.array([np.linalg.norm(end - start) for end in ends])


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
        straight = max(known, key=lambda f: f.value or 0)
        turning = min(known, key=lambda f: f.value or 0)
        answer = (
            f"In {group.label} {going}, "
            + (
                "by drift rather than by diffusion"
                if (turning.low or turning.value or 0) > 1
                else "no straighter than a random walk"
                if (straight.high or straight.value or 0) < 1
                else "between drift and diffusion"
            )
            + f": the ratio to a random walk of the same steps is {say(turning)}"
            f" ({turning.key[6:]}) to {say(straight)} ({straight.key[6:]})"
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
    verdicts = _verdicts(group)
    if verdicts:
        words = [f"{count} of {sum(verdicts.values())} say {verdict}"
                 for verdict, count in verdicts.most_common()]  # fmt: skip
        figures += _powers(group)
        unknown.append(f"The law of growth, logarithm or power: of the fits {listed(words)}.")
    else:
        unknown.append(
            "The law of growth, logarithm or power: the distance is known at checkpoints only."
        )
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


def _fits(group: Group) -> list[tuple[str, GrowthFit]]:
    found = []
    for run in group.completed:
        for name in run.final.names:
            steps, distances = _distances(run, name)
            if len(steps) >= 100:
                found.append((name, growth_fit(steps, distances)))
    return found


def _verdicts(group: Group) -> Counter[str]:
    return Counter(fit.verdict for _, fit in _fits(group))


def _powers(group: Group) -> list[Figure]:
    fits = _fits(group)
    return [
        across(f"power:{name}", f"exponent of {name}'s distance, fitted as a power of the step",
               [fit.power.parameters[1] for other, fit in fits if other == name])
        for name in group.runs[0].final.names
    ]  # fmt: skip


def _drift_picture(evidence: Evidence) -> Picture:
    labels = []
    columns: dict[str, list[Figure]] = {}
    for group in evidence.runs.groups:
        if not group.completed:
            continue
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
        rises = (grown.low if grown.low is not None else grown.value or 0) > 0
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
        values = [s.sharpness.value for s in evidence.seen(group).values() if s.sharpness]
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
    for field, claim, wanted in (
        (
            "shuffle_labels",
            "If the data's order pulls the weights, with shuffled labels they go another distance.",
            lambda config: config.get("shuffle_labels"),
        ),
        (
            "learning_rate_decay",
            "If the steps' noise carries the weights away, a rate that decays leaves them nearer.",
            lambda config: config.get("learning_rate_decay", "none") != "none",
        ),
    ):
        others = [g for g in evidence.runs.sweep(group, field) if wanted(g.config) and g.completed]
        controls.append(_compared(group, others, claim, field == "learning_rate_decay"))
    return controls


def _total(run: Run) -> float:
    """||W_T - W_0|| of all layers' weights together."""
    ends = [_distances(run, name)[1][-1] for name in run.final.names]
    return float(np.linalg.norm(ends))


def _compared(group: Group, others: list[Group], claim: str, nearer: bool) -> Control:
    if not others:
        return Control(claim, "No such run is here.", None)
    own = across("", "", [_total(run) for run in group.completed])
    words = [f"{group.label}: {say(own)}"]
    passed: list[bool | None] = []
    for other in others:
        figure = across("", "", [_total(run) for run in other.completed])
        words.append(f"{other.label}: {say(figure)}")
        ends = (own.low, own.high, figure.low, figure.high)
        if None in ends:
            passed.append(None)
        else:
            below, above = figure.high < own.low, figure.low > own.high  # type: ignore[operator]
            passed.append(below if nearer else below or above)
    outcome = None if None in passed else all(passed)
    return Control(claim, f"Distance from the start: {'; '.join(words)}.", outcome)
