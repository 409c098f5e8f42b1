"""One trial, from its config to its run directory: the parts, and the loop over loops."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorboard
import tensorflow as tf

import lab
from lab import data, machine
from lab.data import Batches, Dataset
from lab.errors import LabError
from lab.models import layers, losses, mlp, optimizers
from lab.processes.cluster import Cluster
from lab.processes.stop import Stop
from lab.record.checkpoints import Checkpoint, Checkpoints
from lab.record.directory import RESULT, RunDirectory
from lab.record.event_writer import NullRecorder, Recorder
from lab.record.result_file import finished_result
from lab.settings.config import Config, Settings
from lab.step import agreement, gradient_noise, placement
from lab.step.evaluate import Evaluator
from lab.step.loop import TrainLoop, variable_tags
from lab.training import diagnosis
from lab.training.progress import Reporter

LOOP_MILLISECONDS = 4000  # a loop takes no longer, but for its first step: a signal waits for it
LOOP_INDICES = 2**24  # a loop holds the indices of no more examples than that
CUT_SHORT = (
    "stopped in the midst of a step, which would have taken too long; the same command goes on "
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

    A run that did not come to its end goes on from its newest checkpoint, to exactly the result
    that it would have had. Of several workers the first, the chief, reads and writes the run
    directory, and tells the others what they must know of it.

    Args:
      started: when the program started, on time.monotonic's clock.
      cluster: the workers that train together, after they have met.

    Raises:
      LabError: the run directory holds something else, is in use or cannot be written; or
        another worker was lost.
    """
    placement.set_threads(config.threads)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = placement.make_strategy(settings.devices, cluster)
    if config.batch_size < strategy.num_replicas_in_sync:
        raise LabError(
            f"--batch_size={config.batch_size}: must be at least the number of replicas, "
            f"{strategy.num_replicas_in_sync}"
        )
    check_memory(config, dataset, strategy)
    group = agreement.Group(strategy, cluster)
    circumstances = {
        "data": dataset.digest,
        "replicas": strategy.num_replicas_in_sync,
        "workers": len(cluster.workers) if cluster else 1,
        "device": strategy.extended.worker_devices[0].rpartition("device:")[2].partition(":")[0],
        "tensorflow": tf.__version__,
    }
    fingerprint = config.fingerprint(**circumstances)
    desk = _Desk(settings.directory(config), group)
    alike = dataclasses.asdict(config) | circumstances
    alike |= {name: getattr(settings, name) for name in ("steps_per_loop", "checkpoint_every")}
    del alike["data_dir"]  # a place; the digest tells what lies there
    try:
        group.check_alike(alike)
        desk.open(
            {"config": dataclasses.asdict(config), **circumstances},
            fingerprint,
            settings.overwrite,
            reporter.say,
        )
        if desk.result:
            reporter.say(f"{desk.path} is there already; --overwrite trains it again")
            return desk.result
        trial = _Trial(config, settings, dataset, strategy, group, reporter)
        desk.take_up(trial, reporter.say)
        recorder = desk.recorder(trial.loop)
        recorder.nonfinite.update(trial.state["nonfinite"])
        trial.state["nonfinite"] = recorder.nonfinite
        rate = {"effective_learning_rate": trial.effective_learning_rate}
        try:
            if trial.step == 0:
                recorder.start(
                    trial.loop.step_graph,
                    dataclasses.asdict(config) | rate,
                    config.hparams,
                    "test-accuracy",
                    os.path.basename(desk.path),
                )
            startup = time.monotonic() - started
            profile = desk.path if settings.profile and group.chief else ""
            status = trial.train(recorder, desk, settings, stop, profile)
            recorder.finish(succeeded=status in ("completed", "collapsed"))
        finally:
            recorder.close()
        result = {
            "config": dataclasses.asdict(config),
            "fingerprint": fingerprint,
            "status": status,
            "step": trial.step,
            **trial.state["figures"],
            **rate,
            "nonfinite": dict(sorted(recorder.nonfinite.items())),
            "evaluations": trial.state["evaluations"],
            "seconds": round(trial.state["seconds"], 3),
            "startup_seconds": round(startup, 3),
            "devices": sorted(strategy.extended.worker_devices),
            **circumstances,
            "cpus": trial.state["cpus"],
            "versions": {
                "everystep": lab.__version__,
                "python": platform.python_version(),
                "tensorflow": tf.__version__,
                "tensorboard": tensorboard.__version__,
                "numpy": np.__version__,
            },
        }
        desk.write(result)
        group.largest(0)  # no worker leaves before the chief has written
        return result
    except OSError as error:
        raise LabError(f"{error.filename or desk.path}: {error.strerror}") from error
    except tf.errors.ResourceExhaustedError as error:
        raise LabError(
            "the memory does not suffice: take a smaller --batch_size, or smaller layers"
            f" ({' '.join(error.message.split())[:200]})"
        ) from error
    except tf.errors.OpError as error:
        if not cluster:
            raise
        raise LabError(f"{cluster.me}: {_lost(cluster, error.message)}") from error
    finally:
        desk.close()


