"""Run directories -> runs: config, result, weights by step, and every scalar on record.

Unusable runs are left out with a line that says why, and never end a report.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import re
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from lab import data
from lab.analysis import workers
from lab.analysis.labels import DEFAULTS, counted, labels_of, told_apart
from lab.analysis.weights import Weights
from lab.analysis.workers import Compute
from lab.compare import table as comparison
from lab.compare.results import network_of, read_results
from lab.diagnosis.why import Diagnosis, diagnose
from lab.errors import LabError
from lab.record import event_reader, result_file
from lab.record.directory import CONFIG, RESULT, checkpoint_paths, read_object
from lab.record.run import RunReader


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One run that came to its end: with finite weights or, in `Runs.dead`, without any.

    config: every field of Config; one that an older run lacks at its default. result: of
    result.json. networks: by step, from the checkpoints; 0 and the last one are there. scalars:
    by tag, (steps int64 [n], values float64 [n]), each step once, rising. network: see
    `lab.compare.results.network_of`. again: of checkpoints up to which the run was trained again,
    whether the weights were the same bits.
    """

    path: str
    config: dict[str, Any]
    result: dict[str, Any]
    networks: dict[int, Weights]
    scalars: dict[str, event_reader.Series]
    network: str = ""
    again: dict[int, bool] = dataclasses.field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether its network can be rebuilt and evaluated as the training did."""
        return _is_known(self.config, self.result, self.network)

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def data(self) -> str:
        return self.result["data"]

    @property
    def replicas(self) -> int:
        return self.result["replicas"] or 1

    @property
    def steps(self) -> int:
        return self.result["step"]

    @property
    def completed(self) -> bool:
        return self.result["status"] == "completed"

    @property
    def initial(self) -> Weights:
        return self.networks[0]

    @property
    def final(self) -> Weights:
        return self.networks[self.steps]

    def every_step(self, tag: str) -> np.ndarray | None:
        """The values of a scalar at the steps 1, 2, ..., the last; None unless all are there."""
        steps, values = self.scalars.get(tag, (np.empty(0), np.empty(0)))
        return values if np.array_equal(steps, np.arange(1, self.steps + 1)) else None


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in nothing but the seed, by seed.

    Attributes:
      label: what distinguishes it from the others.
      data: the digest of what they were trained on.
      replicas: that trained together; their number does not change a run but for rounding.
      network: of its runs.
    """

    label: str
    config: dict[str, Any]
    data: str
    runs: list[Run]
    replicas: int = 1
    network: str = ""

    @property
    def known(self) -> bool:
        """See `Run.known`."""
        return self.runs[0].known

    @property
    def shown(self) -> dict[str, str]:
        """See `Weights.shown`."""
        return self.runs[0].final.shown()

    @property
    def completed(self) -> list[Run]:
        return [run for run in self.runs if run.completed]


@dataclasses.dataclass(frozen=True, eq=False)
class Runs:
    """The contents of a folder of runs.

    Attributes:
      table: of all results.
      problems: a line for all that is left out.
      folders: the config's data by digest, of those that are still there as they were.
      labels: of the table's rows.
      broken: what broke first in each run with an event on record, also in those left out.
      dead: the runs that ended with NaN or infinity, which are in no group.
    """

    logdir: str
    groups: list[Group]
    table: comparison.Table
    problems: list[str]
    folders: dict[str, str]
    labels: list[str]
    broken: Sequence[Diagnosis] = ()
    dead: Sequence[Run] = ()

    def sweep(self, like: Group, *fields: str) -> list[Group]:
        """The groups on the same data whose configs differ from one in none but these fields."""
        return [group for group in self.groups if _kind(group, fields) == _kind(like, fields)]

    def dead_of(self, like: Group, *fields: str) -> list[Run]:
        """Of the runs that ended with NaN or infinity those that belong to the same sweep."""
        return [run for run in self.dead if _kind(run, fields) == _kind(like, fields)]


