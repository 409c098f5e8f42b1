"""Runs -> the story of a report: the table, the autopsy, the five questions.

Every sentence is worded by what was measured in these runs.
"""

from __future__ import annotations

import os
import subprocess
from collections import Counter

import numpy as np

import lab
from lab.report.answers_runs import growth, sameness
from lab.report.answers_weights import distribution, layers, zeros
from lab.report.collapse import SPREAD_LIMIT, VitalSigns
from lab.report.measure import (
    MEAN_EXAMPLES,
    PAIR_EXAMPLES,
    SHARPNESS_EXAMPLES,
    Evidence,
    measure,
    plain_sgd,
)
from lab.report.runs import Group, Progress, Runs, label
from lab.report.story import Bars, Chart, Control, Figure, Mark, Picture, Section, Series, Story
from lab.report.story import Table as Rows
from lab.report.words import across, command, listed, many, number, percent, points, say, value


def tell(runs: Runs, progress: Progress | None = None, processes: int | None = None) -> Story:
    """Measures all runs, and words what was found.

    Args:
      progress: is told of the measurements, (done, total).
      processes: how many at a time, one a core unless given; 0 computes in this process.

    Raises:
      LabError: a process that measures was killed.
    """
    evidence = measure(runs, progress, processes)
    count = sum(len(group.runs) for group in runs.groups)
    summary = f"No run below {runs.logdir} can be used."
    if count:
        summary = (
            f"{many(count, 'run')} of {many(len(runs.groups), 'configuration')}, looked into: what"
            " their weights, their events and their results answer, and what they do not."
        )
    questions = (layers, distribution, zeros, sameness, growth)
    sections = [_table(evidence), _autopsy(evidence), *(ask(evidence) for ask in questions)]
    return Story("What these runs show", summary, _made(evidence), sections)


