"""Runs -> the story of a report: a section per question, and how it was made."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from typing import Any

import lab
from lab.analysis import workers
from lab.analysis.runs import Group, Runs
from lab.analysis.study import (
    DRAWS,
    MEAN_EXAMPLES,
    PAIR_EXAMPLES,
    SHARPNESS_EXAMPLES,
    Evidence,
    measure,
)
from lab.analysis.workers import Compute
from lab.compare.notes import plural
from lab.report import retrain
from lab.report.questions import SECTIONS
from lab.report.section import Story


def make_story(
    runs: Runs, compute: Compute = workers.compute, training: Compute | None = None
) -> Story:
    """Measures all runs and answers every question.

    Args:
      compute: takes the measurements, in this process or in others.
      training: in processes of their own, trains some of the reference's runs again; None: none.

    Raises:
      LabError: a process of `compute` was killed.
    """
    evidence = measure(runs, compute)
    if training and evidence.reference:
        problem = retrain.fill(evidence.reference, training)
        runs.problems.extend([f"not retrained: {problem}"] if problem else [])
    count = sum(len(group.runs) for group in runs.groups)
    summary = f"No run below {runs.logdir} can be used."
    if count:
        summary = (
            f"{plural(count, 'run')} of {plural(len(runs.groups), 'configuration')}: what their"
            " weights, events and results answer, and what they do not."
        )
    sections = [ask(evidence) for ask in SECTIONS]
    made = [*_made(evidence), *(("left out", problem) for problem in runs.problems)]
    return Story("What these runs show", summary, made, sections)


def _made(evidence: Evidence) -> list[tuple[str, str]]:
    """How the report was made: (what, value), in order."""
    runs, reference = evidence.runs, evidence.reference
    every = [run for group in runs.groups for run in group.runs]
    commit = f", commit {found}" if (found := _commit()) else ""
    made = [("lab", f"Everystep {lab.__version__}{commit}")]
    if every:
        versions = [_named(run.result["versions"]) for run in every if run.result["versions"]]
        names = (run.config["data"] for run in every)
        folders = ["MNIST" if n == "mnist" else os.path.basename(n.rstrip("/")) for n in names]
        gone = (
            ""
            if runs.folders or not any(run.known for run in every)
            else ", no longer available: only what needs no images"
        )
        made += [
            ("trained with", _different(versions) or "not on record"),
            ("devices", _different([_devices(run.result) for run in every])),
            ("seeds", ", ".join(map(str, sorted({run.seed for run in every})))),
            ("data", _different(folders) + gone),
        ]
    if reference:
        made += _about(reference, evidence)
    intervals = (
        "95%, Student's t over seeds, of shares on the logit scale; for pairs of seeds the"
        " jackknife over seeds; none for a single run, except for its accuracy in the"
        " table: Wilson's, over test images"
    )
    return [*made, ("intervals", intervals)]


def _about(reference: Group, evidence: Evidence) -> list[tuple[str, str]]:
    """What was looked at, and what was left to the table."""
    config, net, groups = reference.config, reference.runs[0].final, evidence.runs.groups
    how = (
        f"{config['loss']} ({config['reduction']}), batch {config['batch_size']},"
        f" {reference.runs[0].steps:,} steps"
    )
    if not reference.known:
        size = f"{sum(w.size for w in net.values()):,} weights in {plural(len(net), 'tensor')}"
        shown, every = reference.shown, net.matrices()
        some = f"; {len(shown)} of {len(every)} matrices are shown" * (len(shown) < len(every))
        made = [("reference", f"{reference.label}: {config['model']}, {size}{some}, {how}")]
        others = [group.label for group in groups if group not in evidence.featured]
        why = "other weights than the reference's, or no completed run"
    else:
        widths = [net.weights[0].shape[0], *(len(bias) for bias in net.biases)]
        shape = f"{'-'.join(map(str, widths))} {config['activation']}"
        made = [
            ("reference", f"{reference.label}: {shape}, {how}"),
            (
                "measured",
                f"in depth: the {len(evidence.featured)} of"
                f" {plural(len([g for g in groups if g.known]), 'configuration')} with the most"
                f" seeds, random controls in {DRAWS} draws a run. Accuracies, disagreements and"
                f" barriers: all test images. Permutations and CKA: the first {PAIR_EXAMPLES:,}."
                f" Sharpness: the first {SHARPNESS_EXAMPLES:,} training images. Mean activations:"
                f" the first {MEAN_EXAMPLES:,}",
            ),
        ]
        others = [group.label for group in groups if not group.known]
        why = "the report rebuilds only --model=mlp. In a folder of their own they are analyzed"
    if others:
        made.append(("only in the table", f"{'; '.join(others)} ({why})"))
    return made


def _commit() -> str:
    """Of the checkout that the lab runs from, or ""."""
    command = ["git", "-C", os.path.dirname(lab.__file__), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _different(texts: list[str]) -> str:
    return "; ".join(dict.fromkeys(texts))


def _named(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _devices(result: dict[str, Any]) -> str:
    kinds = Counter(name.rpartition("device:")[2].split(":")[0] for name in result["devices"] or ())
    workers = f" on {result['workers']} workers" if (result["workers"] or 1) > 1 else ""
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items()) + workers
