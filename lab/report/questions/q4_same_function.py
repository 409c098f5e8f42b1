"""Question 4: why do different models have the same performance?"""

from __future__ import annotations

from collections.abc import Callable

from lab.analysis.runs import Group
from lab.analysis.study import Evidence, Paired
from lab.report.figures import (
    above,
    across,
    all_of,
    many,
    number,
    over_pairs,
    percent,
    points,
    say,
    value,
)
from lab.report.questions.common import NO_IMAGES, seeds_missing, without_runs
from lab.report.section import Bars, Chart, Control, Figure, Picture, Section

_ALIGNED = 0.01  # a barrier, in accuracy: pairs below it count as aligned


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
        more = of("", "", lambda p: p.disagreement.share - p.disagreement.independent)
        half = of("", "", lambda p: p.disagreement.share - p.disagreement.independent / 2)
        most = of("", "", lambda p: p.before.cross_entropy_barrier / 2
                  - p.after.cross_entropy_barrier)  # fmt: skip
        drop = of("", "", lambda p: p.before.cross_entropy_barrier - p.after.cross_entropy_barrier)
        answer = (
            (
                "They are nearly the same function"
                if above(half) is False
                else {
                    False: "Their errors coincide in part",
                    True: "They are not the same function",
                    None: "Whether they are the same function these runs cannot tell",
                }[above(more)]
            )
            + f": two seeds of {group.label} disagree on {say(share)} of the test images, where"
            f" independent errors would on {value(independent)}; and"
            + (
                " most of the way between them is the order of the hidden units"
                if above(most)
                else {
                    True: " a part of the way between them is the order of the hidden units",
                    False: " the order of the hidden units does not explain the way between them",
                    None: " how much of the way between them is the order of the hidden units"
                    " these runs cannot tell",
                }[above(drop)]
            )
            + f": matched, the barrier on the straight line goes from {say(before)} to {say(after)}"
            " nats, and"
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
        gains = [
            over_pairs("", "", {k: p.cka[n] - p.cka_untrained[n] for k, p in pairs.items()})
            for n in hidden
        ]
        controls.append(
            Control(
                "If training made the layers alike, trained ones are more alike than untrained"
                " ones.",
                "; ".join(
                    f"{n}: {say(a)} against {say(b)}"
                    for n, a, b in zip(hidden, cka, untrained, strict=True)
                )
                + ".",
                all_of([above(gain) for gain in gains]),
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
            across("permuted_logits", "largest change of a logit when hidden units are permuted,"
                   " of the largest logit",
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
                f" {worst:.0e} of the largest.",
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
