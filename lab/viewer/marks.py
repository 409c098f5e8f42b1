"""What happened in a run, and at which step: the marks on a page's axis of steps."""

from __future__ import annotations

import collections

import numpy as np

from lab.diagnosis import events
from lab.diagnosis.events import Mark
from lab.record.run import RunReader

ROUTINE = ("evaluation", "checkpoint")  # kinds of marks that every run has


def marks(run: RunReader) -> list[Mark]:
    """All marks of a run by step: what the run did, what went wrong, what its diagnosis finds."""
    starts = [*run.events.starts.values()][1:]  # reads the histograms with the scalars, once
    found = [Mark(step, "checkpoint", "checkpoint") for step in run.checkpoints]
    tested = {int(s) for t, one in run.scalars.items() if t.startswith("test-") for s in one.steps}
    found += [Mark(step, "evaluation", "evaluation on the test examples") for step in tested]
    found += [Mark(step, "resume", f"resumed after step {step - 1}") for step in starts if step]
    warm_up = int(run.config.get("warmup_steps") or 0)
    if 0 < warm_up <= last_step(run):
        found.append(Mark(warm_up, "end of warm-up", "the learning rate is at its peak"))
    return sorted([*found, *events.marks(run), *_frozen(run)], key=lambda mark: mark.step)


def last_step(run: RunReader) -> int:
    """The last step on record; 0 if there is none."""
    series = run.scalars or run.histograms
    return max((int(one.steps[-1]) for one in series.values() if len(one.steps)), default=0)


def _frozen(run: RunReader) -> list[Mark]:
    """After which step the tensors that the result names as frozen are as at the end."""
    since = collections.defaultdict(list)
    for tag in (run.result or {}).get("frozen") or ():  # null without an evaluation
        if tag in run.histograms:
            steps, rows = run.histograms[tag]
            changed = np.flatnonzero((rows != rows[-1]).any((1, 2))[:-1])
            since[int(steps[changed[-1] + 1 if len(changed) else 0])].append(tag)
    return [
        Mark(step, "frozen", f"no change after this step: {', '.join(tags)}", tags[0])
        for step, tags in since.items()
    ]
