"""Question 4: why do different models have the same performance?"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

from lab.analysis.runs import Group
from lab.analysis.study import ImageMeasurements, PairMeasurements
from lab.report.draft import Draft
from lab.report.figures import above, all_of, over_pairs, points, with_interval
from lab.report.questions.common import about_reference
from lab.report.section import Figure, Section

_ALIGNED = 0.01  # an accuracy barrier below which a pair counts as aligned
_PAIRS_SHOWN = 15

Pairs = dict[tuple[int, int], PairMeasurements]


@about_reference
def sameness(draft: Draft, group: Group) -> Section:
    if not group.known:
        draft.commands.clear()  # other seeds would not help
        return draft.section("not_applicable")
    pairs = draft.evidence.paired[group.label]
    measured = list(draft.evidence.on_images(group).values())
    if measured:
        _permutations(draft, measured)
    else:
        draft.unknown("no_images")
    outcome, facts = _pairs(draft, group, pairs) if pairs else ("no_pair", {})
    if table := draft.evidence.runs.table.pairs:
        alike = sum(pair.p_holm > 0.05 for pair in table)
        what = "pairs of configurations whose accuracies do not differ significantly"
        note = f"of {len(table)}, Holm's correction"
        draft.add(Figure("alike", what, alike, runs=0, note=note))
    draft.unknown("others")
    return draft.section(outcome, **facts)


def _pairs(draft: Draft, group: Group, pairs: Pairs) -> tuple[str, dict]:
    """Adds what pairs of seeds share; returns the outcome and its facts."""

    def mean(
        key: str, name: str, take: Callable[[PairMeasurements], float], unit: str = ""
    ) -> Figure:
        values = {seeds: take(pair) for seeds, pair in pairs.items()}
        known = {seeds: value for seeds, value in values.items() if math.isfinite(value)}
        figure = over_pairs(key, name, known, unit)
        draft.add(figure)
        return figure

    independent_name = "the same, were their errors independent"
    share = mean("disagreement", "test images on which two seeds disagree",
                 lambda p: p.disagreement.share, "%")  # fmt: skip
    independent = mean("independent", independent_name, lambda p: p.disagreement.independent, "%")
    mean("both_wrong", "test images on which both are wrong",
         lambda p: p.disagreement.both_wrong, "%")  # fmt: skip
    mean("both_wrong_independent", independent_name,
         lambda p: p.disagreement.both_wrong_independent, "%")  # fmt: skip
    shared = mean("shared", "errors of a seed that another one makes too", _shared, "%")
    barriers = {}
    for when in ("before", "after"):
        entropy = operator.attrgetter(f"{when}.cross_entropy_barrier")
        accuracy = operator.attrgetter(f"{when}.accuracy_barrier")
        what = f"cross-entropy barrier, {when} matching, in nats"
        barriers[when] = mean(f"barrier:{when}", what, entropy)
        mean(f"accuracy_barrier:{when}", f"accuracy barrier, {when} matching", accuracy, "%")
    aligned = [p for p in pairs.values() if p.after.accuracy_barrier < _ALIGNED]
    draft.add(
        Figure("aligned", "pairs with an accuracy barrier below a point after matching",
               len(aligned), runs=len(group.completed), note=f"of {len(pairs)}")
    )  # fmt: skip
    _disagreements(draft)
    _barriers(draft, pairs)
    _cka(draft, group, pairs)
    if 0 < len(aligned) < len(pairs):
        draft.unknown("unaligned", count=len(pairs) - len(aligned))

    # What both get wrong, beside what chance explains; and half of what either gets wrong.
    more = over_pairs("", "", {
        seeds: p.disagreement.both_wrong - p.disagreement.both_wrong_independent
        for seeds, p in pairs.items()
    })  # fmt: skip
    most = over_pairs("", "", {
        seeds: part - 0.5 for seeds, p in pairs.items() if not math.isnan(part := _shared(p))
    })  # fmt: skip
    outcome = {True: "partly_same", False: "not_same", None: "cannot_tell"}[above(more)]
    if outcome == "partly_same" and above(most):
        outcome = "nearly_same"
    after = sorted(p.after.cross_entropy_barrier for p in pairs.values())
    facts = {"share": share, "independent": independent, "shared": shared,
             "aligned": len(aligned), "pairs": len(pairs), "after": after,
             "before": barriers["before"]}  # fmt: skip
    return outcome, facts


def _shared(pair: PairMeasurements) -> float:
    """The share of one's errors that the other makes too; the geometric mean of both shares."""
    product = pair.disagreement.both_wrong_independent  # of the two error rates
    return pair.disagreement.both_wrong / math.sqrt(product) if product else math.nan


