"""The parts of a run, made from its config."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from lab import machine
from lab.data import Dataset
from lab.errors import LabError
from lab.kernels import xla
from lab.models import layers, losses, mlp, optimizers
from lab.processes.cluster import Cluster
from lab.settings.config import Config
from lab.step import placement
from lab.step.placement import one_program
from lab.step.replica import Training


def make_strategy(
    config: Config, devices: str, dataset: Dataset, cluster: Cluster | None
) -> tf.distribute.Strategy:
    """The strategy over the devices that are asked for, see placement.make_strategy.

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
    _check_memory(config, dataset, strategy)
    return strategy


def _check_memory(config: Config, dataset: Dataset, strategy: tf.distribute.Strategy) -> None:
    """Raises LabError where this machine's main memory cannot hold a step of this size."""
    devices_here = strategy.extended.worker_devices
    if "GPU" in devices_here[0]:
        return  # TensorFlow says so, when it allocates
    units = sizes(config, dataset)
    examples = -(-config.batch_size * len(devices_here) // strategy.num_replicas_in_sync)
    # As measured: inputs as bytes and as float32; of a unit its output, its gradient, and one more.
    one = 5 * units[0] + 12 * sum(units[1:])
    # Weights, gradients, new weights, slots; they are there once for each replica.
    copies = (3 + len(make_rule(config).slots)) * len(devices_here)
    weights = 4 * copies * sum((n + 1) * m for n, m in itertools.pairwise(units))
    free = 0.75 * machine.free_memory()
    if examples * one + weights > free:
        fit = max(int((free - weights) / one), 0)
        raise LabError(
            f"--batch_size={config.batch_size}: a step needs about"
            f" {(examples * one + weights) / 2**30:,.1f} GiB here, for {examples:,} examples and"
            f" {'-'.join(map(str, units))} units, and {free / 2**30:,.1f} GiB are free for it: "
            + (f"take at most {fit:,} examples" if fit else "take smaller layers")
        )


def make_training(config: Config, dataset: Dataset, strategy: tf.distribute.Strategy) -> Training:
    """Model, optimizer and loss of a config."""
    with strategy.scope():
        model = mlp.MLP(
            sizes(config, dataset),
            layers.ACTIVATIONS[config.activation],
            layers.INITIALIZERS[config.initializer](config.init_stddev),
            config.seed,
            xla.matmul if one_program(strategy) else tf.matmul,
        )
        optimizer = optimizers.Optimizer(
            make_rule(config),
            model.trainable_variables,
            config.training_steps,
            _norm if one_program(strategy) else tf.linalg.global_norm,
        )
    scale = 1 / config.batch_size if config.reduction == "mean" else 1.0
    return Training(model, optimizer, losses.LOSSES[config.loss], config.batch_size, scale)


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
        _field_of(kind, one.name): getattr(rule, one.name) for one in dataclasses.fields(kind)
    }
    if known:
        fields["optimizer"] = kind.__name__.lower()
    config = Config(**fields)
    return {name: getattr(config, name) for name in fields}


def _field_of(kind: type[optimizers.Rule], name: str) -> str:
    """The field of Config that holds a hyperparameter of a rule: of its name, with the rule's
    before it where only this rule has it (`learning_rate`, `adam_beta_1`)."""
    own = f"{kind.__name__.lower()}_{name}"
    shared = {"warmup": "warmup_steps", "decay": "learning_rate_decay"}.get(name, name)
    return own if own in Config.__dataclass_fields__ else shared


def sizes(config: Config, dataset: Dataset) -> list[int]:
    """Inputs, units of each hidden layer, classes."""
    inputs = dataset.train_images.shape[1]
    return [inputs, config.n_hidden_1, config.n_hidden_2, dataset.num_classes]
