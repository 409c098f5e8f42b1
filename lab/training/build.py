"""The parts of a run, built from its config."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import random
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

from lab import machine
from lab.data import Data
from lab.errors import LabError, blamed
from lab.kernels import xla
from lab.models import optimizers
from lab.models.adapt import Network
from lab.models.losses import WITHOUT_A_LOOKUP
from lab.processes.cluster import Cluster
from lab.settings.config import Config
from lab.step import placement
from lab.step.placement import cpu_program, on_gpu, one_program
from lab.step.replica import Training
from lab.step.trace import SLOW_ON_A_GPU, SLOW_UNDER_XLA, Traced
from lab.training.checks import checked
from lab.training.problem import Problem, sizes


def make_strategy(
    config: Config, devices: str, problem: Problem, cluster: Cluster | None
) -> tf.distribute.Strategy:
    """The strategy over the requested devices, see placement.make_strategy.

    Raises:
      LabError: there are no such devices, or a step is too small or too large for them.
    """
    placement.set_threads(config.threads)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = placement.make_strategy(devices, cluster)
    if config.batch_size < strategy.num_replicas_in_sync:
        raise LabError(
            f"--batch_size={config.batch_size}: must be at least the number of replicas, "
            f"{strategy.num_replicas_in_sync}"
        )
    share = config.batch_size // strategy.num_replicas_in_sync
    if config.microbatches > share:
        raise LabError(
            f"--microbatches={config.microbatches}: must be at most the examples of a replica in a "
            f"step, {share}"
        )
    if config.model == "mlp" and "model" not in problem.given:
        _check_memory(config, sizes(config, problem.data), strategy)
    return strategy


def _check_memory(config: Config, units: list[int], strategy: tf.distribute.Strategy) -> None:
    """Raises LabError where this machine's main memory cannot hold a step of this size."""
    devices_here = strategy.extended.worker_devices
    if "GPU" in devices_here[0]:
        return  # TensorFlow says so, when it allocates
    parts = strategy.num_replicas_in_sync * config.microbatches
    examples = -(-config.batch_size * len(devices_here) // parts)
    # As measured: inputs as bytes and as float32; of a unit its output, its gradient, and one more.
    one = 5 * units[0] + 12 * sum(units[1:])
    # Weights, gradients, new weights, slots; they are there once for each replica.
    # And with micro-batches the gradient of each part.
    local = config.microbatches if config.microbatches > 1 else 0
    copies = (3 + local + len(make_rule(config).slots)) * len(devices_here)
    weights = 4 * copies * sum((n + 1) * m for n, m in itertools.pairwise(units))
    free = 0.75 * machine.free_memory()
    if examples * one + weights > free:
        fit = max(int((free - weights) / one), 0)
        raise LabError(
            f"--batch_size={config.batch_size}: a step needs about"
            f" {(examples * one + weights) / 2**30:,.1f} GiB here, for {examples:,} examples and"
            f" {'-'.join(map(str, units))} units, and {free / 2**30:,.1f} GiB are free for it: "
            + (f"use at most {fit:,} examples" if fit else "use smaller layers")
        )


def make_training(
    config: Config, problem: Problem, strategy: tf.distribute.Strategy
) -> tuple[Training, Traced]:
    """Model, optimizer, loss and metrics of a run, checked on its data.

    Raises:
      LabError: the model cannot train on them, see checks.checked.
    """
    data = problem.data
    if config.shuffle_labels and data.is_function:
        raise LabError("--shuffle_labels: needs labels in an array, not in batches from a function")
    with strategy.scope(), _seeded(config.seed):
        model = problem.make_model(strategy)
        _build(model, data, problem.prepare)
        network = Network(model)
        _check_mirrored(network, strategy)
        if "activations" in config.watch and not network.has_activations:
            raise LabError(
                f"--watch=activations: {type(model).__name__} has no method activations(x) that "
                "returns a dict of tensors: add one, or use lab.probe"
            )
        rule = problem.rule or make_rule(config)
        variables = list(network.variables.values())
        norm = _norm if cpu_program(strategy) else tf.linalg.global_norm
        optimizer = optimizers.Optimizer(rule, variables, config.training_steps, norm)
    size = config.batch_size
    scale = 1 / size if config.reduction == "mean" else 1.0
    training = Training(
        network,
        optimizer,
        problem.loss,
        size,
        scale,
        prepare=problem.prepare,
        microbatches=config.microbatches,
    )
    training, traced = checked(strategy, training, data, problem.metrics)
    if config.deterministic and on_gpu(strategy) and training.loss in [*WITHOUT_A_LOOKUP]:
        # The same numbers, as tested on a CPU; and the run's identity stays that of the loss as it
        # was traced.
        training = dataclasses.replace(training, loss=WITHOUT_A_LOOKUP[training.loss])
        traced = dataclasses.replace(traced, operations=traced.forward)
    return training, traced


def choose_xla(config: Config, strategy: tf.distribute.Strategy, traced: Traced) -> bool:
    """Whether XLA compiles a run's steps: unless told otherwise those of one replica, but for
    networks with operations of which XLA has only slow versions."""
    if config.xla == "auto":
        slow = SLOW_ON_A_GPU if on_gpu(strategy) else SLOW_UNDER_XLA
        return one_program(strategy) and not traced.operations & slow
    return config.xla == "on"


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Has models that draw from global generators, as Keras does, begin the same way each time."""
    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    tf.random.set_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


@contextlib.contextmanager
def seed_kept() -> Iterator[None]:
    """Gives TensorFlow's generators back the seed that they had. If they had none, they get a new
    one: once operations are deterministic, they do not draw without."""
    generators = context.context()
    seed, state = generators._seed, getattr(generators, "_rng", None)
    try:
        yield
    finally:
        tf.random.set_seed(secrets.randbits(31) if seed is None else seed)
        if seed is not None:
            generators._rng = state


def _build(model: Any, data: Data, prepare: Callable[[tf.Tensor], tf.Tensor]) -> None:
    """Has a Keras model that does not know the shape of its input yet make its variables."""
    if getattr(model, "built", True) is False:
        with blamed(f"the model cannot be called on x of {data.name}"):
            model(prepare(tf.constant(data.x[:1])))


def _check_mirrored(network: Network, strategy: tf.distribute.Strategy) -> None:
    if strategy.num_replicas_in_sync > 1:
        for tag, variable in (network.variables | network.state).items():
            if len(strategy.experimental_local_results(variable)) < len(
                strategy.extended.worker_devices
            ):
                raise LabError(
                    f"{tag} was created for one device, but there are several replicas: pass a "
                    "function that creates the model"
                )


def _norm(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """As the record's norms are made, so that XLA adds up the squares once for both."""
    return tf.sqrt(tf.reduce_sum(xla.squares(tensors)))


def make_rule(config: Config) -> optimizers.Rule:
    """The update rule of a config: each hyperparameter from its field, see `_field_of`."""
    kind = optimizers.RULES[config.optimizer]
    return kind(
        **{one.name: getattr(config, _field_of(kind, one.name)) for one in dataclasses.fields(kind)}
    )


def fields_of(rule: optimizers.Rule) -> dict[str, Any]:
    """The fields of the config of which `make_rule` makes this rule.

    Of a rule that is none of RULES they are those that all rules share; `optimizer` is missing.

    Raises:
      LabError: names a field and what it may be, where it is not.
    """
    known = type(rule) in optimizers.RULES.values()
    kind = type(rule) if known else optimizers.Rule
    fields = {
        _field_of(kind, one.name): plain(getattr(rule, one.name))
        for one in dataclasses.fields(kind)
    }
    if known:
        fields["optimizer"] = kind.__name__.lower()
    config = Config(**fields)
    return {name: getattr(config, name) for name in fields}


def plain(value: Any) -> Any:
    """A value as a flag has it: NumPy's numbers as Python's, paths as text."""
    if isinstance(value, np.generic):
        return value.item()
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _field_of(kind: type[optimizers.Rule], name: str) -> str:
    """The field of Config that holds a hyperparameter of a rule: of its name, with the rule's
    before it where only this rule has it (`learning_rate`, `adam_beta_1`)."""
    own = f"{kind.__name__.lower()}_{name}"
    shared = {"warmup": "warmup_steps", "decay": "learning_rate_decay"}.get(name, name)
    return own if own in Config.__dataclass_fields__ else shared
