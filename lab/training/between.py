"""The weights of a run at steps that no checkpoint holds, retrained without recording."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from lab.errors import LabError
from lab.record.run import RunReader
from lab.training.replay import restore, state_of, train_to
from lab.training.state import TrainingState

_kept: list[tuple[Any, TrainingState]] = []  # the last that was compiled, kept to the end


def weights_at(path: str, steps: Iterable[int]) -> dict[int, dict[str, np.ndarray]] | str:
    """The weights after each of these steps, by tag; or why the run cannot be retrained.

    From the first checkpoint on, in one pass: the bits that the run had, as `Run.at` has them. What
    else is kept of a later checkpoint can then be held against them.
    """
    try:
        run = RunReader(path)
        state = _state_of(run)
        restore(state, run, 1)
        found = {}
        for step in sorted(steps):
            train_to(state, step)
            found[step] = state.weights()
        return found
    except LabError as error:
        return str(error)


def _state_of(run: RunReader) -> TrainingState:
    """What the run trained, compiled. That of the call before will do if only the seed is another:
    the perceptron's is an argument of its program."""
    config = run.checked_config
    alike = config.seedless, run.circumstances | {"config": 0, "fingerprint": 0}
    if _kept and _kept[0][0] == alike and config.model == "mlp" and not config.shuffle_labels:
        state = _kept[0][1]
        state.take_seed(config.seed)
        return state
    state = state_of(run, record=False)
    _kept[:] = [(alike, state)]
    return state
