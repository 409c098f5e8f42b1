"""Runs -> the story of a report: the table, the autopsy, the five questions.

Every sentence is worded by what was measured in these runs.
"""

from __future__ import annotations

import os
import subprocess
from collections import Counter

import lab
from lab.analysis.runs import Progress, Runs
from lab.analysis.study import MEAN_EXAMPLES, PAIR_EXAMPLES, SHARPNESS_EXAMPLES, Evidence, measure
from lab.report.figures import many
from lab.report.questions import SECTIONS
from lab.report.section import Story


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
    sections = [ask(evidence) for ask in SECTIONS]
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
        versions = [run.result["versions"] or {} for run in every]
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
                f"in depth {len(evidence.featured)} of"
                f" {many(len(runs.groups), 'configuration')}, those with the most seeds;"
                " accuracies on all test images; the reference configuration's pairs too, other"
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
    kinds = Counter(name.rpartition("device:")[2].split(":")[0] for name in result["devices"] or ())
    workers = f" on {result['workers']} workers" if (result["workers"] or 1) > 1 else ""
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items()) + workers
