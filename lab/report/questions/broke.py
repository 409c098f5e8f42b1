"""What broke first: each run with an event on record, and the first link that left its range."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import scipy.stats

from lab.analysis.labels import label
from lab.analysis.runs import Group, Run
from lab.analysis.study import PLAIN_SGD, Evidence, plain_sgd
from lab.compare.statistics import LEVEL
from lab.diagnosis.why import Diagnosis
from lab.record import event_reader
from lab.record.run import RunReader
from lab.report.draft import SEEDS, Draft
from lab.report.figures import across, points
from lab.report.section import Mark, Section, Series

_BEFORE, _AFTER = 20, 40  # steps of the picture around the culprit
_PASSING = {"departure", "plateau", "spike"}  # events after which a run trains on
_UNSEEN = 0.05  # share of the runs that may have an event that the loss does not show
_STUCK = 0.9  # of its first loss: above that a run that diverged has not trained on


def broke(evidence: Evidence) -> Section:
    draft, broken = Draft("broke", evidence), _broken(evidence)
    of = {run.path: group for group in evidence.runs.groups for run in group.runs}
    same: dict[tuple[str, ...], list[Diagnosis]] = {}
    for found in broken:
        same.setdefault(_key(found, of.get(found.path)), []).append(found)
    healthy = [path for path in of if path not in {found.path for found in broken}]
    shown = {d.path: d.event.visible for d in evidence.runs.broken if d.event and d.path in of}
    unseen, passing = len(shown) - sum(shown.values()), sum(shown.get(p, False) for p in healthy)
    if of:
        p = scipy.stats.binomtest(unseen, len(of), _UNSEEN, alternative="greater").pvalue
        draft.control("quiet", bool(p > LEVEL), unseen=unseen, runs=len(of), p=p)
    _cliff(draft)
    if not broken:
        return draft.section("none" if of else "no_run", runs=len(healthy), passing=passing,
                             unseen=unseen)  # fmt: skip
    rows = sorted(same.items(), key=lambda item: -len(item[1]))
    draft.table("broken", ["runs", "of", "event", "culprit", "because"],
                [_row(key, found) for key, found in rows])  # fmt: skip
    first = rows[0][1][0]
    scalars = {run.path: run.scalars for group in evidence.runs.groups for run in group.runs}
    _picture(draft, first, rows[0][0][0], scalars.get(first.path))
    draft.unknown("repeat")
    if untold := sum(not (found.finding and found.finding.kind) for found in broken):
        draft.unknown("cannot_say", runs=untold)
    if first.path in of:
        _without_clip(draft, of[first.path])
    said = first.finding and first.finding.kind
    facts = {"label": rows[0][0][0], "broken": len(broken), "runs": len(broken) + len(healthy),
             "count": len(rows[0][1]), "first": first,
             "passing": passing}  # fmt: skip
    return draft.section("broke" if said else "cannot_say", **facts)


def _broken(evidence: Evidence) -> list[Diagnosis]:
    """The runs that broke: of the completed ones, those that came to a standstill, and those that
    diverged and did not train on."""
    lasting = {run.path for group in evidence.runs.groups for run in group.completed
               if not _stuck(run)}  # fmt: skip
    return [
        d for d in evidence.runs.broken
        if d.event and d.event.kind not in _PASSING
        and (d.path not in lasting or d.event.kind != "divergence")
    ]  # fmt: skip


def _stuck(run: Run) -> bool:
    losses = run.every_step("loss")
    return losses is not None and losses[-max(run.steps // 10, 1) :].mean() > _STUCK * losses[0]


def _lost(evidence: Evidence) -> set[str]:
    """The paths of the runs that broke, including those that kept no weights."""
    return {found.path for found in _broken(evidence)} | {run.path for run in evidence.runs.dead}


def _key(found: Diagnosis, group: Group | None) -> tuple[str, ...]:
    """What runs have in common that broke in the same way."""
    event, finding = found.event, found.finding
    assert event and finding
    name = group.label if group else label(RunReader(found.path).config, ())
    return name, event.kind, finding.kind, *finding.tensors


def _row(key: tuple[str, ...], same: list[Diagnosis]) -> list[str]:
    events = [found.event.step for found in same if found.event]
    culprits = [found.finding.step for found in same if found.finding]
    finding = same[0].finding
    assert finding
    kind = f"{finding.kind}, step {_span(culprits)}" if finding.kind else "cannot say"
    tensors = finding.tensors[:2]
    return [str(len(same)), key[0], f"{key[1]}, step {_span(events)}",
            ", ".join([kind, *tensors]), finding.reason]  # fmt: skip


def _span(steps: list[int]) -> str:
    low, high = min(steps), max(steps)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _picture(
    draft: Draft, found: Diagnosis, name: str, scalars: Mapping[str, event_reader.Series] | None
) -> None:
    """The links of one run around the culprit's step, each over its value before.

    scalars: of the run, by tag; None if it was left out: then they are read once more.
    """
    assert found.event and found.finding
    scalars = scalars or RunReader(found.path).scalars
    tensor = next((t for t in found.finding.tensors if f"{t}/update/norm" in scalars), "")
    parts = {"loss": "loss"}
    if tensor:
        parts[f"gradient of {tensor}"] = f"{tensor}/gradient/norm"
        parts |= {f"update of {tensor}": f"{tensor}/update/norm", tensor: f"{tensor}/norm"}
    else:
        parts["norm of all gradients"] = "gradient/norm"
    low, high = found.finding.step - _BEFORE, found.event.step + _AFTER
    series = []
    for part, tag in parts.items():
        if tag not in scalars:
            continue
        steps, values = scalars[tag]
        inside = (steps >= low) & (steps <= high) & np.isfinite(values) & (values > 0)
        if inside.any():
            x, y = steps[inside], values[inside]
            series.append(Series(part, x.tolist(), (y / y[0]).tolist()))
    if series:
        marks = [Mark(f"culprit, step {found.finding.step}", found.finding.step, "x")]
        draft.chart("links", "step", "relative to its first value here", series, marks,
                    ("linear", "log"), found=found, name=name)  # fmt: skip


def _cliff(draft: Draft) -> None:
    """The runs that break, by learning rate: of the largest sweep of a plain sgd."""
    runs = draft.evidence.runs
    plain = [group for group in runs.groups if plain_sgd(group.config)]
    sweeps = [runs.sweep(group, "learning_rate") for group in plain]
    rates = max(sweeps, key=len, default=[])
    found: dict[float, list[Run]] = {}
    dead = runs.dead_of(rates[0], "learning_rate") if rates else []
    for run in [*dead, *(run for group in rates for run in group.runs)]:
        found.setdefault(run.config["learning_rate"], []).append(run)
    known = [group for group in (draft.evidence.reference, *runs.groups) if group and group.known]
    if len(found) < 3 and (known or not runs.groups):
        like = rates[0] if rates else known[0] if known else None
        plainly = dict.fromkeys(PLAIN_SGD)  # its values are the defaults
        draft.command("cliff", like, grid="cliff", seeds=3, **plainly)
    if len(found) < 2:
        return
    x, broken = sorted(found), _lost(draft.evidence)
    share = [np.mean([run.path in broken for run in found[rate]]) for rate in x]
    tests = [
        across("", "", [r.result["test_accuracy"] for r in found[rate]
                        if r.networks and r.result["test_accuracy"] is not None], "%")
        for rate in x
    ]  # fmt: skip
    breaks = Series("runs that break", x, [float(s) for s in share], style="dashes")
    series = [one for one in (points("test accuracy", x, tests), breaks) if len(one.x)]
    deadly = [f"{rate:g}" for rate, one in zip(x, share, strict=True) if one > 0]
    draft.chart("cliff", "learning rate", "share of test images, of runs", series,
                scales=("log", "linear"), deadly=deadly)  # fmt: skip


def _without_clip(draft: Draft, subject: Group) -> None:
    """Whether runs of a configuration that broke on the clipped loss survive without the clip."""
    if subject.config["loss"] != "clipped_cross_entropy":
        return
    others = draft.evidence.runs
    groups = [g for g in others.sweep(subject, "loss") if g.config["loss"].startswith("softmax")]
    runs = [run for run in others.dead_of(subject, "loss")
            if run.config["loss"].startswith("softmax")]  # fmt: skip
    name = groups[0].label if groups else label(runs[0].config, ("loss",)) if runs else ""
    runs += [run for group in groups for run in group.runs]
    lost = len(_lost(draft.evidence) & {run.path for run in runs})
    draft.control("without_clip", not lost if runs else None, lost=lost, runs=len(runs), other=name)
    if not runs:
        draft.command("without_clip", subject, loss="softmax_cross_entropy", seeds=SEEDS)
