"""One run: from its config to result.json."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import tensorboard
import tensorflow as tf

import lab
from lab import machine
from lab.data import Data
from lab.errors import LabError
from lab.processes.cluster import Cluster
from lab.processes.stop import Stop
from lab.settings.config import Config, Settings, placeless
from lab.step.agreement import Group
from lab.training import build
from lab.training.periodic import Checkpointing, Evaluation, LoopLength, Profile
from lab.training.progress import Reporter
from lab.training.session import AnyRecorder, Session, open_session
from lab.training.state import TrainingState

CUT_SHORT = (
    "stopped in the midst of a step, which would have taken too long; the same command resumes "
    "from the last checkpoint"
)


def run(
    config: Config,
    settings: Settings,
    dataset: Data,
    reporter: Reporter,
    stop: Stop,
    started: float,
    cluster: Cluster | None = None,
) -> dict[str, Any]:
    """Trains, records and writes result.json, unless that was done before; returns it.

    A run that was interrupted is resumed from its newest checkpoint, to exactly the result that it
    would have had. `started` is the time of the program's start on time.monotonic's clock,
    `cluster` the workers that train together, after they have met: the first, the chief, alone
    reads and writes the run directory.

    Raises:
      LabError: the run directory is another run's, is in use or cannot be written; or another
        worker was lost.
    """
    path, last = settings.directory(config), config.training_steps
    strategy = build.make_strategy(config, settings.devices, dataset, cluster)
    group = Group(strategy, cluster)
    facts = _circumstances(dataset, strategy, cluster)
    with _explained(path, cluster), _opened(config, settings, facts, group, reporter) as session:
        if session.result:
            reporter.notify(f"{path} is there already; --overwrite trains it again")
            return session.result
        length = LoopLength(config, settings)
        state = TrainingState(config, dataset, strategy, length.most)
        with closing(_begin(state, session, group, reporter, path)) as recorder:
            evaluate = Evaluation(state, recorder, reporter)
            save = Checkpointing(state, session, recorder, group, settings.checkpoint_every)
            profile = Profile(path if settings.profile and group.chief else "", last)
            startup = time.monotonic() - started
            reporter.begin(_about(state), last, state.step)
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
                reporter.notify(f"the last checkpoint before that is of step {save.saved}")
            recorder.finish(succeeded=state.status in ("completed", "collapsed"))
        result = session.finish(_result(state, facts, startup))
        group.largest(0)  # the chief would miss a worker that ends before it
        return result


def _opened(
    config: Config, settings: Settings, facts: dict[str, Any], group: Group, reporter: Reporter
) -> closing[Session]:
    """The session of a run, to be closed, after all workers have agreed on what is run."""
    fields = dataclasses.asdict(config)
    alike = placeless(fields) | facts
    alike |= {name: getattr(settings, name) for name in ("steps_per_loop", "checkpoint_every")}
    group.check_alike(alike)
    path, identity = settings.directory(config), {"config": fields, **facts}
    fingerprint, overwrite = config.fingerprint(**facts), settings.overwrite
    return closing(open_session(group, path, identity, fingerprint, overwrite, reporter.notify))


def _begin(
    state: TrainingState, session: Session, group: Group, reporter: Reporter, path: str
) -> AnyRecorder:
    """Resumes the run, or saves its first checkpoint; returns a recorder that continues there."""
    if session.checkpoint:
        reporter.notify(f"{path} goes on after step {session.checkpoint.step}")
        state.restore(session.checkpoint, reporter.notify)
    else:
        group.check_identical(state.variables())
        session.save(0, state.tensors(), state.saved)
    recorder = session.recorder(state.loop.watch)
    recorder.nonfinite.update(state.saved["nonfinite"])
    state.saved["nonfinite"] = recorder.nonfinite
    if state.step == 0:
        config = state.config
        recorder.start(
            state.loop.step_graph,
            dataclasses.asdict(config) | {"effective_learning_rate": state.effective_learning_rate},
            config.hparams,
            "test-accuracy",
            os.path.basename(path),
        )
    return recorder


def _about(state: TrainingState) -> list[str]:
    """What is trained, and how, one line each."""
    config, dataset, replicas = state.config, state.dataset, state.loop.replicas
    why = ""
    if config.reduction == "sum" and state.training.optimizer.rule.degree:
        why = f" (the loss is summed over {config.batch_size} examples)"
    elif config.reduction == "sum":
        why = f" ({config.optimizer} divides that scale out, but for its constants)"
    sizes = "-".join(map(str, build.sizes(config, dataset)))
    lines = [
        f"{sizes} {config.activation}, {config.optimizer} at {config.learning_rate:g}, "
        f"batch {config.batch_size}, seed {config.seed}: "
        f"{config.training_steps:,} steps on {len(dataset.x):,} examples"
        + (f", {replicas} replicas" if replicas > 1 else ""),
        f"effective learning rate on the mean loss: {state.effective_learning_rate:g}{why}",
    ]
    cores, threads = len(machine.cores()), config.threads
    if cores > threads and not state.loop.on_gpu:
        lines.append(
            f"each operation takes {threads} of {cores} cores; --threads={cores} takes them all, "
            "and gives other last bits"
        )
    return lines


def _circumstances(
    dataset: Data, strategy: tf.distribute.Strategy, cluster: Cluster | None
) -> dict[str, Any]:
    """What decides the numbers beside the config."""
    return {
        "data": dataset.digest,
        "replicas": strategy.num_replicas_in_sync,
        "workers": len(cluster.workers) if cluster else 1,
        "device": strategy.extended.worker_devices[0].rpartition("device:")[2].partition(":")[0],
        "tensorflow": tf.__version__,
    }


def _result(state: TrainingState, facts: dict[str, Any], startup: float) -> dict[str, Any]:
    """What result.json holds."""
    config, saved = state.config, state.saved
    return {
        "config": dataclasses.asdict(config),
        "fingerprint": config.fingerprint(**facts),
        "status": state.status,
        "step": state.step,
        **saved["figures"],
        "effective_learning_rate": state.effective_learning_rate,
        "nonfinite": dict(sorted(saved["nonfinite"].items())),
        "evaluations": saved["evaluations"],
        "seconds": round(saved["seconds"], 3),
        "startup_seconds": round(startup, 3),
        "devices": sorted(state.strategy.extended.worker_devices),
        **facts,
        "cpus": saved["cpus"],
        "versions": {"everystep": lab.__version__, "python": platform.python_version()}
        | {module.__name__: module.__version__ for module in (tf, tensorboard, np)},
    }


@contextlib.contextmanager
def _explained(path: str, cluster: Cluster | None) -> Iterator[None]:
    """Turns the errors that a user can do something about into a LabError."""
    try:
        yield
    except OSError as error:
        raise LabError(f"{error.filename or path}: {error.strerror}") from error
    except tf.errors.ResourceExhaustedError as error:
        raise LabError(
            "the memory does not suffice: take a smaller --batch_size, or smaller layers"
            f" ({' '.join(error.message.split())[:200]})"
        ) from error
    except tf.errors.OpError as error:
        if not cluster:
            raise
        tasks = {int(task) for task in re.findall(r"/task:(\d+)", error.message)} - {cluster.index}
        who = cluster.names(sorted(tasks)) or cluster.others
        raise LabError(
            f"{cluster.me}: {who} was lost; start every worker again, they go on from the last "
            "checkpoint"
        ) from error
