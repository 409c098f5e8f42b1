"""What a run is: every setting that decides its numbers or its record, with bounds and a name.

Nothing here loads TensorFlow, so that a wrong value ends a program at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from typing import Any

from lab.settings.fields import Checked, field

# Raised by one whenever a change of code changes the numbers of an unchanged config.
NUMERICS = 4

TABLE_FORMATS = ("text", "markdown", "csv", "json")
WATCHABLE = ("weights", "gradients", "norms", "updates", "activations", "replicas")

# The README's columns stand in every run's name, the other fields only where they differ.
_IN_EVERY_NAME = ("optimizer", "learning_rate", "n_hidden_1", "n_hidden_2", "seed")


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """One run's hyperparameters and what it records. The defaults are the reference recipe."""

    n_hidden_1: int = field(128, "Model", "units of the first hidden layer", least=1, below=2**31)
    n_hidden_2: int = field(256, "Model", "units of the second hidden layer", least=1, below=2**31)
    activation: str = field(
        "sigmoid", "Model", "of the hidden layers", choices=("sigmoid", "tanh", "relu")
    )
    initializer: str = field(
        "normal",
        "Model",
        "law of the initial weights; biases start at 0",
        choices=("normal", "glorot", "he"),
    )
    init_stddev: float = field(0.05, "Model", "standard deviation of --initializer=normal", least=0)

    loss: str = field(
        "clipped_cross_entropy",
        "Loss",
        "clipped: -log of the softmax in [1e-9, 1], the recipe's; softmax: from logits, stable",
        choices=("clipped_cross_entropy", "softmax_cross_entropy"),
    )
    reduction: str = field(
        "sum",
        "Loss",
        "over the batch; sum multiplies every gradient by the batch size",
        choices=("sum", "mean"),
    )

    optimizer: str = field(
        "sgd",
        "Optimizer",
        "update rule",
        choices=("sgd", "adam", "rmsprop", "adagrad", "adadelta"),
    )
    learning_rate: float = field(0.01, "Optimizer", "of the update rule", least=0)
    learning_rate_decay: str = field(
        "none",
        "Optimizer",
        "from the learning rate at the first step towards 0 after the last",
        choices=("none", "linear", "cosine"),
    )
    epsilon: float = field(1e-7, "Optimizer", "keeps the divisor from 0; unused by sgd", least=0)
    epsilon_inside_root: bool = field(
        False,
        "Optimizer",
        "sqrt(a + epsilon) as in Keras 3, not sqrt(a) + epsilon; adadelta's always is",
    )
    adam_beta_1: float = field(0.9, "Optimizer", "decay of the first moment", least=0, below=1)
    adam_beta_2: float = field(0.999, "Optimizer", "decay of the second moment", least=0, below=1)
    rmsprop_rho: float = field(
        0.9, "Optimizer", "decay of the mean square gradient", least=0, below=1
    )
    adagrad_initial_accumulator: float = field(
        0.1, "Optimizer", "start of the sum of squared gradients", least=0
    )
    adadelta_rho: float = field(0.95, "Optimizer", "decay of both accumulators", least=0, below=1)

    data_dir: str = field(
        "",
        "Data",
        "folder with four IDX files named as MNIST's, gzipped or not; empty: MNIST",
        single=True,
    )
    shuffle_labels: bool = field(
        False,
        "Data",
        "train on labels in a random order: nothing to learn but by heart",
    )
    batch_size: int = field(256, "Data", "examples a step, over all replicas", least=1, below=2**31)
    seed: int = field(
        0,
        "Data",
        "of the initial weights and of the order of the examples",
        least=0,
        below=2**63,
        single=True,
    )
    training_steps: int = field(3000, "Training", "updates, one batch each", least=1, below=2**31)
    threads: int = field(
        2,
        "Training",
        "that compute one operation on a CPU; they decide its last bits, the cores do not",
        least=1,
        below=1025,
        single=True,
    )
    deterministic: bool = field(
        True,
        "Training",
        "the same bits every time on the same devices; without, a GPU may be faster",
        single=True,
    )

    display_step: int = field(
        100,
        "Record",
        "steps between two evaluations on the test set",
        least=1,
        below=2**31,
        single=True,
    )
    histogram_every: int = field(
        1, "Record", "steps between two sets of histograms", least=1, below=2**31, single=True
    )
    watch: tuple[str, ...] = field(
        ("weights", "gradients", "norms"),
        "Record",
        "what has histograms, separated by commas, and the norms; --watch= for none",
        choices=WATCHABLE,
        single=True,
    )

    on_nonfinite: str = field(
        "stop",
        "Record",
        "when NaN or infinity comes up in the loss, a gradient or a weight",
        choices=("stop", "continue"),
        single=True,
    )

    @property
    def hparams(self) -> dict[str, int | float | str]:
        """For the HParams page, which shows few columns: the README's, and what is not default."""
        chosen = {
            one.name: getattr(self, one.name)
            for one in dataclasses.fields(self)
            if one.name in _IN_EVERY_NAME or getattr(self, one.name) != one.default
        }
        return {k: ",".join(v) if isinstance(v, tuple) else v for k, v in chosen.items()}

    @property
    def run_name(self) -> str:
        """The name of the run's directory: one config, one name; two configs, two names."""
        parts = [
            self.optimizer,
            f"lr={self.learning_rate:g}"
            if float(f"{self.learning_rate:g}") == self.learning_rate
            else f"lr={self.learning_rate!r}",
            f"{self.n_hidden_1}x{self.n_hidden_2}",
        ]
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            if one.name in _IN_EVERY_NAME or value == one.default:
                continue
            if one.name == "data_dir":
                path = os.path.abspath(value)
                value = f"{os.path.basename(path)}-{_digest(path)[:6]}"
            if isinstance(value, tuple):
                value = "+".join(value) or "none"
            parts.append(f"{one.name}={re.sub(r'[^A-Za-z0-9._+-]', '_', str(value))}")
        name = ",".join([*parts, f"seed={self.seed}"])
        # File systems take 255 bytes a name; a digest keeps a longer one unique.
        return name if len(name) <= 200 else f"{name[:180]},{_digest(name)[:12]}"

    def fingerprint(self, **circumstances: Any) -> str:
        """64 hex digits, equal only where the numbers and the record must be equal.

        `circumstances` are what else decides the numbers: the digest of the data (it stands for
        `data_dir`, which is only a place), replicas, version of TensorFlow.
        """
        fields = dataclasses.asdict(self) | {"data_dir": None}
        return _digest(json.dumps([NUMERICS, fields, circumstances], sort_keys=True))