def read_runs(logdir: str, compute: Compute = workers.compute) -> Runs:
    """Every run below `logdir`, and its data.

    Args:
      compute: reads the runs, in this process or in others.

    Raises:
      LabError: `logdir` is not a folder.
    """
    found, problems = read_results(logdir)
    table = comparison.make_table(found, problems=problems)
    pattern = os.path.join(glob.escape(logdir), "**", CONFIG)
    paths = [*glob.glob(pattern, recursive=True), *(result.path for result in found)]
    folders = sorted(set(map(os.path.dirname, paths)))
    runs, broken, dead = [], [], {}
    tried = compute([(_try_run, f) for f in folders])
    for folder, (run, diagnosis) in zip(folders, tried, strict=True):
        if diagnosis and diagnosis.event:
            broken.append(diagnosis)
        if isinstance(run, Run) and run.networks:
            runs.append(run)
            continue
        if isinstance(run, Run):
            dead[_kind(run), run.seed] = run
            run = f"it ended as nonfinite at step {run.steps}"
        problems.append(f"{os.path.relpath(folder, logdir)}: left out, {run}")
    places, lost = _find_data(runs)
    configs = [DEFAULTS | row.config for row in table.rows]
    differ = [k for k in DEFAULTS if len({json.dumps(c[k]) for c in configs}) > 1]
    labels = counted(told_apart(labels_of(configs, differ), [row.network for row in table.rows]))
    groups, repeats = _group(runs, table, differ)
    for run, kept in repeats:
        one, other = (os.path.relpath(run.path, logdir) for run in (run, kept))
        problems.append(f"{one}: left out, it repeats seed {run.seed} of {other}")
    return Runs(logdir, groups, table, problems + lost, places, labels, broken, [*dead.values()])


def _try_run(folder: str) -> tuple[Run | str, Diagnosis | None]:
    """The run, or why it is left out; and what its record says of what broke first, if it can be
    read."""
    diagnosis = None
    try:
        reader = RunReader(folder)
        if reader.scalars:
            diagnosis = diagnose(reader, repeat=False)
        return _read_run(folder, reader), diagnosis
    except LabError as error:
        return str(error), diagnosis


def _read_run(folder: str, reader: RunReader) -> Run:
    """Raises LabError, why the run is left out, unless it can be used."""
    values = read_object(os.path.join(folder, RESULT))
    if not values:
        raise LabError(f"it has no {RESULT}: it is not finished")
    result = result_file.checked_result(values, RESULT)
    config, step, status = DEFAULTS | result["config"], result["step"], result["status"]
    network = network_of(result)
    if status == "nonfinite":
        return Run(folder, config, result, {}, {}, network)
    if status not in ("completed", "collapsed"):
        raise LabError(f"it ended as {status} at step {step}")
    if result["data"] is None:
        raise LabError(f"its {RESULT} cannot be used: no data")
    if status == "collapsed" and result["collapsed"] is None:
        raise LabError(f"its {RESULT} cannot be used: no class that it collapsed to")
    scalars = reader.scalars
    networks = _read_networks(folder, scalars, _is_known(config, result, network))
    if missing := {0, step} - networks.keys():
        raise LabError(f"it has no checkpoint of step {', '.join(map(str, sorted(missing)))}")
    if not all(np.isfinite(w).all() for w in networks[step].values()):
        raise LabError("its weights hold NaN or infinity")
    run = Run(folder, config, result, networks, scalars, network)
    if run.every_step("loss") is None:
        steps = len(run.scalars.get("loss", ((), ()))[0])
        raise LabError(f"its event files hold {steps} of {step} steps: damaged or cut")
    return run


def _is_known(config: dict[str, Any], result: dict[str, Any], network: str) -> bool:
    plain = config.get("model", "mlp") == "mlp" and not network
    return plain and result["test_accuracy"] is not None


