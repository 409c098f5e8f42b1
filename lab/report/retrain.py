"""Runs of the reference retrained, for the weights where their phases end."""

from __future__ import annotations

import numpy as np

from lab.analysis import drift
from lab.analysis.runs import Group, Run
from lab.analysis.weights import Weights
from lab.analysis.workers import Compute

RUNS = 10  # of the group at most
SECONDS = 300.0  # of training at most, all together, at the pace of the fastest run


def fill(group: Group, compute: Compute) -> str:
    """Adds to the networks of some runs those where their phases, and the halves of these, end.

    Returns:
      Why a run could not be retrained; "" if all could.
    """
    from lab.training.between import weights_at

    chosen: list[Run] = []
    spent = 0.0
    # The others may have shared the machine: what is measured must not depend on that.
    pace = min((run.result["seconds"] or 0.0) / run.steps for run in group.completed)
    for run in group.completed[:RUNS]:
        spent += pace * run.steps
        if spent <= SECONDS and phases_of(run) is not None:
            chosen.append(run)
    results = compute([(weights_at, run.path, _steps(run)) for run in chosen])
    problem = ""
    for run, found in zip(chosen, results, strict=True):
        if isinstance(found, str):
            problem = problem or found
            continue
        for step, weights in found.items():
            if step in run.networks:
                run.again[step] = _equal(run.networks[step], weights)
            else:
                run.networks[step] = Weights({tag: weights[tag] for tag in run.final})
    return problem


def phases_of(run: Run) -> drift.Phases | None:
    """None where not every update is on record."""
    norms = [run.every_step(f"{tag}/update/norm") for tag in run.final.matrices()]
    kept = [np.float64(norm) for norm in norms if norm is not None]
    losses = run.every_step("loss")
    if not kept or len(kept) < len(norms) or losses is None:
        return None
    return drift.phases(np.sqrt(np.sum(np.square(kept), axis=0)), losses)


def spans_of(run: Run) -> dict[str, list[drift.Span]]:
    """By phase, and by half of the fall and of what comes after it; {} without a record."""
    found = phases_of(run)
    if found is None:
        return {}
    spans = drift.spans(found, run.steps)
    for start, end in spans["fall"]:
        middle = (start + end) // 2
        spans |= {"fall, first half": [(start, middle)], "fall, second half": [(middle, end)]}
    half = len(spans["after"]) // 2
    if half:
        spans["after, first half"] = spans["after"][:half]
        spans["after, second half"] = spans["after"][-half:]
    return spans


def _steps(run: Run) -> list[int]:
    """Where weights are needed, and a checkpoint that can be held against them."""
    ends = {step for spans in spans_of(run).values() for span in spans for step in span}
    ends |= {step for step in run.networks if 0 < step <= max(ends, default=0)}
    return sorted(ends - {0})


def _equal(kept: Weights, again: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(kept[tag], again[tag]) for tag in kept)
