"""What a run is: every setting that decides its numbers or its record, with bounds and a name.

Nothing here loads TensorFlow, so that a wrong value ends a program at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from lab.errors import LabError
from lab.settings.fields import REFERENCE, Checked, choice, field

# Incremented whenever a change of code changes the numbers of an unchanged config.
NUMERICS = 4

READY_MADE = ("mlp", "convnet", "transformer")  # files of lab/models
WATCHABLE = ("weights", "gradients", "norms", "probes", "updates", "activations", "replicas")

# The README's columns appear in every run's name, the other fields only where they differ.
_IN_EVERY_NAME = ("optimizer", "learning_rate", "n_hidden_1", "n_hidden_2", "seed")

# What replaces the reference recipe's defaults in the runs of other models.
_OF_OTHER_MODELS = {"loss": "softmax_cross_entropy", "reduction": "mean"}

# Limits of numbers.
_COUNT: dict[str, Any] = {"least": 1, "below": 2**31}
_SHARE: dict[str, Any] = {"least": 0, "below": 1}


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """One run's hyperparameters and what it records. The defaults are the reference recipe.

    Attributes:
      model_arguments: of the model's constructor, but for those at their defaults: KEY=VALUE texts
        in the order of their keys, as `settings.source` writes them.
    """

    model: str = choice(
        "the network: a class, or a function that makes it",
        READY_MADE,
        file=True,
        group="Model",
    )
    model_arguments: tuple[str, ...] = field((), "", flag=False)
    n_hidden_1: int = field(128, "units of the first hidden layer", of="mlp", **_COUNT)
    n_hidden_2: int = field(256, "units of the second hidden layer", of="mlp", **_COUNT)
    activation: str = choice("of the hidden layers", ("sigmoid", "tanh", "relu"), of="mlp")
    initializer: str = choice(
        "initial law of the weights; biases start at 0", ("normal", "glorot", "he"), of="mlp"
    )
    init_stddev: float = field(
        0.05, "standard deviation of --initializer=normal", of="mlp", least=0
    )

    loss: str = choice(
        "loss per example; clipped: -log of the softmax in [1e-9, 1], as in the recipe; softmax: "
        "from logits, numerically stable",
        (
            *("clipped_cross_entropy", "softmax_cross_entropy", "mean_squared_error"),
            *("mean_absolute_error", "sigmoid_cross_entropy"),
        ),
        file=True,
        group="Loss",
    )
    reduction: str = choice(
        "of the loss over the batch; sum multiplies every gradient by the batch size",
        ("sum", "mean"),
    )

    optimizer: str = choice(
        "update rule", ("sgd", "adam", "rmsprop", "adagrad", "adadelta"), group="Optimizer"
    )
    learning_rate: float = field(0.01, "peak learning rate", least=0)
    learning_rate_decay: str = choice(
        "decay of the learning rate from the end of the warm-up (or step 1) to 0 after the "
        "last step",
        ("none", "linear", "cosine"),
    )
    warmup_steps: int = field(
        0, "steps over which the learning rate rises linearly to full size", least=0, below=2**31
    )
    weight_decay: float = field(
        0.0,
        "decoupled, as in AdamW: subtracts learning rate * decay * weight; biases too",
        least=0,
    )
    clip_norm: float = field(
        0.0, "clips all gradients together to this global norm; 0: no clipping", least=0
    )
    sgd_momentum: float = field(0.0, "fraction of the previous step added to each step", **_SHARE)
    sgd_nesterov: bool = field(False, "Nesterov momentum; no effect without momentum")
    epsilon: float = field(1e-7, "keeps the divisor away from 0; unused by sgd", least=0)
    epsilon_inside_root: bool = field(
        False, "sqrt(a + epsilon), as in Keras 3, not sqrt(a) + epsilon; always on for adadelta"
    )
    adam_beta_1: float = field(0.9, "decay of the first moment", **_SHARE)
    adam_beta_2: float = field(0.999, "decay of the second moment", **_SHARE)
    rmsprop_rho: float = field(0.9, "decay of the mean square gradient", **_SHARE)
    adagrad_initial_accumulator: float = field(0.1, "initial sum of squared gradients", least=0)
    adadelta_rho: float = field(0.95, "decay of both accumulators", **_SHARE)

    data: str = field(
        "mnist",
        "mnist; a folder with four IDX files named like MNIST's, gzipped or not; FILE.npz; or "
        "FILE.py:NAME",
        group="Data",
        single=True,
    )
    shuffle_labels: bool = field(False, "train on shuffled labels, which can only be memorized")
    batch_size: int = field(256, "examples per step, over all replicas", **_COUNT)
    microbatches: int = field(
        1,
        "sequential parts of each replica's share of the batch: saves memory, and more than one "
        "also records the gradient noise scale",
        later=True,
        **_COUNT,
    )
    seed: int = field(
        0, "seed of the initial weights and the example order", single=True, least=0, below=2**63
    )
    training_steps: int = field(3000, "updates, one batch each", group="Training", **_COUNT)
    threads: int = field(
        2,
        "threads per CPU operation; affects the last bits of the results",
        single=True,
        least=1,
        below=1025,
    )
    deterministic: bool = field(
        True, "bit-identical results on the same devices; a GPU may be faster without", single=True
    )
    xla: str = choice(
        "whether XLA compiles the step; auto: with one replica, where that is faster",
        ("auto", "on", "off"),
    )

    display_step: int = field(
        100, "steps between evaluations on the test set", single=True, group="Record", **_COUNT
    )
    histogram_every: int = field(1, "steps between histograms", single=True, **_COUNT)
    watch: tuple[str, ...] = field(
        ("weights", "gradients", "norms", "probes"),
        "what to record histograms of, separated by commas, and the norms; --watch= for none",
        choices=WATCHABLE,
        single=True,
    )
    on_nonfinite: str = choice(
        "what to do at the first NaN or infinity in loss, gradients or weights",
        ("stop", "continue"),
        single=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise LabError("--data=: must be mnist, a folder, FILE.npz or FILE.py:NAME")
        names = [argument.partition("=")[0] for argument in self.model_arguments]
        written = all(map(re.compile(r"[^\W\d]\w*=").match, self.model_arguments))
        if names != sorted({*names}) or not written:
            raise LabError(
                f"model_arguments={self.model_arguments!r}: must be KEY=VALUE texts, in the order "
                "of their keys, each once"
            )
        if self.model == "mlp":
            foreign = [f"model.{name}" for name in names]
        else:
            own = [one for one in dataclasses.fields(self) if one.metadata.get("of")]
            foreign = [one.name for one in own if getattr(self, one.name) != one.default]
        if foreign:
            raise LabError(f"--{foreign[0]} is not for --model={' '.join(self.model.split())}")

    @property
    def seedless(self) -> Config:
        """The same for all runs that differ in the seed alone."""
        return dataclasses.replace(self, seed=0)

    @property
    def ready_made(self) -> bool:
        """Whether network and loss are the lab's own, whose programs do not depend on the seed."""
        return self.model in READY_MADE and not REFERENCE.fullmatch(self.loss)

    @property
    def own(self) -> dict[str, Any]:
        """The fields by name, without those that belong to another model."""
        return own_fields(dataclasses.asdict(self))

    @property
    def _unlike(self) -> dict[str, Any]:
        """What is in every name, and what is not the model's default; not the model itself."""
        usual = {one.name: default(one, self.model) for one in dataclasses.fields(self)}
        return {
            name: value
            for name, value in self.own.items()
            if name not in ("model", "model_arguments")
            and (name in _IN_EVERY_NAME or value != usual[name])
        }

    @property
    def hparams(self) -> dict[str, int | float | str]:
        """For the HParams page: the README's fields, and what is not default. The page takes its
        columns from the first run, so the model's value includes its arguments."""
        shown: dict[str, Any] = {"model": " ".join([_short(self.model), *self.model_arguments])}
        for argument in self.model_arguments:
            key, _, value = argument.partition("=")
            shown[f"model.{key}"] = _number(value)
        shown |= self._unlike
        return {k: ",".join(v) if isinstance(v, tuple) else v for k, v in shown.items()}

    @property
    def run_name(self) -> str:
        """The name of the run's directory: one config, one name; two configs, two names."""
        short = f"{self.learning_rate:g}"
        rate = short if float(short) == self.learning_rate else repr(self.learning_rate)
        parts = [self.optimizer, f"lr={rate}"]
        if self.model == "mlp":
            parts.append(f"{self.n_hidden_1}x{self.n_hidden_2}")
        else:
            name = self.model if self.model in READY_MADE else _place(self.model)
            parts = [name, *map(_safe, self.model_arguments), *parts]
        for name, value in self._unlike.items():
            if name in _IN_EVERY_NAME:
                continue
            if name == "data" or (name == "loss" and REFERENCE.fullmatch(value)):
                value = _place(value)
            if name == "watch":
                value = "+".join(self.watch) or "none"
            parts.append(f"{name}={value}")
        name = ",".join([*parts, f"seed={self.seed}"])
        # File systems take 255 bytes a name; a digest keeps a longer one unique.
        return name if len(name) <= 200 else f"{name[:180]},{_digest(name)[:12]}"

    def fingerprint(self, **circumstances: Any) -> str:
        """64 hex digits, equal only where the numbers and the record must be equal.

        `circumstances` are what else decides the numbers: digests of the data and of the files of
        model and loss (in place of their paths, see `placeless`), replicas, version of TensorFlow.
        """
        fields = placeless(dataclasses.asdict(self))
        for one in dataclasses.fields(self):
            if one.metadata.get("later") and fields[one.name] == one.default:
                del fields[one.name]
        return _digest(json.dumps([NUMERICS, fields, circumstances], sort_keys=True))


