"""One run: from its config to result.json."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import tensorboard
import tensorflow as tf

import lab
from lab.data.dataset import compiled
from lab.errors import LabError
from lab.kernels import xla
from lab.processes.cluster import Cluster
from lab.processes.stop import Stop
from lab.record.checkpoints import read_tensors
from lab.record.directory import checkpoint_paths
from lab.settings.config import Config, Settings, placeless
from lab.step.agreement import Group
from lab.step.replica import Training
from lab.step.trace import Traced
from lab.training import build
from lab.training.about import about
from lab.training.periodic import Checkpointing, Evaluation, LoopLength, Profile
from lab.training.problem import Problem
from lab.training.programs import Programs
from lab.training.progress import Reporter
from lab.training.session import AnyRecorder, Session, open_session
from lab.training.state import TrainingState

CUT_SHORT = (
    "stopped in the midst of a step, which would have taken too long; the same command resumes "
    "from the last checkpoint"
)


@xla.released()
def run(
    config: Config,
    settings: Settings,
    problem: Problem,
    reporter: Reporter,
    stop: Stop,
    started: float,
    cluster: Cluster | None = None,
    programs: Programs | None = None,
) -> tuple[str, dict[str, Any]]:
    """Trains, records and writes result.json, unless that is already done.

    A run that was interrupted is resumed from its newest checkpoint, to exactly the result that it
    would have had. `started` is the time of the program's start on time.monotonic's clock,
    `cluster` the workers that train together, after they have met: the first, the chief, alone
    reads and writes the run directory. `programs` are those of the process's last run; this one's
    take their place.

    Returns:
      The run directory, and what its result.json holds.

    Raises:
      LabError: the run directory is another run's, is in use or cannot be written; or another
        worker was lost.
    """
    length = LoopLength(config, settings, problem.data)
    if programs:
        programs.begin(config, problem.data.digest, settings.devices, length.most)
    strategy = build.make_strategy(config, settings.devices, problem, cluster)
    training, traced = build.make_training(config, problem, strategy)
    group, last = Group(strategy, cluster), config.training_steps
    facts = circumstances(problem, training, traced, strategy, cluster)
    path = _directory(config, settings, problem, facts)
    opened = _opened(config, settings, path, facts, traced.order, group, reporter)
    with _explained(path, cluster), opened as session:
        if "model" in problem.given:
            _check_start(path, training, None if problem.fresh else session)
        if session.result:
            if not problem.fresh:
                _to_newest(path, training)
            reporter.there(path)
            return path, session.result
        use_xla = build.choose_xla(config, strategy, traced)
        state = TrainingState(
            config, problem.data, strategy, training, traced, use_xla, length.most, programs
        )
        del training  # the state may have an earlier run's
        with (
            _object_kept(path, state, problem),
            closing(_begin(state, session, group, reporter, path, problem.fresh)) as recorder,
        ):
            evaluate = Evaluation(state, recorder, reporter)
            save = Checkpointing(state, session, recorder, group, settings.checkpoint_every)
            profile = Profile(path if settings.profile and group.chief else "", last)
            startup = time.monotonic() - started
            lines = about(path, state, recorder, evaluate, save) if group.chief else []
            reporter.begin(lines, last, state.step)
            while state.step < last:
                signal, length.milliseconds = group.largest(stop.check(), length.milliseconds)
                if signal:
                    stop.signal = signal
                    break
                first, steps = state.step + 1, length(state.step)
                with length.timed(steps), profile.around(steps):
                    recorded = state.run(steps, reporter.notify)
                recorder.steps(first, recorded, config.histogram_every)
                reporter.advance(state.step)
                if state.broken:
                    break
                stop.check()  # before the jobs, which may take long
                for job in (evaluate, save):
                    if job.due(state.step):
                        job(recorded)
            save.end()
            reporter.end()
            if state.broken:
                reporter.notify(f"the last checkpoint before that is from step {save.saved}")
                if not problem.fresh:
                    _to_newest(path, state.training)
            recorder.finish(succeeded=state.status in ("completed", "collapsed"))
        result = session.finish(_result(state, facts, startup))
        group.largest(0)  # the chief would miss a worker that ends before it
        return path, result


def _check_start(path: str, training: Training, session: Session | None) -> None:
    """Raises LabError where the run in a directory began with other weights, within rounding. With
    its session, they may be those of its newest checkpoint instead."""
    saved = checkpoint_paths(path)
    other = _different(read_tensors(saved[0]), training) if 0 in saved else ""
    if other and session:
        kept = session.checkpoint
        newest = kept.tensors if kept else read_tensors(saved[max(saved)])
        other = other if _different(newest, training) else ""
    if other:
        raise LabError(
            f"{path} holds another run (its {other} started from different values): rename this "
            "one, or pass overwrite=True to delete the other"
        )


def _different(saved: Mapping[str, Any], training: Training) -> str:
    """The first weight that was saved with other values, beyond rounding; "" if none."""
    for tag, variable in training.variables.items():
        now = variable.numpy()
        if tag in saved and not np.allclose(now, saved[tag], 1e-3, 1e-5, equal_nan=True):
            return tag
    return ""


def _to_newest(path: str, training: Training) -> None:
    """Gives a model, and its optimizer, the values of the newest checkpoint: the same call then
    finds its run again."""
    paths = checkpoint_paths(path)
    saved = read_tensors(paths[max(paths)])
    for name, variable in training.all_variables.items():
        variable.assign(saved[name])


@contextlib.contextmanager
def _object_kept(path: str, state: TrainingState, problem: Problem) -> Iterator[None]:
    """Where a run ends in an error, has an object that was given as the model continue from the
    newest checkpoint."""
    try:
        yield
    except BaseException:
        if not problem.fresh and checkpoint_paths(path):
            with contextlib.suppress(LabError):  # what ended the run is told
                _to_newest(path, state.training)
        raise


def _directory(
    config: Config, settings: Settings, problem: Problem, facts: Mapping[str, Any]
) -> str:
    """The run directory. Its name distinguishes networks and data that no config can name."""
    path = settings.directory(config)
    if problem.given and not settings.run_name:
        path += f",{digest(facts)[:8]}"
    return path


def _opened(
    config: Config,
    settings: Settings,
    path: str,
    facts: dict[str, Any],
    order: Sequence[str],
    group: Group,
    reporter: Reporter,
) -> closing[Session]:
    """The session of a run, to be closed, after all workers have agreed on what is run."""
    fields = config.own
    alike = placeless(fields) | facts
    alike |= {name: getattr(settings, name) for name in ("steps_per_loop", "checkpoint_every")}
    group.check_alike(alike)
    fingerprint = config.fingerprint(**facts)
    identity = {"config": fields, **facts, "forward_order": [*order]}
    return closing(
        open_session(group, path, identity, fingerprint, settings.overwrite, reporter.notify)
    )


def _begin(
    state: TrainingState, session: Session, group: Group, reporter: Reporter, path: str, fresh: bool
) -> AnyRecorder:
    """Resumes the run, or saves its first checkpoint; returns a recorder that continues there. A
    model that is not fresh may have been trained since the run began."""
    if session.checkpoint:
        reporter.notify(f"{path}: resuming after step {session.checkpoint.step}")
        state.restore(session.checkpoint, reporter.notify)
        if not fresh:
            first = read_tensors(checkpoint_paths(path)[0])
            state.initial = {tag: first[tag] for tag in state.initial}
    else:
        group.check_identical(state.training.all_variables)
        session.save(0, state.tensors(), state.saved)
    recorder = session.recorder(state.loop.watch)
    recorder.nonfinite.update(state.saved["nonfinite"])
    state.saved["nonfinite"] = recorder.nonfinite
    if state.step == 0:
        config = state.config
        recorder.start(
            state.loop.step_graph,
            config.own | {"effective_learning_rate": state.effective_learning_rate},
            config.hparams,
            f"test-{next(iter(state.training.metrics), 'loss')}",
            os.path.basename(path),
        )
    return recorder


def circumstances(
    problem: Problem,
    training: Training,
    traced: Traced,
    strategy: tf.distribute.Strategy,
    cluster: Cluster | None,
) -> dict[str, Any]:
    """What decides the numbers besides the config."""
    variables = training.variables | training.model.state
    shapes = {tag: [v.dtype.name, *v.shape.as_list()] for tag, v in variables.items()}
    return {
        "data": problem.data.digest,
        "network": digest([traced.digest, shapes, [*traced.metrics], [*traced.probes]]),
        **{f"{flag}_files": one for flag, one in problem.files.items()},
        **({"given": list(problem.given)} if problem.given else {}),
        **({"rule": _rule(problem.rule)} if "optimizer" in problem.given else {}),
        "replicas": strategy.num_replicas_in_sync,
        "workers": len(cluster.workers) if cluster else 1,
        "device": strategy.extended.worker_devices[0].rpartition("device:")[2].partition(":")[0],
        "tensorflow": tf.__version__,
    }


def _rule(rule: Any) -> str:
    """What identifies a user-defined rule: its fields, and a digest of its code."""
    try:
        code = inspect.getsource(type(rule))
    except (OSError, TypeError):  # it was typed in
        methods = vars(type(rule)).items()
        code = repr({n: compiled(f.__code__) for n, f in methods if hasattr(f, "__code__")})
    return f"{rule!r}, {digest(code)[:16]}"


def digest(value: Any) -> str:
    """64 hex digits over a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _result(state: TrainingState, facts: dict[str, Any], startup: float) -> dict[str, Any]:
    """What result.json holds."""
    config, saved = state.config, state.saved
    return {
        "config": config.own,
        "fingerprint": config.fingerprint(**facts),
        "status": state.status,
        "step": state.step,
        **saved["figures"],
        "effective_learning_rate": state.effective_learning_rate,
        "nonfinite": dict(sorted(saved["nonfinite"].items())),
        "evaluations": saved["evaluations"],
        "seconds": round(saved["seconds"], 3),
        "xla": state.loop.xla,
        "startup_seconds": round(startup, 3),
        "devices": sorted(state.strategy.extended.worker_devices),
        **facts,
        "cpus": saved["cpus"],
        "versions": {"everystep": lab.__version__, "python": platform.python_version()}
        | {module.__name__: module.__version__ for module in (tf, tensorboard, np)},
    }


@contextlib.contextmanager
def _explained(path: str, cluster: Cluster | None) -> Iterator[None]:
    """Turns errors that a user can fix into a LabError."""
    try:
        yield
    except BrokenPipeError:  # of standard output
        raise
    except OSError as error:
        raise LabError(f"{error.filename or path}: {error.strerror}") from error
    except tf.errors.ResourceExhaustedError as error:
        raise LabError(
            "not enough memory: use a smaller --batch_size, or smaller layers"
            f" ({' '.join(error.message.split())[:200]})"
        ) from error
    except tf.errors.OpError as error:
        if not cluster:
            raise
        tasks = {int(task) for task in re.findall(r"/task:(\d+)", error.message)} - {cluster.index}
        who = cluster.names(sorted(tasks)) or cluster.others
        raise LabError(
            f"{cluster.me}: {who} was lost; start every worker again to resume from the last "
            "checkpoint"
        ) from error