def _disagreements(draft: Draft) -> None:
    paired = {label: pairs for label, pairs in draft.evidence.paired.items() if pairs}

    def shares(key: str) -> list[Figure]:
        return [
            over_pairs("", "", {k: getattr(p.disagreement, key) for k, p in pairs.items()}, "%")
            for pairs in paired.values()
        ]

    labels, found, chance = list(paired), shares("share"), shares("independent")
    ratios = [
        ((one.value or 0) / other.value, label)
        for label, one, other in zip(labels, found, chance, strict=True)
        if other.value
    ]
    draft.bars(
        "disagreement",
        "share of test images",
        [points("two seeds", labels, found), points("independent errors", labels, chance)],
        least=min(ratios, default=None),
        most=max(ratios, default=None),
    )


def _barriers(draft: Draft, pairs: Pairs) -> None:
    places = next(iter(pairs.values())).before.places.tolist()
    series = [
        points(
            name,
            places,
            [
                over_pairs("", "", {k: getattr(p, key).cross_entropy[i] for k, p in pairs.items()})
                for i in range(len(places))
            ],
        )
        for key, name in (("before", "as trained"), ("after", "units matched"))
    ]
    highest = [max(one.y) for one in series]
    draft.chart(
        "barrier", "place between the two", "test cross-entropy, nats", series,
        pairs=len(pairs), highest=highest,
    )  # fmt: skip
    hidden = list(next(iter(pairs.values())).cka)
    columns = ("seeds", "barrier as trained, nats", "units matched", "in accuracy",
               *(f"CKA of {name}" for name in hidden))  # fmt: skip
    ordered = sorted(pairs.items(), key=lambda pair: pair[1].after.cross_entropy_barrier)
    rows = [
        (f"{a} and {b}", f"{p.before.cross_entropy_barrier:.3f}",
         f"{p.after.cross_entropy_barrier:.3f}", f"{100 * p.after.accuracy_barrier:.2f}%",
         *(f"{p.cka[name]:.3f}" for name in hidden))
        for (a, b), p in ordered[:_PAIRS_SHOWN]
    ]  # fmt: skip
    draft.table("pairs", columns, rows, shown=len(rows), pairs=len(pairs))


def _cka(draft: Draft, group: Group, pairs: Pairs) -> None:
    hidden = group.runs[0].final.names[:-1]
    found: dict[str, list[Figure]] = {}
    for key, words in (("cka", "trained"), ("cka_untrained", "untrained")):
        found[words] = [
            over_pairs(f"{key}:{name}", f"linear CKA of {name}, {words}",
                       {seeds: getattr(p, key)[name] for seeds, p in pairs.items()})
            for name in hidden
        ]  # fmt: skip
        draft.add(*found[words])
    if not hidden:
        return
    gains = [
        over_pairs("", "", {seeds: p.cka[n] - p.cka_untrained[n] for seeds, p in pairs.items()})
        for n in hidden
    ]
    series = [points(words, hidden, figures) for words, figures in found.items()]
    draft.bars("cka", "linear CKA", series, layer=hidden[-1],
               ends=[figures[-1] for figures in found.values()])  # fmt: skip
    both = zip(hidden, *([with_interval(f) for f in found[words]] for words in found), strict=True)
    draft.control("cka", all_of([above(gain) for gain in gains]), layers=list(both))


def _permutations(draft: Draft, measured: list[ImageMeasurements]) -> None:
    """Controls of the matching, on permuted copies."""
    changes = [s.symmetry.logits_change for s in measured]
    distances = [s.symmetry.distance / s.symmetry.norm for s in measured]
    what = "largest change of a logit when hidden units are permuted, of the largest logit"
    draft.mean("permuted_logits", what, changes)
    what = "distance of the permuted weights, in norms of the weights"
    draft.mean("permuted_distance", what, distances)
    draft.control("order", max(changes) < 1e-5 and min(distances) > 0.1,
                  distance=min(distances), change=max(changes))  # fmt: skip
    again = max(s.rematched for s in measured)
    draft.control("found_again", again < 1e-5, runs=len(measured), again=again)