def check_memory(config: Config, dataset: Dataset, strategy: tf.distribute.Strategy) -> None:
    """Raises LabError where this machine's main memory cannot hold a step of this size."""
    devices_here = strategy.extended.worker_devices
    if "GPU" in devices_here[0]:
        return  # TensorFlow says so, when it allocates
    sizes = [dataset.train_images.shape[1], config.n_hidden_1, config.n_hidden_2]
    sizes.append(dataset.num_classes)
    examples = -(-config.batch_size * len(devices_here) // strategy.num_replicas_in_sync)
    # As measured: inputs as bytes and as float32; of a unit its output, its gradient, and one more.
    one = 5 * sizes[0] + 12 * sum(sizes[1:])
    # Weights, gradients, new weights, slots; they are there once for each replica.
    copies = (3 + len(make_rule(config).slots)) * len(devices_here)
    weights = 4 * copies * sum((n + 1) * m for n, m in itertools.pairwise(sizes))
    free = 0.75 * machine.free_memory()
    if examples * one + weights > free:
        fit = max(int((free - weights) / one), 0)
        raise LabError(
            f"--batch_size={config.batch_size}: a step needs about"
            f" {(examples * one + weights) / 2**30:,.1f} GiB here, for {examples:,} examples and"
            f" {'-'.join(map(str, sizes))} units, and {free / 2**30:,.1f} GiB are free for it: "
            + (f"take at most {fit:,} examples" if fit else "take smaller layers")
        )


def _lost(cluster: Cluster, message: str) -> str:
    """Which worker was lost, from TensorFlow's own message."""
    tasks = {int(task) for task in re.findall(r"/task:(\d+)", message)} - {cluster.index}
    who = cluster.names(sorted(tasks)) or cluster.others
    return f"{who} was lost; start every worker again, they go on from the last checkpoint"


class _Desk:
    """The run directory as a worker sees it: the chief's own, and to the others what he says.

    Attributes:
      path: of the directory.
      result: of a run that is finished; None otherwise.
    """

    def __init__(self, path: str, group: agreement.Group) -> None:
        self.path, self._group = path, group
        self.result: dict[str, Any] | None = None
        self._directory: RunDirectory | None = None
        self._checkpoint: Checkpoint | None = None

    def open(
        self,
        identity: dict[str, Any],
        fingerprint: str,
        overwrite: bool,
        say: Callable[[str], None],
    ) -> None:
        """Takes the directory, and reads what an earlier call left there."""
        if not self._group.chief:
            self._told(self._group.from_chief(b""))
            return
        try:
            self._directory = RunDirectory(self.path, identity, fingerprint, overwrite)
            self._checkpoints = Checkpoints(self.path, fingerprint)
            self.result = finished_result(self.path)
            self._checkpoint = None if self.result else self._checkpoints.newest(say)
        except LabError as error:
            self._tell(str(error))
            raise
        self._tell()

    def _tell(self, refusal: str = "") -> None:
        """The chief's word to the others: refusal, result and state as JSON, then the tensors."""
        if self._group.alone:
            return
        found = self._checkpoint
        news: dict[str, Any] = {"refusal": refusal, "result": self.result}
        if found:
            news |= {"step": found.step, "state": found.state, "events": found.events}
        arrays = dict(found.tensors) if found else {}
        arrays["news"] = np.frombuffer(json.dumps(news).encode(), np.uint8)
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **arrays)
        self._group.from_chief(file.getvalue())

    def _told(self, message: bytes) -> None:
        with np.load(io.BytesIO(message)) as arrays:
            tensors = dict(arrays)
        news = json.loads(tensors.pop("news").tobytes())
        if news["refusal"]:
            raise LabError(f"worker 0 cannot start: {news['refusal']}")
        self.result = news["result"]
        if "step" in news:
            self._checkpoint = Checkpoint(news["step"], tensors, news["state"], news["events"])

    def take_up(self, trial: _Trial, say: Callable[[str], None]) -> None:
        """Brings the trial to where the newest checkpoint is, or saves its first one."""
        if self._checkpoint:
            trial.restore(self._checkpoint)
            if self._directory:
                self._checkpoints.cut_events(self._checkpoint)
            say(f"{self.path} goes on after step {trial.step}")
        else:
            self.save(trial)

    def recorder(self, loop: TrainLoop) -> Recorder | NullRecorder:
        """What takes the record."""
        if not self._directory:
            return NullRecorder()
        return Recorder(self.path, loop.scalar_tags, loop.tags, loop.sizes)

    def save(self, trial: _Trial) -> None:
        """Saves a checkpoint, after a look at whether the replicas are still one."""
        self._group.check_identical(trial.variables())
        if self._directory:
            self._checkpoints.save(trial.step, trial.tensors(), trial.state)

    def write(self, result: dict[str, Any]) -> None:
        """Writes result.json."""
        if self._directory:
            self._directory.write(RESULT, result)

    def close(self) -> None:
        """Leaves the directory to others."""
        if self._directory:
            self._directory.close()


