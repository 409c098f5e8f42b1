"""What a run trains: model, data, loss, metrics and update rule."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from lab.data import Data, load
from lab.errors import LabError, blamed
from lab.kernels import xla
from lab.kernels.inputs import prepare
from lab.models import layers, losses
from lab.models.mlp import MLP
from lab.models.optimizers import Rule
from lab.settings import source
from lab.settings.config import Config
from lab.settings.fields import REFERENCE
from lab.step.placement import cpu_program
from lab.step.replica import PerExample
from lab.training import user_code


@dataclasses.dataclass(frozen=True)
class Problem:
    """What a run trains.

    Attributes:
      make_model: creates the model, or returns an existing one; called under the strategy's scope
        with the strategy.
      loss: (y, output) -> floating [batch, ...].
      metrics: by name, functions as the loss. None: accuracy, where y are the labels of classes.
      fresh: whether make_model makes a new model, which begins where the run began.
      rule: the update rule; None: the config's.
      given: what the caller passed as objects, which no config can name: "model", "data", ...
      files: of what is read from files of the user's, a digest of each, by flag.
    """

    make_model: Callable[[tf.distribute.Strategy], Any]
    data: Data
    loss: PerExample
    metrics: Mapping[str, PerExample] | None = None
    rule: Rule | None = None
    fresh: bool = True
    given: tuple[str, ...] = ()
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def prepare(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """A batch of x -> the model's input."""
        return self.data.prepare or prepare


def problem_of(config: Config, data: Data | None = None, data_files: str = "") -> Problem:
    """The problem that a config names.

    Args:
      data, data_files: what `load_data` gives, where that is known already.

    Raises:
      LabError: a file cannot be read, or does not hold a model, data or loss.
    """
    files = {"data": data_files}
    if data is None:
        data, files["data"] = load_data(config.data)
    loss = losses.LOSSES.get(config.loss)
    if loss is None:
        loss, files["loss"] = _load("loss", config.loss)
        if not callable(loss):
            raise LabError(
                f"--loss={config.loss}: is {type(loss).__name__}: must be a function (y, output)"
            )
    make_model: Any = functools.partial(_perceptron, config, data)
    if config.model != "mlp":
        kind, files["model"] = _load("model", config.model)
        make_model = functools.partial(_from_file, config, kind)
    files = {flag: digest for flag, digest in files.items() if digest}
    return Problem(make_model, data, loss, files=files)


def problem_with(
    config: Config, model: Any = None, data: Any = None, loss: Any = None, metrics: Any = None
) -> Problem:
    """The problem of a config, but for what is given as objects; see `lab.train`."""
    if data is None or isinstance(data, str):
        data, data_files = load_data(config.data)
    elif isinstance(data, Data):
        data_files = ""
    else:
        raise LabError(f"data is {type(data).__name__}: must be a lab.Data, or what --data takes")
    known = Config() if callable(model) else config  # a config names no model of the caller's
    if callable(loss):
        known = dataclasses.replace(known, loss=Config().loss)
    elif callable(model):
        known = dataclasses.replace(known, loss=config.loss)
    problem = problem_of(known, data, data_files)
    if callable(model):
        there = hasattr(model, "trainable_variables") and not isinstance(model, type)
        make = (lambda strategy: model) if there else _maker(model, config.seed)
        problem = dataclasses.replace(problem, make_model=make, fresh=not there)
    if callable(loss):
        problem = dataclasses.replace(problem, loss=loss)
    return dataclasses.replace(problem, metrics=metrics)


def _maker(model: Any, seed: int) -> Callable[[Any], Any]:
    def make(strategy: Any) -> Any:
        with blamed("the model cannot be made"):
            return seeded(model, seed)()

    return make


def load_data(name: str) -> tuple[Data, str]:
    """The data that `Config.data` names, and a digest of the file that makes them, "" if none does:
    mnist, a folder, FILE.npz or FILE.py:NAME, which is a `lab.Data` or a function that returns one.

    Raises:
      LabError: they cannot be read.
    """
    if not REFERENCE.fullmatch(name):
        return load(name), ""
    found, digest = _load("data", name)
    if callable(found):
        with blamed():
            found = found()
    if not isinstance(found, Data):
        raise LabError(f"--data={name}: is {type(found).__name__}: must be a lab.Data")
    return found, digest


def seeded(kind: Callable[..., Any], seed: int) -> Callable[..., Any]:
    """A constructor that is given the seed, if it has an argument of that name."""
    try:
        accepts = "seed" in inspect.signature(kind).parameters
    except (TypeError, ValueError):
        accepts = False
    return functools.partial(kind, seed=seed) if accepts else kind


def sizes(config: Config, data: Data) -> list[int]:
    """Of the reference network: inputs, units of each hidden layer, classes."""
    inputs = data.x[0].size
    return [inputs, config.n_hidden_1, config.n_hidden_2, data.num_classes]


def _load(flag: str, reference: str) -> tuple[Any, str]:
    """What a reference refers to, and the digest of its files."""
    found = user_code.load(source.read(flag, reference))
    return found.value, found.digest


def _from_file(config: Config, kind: Any, strategy: tf.distribute.Strategy) -> Any:
    arguments = source.arguments(config)
    if config.model == "transformer":
        arguments["matmul"] = matmul_for(strategy)
    with blamed():
        return seeded(kind, config.seed)(**arguments)


def matmul_for(strategy: tf.distribute.Strategy) -> layers.Product:
    """The product of matrices that is fastest in a step of this strategy."""
    return xla.matmul if cpu_program(strategy) else tf.matmul


def _perceptron(config: Config, data: Data, strategy: tf.distribute.Strategy) -> MLP:
    if data.x.ndim != 2 or data.y.dtype.kind not in "iu" or data.y.ndim != 1:
        raise LabError(
            f"--model=mlp takes x [examples, inputs] and labels [examples], and {data.name} has x "
            f"{list(data.x.shape)} and {data.y.dtype} y {list(data.y.shape)}: choose another "
            "--model"
        )
    return MLP(
        sizes(config, data),
        layers.ACTIVATIONS[config.activation],
        layers.INITIALIZERS[config.initializer](config.init_stddev),
        config.seed,
        matmul_for(strategy),
    )