def _read_networks(
    folder: str, scalars: dict[str, event_reader.Series], known: bool
) -> dict[int, Weights]:
    from lab.record.checkpoints import read_tensors  # it loads TensorFlow

    tags = [tag.removesuffix("/norm") for tag in scalars if tag.endswith("/norm")]
    pattern = r"(h\d+|logits)/(weights|bias)" if known else "|".join(map(re.escape, tags))
    networks = {}
    for step, path in checkpoint_paths(folder).items():
        tensors = read_tensors(path, pattern)
        try:
            networks[step] = (
                Weights.from_tensors(tensors)
                if known
                else _trained(tensors or read_tensors(path), tags)
            )
        except ValueError as error:
            raise LabError(f"{path} cannot be read: {error}") from None
    return networks


def _trained(tensors: dict[str, np.ndarray], tags: list[str]) -> Weights:
    """The tensors that were trained, in the order of the record: those whose norms are there. Where
    norms are not on record, state is among them."""
    found = [tag for tag in tags if tag in tensors]
    found = found or [tag for tag in sorted(tensors) if tag.rpartition("/")[0] not in tensors]
    kept = {tag: tensors[tag] for tag in found if tensors[tag].dtype.kind not in "biu"}
    wide = {np.dtype(np.float32), np.dtype(np.float64)}
    return Weights({t: w if w.dtype in wide else np.float32(w) for t, w in kept.items()})


def _find_data(runs: list[Run]) -> tuple[dict[str, str], list[str]]:
    """The config's data by digest, and a line for each that is gone or differs."""
    places: dict[str, str] = {}
    lost = []
    of_known = {(run.result["data"], run.config["data"]) for run in runs if run.known}
    for digest, folder in sorted(of_known):
        name = "the embedded MNIST" if folder == "mnist" else folder
        try:
            if data.load(folder).digest == digest:
                places[digest] = folder
            else:
                lost.append(f"{name} is not what runs here were trained on: no images for them")
        except LabError as error:
            lost.append(f"no images for runs trained on {name}: {error}")
    return places, lost


def _group(
    runs: list[Run], table: comparison.Table, differ: Collection[str]
) -> tuple[list[Group], list[tuple[Run, Run]]]:
    """In the order of the table's rows; their labels are unique. And each run that repeats another
    one, with that."""

    configs: dict[tuple[str, str, int, str], dict[str, Any]] = {}
    for run in runs:
        configs.setdefault(_kind(run), run.config)
    groups: dict[tuple[str, str, int, str], dict[int, Run]] = {key: {} for key in configs}
    repeats = []
    for run in sorted(runs, key=lambda run: -len(run.scalars)):  # the one with more on record
        kept = groups[_kind(run)].setdefault(run.seed, run)
        if kept is not run:
            repeats.append((run, kept))
    names: list[str] = []
    labels = told_apart(labels_of(list(configs.values()), differ), [key[3] for key in groups])
    for name, (_, digest, replicas, _) in zip(labels, groups, strict=True):
        name += f" on {replicas} replicas" * (replicas > 1)
        names.append(name + f", data {digest[:6]}" * (name in names))
    found = [
        Group(name, configs[key], key[1], [same[seed] for seed in sorted(same)], *key[2:])
        for name, (key, same) in zip(counted(names), groups.items(), strict=True)
    ]
    order = [(_key(row.config), row.network) for row in table.rows]
    order += [(_key(group.config), group.network) for group in found]
    place = {key: i for i, key in reversed([*enumerate(order)])}
    return sorted(found, key=lambda g: (place[_key(g.config), g.network], g.replicas)), repeats


def _kind(one: Run | Group, without: Sequence[str] = ()) -> tuple[str, str, int, str]:
    """What is the same of runs that differ in nothing but the seed and the fields `without`."""
    return _key(one.config, without), one.data, one.replicas, one.network


def _key(config: dict[str, Any], without: Sequence[str] = ()) -> str:
    skip = comparison.RECORDING_FIELDS | {"seed", "data", *without}
    return json.dumps({k: v for k, v in config.items() if k not in skip}, sort_keys=True)