class _Trial:
    """The parts of one trial, and the loop over loops.

    Attributes:
      step: the last step that is done.
      state: what a checkpoint must hold beside the tensors, so that a run that goes on ends with
        the same result.json: plain JSON values.
    """

    def __init__(
        self,
        config: Config,
        settings: Settings,
        dataset: Dataset,
        strategy: tf.distribute.Strategy,
        group: agreement.Group,
        reporter: Reporter,
    ) -> None:
        self.config, self.dataset, self.reporter, self._group = config, dataset, reporter, group
        # Loops end at evaluations and checkpoints.
        self._ends = (config.display_step, settings.checkpoint_every)
        room = max(LOOP_INDICES // config.batch_size, 1)
        self._most = min(settings.steps_per_loop, config.training_steps, room, *self._ends)
        self._pace = 1  # the most steps of the next loop: the first one shows what a step takes
        self.rule = make_rule(config)
        with strategy.scope():
            self.model = make_model(config, dataset)
            self.optimizer = optimizers.Optimizer(
                self.rule, self.model.trainable_variables, make_decay(config)
            )
        labels = dataset.train_labels
        if config.shuffle_labels:
            labels = data.shuffled(labels, config.seed)
        loss = losses.LOSSES[config.loss]
        self.loop = TrainLoop(
            strategy,
            self.model,
            self.optimizer,
            loss,
            1 / config.batch_size if config.reduction == "mean" else 1.0,
            dataset.train_images,
            labels,
            config.batch_size,
            config.watch,
            config.histogram_every,
            self._most,
        )
        self.evaluator = Evaluator(
            strategy, self.model, loss, dataset.test_images, dataset.test_labels
        )
        # Compiled here, so that `seconds` is training alone.
        self.loop.run(np.zeros([0, config.batch_size], np.int32), 1)
        self.evaluator.run.get_concrete_function()
        self.batches = Batches(config.seed, len(dataset.train_images), config.batch_size)
        self._tags = self.loop.scalar_tags
        self._initial = self._weights()
        self.step = 0
        self.state: dict[str, Any] = {
            "figures": dict.fromkeys(diagnosis.FIGURES),
            "evaluations": {"step": [], "test_loss": [], "test_accuracy": []},
            "digests": diagnosis.digests(self._weights()),
            "nonfinite": {},
            # By prefix, the sums of S and G2 over the steps since the last evaluation.
            "noise": {prefix: [0.0, 0.0] for prefix, _ in gradient_noise.noise_columns(self._tags)},
            "cpus": [{"first_step": 1, "cpu": machine.cpu()}],
            "seconds": 0.0,
        }

    @property
    def effective_learning_rate(self) -> float:
        """What the learning rate would have to be on the mean loss, for the same steps."""
        config = self.config
        factor = config.batch_size**self.rule.degree if config.reduction == "sum" else 1
        return config.learning_rate * factor

    def variables(self) -> dict[str, tf.Variable]:
        """All that training changes, by the names that checkpoints give it."""
        weights = self.model.trainable_variables
        named = dict(zip(variable_tags(weights), weights, strict=True))
        for tag, slots in zip(list(named), self.optimizer.slots, strict=True):
            named |= {f"{tag}/{n}": s for n, s in zip(self.rule.slots, slots, strict=True)}
        return named

    def tensors(self) -> dict[str, tf.Tensor]:
        """The values of `variables`, which later steps leave as they are."""
        return {name: tf.identity(variable) for name, variable in self.variables().items()}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes up the run where it was."""
        self.step, self.state = checkpoint.step, checkpoint.state
        self._assign(checkpoint.tensors)
        before, now = self.state["cpus"][-1]["cpu"], machine.cpu()
        if now != before:
            self.state["cpus"].append({"first_step": self.step + 1, "cpu": now})
            self.reporter.say(
                f"another kind of CPU ({now}; before: {before}): the rest of this run equals the "
                "uninterrupted one within rounding, and not in every bit"
            )

    def train(
        self,
        recorder: Recorder | NullRecorder,
        desk: _Desk,
        settings: Settings,
        stop: Stop,
        profile: str,
    ) -> str:
        """Runs to the last step, or to the end of the loop in which `stop` comes.

        Args:
          profile: the folder for a profile of the second loop (the first, if it is the only
            one); empty for none.

        Returns:
          The status of the run.
        """
        config, state = self.config, self.state
        self.reporter.begin(self._about(), config.training_steps, self.step)
        begun = time.monotonic() - state["seconds"]
        saved, loops, finite = self.step, 0, True
        while self.step < config.training_steps and not stop.signal and finite:
            steps = self._steps_of_loop()
            loops += 1
            profiled = profile and (loops == 2 or steps == config.training_steps)
            if profiled:
                tf.profiler.experimental.start(profile)
            looped = time.monotonic()
            recorded, finite = self._run_loop(steps)
            milliseconds = math.ceil(1000 * (time.monotonic() - looped) / steps)
            if profiled:
                tf.profiler.experimental.stop()
            done = int(recorded["scalars"].shape[0])
            recorder.steps(self.step + 1, recorded, config.histogram_every)
            for prefix, columns in gradient_noise.noise_columns(self._tags):
                sums = recorded["scalars"].numpy()[:, columns].sum(axis=0, dtype=np.float64)
                state["noise"][prefix] = [
                    a + float(b) for a, b in zip(state["noise"][prefix], sums, strict=True)
                ]
            self.step += done
            self.reporter.advance(self.step)
            stop.signal, milliseconds = self._group.largest(stop.signal, milliseconds)
            self._pace = max(LOOP_MILLISECONDS // milliseconds, 1)
            if stop.signal:
                stop.heard()
            if not finite:
                break
            last = self.step == config.training_steps
            if last or self.step % config.display_step == 0:
                self._evaluate(recorder, recorded["scalars"][-1].numpy())
            if last or stop.signal or self.step % settings.checkpoint_every == 0:
                recorder.flush()
                state["seconds"] = time.monotonic() - begun
                desk.save(self)
                saved = self.step
        recorder.flush()
        state["seconds"] = time.monotonic() - begun
        self.reporter.end()
        if not finite:
            self.reporter.say(f"the last checkpoint before that is of step {saved}")
        elif self.step < config.training_steps:
            return "interrupted"
        if state["nonfinite"]:
            return "nonfinite"
        return "completed" if state["figures"]["collapsed"] is None else "collapsed"

    def _steps_of_loop(self) -> int:
        """As many as asked for, but up to the next evaluation or checkpoint at most, and no more
        than a signal can wait for."""
        ends = [(self.step // n + 1) * n for n in self._ends]
        most = min(self._most, self._pace)
        return min(self.config.training_steps, self.step + most, *ends) - self.step

    def _run_loop(self, steps: int) -> tuple[dict[str, tf.Tensor], bool]:
        """Runs a loop; returns what it recorded, and False if NaN or infinity is to end the run.

        In that case what it recorded ends with the step in which they came up.
        """
        first = self.step + 1
        arguments = self.batches.indices(first, steps), first
        before = self.tensors()
        recorded = self.loop.run(*arguments)
        loss, notes = recorded["scalars"][:, 0].numpy(), self.state["nonfinite"]
        weights = self._weights().values()
        if (np.isfinite(loss).all() and all(np.isfinite(w).all() for w in weights)) or notes:
            return recorded, True
        # The same steps once more, with an eye on everything.
        after = self.tensors()
        self._assign(before)
        watching = self.loop.watching(("weights", "gradients"))
        counts = watching.run(*arguments)["nonfinite"].numpy()
        self._assign(after)
        row, found = diagnosis.first_nonfinite(watching.tags, counts, loss)
        if not found:  # another program, whose last bits may differ: it did not get that far
            bad = {tag: int((~np.isfinite(w)).sum()) for tag, w in self._weights().items()}
            found = {tag: count for tag, count in bad.items() if count}
        for tag, count in found.items():
            notes[tag] = {"first_step": first + row, "count": count}
        what = ", ".join(f"{tag} ({count})" for tag, count in found.items())
        self.reporter.say(f"step {first + row}: NaN or infinity in {what}")
        if self.config.on_nonfinite == "continue":
            return recorded, True
        return {name: tensor[: row + 1] for name, tensor in recorded.items()}, False

    def _evaluate(self, recorder: Recorder | NullRecorder, batch: np.ndarray) -> None:
        """Figures over the whole test set; `batch` holds the last batch's loss and accuracy."""
        config, earlier = self.config, self.state["figures"]
        loss, predicted = (tensor.numpy() for tensor in self.evaluator.run())
        figures = diagnosis.figures(loss, predicted, self.dataset.test_labels)
        weights = self._weights()
        before, now = self.state["digests"], diagnosis.digests(weights)
        figures["frozen"] = [tag for tag in now if now[tag] == before[tag]]
        self.state |= {"figures": figures, "digests": now}
        for key, course in self.state["evaluations"].items():
            course.append(self.step if key == "step" else figures[key])
        if (figures["frozen"] and not earlier["frozen"]) or (
            figures["collapsed"] is not None and earlier["collapsed"] is None
        ):
            clips = config.loss == "clipped_cross_entropy"
            words = diagnosis.standstill(
                figures["frozen"],
                figures["collapsed"],
                float(np.mean(loss >= losses.CLIPPED)) if clips else None,
                self.loop.largest_gradient(self.batches.indices(self.step, 1)[0]),
            )
            self.reporter.say(f"step {self.step}: {words}")
        test = {"test-loss": float(loss.mean(dtype=np.float64))}
        test["test-accuracy"] = figures["test_accuracy"]
        distances = {}
        if "norms" in config.watch:
            for name, start in self._initial.items():
                way = weights[name].astype(np.float64) - start
                distances[f"{name}/distance"] = float(np.linalg.norm(way))
        noise = self.state["noise"]
        scales = {
            f"{p}gradient/noise/scale": gradient_noise.noise_scale(*sums)
            for p, sums in noise.items()
        }
        self.state["noise"] = {prefix: [0.0, 0.0] for prefix in noise}
        recorder.scalars(self.step, test | distances | scales)
        recorder.flush()
        examples = config.batch_size if config.reduction == "sum" else 1
        self.reporter.evaluated(
            self.step, {"loss": batch[0] / examples, "accuracy": batch[1], **test}
        )

    def _weights(self) -> dict[str, np.ndarray]:
        weights = self.model.trainable_variables
        return dict(zip(variable_tags(weights), (w.numpy() for w in weights), strict=True))

    def _assign(self, values: Mapping[str, Any]) -> None:
        for name, variable in self.variables().items():
            variable.assign(values[name])

    def _about(self) -> list[str]:
        config, dataset = self.config, self.dataset
        widths = [layer.weights.shape[0] for layer in self.model.layers] + [dataset.num_classes]
        rate = f"effective learning rate on the mean loss: {self.effective_learning_rate:g}"
        if config.reduction == "sum":
            rate += (
                f" (the loss is summed over {config.batch_size} examples)"
                if self.rule.degree
                else f" ({config.optimizer} divides that scale out, but for its constants)"
            )
        return [
            f"{'-'.join(map(str, widths))} {config.activation}, {config.optimizer} at "
            f"{config.learning_rate:g}, batch {config.batch_size}, seed {config.seed}: "
            f"{config.training_steps:,} steps on {len(dataset.train_images):,} examples"
            + (f", {self.loop.replicas} replicas" if self.loop.replicas > 1 else ""),
            rate,
            *self._idle_cores(),
        ]

    def _idle_cores(self) -> list[str]:
        cores, threads = len(machine.cores()), self.config.threads
        if cores <= threads or self.loop.on_gpu:
            return []
        return [
            f"each operation takes {threads} of {cores} cores; --threads={cores} takes them all, "
            "and gives other last bits"
        ]


def make_model(config: Config, dataset: Dataset) -> mlp.MLP:
    """The network of a config, on the inputs and classes of a dataset."""
    return mlp.MLP(
        [
            dataset.train_images.shape[1],
            config.n_hidden_1,
            config.n_hidden_2,
            dataset.num_classes,
        ],
        layers.ACTIVATIONS[config.activation],
        layers.INITIALIZERS[config.initializer](config.init_stddev),
        config.seed,
    )


def make_rule(config: Config) -> Any:
    """The update rule of a config: each hyperparameter from its field, plain or with the rule's
    name before it (`learning_rate`, `adam_beta_1`)."""
    values = dataclasses.asdict(config)
    kind = optimizers.RULES[config.optimizer]
    return kind(
        **{
            field.name: values.get(f"{config.optimizer}_{field.name}", values.get(field.name))
            for field in dataclasses.fields(kind)
        }
    )


def make_decay(config: Config) -> Callable[[tf.Tensor], tf.Tensor] | None:
    """The decay of a config's learning rate, over all its steps; None for a constant one."""
    decay = optimizers.DECAYS.get(config.learning_rate_decay)
    return decay and (lambda done: decay(done / config.training_steps))
