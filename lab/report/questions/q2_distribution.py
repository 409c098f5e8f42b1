"""Question 2: how should the weights be distributed?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lab.analysis.runs import Group
from lab.analysis.study import ImageMeasurements, RunMeasurements
from lab.report.draft import Draft
from lab.report.figures import above, across, curve, listed, number, points, spoken
from lab.report.questions.common import (
    POINT,
    about_reference,
    at_chance,
    chance,
    over_draws,
    seeds_halved,
)
from lab.report.section import Figure, Mark, Section

_STDDEVS = "0.005,0.02,0.05,0.1,0.2,0.5,1"  # of initial weights, to compare


@about_reference
def distribution(draft: Draft, group: Group) -> Section:
    if not group.known:
        if group.shown:
            _spectra(draft, group, [draft.evidence.of(run) for run in group.completed])
        return draft.section("not_applicable")
    measured = list(draft.evidence.on_images(group).values())
    outcome, facts = _images(draft, group, measured) if measured else ("no_images", {})
    if not measured:
        draft.unknown("no_images")
    outside = _spectra(draft, group, [draft.evidence.of(run) for run in group.completed])
    scales = draft.evidence.runs.sweep(group, "init_stddev", "initializer")
    normal = [g for g in scales if g.config["initializer"] == "normal" and g.config["init_stddev"]]
    if len(normal) > 2:
        _scales(draft, sorted(normal, key=lambda g: g.config["init_stddev"]), scales)
    else:
        draft.unknown("scale")
        draft.command("scale", group, initializer="normal", init_stddev=_STDDEVS, seeds=3)
    draft.unknown("best")
    return draft.section(outcome, outside={spoken(n): f for n, f in outside.items()}, **facts)


def _images(draft: Draft, group: Group, measured: list[ImageMeasurements]) -> tuple[str, dict]:
    """Adds what shuffled and low-rank weights do; returns the outcome and its facts."""
    base = draft.mean("accuracy", "test accuracy at the end", [s.accuracy for s in measured], "%")
    shuffles = {test.layers: i for i, test in enumerate(measured[0].shuffles)}
    shuffled = [
        over_draws(draft, f"shuffled:{'+'.join(names)}",
                   f"accuracy with the entries of {listed([*map(spoken, names)])} shuffled",
                   [s.shuffles[i].accuracy for s in measured], "%")
        for names, i in shuffles.items()
    ]  # fmt: skip
    ranks = [low.rank for low in measured[0].low_rank]

    def cut(key: str, words: str, part: str) -> list[Figure]:
        return [
            draft.mean(f"{key}:{rank}", f"accuracy with {words} {rank}",
                       [getattr(s.low_rank[i], part) for s in measured], "%")
            for i, rank in enumerate(ranks)
        ]  # fmt: skip

    kept = cut("rank", "every layer's change cut to rank", "accuracy")
    alone = cut("rank_alone", "only the change, cut to rank", "accuracy_without_initial")
    floor = chance(draft.evidence, group)
    draft.bars(
        "shuffles",
        "test accuracy",
        [points("shuffled", [spoken(n[0]) if len(n) == 1 else "all" for n in shuffles], shuffled)],
        [Mark("not shuffled", base.value or 0), Mark("most frequent class", floor)],
        low=min(f.value or 0 for f in shuffled),
        high=max(f.value or 0 for f in shuffled),
    )
    draft.chart(
        "ranks",
        "rank kept",
        "test accuracy",
        [points("added to the initial weights", ranks, kept),
         points("without them", ranks, alone, "dashes")],
        [Mark("whole", base.value or 0)],
        scales=("log", "linear"),
        rank=ranks[-1],
        kept=kept[-1],
        alone=alone[-1],
    )  # fmt: skip
    same = all(test.same_counts for s in measured for test in s.shuffles)
    falls = [s.accuracy - s.shuffles[-1].accuracy.mean() for s in measured]
    fall = across("", "", [100 * lost for lost in falls], "points")
    floored = at_chance(base, floor) is not False  # then it cannot fall
    fell = None if floored else above(fall)
    draft.control("shuffled", fell if same else False, same=same, fall=fall, floored=floored)

    def judge(some: Mapping[int, ImageMeasurements]) -> tuple[bool | None, str]:
        lost = np.mean([s.accuracy - s.shuffles[-1].accuracy.mean() for s in some.values()])
        claim = None if floored else bool(lost > POINT)
        return claim, f"shuffled networks lose {number(100 * float(lost))} points"

    seeds_halved(draft, draft.evidence.on_images(group), judge)
    enough = [(rank, f) for rank, f in zip(ranks, kept, strict=True)
              if (f.value or 0) >= (base.value or 0) - POINT]  # fmt: skip
    rank, restored = (enough or [(ranks[-1], kept[-1])])[0]
    *hidden, last = (min(w.shape) for w in group.runs[0].final.weights)
    facts = {
        "base": base,
        "shuffled": shuffled[-1],
        "rank": rank,
        "restored": restored,
        "little": bool(enough) and rank < min(hidden, default=0) / 2,
        "whole": last if last <= rank else None,
    }
    lost = (base.value or 0) - (shuffled[-1].value or 0)
    near_chance = (shuffled[-1].value or 0) < 2 * floor
    return "nothing_lost" if lost < POINT else "all_lost" if near_chance else "lost", facts


def _spectra(
    draft: Draft, group: Group, found: list[RunMeasurements]
) -> dict[str, tuple[Figure, int]]:
    """Adds singular values; returns how many of how many are beyond the edge of noise, by layer."""
    outside, names = {}, [*group.shown]
    for name in names:
        spectra = [one.spectra[name] for one in found]
        total = len(spectra[0].singular)
        beyond = f"singular values of {spoken(name)} beyond the edge of noise"
        rank = f"stable rank of {spoken(name)}"
        for key, field, words, note, least in (
            ("outside", "outside", f"{beyond}, at the end", f"of {total}", 0),
            ("outside_initial", "initial_outside", f"{beyond}, at the start", "", 0),
            ("stable_rank", "stable_rank", f"{rank}, at the end", "", 1),
            ("stable_rank_initial", "initial_stable_rank", f"{rank}, at the start", "", 1),
        ):
            values = [getattr(s, field) for s in spectra]
            figure = draft.mean(f"{key}:{name}", words, values, note=note, least=least)
            if key == "outside":
                outside[name] = figure, total
    widest = max(names[:-1] or names, key=lambda name: outside[name][1])
    spectra = [one.spectra[widest] for one in found]
    x = list(range(1, outside[widest][1] + 1))
    draft.chart(
        "spectrum",
        "place",
        "singular value",
        [curve("end", x, [s.singular for s in spectra]),
         curve("start", x, [s.initial_singular for s in spectra])],
        [Mark("edge of noise", spectra[0].edge)],
        scales=("linear", "log"),
        layer=spoken(widest),
        count=len(x),
        end=sorted({s.outside for s in spectra}),
        start=sorted({s.initial_outside for s in spectra}),
    )  # fmt: skip
    # One standard deviation of a weight is this share of the edge.
    within = [
        one.spectra[name].initial_singular[0]
        <= one.spectra[name].edge * (1 + 1 / sum(np.sqrt(w.shape)))
        for one in found
        for name, w in zip(names, _matrices(group), strict=True)
    ]
    draft.control("edge", all(within), within=sum(within), total=len(within))
    return outside


def _matrices(group: Group) -> list[np.ndarray]:
    matrices = group.runs[0].final.matrices()
    return [matrices[tag] for tag in group.shown.values()]


def _scales(draft: Draft, normal: list[Group], scales: list[Group]) -> None:
    """The accuracy against the initial scale, next to the other initializers."""
    x = [g.config["init_stddev"] for g in normal]

    def accuracy(group: Group) -> Figure:
        return across("", "", [run.result["test_accuracy"] for run in group.runs], "%")

    found = [accuracy(group) for group in normal]
    best = max(f.value or 0 for f in found)
    draft.chart(
        "scales",
        "standard deviation of the initial weights",
        "test accuracy",
        [points("normal", x, found)],
        [Mark(g.config["initializer"], accuracy(g).value or 0)
         for g in scales if g.config["initializer"] != "normal"],
        scales=("log", "linear"),
        config=normal[0].config,
        good=[f"{s:g}" for s, f in zip(x, found, strict=True) if (f.value or 0) >= best - POINT],
    )  # fmt: skip