@dataclasses.dataclass(frozen=True)
class Settings(Checked):
    """Which runs, where and how: nothing here changes the numbers of a run."""

    grid: str = field(
        "",
        "many runs: the name of a grid, or a file with the flags of one run per line",
        group="Grid",
    )
    seeds: str = field("", "seeds to repeat every run with: how many, or a list; empty: --seed")
    jobs: int = field(0, "runs in parallel; 0: what is fastest here", least=0)
    shard: str = field("0/1", "I/N: only every N-th run, starting with the I-th, counted from 0")

    logdir: str = field("logs", "folder in which the run directory is created", group="Run")
    run_name: str = field("", "name of the run directory; empty: built from the hyperparameters")
    overwrite: bool = field(False, "first delete an existing run of that name")
    devices: str = field(
        "auto", "auto: all GPUs, else one CPU; gpu:N; cpu:N, logical devices; or names, GPU:0,GPU:2"
    )
    checkpoint_every: int = field(
        1000, "steps between checkpoints; one is always saved at the start and the end", **_COUNT
    )
    steps_per_loop: int = field(100, "steps per call of the compiled function", **_COUNT)
    profile: bool = field(False, "record a profile of one loop, for TensorBoard")

    def directory(self, config: Config) -> str:
        """The run directory of a config."""
        return os.path.join(self.logdir, self.run_name or config.run_name)