def _commit() -> str:
    here = os.path.dirname(os.path.abspath(lab.__file__))
    try:
        done = subprocess.run(
            ["git", "-C", here, "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _made(evidence: Evidence) -> list[tuple[str, str]]:
    runs, reference = evidence.runs, evidence.reference
    every = [run for group in runs.groups for run in group.runs]

    def different(texts: list[str]) -> str:
        return "; ".join(dict.fromkeys(texts))

    made = [("lab", f"Everystep {lab.__version__}" + (f", commit {c}" if (c := _commit()) else ""))]
    if every:
        versions = [run.result.get("versions", {}) for run in every]
        made += [
            ("trained with", different([_named(v) for v in versions if v]) or "not on record"),
            ("devices", different([_devices(run.result) for run in every])),
            ("seeds", ", ".join(map(str, sorted({run.seed for run in every})))),
            (
                "data",
                different([os.path.basename(r.config["data_dir"]) or "MNIST" for r in every])
                + ("" if runs.folders else ", no longer at hand: only what needs no images"),
            ),
        ]
    if reference:
        config, net = reference.config, reference.runs[0].final
        widths = [net.weights[0].shape[0], *(len(bias) for bias in net.biases)]
        made += [
            (
                "reference",
                f"{reference.label}: {'-'.join(map(str, widths))} {config['activation']},"
                f" {config['loss']} ({config['reduction']}), batch {config['batch_size']},"
                f" {reference.runs[0].steps:,} steps",
            ),
            (
                "measured",
                "accuracies on all test images; the reference configuration's pairs too, other"
                f" pairs, permutations and CKA on the first {PAIR_EXAMPLES:,}; sharpness on the"
                f" first {SHARPNESS_EXAMPLES:,} training images, mean activations on the first"
                f" {MEAN_EXAMPLES:,}",
            ),
        ]
    made.append(
        (
            "intervals",
            "95%, Student's t over seeds; for pairs of seeds, the jackknife over seeds; none where"
            " one run is all there is",
        )
    )
    return made + [("left out", problem) for problem in runs.problems]


def _named(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _devices(result: dict) -> str:
    kinds = Counter(name.rpartition("device:")[2].split(":")[0] for name in result["devices"])
    workers = f" on {result['workers']} workers" if result.get("workers", 1) > 1 else ""
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items()) + workers


def _table(evidence: Evidence) -> Section:
    table, logdir = evidence.runs.table, evidence.runs.logdir
    names = [label(row.config) for row in table.rows]
    shown = [(n, r) for n, r in zip(names, table.rows, strict=True) if r.mean is not None]
    figures = [
        Figure(f"accuracy:{n}", f"test accuracy, {n}", r.mean, r.low, r.high, r.averaged, "%")
        for n, r in shown
    ]
    rows = [
        (
            name,
            "" if row.readme is None else f"{row.readme:.4f}",
            "" if row.mean is None else f"{row.mean:.4f}",
            "" if row.low is None or row.high is None else f"{row.low:.4f} to {row.high:.4f}",
            row.groups,
            f"{row.averaged} of {row.runs}",
            row.status,
        )
        for name, row in zip(names, table.rows, strict=True)
    ]
    headings = ("configuration", "README", "accuracy", "95% interval", "group", "runs", "status")
    pictures: list[Picture] = [
        Rows("table", "The table, replayed", " ".join(table.notes), headings, rows)
    ]
    readme = [(n, r.readme) for n, r in shown if r.readme is not None]
    if len(shown) > 1:
        errors = [
            Figure("", "", 1 - f.value, None if f.high is None else 1 - f.high,
                   None if f.low is None else 1 - f.low)
            for f in figures if f.value is not None
        ]  # fmt: skip
        series = [points("these runs", [n for n, _ in shown], errors, "points")]
        if readme:
            series.append(
                Series("README", [n for n, _ in readme], [1 - v for _, v in readme], style="points")
            )
        best = min(shown, key=lambda pair: 1 - (pair[1].mean or 0))
        see = f"The lowest error is {percent(1 - (best[1].mean or 0))}, of {best[0]}."
        pictures.append(
            Bars("errors", "Test error by configuration", see, "share of test images wrong",
                 series, y_scale="log")
        )  # fmt: skip
    letters = [n for n, r in shown if "a" in r.groups]
    if not shown:
        answer = "There is no finished run to make a table of."
    elif not table.pairs:
        top = max(figures, key=lambda f: f.value or 0)
        answer = (
            f"Of {many(len(shown), 'configuration')} the highest accuracy is {say(top)}"
            f" ({top.key.partition(':')[2]}), but no two of them have two seeds in common, so none"
            " can be told from another."
        )
    else:
        means = [f.value for f in figures if f.key.partition(":")[2] in letters and f.value]
        answer = (
            f"Of {many(len(shown), 'configuration')} the best group holds {len(letters)} that"
            f" cannot be told apart ({listed(letters)}), at {percent(min(means))} to"
            f" {percent(max(means))}."
            if len(letters) > 1
            else f"Of {many(len(shown), 'configuration')} {letters[0]} is the best,"
            f" at {percent(means[0])}."
        )
    dead = sum(r.averaged for _, r in shown if r.averaged_status == "collapsed")
    if dead:
        answer += f" {many(dead, 'run')} collapsed onto one class."
    judged = [(n, r.readme_agrees) for n, r in shown if r.readme_agrees is not None]
    outside = [n for n, agrees in judged if not agrees]
    controls = []
    if readme:
        controls.append(
            Control(
                "The README's figures come out again, by its own rule, within 3 standard"
                " deviations over seeds.",
                f"In {len(judged) - len(outside)} of {len(judged)} rows"
                + (f"; not {listed(outside)}." if outside else ".")
                if judged
                else "One seed a row gives no standard deviation to hold them against.",
                not outside if judged else None,
            )
        )
    commands = []
    if any(row.runs < 2 for row in table.rows) or not table.rows:
        grid = "readme" if readme or not table.rows else "FILE"
        commands = [("the README's rows with five seeds", command(logdir, grid=grid, seeds=5))]
        if grid == "FILE":
            commands = [
                (f"five seeds of {n}", command(logdir, r.config, seeds=5))
                for n, r in zip(names, table.rows, strict=True)
                if r.runs < 2
            ][:5]
    unknown = [
        "That rows share a letter does not prove them equal; it says that these seeds do not tell"
        " them apart."
    ]
    return Section(
        "table", "The table, replayed", answer, figures, pictures, controls,
        unknown if table.pairs else (), commands,
    )  # fmt: skip


def _teaching(signs: VitalSigns) -> float:
    """The share of examples that are neither on the clip nor certain."""
    return 1 - signs.on_clip - signs.certain


def _death(evidence: Evidence, group: Group) -> list[float]:
    """By run, the last step that moved a weight, where every update is on record."""
    last = []
    for run in group.runs:
        found = [run.every_step(f"{name}/update/norm") for name in run.final.tensors()]
        norms = [norm for norm in found if norm is not None]
        if len(norms) == len(found):
            moved = np.flatnonzero(np.sum(norms, axis=0))
            last.append(float(moved[-1] + 1 if len(moved) else 0))
    return last


def _autopsy(evidence: Evidence) -> Section:
    runs, logdir = evidence.runs, evidence.runs.logdir
    title = "The autopsy of sgd at 0.1"
    signed = [
        group
        for group in runs.groups
        if plain_sgd(group.config) and any(evidence.of(run).at_end for run in group.runs)
    ]
    dead = [g for g in signed if len(g.completed) < len(g.runs)]
    cliff = ("where sgd dies, rate by rate", command(logdir, grid="cliff", seeds=3))
    if not signed:
        answer = "These runs cannot say: none is plain sgd on the clipped loss with its images."
        return Section("autopsy", title, answer, commands=[cliff])
    subject = max(dead or signed, key=lambda g: len(g.runs) - len(g.completed))
    title = f"The autopsy of {subject.label}" if dead else "The autopsy: is there a death?"
    rates = sorted(runs.sweep(subject, "learning_rate"), key=lambda g: g.config["learning_rate"])
    rates = [group for group in rates if group in signed]
    fallen = [run for run in subject.runs if not run.completed] if dead else subject.runs
    ends = [signs for run in fallen if (signs := evidence.of(run).at_end)]
    firsts = [pair for run in fallen if (pair := evidence.of(run).first_step)]
    spread = across("spread", "spread of an example's logits after one step, median",
                    [after.spread for _, after in firsts])  # fmt: skip
    clip, certain, unmoved = (
        across(key, name, [getattr(signs, key) for signs in ends], "%")
        for key, name in (
            ("on_clip", "examples on the clip, at the end"),
            ("certain", "examples at p = 1, at the end"),
            ("unmoved", "weights that one more step leaves as they are, bit for bit"),
        )
    )
    figures = [
        across("spread_before", "spread of an example's logits before the first step, median",
               [before.spread for before, _ in firsts]),
        spread, clip, certain, unmoved,
        across("zero_share", "gradient entries that are exactly 0, at the end",
               [signs.zero_share for signs in ends], "%"),
        across("death", "last step that moved a weight", _death(evidence, subject)),
    ]  # fmt: skip
    figures = [figure for figure in figures if figure.value is not None]
    limit = f"the clip begins at ln(1e9) = {SPREAD_LIMIT:.1f}"
    alive = [run for g in rates for run in g.completed]
    if dead:
        classes = Counter(run.result["collapsed"] for run in fallen)
        answer = (
            f"{subject.label} died in {len(fallen)} of {many(len(subject.runs), 'run')}: its first"
            f" step drives an example's logits {say(spread)} apart ({limit}), in the end"
            f" {value(clip)} of a batch sits on the clip and {value(certain)} at p = 1, where the"
            f" loss is flat, one more step would leave {value(unmoved)} of the weights as they are,"
            f" and every test image is taken for class {listed(sorted(map(str, classes)), 'or')}."
        )
    else:
        answer = (
            f"None of the {many(sum(len(g.runs) for g in signed), 'run')} of plain sgd here died;"
            f" at {subject.label} the first step drives an example's logits {say(spread)} apart"
            f" ({limit})."
        )
    controls = []
    if dead and alive:
        lively = [_teaching(signs) for run in alive if (signs := evidence.of(run).at_end)]
        left = [_teaching(signs) for signs in ends]
        controls.append(
            Control(
                "If the flat loss is the cause, runs that live at other rates still have examples"
                " that are neither on the clip nor at p = 1, and dead ones have none.",
                f"At least {percent(min(lively))} of a batch in {many(len(lively), 'living run')},"
                f" at most {percent(max(left))} in {many(len(left), 'dead one')}.",
                min(lively) > max(left) and max(left) == 0,
            )
        )
    if dead:
        bad = [run for run in fallen if run.result.get("nonfinite")]
        controls.append(
            Control(
                "It is not a NaN.",
                f"{many(len(bad), 'dead run')} of {len(fallen)} had NaN or infinity on record.",
                not bad,
            )
        )
        stable = [g for g in runs.sweep(subject, "loss") if g.config["loss"].startswith("softmax")]
        lost = [run for g in stable for run in g.runs if not run.completed]
        total = sum(len(g.runs) for g in stable)
        controls.append(
            Control(
                "If the clip is the cause, the same runs on the loss without it live.",
                f"{total - len(lost)} of {many(total, 'run')} of {stable[0].label} live."
                if stable
                else "No such run is here.",
                not lost if stable else None,
            )
        )
    commands = []
    if dead and not stable:
        config = {**subject.config, "loss": "softmax_cross_entropy"}
        commands.append(
            ("the same rate on a loss without a clip", command(logdir, config, seeds=5))
        )
    fates = [(g.config["learning_rate"], len(g.completed) == len(g.runs)) for g in rates]
    lowest = min((rate for rate, lives in fates if not lives), default=None)
    highest = max((r for r, lives in fates if lives and r < (lowest or np.inf)), default=None)
    unknown = []
    if lowest is None or highest is None or lowest > 1.6 * highest:
        commands.append(cliff)
        unknown.append(
            f"Where between {number(highest)} and {number(lowest)} death begins: no rate between"
            " was run."
            if lowest and highest
            else "Where death begins: these runs are all on one side of it."
        )
    if not _death(evidence, subject) and dead:
        unknown.append("The step of death: the norms of the updates are not on record.")
    return Section(
        "autopsy", title, answer, figures, _cliff_pictures(evidence, rates), controls, unknown,
        commands,
    )  # fmt: skip


def _cliff_pictures(evidence: Evidence, rates: list[Group]) -> list[Picture]:
    if len(rates) < 2:
        return []
    x = [group.config["learning_rate"] for group in rates]
    collapsed = [1 - len(g.completed) / len(g.runs) for g in rates]
    accuracies = [
        across("", "", [run.result["test_accuracy"] for run in g.runs], "%") for g in rates
    ]
    deadly = [rate for rate, share in zip(x, collapsed, strict=True) if share > 0]
    best = max(zip(accuracies, x, strict=True), key=lambda pair: pair[0].value or 0)
    spreads = [
        across("", "", [p[1].spread for run in g.runs if (p := evidence.of(run).first_step)])
        for g in rates
    ]
    above = [rate for rate, f in zip(x, spreads, strict=True) if (f.value or 0) > SPREAD_LIMIT]
    return [
        Chart(
            "cliff",
            "The cliff",
            f"Accuracy is highest at {best[1]:g}"
            + (
                f"; from {min(deadly):g} on runs collapse."
                if deadly
                else "; no run collapses at any of these rates."
            ),
            "learning rate",
            "share of test images, of runs",
            [
                points("test accuracy", x, accuracies),
                Series("runs that collapse", x, collapsed, style="dashes"),
            ],
            x_scale="log",
        ),
        Chart(
            "spread",
            "How far one step drives the logits apart",
            f"From a rate of {min(above):g} on the median example is beyond ln(1e9) after one step."
            if above
            else "At none of these rates does one step take the median example beyond ln(1e9).",
            "learning rate",
            "max - min of an example's logits",
            [points("after the first step", x, spreads)],
            [Mark("ln(1e9), the clip", SPREAD_LIMIT)],
            x_scale="log",
            y_scale="log",
        ),
    ]
