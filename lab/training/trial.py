"""One run: from its config to result.json."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import re
import time
from typing import Any

import numpy as np
import tensorboard
import tensorflow as tf

import lab
from lab import machine
from lab.data import Batches, Dataset
from lab.errors import LabError
from lab.processes.cluster import Cluster
from lab.processes.stop import Stop
from lab.record.event_writer import NullRecorder, Recorder
from lab.settings.config import Config, Settings
from lab.step import placement
from lab.step.agreement import Group
from lab.step.evaluate import Evaluator
from lab.training import build, periodic
from lab.training.progress import Reporter
from lab.training.session import OtherSession, Session, open_session
from lab.training.state import TrainingState

CUT_SHORT = (
    "stopped in the midst of a step, which would have taken too long; the same command resumes "
    "from the last checkpoint"
)


def run(
    config: Config,
    settings: Settings,
    dataset: Dataset,
    reporter: Reporter,
    stop: Stop,
    started: float,
    cluster: Cluster | None = None,
) -> dict[str, Any]:
    """Trains, records and writes result.json, unless that was done before; returns it.

    A run that was interrupted is resumed from its newest checkpoint, to exactly the result that it
    would have had. Of several workers the first, the chief, reads and writes the run directory.

    Args:
      started: when the program started, on time.monotonic's clock.
      cluster: the workers that train together, after they have met.

    Raises:
      LabError: the run directory holds something else, is in use or cannot be written; or
        another worker was lost.
    """
    strategy = _strategy(config, settings, dataset, cluster)
    group = Group(strategy, cluster)
    circumstances = _circumstances(dataset, strategy, cluster)
    fingerprint = config.fingerprint(**circumstances)
    path = settings.directory(config)
    session: Session | OtherSession | None = None
    try:
        group.check_alike(_must_be_alike(config, settings, circumstances))
        identity = {"config": dataclasses.asdict(config), **circumstances}
        session = open_session(
            group, path, identity, fingerprint, settings.overwrite, reporter.notify
        )
        if session.result:
            reporter.notify(f"{path} is there already; --overwrite trains it again")
            return session.result
        trial = _Trial(config, settings, dataset, strategy, group, session, reporter, stop)
        found = trial.run(started, path)
        result = {
            "config": dataclasses.asdict(config),
            "fingerprint": fingerprint,
            **found,
            "devices": sorted(strategy.extended.worker_devices),
            **circumstances,
            "cpus": trial.state.saved["cpus"],
            "versions": _versions(),
        }
        session.finish(result)
        return result
    except OSError as error:
        raise LabError(f"{error.filename or path}: {error.strerror}") from error
    except tf.errors.OpError as error:
        if described := _described(error, cluster):
            raise described from error
        raise
    finally:
        if session:
            session.close()


class _Trial:
    """The parts of a run, and the loop over loops.

    Attributes:
      state: the variables, and how far they are trained.
    """

    def __init__(
        self,
        config: Config,
        settings: Settings,
        dataset: Dataset,
        strategy: tf.distribute.Strategy,
        group: Group,
        session: Session | OtherSession,
        reporter: Reporter,
        stop: Stop,
    ) -> None:
        self.config, self.settings, self.dataset = config, settings, dataset
        self._group, self._session, self._reporter, self._stop = group, session, reporter, stop
        self._length = periodic.loop_length(config, settings)
        training = build.make_training(config, dataset, strategy)
        loop = build.make_loop(config, dataset, strategy, training, self._length.most)
        self._evaluator = Evaluator(
            strategy, training.model, training.loss, dataset.test_images, dataset.test_labels
        )
        # Compiled here, so that `seconds` is training alone.
        loop.run(np.zeros([0, config.batch_size], np.int32), 1)
        self._evaluator.run.get_concrete_function()
        batches = Batches(config.seed, len(dataset.train_images), config.batch_size)
        self.state = TrainingState(config, training, loop, batches)

    def run(self, started: float, path: str) -> dict[str, Any]:
        """Starts or resumes, and trains; returns what result.json says of the training."""
        state, config, reporter = self.state, self.config, self._reporter
        if self._session.checkpoint:
            warning = state.restore(self._session.checkpoint)
            reporter.notify(f"{path} goes on after step {state.step}")
            if warning:
                reporter.notify(warning)
        else:
            self._group.check_identical(state.variables())
            self._session.save(0, state.tensors(), state.saved)
        recorder = self._session.recorder(state.loop.watch)
        recorder.nonfinite.update(state.saved["nonfinite"])
        state.saved["nonfinite"] = recorder.nonfinite
        rate = {"effective_learning_rate": state.effective_learning_rate}
        try:
            if state.step == 0:
                recorder.start(
                    state.loop.step_graph,
                    dataclasses.asdict(config) | rate,
                    config.hparams,
                    "test-accuracy",
                    os.path.basename(path),
                )
            startup = time.monotonic() - started
            profile = path if self.settings.profile and self._group.chief else ""
            status = self._train(recorder, periodic.Profile(profile, config.training_steps))
            recorder.finish(succeeded=status in ("completed", "collapsed"))
        finally:
            recorder.close()
        return {
            "status": status,
            "step": state.step,
            **state.saved["figures"],
            **rate,
            "nonfinite": dict(sorted(recorder.nonfinite.items())),
            "evaluations": state.saved["evaluations"],
            "seconds": round(state.saved["seconds"], 3),
            "startup_seconds": round(startup, 3),
        }

    def _train(self, recorder: Recorder | NullRecorder, profile: periodic.Profile) -> str:
        """Runs to the last step, or to the end of the loop in which a signal comes.

        Returns:
          The status of the run.
        """
        state, config, reporter, stop = self.state, self.config, self._reporter, self._stop
        checkpoint = periodic.Checkpointing(
            state, self._session, recorder, self._group, stop, self.settings.checkpoint_every
        )
        evaluate = periodic.Evaluation(state, self._evaluator, self.dataset, recorder, reporter)
        reporter.begin(describe(state, self.dataset), config.training_steps, state.step)
        finite = True
        while state.step < config.training_steps and not stop.signal and finite:
            first, steps = state.step + 1, self._length(state.step)
            begun = time.monotonic()
            with profile.around(steps):
                recorded, nonfinite = state.run(steps)
            milliseconds = math.ceil(1000 * (time.monotonic() - begun) / steps)
            recorder.steps(first, recorded, config.histogram_every)
            reporter.advance(state.step)
            if nonfinite:
                reporter.notify(nonfinite)
                finite = config.on_nonfinite == "continue"
            stop.signal, milliseconds = self._group.largest(stop.signal, milliseconds)
            self._length.took(milliseconds)
            if stop.signal:
                stop.heard()
            for job in (evaluate, checkpoint) if finite else ():
                if job.due(state.step):
                    job(recorded)
        checkpoint.flush()
        reporter.end()
        if not finite:
            reporter.notify(f"the last checkpoint before that is of step {checkpoint.saved}")
        elif state.step < config.training_steps:
            return "interrupted"
        if state.saved["nonfinite"]:
            return "nonfinite"
        return "completed" if state.saved["figures"]["collapsed"] is None else "collapsed"


def describe(state: TrainingState, dataset: Dataset) -> list[str]:
    """What is trained, and how, one line each."""
    config, rule = state.config, state.training.optimizer.rule
    sizes = [dataset.train_images.shape[1], config.n_hidden_1, config.n_hidden_2]
    sizes.append(dataset.num_classes)
    replicas = state.loop.replicas
    rate = f"effective learning rate on the mean loss: {state.effective_learning_rate:g}"
    if config.reduction == "sum":
        rate += (
            f" (the loss is summed over {config.batch_size} examples)"
            if rule.degree
            else f" ({config.optimizer} divides that scale out, but for its constants)"
        )
    lines = [
        f"{'-'.join(map(str, sizes))} {config.activation}, {config.optimizer} at "
        f"{config.learning_rate:g}, batch {config.batch_size}, seed {config.seed}: "
        f"{config.training_steps:,} steps on {len(dataset.train_images):,} examples"
        + (f", {replicas} replicas" if replicas > 1 else ""),
        rate,
    ]
    cores, threads = len(machine.cores()), config.threads
    if cores > threads and not state.loop.on_gpu:
        lines.append(
            f"each operation takes {threads} of {cores} cores; --threads={cores} takes them all, "
            "and gives other last bits"
        )
    return lines


def _strategy(
    config: Config, settings: Settings, dataset: Dataset, cluster: Cluster | None
) -> tf.distribute.Strategy:
    placement.set_threads(config.threads)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = placement.make_strategy(settings.devices, cluster)
    if config.batch_size < strategy.num_replicas_in_sync:
        raise LabError(
            f"--batch_size={config.batch_size}: must be at least the number of replicas, "
            f"{strategy.num_replicas_in_sync}"
        )
    build.check_memory(config, dataset, strategy)
    return strategy


def _circumstances(
    dataset: Dataset, strategy: tf.distribute.Strategy, cluster: Cluster | None
) -> dict[str, Any]:
    """What decides the numbers beside the config."""
    return {
        "data": dataset.digest,
        "replicas": strategy.num_replicas_in_sync,
        "workers": len(cluster.workers) if cluster else 1,
        "device": strategy.extended.worker_devices[0].rpartition("device:")[2].partition(":")[0],
        "tensorflow": tf.__version__,
    }


def _must_be_alike(
    config: Config, settings: Settings, circumstances: dict[str, Any]
) -> dict[str, Any]:
    """What all workers must agree on."""
    alike = dataclasses.asdict(config) | circumstances
    alike |= {name: getattr(settings, name) for name in ("steps_per_loop", "checkpoint_every")}
    del alike["data_dir"]  # a place; the digest tells what lies there
    return alike


def _versions() -> dict[str, str]:
    return {
        "everystep": lab.__version__,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "tensorboard": tensorboard.__version__,
        "numpy": np.__version__,
    }


def _described(error: tf.errors.OpError, cluster: Cluster | None) -> LabError | None:
    """What the user can do about an error of TensorFlow's, None for a defect."""
    if isinstance(error, tf.errors.ResourceExhaustedError):
        return LabError(
            "the memory does not suffice: take a smaller --batch_size, or smaller layers"
            f" ({' '.join(error.message.split())[:200]})"
        )
    if not cluster:
        return None
    tasks = {int(task) for task in re.findall(r"/task:(\d+)", error.message)} - {cluster.index}
    who = cluster.names(sorted(tasks)) or cluster.others
    return LabError(
        f"{cluster.me}: {who} was lost; start every worker again, they go on from the last "
        "checkpoint"
    )
