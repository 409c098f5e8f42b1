"""A step of a run, retrained from the checkpoint before it."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from lab.data import Batches
from lab.errors import LabError
from lab.models.optimizers import Rule
from lab.record.checkpoints import Checkpoint, read_tensors
from lab.record.directory import read_object
from lab.record.run import RunReader
from lab.settings.config import Config
from lab.step.loop import TrainLoop
from lab.training import build, trial
from lab.training.moment import Moment
from lab.training.problem import Problem, load_data, problem_of, problem_with
from lab.training.rerun import LOOP, Rerun, ignore
from lab.training.state import TrainingState


class Replay:
    """Retrains steps of a run.

    Raises:
      LabError: what the run trained is not available, or has changed.
    """

    def __init__(self, run: RunReader, problem: Problem | None) -> None:
        self._run = run
        self._state = state_of(run, problem)
        self._observing = self._state.loop.observing()

    def at(self, step: int) -> Moment:
        """See Run.at."""
        with self._trained_before(step) as state:
            return _moment(self._run, state, self._observing, step)

    @contextlib.contextmanager
    def before(self, step: int) -> Iterator[Rerun]:
        """See Run.before."""
        with self._trained_before(step) as state:
            yield Rerun(state, self._observing, step)

    @contextlib.contextmanager
    def _trained_before(self, step: int) -> Iterator[TrainingState]:
        """The run's state before a step, trained again from the nearest checkpoint."""
        run, state = self._run, self._state
        _check_step(run, step)
        untouched = state.tensors()
        try:
            restore(state, run, step)
            train_to(state, step - 1)
            yield state
        finally:  # the model may be the caller's
            state.assign(untouched)


def _check_step(run: RunReader, step: int) -> None:
    recorded = int(run.scalar("loss").steps[-1]) if "loss" in run.scalars else 0
    # A run that was interrupted and resumed keeps the result of the interruption until its end.
    last = max(recorded, *run.checkpoints, (run.result or {}).get("step", 0))
    if not 1 <= step <= last:
        raise LabError(f"{run.path} has no step {step}: it has the steps 1 to {last}")


def restore(state: TrainingState, run: RunReader, step: int) -> None:
    """Restores a state from the run's newest checkpoint before a step.

    Raises:
      LabError: there is none, or it cannot be read.
    """
    found = [(number, path) for number, path in run.checkpoints.items() if number < step]
    if not found:
        raise LabError(f"{run.path} has no checkpoint before step {step}")
    number, path = found[-1]
    saved = read_object(os.path.join(path, "manifest.json"))["state"]
    state.restore(Checkpoint(number, read_tensors(path), saved, {}), ignore)


def train_to(state: TrainingState, step: int) -> None:
    """Trains on to the end of a step."""
    while state.step < step:
        state.run(min(LOOP, step - state.step), ignore)


def _moment(run: RunReader, state: TrainingState, observing: TrainLoop, step: int) -> Moment:
    """Observes the step that the state is before."""
    before = state.tensors()
    names = list(state.training.variables)
    observed = observing.run(state.rows(step, 1), step, state.config.seed)
    state.assign(before)
    recorded = state.run(1, ignore)
    after = {name: tensor.numpy() for name, tensor in state.tensors().items()}
    slots = [n for n in after if n not in names and n not in state.training.model.state]
    part = {
        kind: {
            name.partition("/")[2]: tensor[0].numpy()
            for name, tensor in observed.items()
            if name.startswith(f"{kind}/")
        }
        for kind in ("gradients", "updates", "activations", "probes")
    }
    scalars = recorded["scalars"][0].numpy().tolist()
    return Moment(
        step=step,
        weights={name: after[name] for name in names},
        before={name: before[name].numpy() for name in names},
        slots={name: after[name] for name in slots},
        state={name: after[name] for name in state.training.model.state},
        gradients=part["gradients"],
        updates=part["updates"],
        examples=state.examples(step),
        losses=observed["losses"][0].numpy(),
        activations=part["activations"] | part["probes"],
        scalars=dict(zip(state.loop.watch.scalar_tags, scalars, strict=True)),
        differing=_differing(run, step, state, recorded),
    )


def examples_of(run: RunReader, step: int, problem: Problem | None) -> np.ndarray:
    """See Run.batch."""
    config = run.checked_config
    data = problem.data if problem else _named_data(run, config)
    if data.is_function:
        raise LabError(f"{run.path}: its batches come from a function: call that with the step")
    _check_step(run, step)
    return Batches(config.seed, len(data.x), config.batch_size).indices(step, 1)[0]


