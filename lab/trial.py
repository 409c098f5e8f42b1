"""One trial, from its config to its run directory: the parts, and the loop over loops."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import time
from typing import Any

import numpy as np
import tensorboard
import tensorflow as tf

import lab
from lab import devices, layers, losses, optimizers
from lab.config import Config, Settings
from lab.console import Reporter
from lab.data import Batches, Dataset
from lab.errors import LabError
from lab.recorder import Recorder
from lab.rundir import RESULT, RunDirectory
from lab.step import Evaluator, TrainLoop, variable_tags
from lab.stop import Stop

README_BATCH = 256  # the README's accuracy is a mean over test batches of this size


def run(
    config: Config,
    settings: Settings,
    dataset: Dataset,
    reporter: Reporter,
    stop: Stop,
    started: float,
) -> dict[str, Any]:
    """Trains, records and writes result.json, unless that was done before; returns it.

    Args:
      started: when the program started, on time.monotonic's clock.

    Raises:
      LabError: the run directory holds something else, is in use or cannot be written.
    """
    tf.config.experimental.enable_op_determinism()
    strategy = devices.make_strategy()
    circumstances = {
        "data": dataset.digest,
        "replicas": strategy.num_replicas_in_sync,
        "tensorflow": tf.__version__,
    }
    fingerprint = config.fingerprint(**circumstances)
    directory = RunDirectory(
        settings.directory(config),
        {"config": dataclasses.asdict(config), **circumstances},
        fingerprint,
        settings.overwrite,
    )
    try:
        if directory.result:
            reporter.say(f"{directory.path} is there already; --overwrite trains it again")
            return directory.result
        if directory.unfinished:
            reporter.say(f"{directory.path} did not come to its end: it starts again at step 1")
            directory.clear()
        trial = _Trial(config, dataset, strategy, reporter)
        recorder = Recorder(directory.path, ("loss", "accuracy"), trial.loop.tags, trial.loop.sizes)
        try:
            rate = {"effective_learning_rate": trial.effective_learning_rate}
            recorder.start(
                trial.loop.step_graph,
                dataclasses.asdict(config) | rate,
                "test-accuracy",
                os.path.basename(directory.path),
            )
            begun = time.monotonic()
            trial.train(
                recorder,
                settings.steps_per_loop,
                stop,
                directory.path if settings.profile else "",
            )
            recorder.flush()
            seconds = time.monotonic() - begun
            interrupted = trial.step < config.training_steps
            recorder.finish(succeeded=not interrupted)
        finally:
            recorder.close()
        result = {
            "config": dataclasses.asdict(config),
            "fingerprint": fingerprint,
            **trial.figures,
            "status": "interrupted" if interrupted else trial.figures["status"],
            "step": trial.step,
            **rate,
            "nonfinite": recorder.nonfinite,
            "evaluations": trial.evaluations,
            "seconds": round(seconds, 3),
            "startup_seconds": round(begun - started, 3),
            "devices": sorted(strategy.extended.worker_devices),
            "replicas": strategy.num_replicas_in_sync,
            "data": dataset.digest,
            "versions": {
                "everystep": lab.__version__,
                "python": platform.python_version(),
                "tensorflow": tf.__version__,
                "tensorboard": tensorboard.__version__,
                "numpy": np.__version__,
            },
        }
        directory.write(RESULT, result)
        return result
    except OSError as error:
        raise LabError(f"{error.filename or directory.path}: {error.strerror}") from error
    finally:
        directory.close()


class _Trial:
    """The parts of one trial, and the loop over loops."""

    def __init__(
        self, config: Config, dataset: Dataset, strategy: tf.distribute.Strategy, reporter: Reporter
    ) -> None:
        self.config, self.dataset, self.reporter = config, dataset, reporter
        self.rule = make_rule(config)
        with strategy.scope():
            self.model = make_model(config, dataset)
            optimizer = optimizers.Optimizer(self.rule, self.model.trainable_variables)
        self.loop = TrainLoop(
            strategy,
            self.model,
            optimizer,
            losses.LOSSES[config.loss],
            1 / config.batch_size if config.reduction == "mean" else 1.0,
            dataset.train_images,
            dataset.train_labels,
            config.batch_size,
            config.watch,
            config.histogram_every,
        )
        self.evaluator = Evaluator(
            strategy,
            self.model,
            losses.LOSSES[config.loss],
            dataset.test_images,
            dataset.test_labels,
        )
        # Compiled here, so that the seconds of `train` are training alone.
        self.loop.run.get_concrete_function()
        self.evaluator.run.get_concrete_function()
        self.batches = Batches(config.seed, len(dataset.train_images), config.batch_size)
        self.weights = self._read_weights()
        self.step = 0
        # What result.json says of the last evaluation, and the course of all of them.
        self.figures: dict[str, Any] = dict.fromkeys(
            (
                "status",
                "test_correct",
                "test_total",
                "test_accuracy",
                "readme_accuracy",
                "test_loss",
                "collapsed",
                "frozen",
            )
        )
        self.evaluations: dict[str, list[Any]] = {"step": [], "test_loss": [], "test_accuracy": []}

    @property
    def effective_learning_rate(self) -> float:
        """What the learning rate would have to be on the mean loss, for the same steps."""
        config = self.config
        factor = config.batch_size**self.rule.degree if config.reduction == "sum" else 1
        return config.learning_rate * factor

    def train(self, recorder: Recorder, steps_per_loop: int, stop: Stop, profile: str) -> None:
        """Runs to the last step, or to the end of the loop in which `stop` comes.

        Args:
          profile: the folder for a profile of the second loop (the first, if it is the only
            one); empty for none.
        """
        config, reported = self.config, set[str]()
        self.reporter.begin(self._about(), config.training_steps, self.step)
        loops = 0
        while self.step < config.training_steps and not stop.signal:
            evaluation = min(
                config.training_steps, (self.step // config.display_step + 1) * config.display_step
            )
            steps = min(steps_per_loop, evaluation - self.step)
            loops += 1
            profiled = profile and (loops == 2 or steps == config.training_steps)
            if profiled:
                tf.profiler.experimental.start(profile)
            recorded = self.loop.run(
                self.batches.indices(self.step + 1, steps), tf.constant(self.step + 1, tf.int64)
            )
            if profiled:
                tf.profiler.experimental.stop()
            recorder.steps(self.step + 1, recorded, config.histogram_every)
            self.step += steps
            self.reporter.advance(self.step)
            if self.step == evaluation:
                self._evaluate(recorder, recorded["scalars"][-1].numpy())
            for tag in recorder.nonfinite.keys() - reported:
                reported.add(tag)
                self.reporter.say(
                    "step {first_step}: {count} entries of {tag} are NaN or infinite".format(
                        tag=tag, **recorder.nonfinite[tag]
                    )
                )
        self.reporter.end()

    def _evaluate(self, recorder: Recorder, batch: np.ndarray) -> None:
        """Figures over the whole test set; `batch` holds the last batch's loss and accuracy."""
        per_example, predicted = (tensor.numpy() for tensor in self.evaluator.run())
        before, self.weights = self.weights, self._read_weights()
        loss, classes = float(per_example.mean(dtype=np.float64)), np.unique(predicted)
        finite = math.isfinite(loss) and all(np.isfinite(w).all() for w in self.weights.values())
        collapsed = finite and len(classes) == 1
        correct = predicted == self.dataset.test_labels
        by_batch = np.split(correct, range(README_BATCH, len(correct), README_BATCH))
        self.figures = {
            "status": "collapsed" if collapsed else "completed" if finite else "nonfinite",
            "test_correct": int(correct.sum()),
            "test_total": len(correct),
            "test_accuracy": float(correct.mean()),
            "readme_accuracy": float(np.mean([part.mean() for part in by_batch])),
            "test_loss": loss if math.isfinite(loss) else None,
            "collapsed": int(classes[0]) if collapsed else None,
            "frozen": [
                tag for tag, w in self.weights.items() if np.array_equal(before[tag], w, True)
            ],
        }
        for key, course in self.evaluations.items():
            course.append(self.step if key == "step" else self.figures[key])
        test = {"test-loss": loss, "test-accuracy": self.figures["test_accuracy"]}
        recorder.scalars(self.step, test)
        recorder.flush()
        examples = self.config.batch_size if self.config.reduction == "sum" else 1
        self.reporter.evaluated(
            self.step, {"loss": batch[0] / examples, "accuracy": batch[1], **test}
        )

    def _read_weights(self) -> dict[str, np.ndarray]:
        variables = self.model.trainable_variables
        return dict(zip(variable_tags(variables), (v.numpy() for v in variables), strict=True))

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
            f"{config.training_steps:,} steps on {len(dataset.train_images):,} examples",
            rate,
        ]


def make_model(config: Config, dataset: Dataset) -> layers.MLP:
    """The network of a config, on the inputs and classes of a dataset."""
    return layers.MLP(
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
