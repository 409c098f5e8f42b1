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

from lab.settings.fields import Checked, choice, field

# Raised by one whenever a change of code changes the numbers of an unchanged config.
NUMERICS = 4

TABLE_FORMATS = ("text", "markdown", "csv", "json")
WATCHABLE = ("weights", "gradients", "norms", "updates", "activations", "replicas")

# The README's columns stand in every run's name, the other fields only where they differ.
_IN_EVERY_NAME = ("optimizer", "learning_rate", "n_hidden_1", "n_hidden_2", "seed")

# Limits of numbers.
_COUNT: dict[str, Any] = {"least": 1, "below": 2**31}
_SHARE: dict[str, Any] = {"least": 0, "below": 1}


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """One run's hyperparameters and what it records. The defaults are the reference recipe."""

    n_hidden_1: int = field(128, "units of the first hidden layer", group="Model", **_COUNT)
    n_hidden_2: int = field(256, "units of the second hidden layer", **_COUNT)
    activation: str = choice("of the hidden layers", ("sigmoid", "tanh", "relu"))
    initializer: str = choice("of the weights; biases start at 0", ("normal", "glorot", "he"))
    init_stddev: float = field(0.05, "standard deviation of --initializer=normal", least=0)

    loss: str = choice(
        "clipped: -log of the softmax in [1e-9, 1], the recipe's; softmax: from logits, stable",
        ("clipped_cross_entropy", "softmax_cross_entropy"),
        group="Loss",
    )
    reduction: str = choice(
        "over the batch; sum multiplies every gradient by the batch size", ("sum", "mean")
    )

    optimizer: str = choice(
        "update rule", ("sgd", "adam", "rmsprop", "adagrad", "adadelta"), group="Optimizer"
    )
    learning_rate: float = field(0.01, "of the update rule", least=0)
    learning_rate_decay: str = choice(
        "of the learning rate, from the first step or the end of the warm-up on, to 0 after the "
        "last step",
        ("none", "linear", "cosine"),
    )
    warmup_steps: int = field(
        0, "steps in which the learning rate rises linearly to its full size", least=0, below=2**31
    )
    weight_decay: float = field(
        0.0,
        "decoupled (AdamW): times learning rate and weight, subtracted from the weight; biases too",
        least=0,
    )
    clip_norm: float = field(
        0.0, "largest norm of all gradients together that an update is made of; 0: any", least=0
    )
    sgd_momentum: float = field(0.0, "share of the last step that is added to a step", **_SHARE)
    sgd_nesterov: bool = field(False, "momentum as Nesterov's; without momentum it does nothing")
    epsilon: float = field(1e-7, "keeps the divisor from 0; unused by sgd", least=0)
    epsilon_inside_root: bool = field(
        False, "sqrt(a + epsilon) as in Keras 3, not sqrt(a) + epsilon; adadelta's always is"
    )
    adam_beta_1: float = field(0.9, "decay of the first moment", **_SHARE)
    adam_beta_2: float = field(0.999, "decay of the second moment", **_SHARE)
    rmsprop_rho: float = field(0.9, "decay of the mean square gradient", **_SHARE)
    adagrad_initial_accumulator: float = field(0.1, "first sum of squared gradients", least=0)
    adadelta_rho: float = field(0.95, "decay of both accumulators", **_SHARE)

    data_dir: str = field(
        "",
        "folder with four IDX files named as MNIST's, gzipped or not; empty: MNIST",
        group="Data",
        single=True,
    )
    shuffle_labels: bool = field(False, "train on labels in random order, to be learnt by heart")
    batch_size: int = field(256, "examples a step, over all replicas", **_COUNT)
    seed: int = field(
        0, "of the initial weights and the order of the examples", single=True, least=0, below=2**63
    )
    training_steps: int = field(3000, "updates, one batch each", group="Training", **_COUNT)
    threads: int = field(
        2,
        "for each operation on a CPU; they decide its last bits",
        single=True,
        least=1,
        below=1025,
    )
    deterministic: bool = field(
        True, "the same bits on the same devices; a GPU may be faster without", single=True
    )

    display_step: int = field(
        100, "steps between evaluations on the test set", single=True, group="Record", **_COUNT
    )
    histogram_every: int = field(1, "steps between two sets of histograms", single=True, **_COUNT)
    watch: tuple[str, ...] = field(
        ("weights", "gradients", "norms"),
        "what has histograms, separated by commas, and the norms; --watch= for none",
        choices=WATCHABLE,
        single=True,
    )
    on_nonfinite: str = choice(
        "at the first NaN or infinity in loss, gradients or weights",
        ("stop", "continue"),
        single=True,
    )

    @property
    def hparams(self) -> dict[str, int | float | str]:
        """For the HParams page, which shows few columns: the README's, and what is not default."""
        shown = {
            one.name: getattr(self, one.name)
            for one in dataclasses.fields(self)
            if one.name in _IN_EVERY_NAME or getattr(self, one.name) != one.default
        }
        return {k: ",".join(v) if isinstance(v, tuple) else v for k, v in shown.items()}

    @property
    def run_name(self) -> str:
        """The name of the run's directory: one config, one name; two configs, two names."""
        short = f"{self.learning_rate:g}"
        rate = short if float(short) == self.learning_rate else repr(self.learning_rate)
        parts = [self.optimizer, f"lr={rate}", f"{self.n_hidden_1}x{self.n_hidden_2}"]
        for name, value in self.hparams.items():
            if name in _IN_EVERY_NAME:
                continue
            if name == "data_dir":
                path = os.path.abspath(self.data_dir)
                value = f"{os.path.basename(path)}-{_digest(path)[:6]}"
            if name == "watch":
                value = "+".join(self.watch) or "none"
            parts.append(f"{name}={re.sub(r'[^A-Za-z0-9._+-]', '_', str(value))}")
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
        "",
        "many runs: the name of a grid, or a file with the flags of one run a line",
        group="Grid",
    )
    seeds: str = field("", "every run with each of these seeds: how many, or a list; empty: --seed")
    jobs: int = field(0, "runs at a time; 0: what is fastest here", least=0)
    shard: str = field("0/1", "I/N: only every N-th run, from the I-th on, counted from 0")

    logdir: str = field("logs", "folder that the run directory is made in", group="Run")
    run_name: str = field("", "name of the run directory; empty: from the hyperparameters")
    overwrite: bool = field(False, "delete a run of that name first")
    devices: str = field(
        "auto", "auto: all GPUs, else one CPU; gpu:N; cpu:N, logical devices; or names, GPU:0,GPU:2"
    )
    checkpoint_every: int = field(
        1000, "steps between two checkpoints; there is one at the start and the end", **_COUNT
    )
    steps_per_loop: int = field(100, "steps a call of the compiled function", **_COUNT)
    profile: bool = field(False, "record a profile of one loop, for TensorBoard")

    def directory(self, config: Config) -> str:
        """The run directory of a config."""
        return os.path.join(self.logdir, self.run_name or config.run_name)


@dataclasses.dataclass(frozen=True)
class ReportSettings(Checked):
    """What bin/report is asked for."""

    logdir: str = field("logs", "folder that the run directories lie in", group="Report")
    format: str = choice("of the table", TABLE_FORMATS)
    page: bool = field(
        True, "answer the questions: report.html, report.json, TensorBoard's run report"
    )


@dataclasses.dataclass(frozen=True)
class LaunchSettings(Checked):
    """What bin/launch is asked for."""

    workers: int = field(
        2, "processes, each with one share of every batch", least=1, group="Launch"
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