def problem_with_objects(run: RunReader, objects: dict[str, Any]) -> Problem:
    """The problem of a run that `lab.train` was given as objects.

    Raises:
      LabError: these are not the objects that it needs.
    """
    unknown = sorted(objects.keys() - {"model", "data", "loss", "metrics", "optimizer"})
    if unknown:
        raise LabError(f"open_run takes model, data, loss, metrics and optimizer, not {unknown[0]}")
    _check_given(run, objects)
    rule = objects.pop("optimizer", None)
    if rule is not None and not isinstance(rule, Rule):
        raise LabError(
            f"optimizer is {type(rule).__name__}: must be an object such as lab.Adam(1e-3)"
        )
    given = tuple(run.circumstances.get("given", ()))
    if rule is not None and "optimizer" not in given:  # one of the user's own is compared later
        _check_rule(run, rule)
    problem = problem_with(run.checked_config, **objects)
    return dataclasses.replace(problem, rule=rule, given=given)


def _check_given(run: RunReader, objects: Collection[str]) -> None:
    given = run.circumstances.get("given", ())
    if not {*given} <= {*objects}:
        names = ", ".join(f"{name}=..." for name in given)
        raise LabError(
            f"{run.path} was given its {', '.join(given)} as objects: open it with "
            f"lab.open_run(path, {names})"
        )


def _check_rule(run: RunReader, rule: Rule) -> None:
    """Raises LabError for a rule that is not the config's."""
    config = vars(run.checked_config)
    fields = {"optimizer": type(rule).__name__} | build.fields_of(rule)
    for name in fields:
        if fields[name] != config[name]:
            raise LabError(
                f"{run.path} was trained with {name} {config[name]}, and the optimizer here has "
                f"{fields[name]}: open it with the optimizer that lab.train was given"
            )


def _named(run: RunReader, config: Config) -> Problem:
    """The problem that a run's config names."""
    _check_given(run, ())
    return problem_of(config)


def _named_data(run: RunReader, config: Config) -> Any:
    if "data" in run.circumstances.get("given", ()):
        raise LabError(f"{run.path} was given its data as an object: lab.open_run(path, data=...)")
    return load_data(config.data)[0]


def state_of(run: RunReader, problem: Problem | None = None, record: bool = True) -> TrainingState:
    """What the run trained, compiled; without its record and its evaluations it is so sooner.

    Raises:
      LabError: what is available is not what the run trained.
    """
    config = run.checked_config
    problem = problem or _named(run, config)
    facts = run.circumstances
    devices = f"{facts.get('device', 'CPU').lower()}:{facts.get('replicas', 1)}"
    strategy = build.make_strategy(config, devices, problem, None)
    training, traced = build.make_training(config, problem, strategy)
    now = trial.circumstances(problem, training, traced, strategy, None)
    differ = [name for name in now if name in facts and now[name] != facts[name]]
    if differ:
        name = differ[0]
        raise LabError(
            f"{run.path} cannot be retrained: its {name} was {facts[name]}, and is {now[name]}"
        )
    use_xla = build.choose_xla(config, strategy, traced)
    data = problem.data
    if not record:
        config, data = dataclasses.replace(config, watch=()), copy.copy(data)
        data.x_test = data.y_test = None
    return TrainingState(config, data, strategy, training, traced, use_xla, LOOP)


def _differing(run: RunReader, step: int, state: TrainingState, recorded: Any) -> tuple[str, ...]:
    """The tags whose histogram of this step is not the recorded one, count for count."""
    found = []
    for column, tag in enumerate(state.loop.watch.tags):
        try:
            steps, edges, counts = run.histogram(tag)
        except KeyError:
            continue
        place = np.flatnonzero(steps == step)
        own = {name: recorded[name][0, column].numpy() for name in ("counts", "low", "high")}
        if own["low"] == own["high"]:  # then all are on record as in the last bucket
            own["counts"] = np.eye(len(own["counts"]))[-1] * own["counts"].sum()
        ends = own["low"], own["high"]
        if len(place) and not (
            np.array_equal(counts[place[0]], own["counts"])
            and np.array_equal(edges[place[0], [0, -1]], ends)
        ):
            found.append(tag)
    return tuple(found)