@dataclasses.dataclass(frozen=True)
class Settings(Checked):
    """Which runs, where and how: nothing here changes the numbers of a run."""

    grid: str = field(
        "", "Grid", "many runs: the name of a grid, or a file with the flags of one run a line"
    )
    seeds: str = field(
        "", "Grid", "every run with each of these seeds: how many, or a list; empty: --seed"
    )
    jobs: int = field(0, "Grid", "runs at a time; 0: what is fastest here", least=0)
    shard: str = field("0/1", "Grid", "I/N: only every N-th run, from the I-th on, counted from 0")

    logdir: str = field("logs", "Run", "folder that the run directory is made in")
    run_name: str = field("", "Run", "name of the run directory; empty: from the hyperparameters")
    overwrite: bool = field(False, "Run", "delete a run of that name first")
    devices: str = field(
        "auto",
        "Run",
        "auto: all GPUs, else one CPU; gpu:N; cpu:N, logical devices; or names, GPU:0,GPU:2",
    )
    checkpoint_every: int = field(
        1000,
        "Run",
        "steps between two checkpoints; there is one at the start and the end",
        least=1,
        below=2**31,
    )
    steps_per_loop: int = field(
        100, "Run", "steps a call of the compiled function", least=1, below=2**31
    )
    profile: bool = field(False, "Run", "record a profile of one loop, for TensorBoard")

    def directory(self, config: Config) -> str:
        """The run directory of a config."""
        return os.path.join(self.logdir, self.run_name or config.run_name)


@dataclasses.dataclass(frozen=True)
class ReportSettings(Checked):
    """What bin/report is asked for."""

    logdir: str = field("logs", "Report", "folder that the run directories lie in")
    format: str = field("text", "Report", "of the table", choices=TABLE_FORMATS)
    page: bool = field(
        True, "Report", "answer the questions: report.html, report.json, TensorBoard's run report"
    )


@dataclasses.dataclass(frozen=True)
class LaunchSettings(Checked):
    """What bin/launch is asked for."""

    workers: int = field(2, "Launch", "processes, each with one share of every batch", least=1)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