def default(one: dataclasses.Field, model: str) -> Any:
    """The default of a field of Config in a run of that model. Clipped
    loss and sum belong to the reference recipe, and so to mlp."""
    return one.default if model == "mlp" else _OF_OTHER_MODELS.get(one.name, one.default)


def own_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A config's fields without those that belong to another model than its own."""
    of = {one.name: one.metadata.get("of") for one in dataclasses.fields(Config)}
    model = fields.get("model", "mlp")  # an old run's config has none
    return {k: v for k, v in fields.items() if of.get(k) in (None, model)}


def placeless(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A config's fields without the places of files: of FILE.py:NAME the NAME is left, of other
    data nothing. Digests identify their contents."""
    found = dict(fields)
    for name in {"model", "loss", "data"} & found.keys():
        if isinstance(found[name], str) and (match := REFERENCE.fullmatch(found[name])):
            found[name] = f"FILE.py:{match['name']}"
        elif name == "data":
            found[name] = None
    return found


def renamed(fields: Any) -> Any:
    """A config's fields as they are called today: `data` was `data_dir`, and MNIST was ""."""
    if not isinstance(fields, dict) or "data_dir" not in fields or "data" in fields:
        return fields
    folder = fields["data_dir"]
    rest = {name: value for name, value in fields.items() if name != "data_dir"}
    return rest | {"data": "mnist" if folder == "" else folder}


def _place(text: str) -> str:
    """A name for a file, a folder or FILE.py:NAME, different for each place."""
    path = os.path.abspath(text)
    match = REFERENCE.fullmatch(path)
    return f"{_clean(match['name'] if match else os.path.basename(path))}-{_digest(path)[:6]}"


def _short(text: str) -> str:
    """Of FILE.py:NAME what stands behind the last slash."""
    return os.path.basename(text) if REFERENCE.fullmatch(text) else text


def _safe(text: str) -> str:
    """A text as a part of a file's name; different texts stay different, where case is folded,
    too."""
    if re.fullmatch(r"[a-z0-9._+=-]*", text):
        return text
    return f"{_clean(text)}-{_digest(text)[:6]}"


def _clean(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+=-]", "_", text)


def _number(text: str) -> int | float | str:
    """The number that a text is, if it is one that a column of numbers can hold."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if type(value) in (int, float) and abs(value) < 1e300 else text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
