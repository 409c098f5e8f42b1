"""The weights of a run at steps that no checkpoint holds, trained again without the record."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np

from lab.errors import LabError
from lab.record.checkpoints import Checkpoint, read_tensors
from lab.record.directory import checkpoint_paths, read_object
from lab.training.moment import StoredRun
from lab.training.replay import state_of
from lab.training.rerun import LOOP, ignore


def weights_at(path: str, steps: Iterable[int]) -> dict[int, dict[str, np.ndarray]] | str:
    """The weights after each of these steps, by tag; or why the run cannot be trained again.

    From the first checkpoint on, in one pass: the bits that the run had, as `Run.at` has them. What
    else is kept of a later checkpoint can then be held against them.
    """
    try:
        run = StoredRun(path)
        state = state_of(run, record=False)
        first = checkpoint_paths(path)[0]
        saved = read_object(os.path.join(first, "manifest.json"))["state"]
        state.restore(Checkpoint(0, read_tensors(first), saved, {}), ignore)
        found = {}
        for step in sorted(steps):
            while state.step < step:
                state.run(min(LOOP, step - state.step), ignore)
            found[step] = state.weights()
        return found
    except LabError as error:
        return str(error)
