"""Question 4: why do different models have the same performance?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from lab.analysis.runs import Group
from lab.analysis.sameness import Disagreement, Families, divided, families
from lab.analysis.study import ImageMeasurements, PairMeasurements
from lab.compare.statistics import LEVEL
from lab.report.draft import Draft
from lab.report.figures import above, all_of, listed, over_pairs, points, spoken, with_interval
from lab.report.figures import without_interval as plain
from lab.report.questions.common import about_reference, seeds_halved
from lab.report.section import Figure, Section, Series

_ALIGNED = 0.01  # an accuracy barrier below which a pair counts as aligned
_PAIRS_SHOWN = 15

Pairs = dict[tuple[int, int], PairMeasurements]
Disagreements = Mapping[tuple[int, int], Disagreement]


@about_reference
def sameness(draft: Draft, group: Group) -> Section:
    if not group.known:
        draft.commands.clear()  # other seeds would not help
        return draft.section("not_applicable")
    found, pairs = draft.evidence.disagreements(group), draft.evidence.paired
    measured = draft.evidence.on_images(group)
    if measured:
        _permutations(draft, list(measured.values()))
    else:
        draft.unknown("no_images")
    outcome, facts = "no_pair", dict[str, Any]()
    if found and pairs:
        outcome, facts = _errors(draft, found)
        facts |= _barriers(draft, group, pairs)
        _cka(draft, group, pairs)
        _halved(draft, found, measured)
    if table := draft.evidence.runs.table.pairs:
        alike = sum(pair.p_holm > LEVEL for pair in table)
        what = "pairs of configurations whose accuracies do not differ significantly"
        note = f"of {len(table)}, Holm's correction"
        draft.add(Figure("alike", what, alike, runs=0, note=note))
    draft.unknown("others")
    return draft.section(outcome, **facts)


def _errors(draft: Draft, found: Disagreements) -> tuple[str, dict]:
    """Adds the errors that pairs of seeds share; returns the outcome and its facts."""

    def mean(key: str, name: str, take: Callable[[Disagreement], float]) -> Figure:
        values = {seeds: take(pair) for seeds, pair in found.items()}
        known = {seeds: value for seeds, value in values.items() if math.isfinite(value)}
        figure = over_pairs(key, name, known, "%")
        draft.add(figure)
        return figure

    chance = "the same, if their errors were independent"
    facts = {
        "seeds": len({seed for pair in found for seed in pair}),
        "share": mean("disagreement", "test images on which two seeds disagree",
                      lambda d: d.share),
        "independent": mean("independent", chance, lambda d: d.independent),
        "shared": mean("shared", "of the images that one seed gets wrong, those that another does",
                       _shared),
        "shared_independent": mean("shared_independent", chance,
                                   lambda d: math.sqrt(d.both_wrong_independent)),
    }  # fmt: skip
    mean("both_wrong", "test images on which both are wrong", lambda d: d.both_wrong)
    mean("both_wrong_independent", chance, lambda d: d.both_wrong_independent)
    _disagreements(draft)
    return _judge(_ratio(found)), facts


def _shared(found: Disagreement) -> float:
    """Of the images that one gets wrong, the share that the other gets wrong too, in whatever way;
    the geometric mean of both shares."""
    product = found.both_wrong_independent  # of the two error rates
    return found.both_wrong / math.sqrt(product) if product else math.nan


def _ratio(found: Disagreements) -> Figure:
    """How often two seeds disagree, relative to independent errors: where there are errors."""
    return over_pairs("", "", {
        seeds: d.share / d.independent for seeds, d in found.items() if d.independent
    })  # fmt: skip


def _judge(ratio: Figure) -> str:
    """The outcome: whether two seeds disagree less often than independent errors would make them,
    and less than half as often."""
    if above(ratio, 0.5) is False:
        return "nearly_same"
    return {False: "partly_same", True: "not_same", None: "cannot_tell"}[above(ratio, 1)]


def _halved(draft: Draft, found: Disagreements, measured: Mapping[int, ImageMeasurements]) -> None:
    """By means, as in the other questions."""
    told = _judge(_ratio(found)) != "cannot_tell"

    def judge(some: Mapping[int, ImageMeasurements]) -> tuple[str | None, str]:
        ratio = _ratio({seeds: d for seeds, d in found.items() if some.keys() >= set(seeds)})
        known = told and ratio.value is not None
        claim = _judge(replace(ratio, low=ratio.value, high=ratio.value)) if known else None
        words = "as often as independent errors would make them"
        return claim, f"two seeds disagree {with_interval(ratio)} times {words}"

    seeds_halved(draft, measured, judge)


def _disagreements(draft: Draft) -> None:
    featured = {group.label: draft.evidence.disagreements(group)
                for group in draft.evidence.featured}  # fmt: skip
    paired = {label: found for label, found in featured.items() if found}

    def shares(key: str) -> list[Figure]:
        return [
            over_pairs("", "", {seeds: getattr(d, key) for seeds, d in found.items()}, "%")
            for found in paired.values()
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


def _barriers(draft: Draft, group: Group, pairs: Pairs) -> dict:
    """Adds what lies between pairs of seeds; returns facts."""
    runs, note = len(group.completed), f"of {len(pairs)}"
    for key, words in (("before", "as trained"), ("after", "units matched")):
        barriers = [getattr(pair, key).cross_entropy_barrier for pair in pairs.values()]
        for end, value in (("lowest", min(barriers)), ("highest", max(barriers))):
            what = f"{end} cross-entropy barrier between two seeds, {words}"
            draft.add(Figure(f"barrier:{key}:{end}", what, value, runs=runs, unit="nats"))
    aligned = sum(p.after.accuracy_barrier < _ALIGNED for p in pairs.values())
    what = "pairs with an accuracy barrier below a point, units matched"
    draft.add(Figure("aligned", what, aligned, runs=runs, note=note))
    if 0 < aligned < len(pairs):
        draft.unknown("unaligned", count=len(pairs) - aligned)
    hidden = list(next(iter(pairs.values())).cka)
    _pairs_table(draft, pairs, hidden)
    told = _families(draft, pairs, hidden[-1]) if hidden else None
    if told:
        what = "widest gap between neighbouring barriers, units matched: higher / lower"
        draft.add(Figure("gap", what, told.high / told.low, runs=runs))
        what = "pairs below the widest gap between barriers"
        draft.add(Figure("below_gap", what, told.below, runs=runs, note=note))
    return {"pairs": len(pairs), "gap": told, "families": _spoken_families(told),
            "aligned": aligned}  # fmt: skip


def _spoken_families(found: Families | None) -> str:
    return listed(["-".join(map(str, own)) for own in found.members]) if found else ""


def _families(draft: Draft, pairs: Pairs, layer: str) -> Families | None:
    """Adds every pair; returns the families of seeds, where the gap between the barriers is wider
    than by chance and CKA, which needs no matching, shows the same families."""
    found = families({seeds: p.after.cross_entropy_barrier for seeds, p in pairs.items()})
    if found and not (found.whole and found.p <= LEVEL):
        found = None
    if found:
        test = divided({seeds: p.cka[layer] for seeds, p in pairs.items()}, found.members)
        passed = True if test.p <= LEVEL else None
        draft.control("families", passed, layer=spoken(layer), more=test.difference, p=test.p,
                      families=_spoken_families(found))  # fmt: skip
        found = found if passed else None
    kinds: dict[str, list[PairMeasurements]] = {}
    for seeds, pair in pairs.items():
        within = found and any({*seeds} <= {*own} for own in found.members)
        name = "within a family" if within else "across families" if found else "pairs"
        kinds.setdefault(name, []).append(pair)
    series = [
        Series(name, [p.after.cross_entropy_barrier for p in own], [p.cka[layer] for p in own],
               style="points")
        for name, own in sorted(kinds.items(), reverse=True)
    ]  # fmt: skip
    draft.chart("families", "cross-entropy barrier, units matched, nats",
                f"linear CKA of {spoken(layer)}", series, scales=("symlog", "linear"),
                families=_spoken_families(found), pairs=len(pairs))  # fmt: skip
    return found


def _pairs_table(draft: Draft, pairs: Pairs, hidden: list[str]) -> None:
    columns = ("seeds", "barrier as trained, nats", "units matched", "accuracy barrier, points",
               *(f"CKA of {spoken(name)}" for name in hidden))  # fmt: skip
    ordered = sorted(pairs.items(), key=lambda pair: pair[1].after.cross_entropy_barrier)
    rows = [
        (f"{a} and {b}", f"{p.before.cross_entropy_barrier:.3f}",
         f"{p.after.cross_entropy_barrier:.3f}", f"{100 * p.after.accuracy_barrier:.2f}",
         *(f"{p.cka[name]:.3f}" for name in hidden))
        for (a, b), p in ordered[:_PAIRS_SHOWN]
    ]  # fmt: skip
    draft.table("pairs", columns, rows, shown=len(rows), pairs=len(pairs))


def _cka(draft: Draft, group: Group, pairs: Pairs) -> None:
    hidden = group.runs[0].final.names[:-1]
    found: dict[str, list[Figure]] = {}
    for key, words in (("cka", "trained"), ("cka_untrained", "untrained")):
        found[words] = [
            over_pairs(f"{key}:{name}", f"linear CKA of {spoken(name)}, {words}",
                       {seeds: getattr(p, key)[name] for seeds, p in pairs.items()}, share=True)
            for name in hidden
        ]  # fmt: skip
        draft.add(*found[words])
    if not hidden:
        return
    gains = [
        over_pairs("", "", {seeds: p.cka[n] - p.cka_untrained[n] for seeds, p in pairs.items()})
        for n in hidden
    ]
    names = [*map(spoken, hidden)]
    series = [points(words, names, figures) for words, figures in found.items()]
    draft.bars("cka", "linear CKA", series, layer=names[-1],
               ends=[figures[-1] for figures in found.values()])  # fmt: skip
    both = zip(names, *([plain(f) for f in found[words]] for words in found), strict=True)
    draft.control("cka", all_of([above(gain) for gain in gains]), layers=list(both))


def _permutations(draft: Draft, measured: list[ImageMeasurements]) -> None:
    """Controls of the matching, on permuted copies."""
    changes = [s.symmetry.logits_change for s in measured]
    distances = [s.symmetry.distance / s.symmetry.norm for s in measured]
    what = "largest change of a logit when hidden units are permuted, relative to the largest logit"
    draft.mean("permuted_logits", what, changes)
    what = "distance of the permuted weights, in norms of the weights"
    draft.mean("permuted_distance", what, distances)
    draft.control("order", max(changes) < 1e-5 and min(distances) > 0.1,
                  distance=min(distances), change=max(changes))  # fmt: skip
    again = max(s.rematched for s in measured)
    draft.control("found_again", again < 1e-5, runs=len(measured), again=again)
