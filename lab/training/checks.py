"""What a user's model, loss and data must be: checked before the first step, one line each."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import random
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from lab.data import Data
from lab.errors import LabError, blamed
from lab.kernels.metrics import accuracy
from lab.models import losses
from lab.step.replica import PerExample, Training
from lab.step.trace import Traced, trace

# What a variable's name goes before in the record, see Watch.
_SUFFIXES = (
    *("", "/gradient", "/update", "/norm", "/distance"),
    *("/gradient/norm", "/update/norm", "/update/ratio"),
)
# Operations with a state of their own, which no checkpoint holds.
_RANDOM = re.compile(
    r"Random(Uniform|UniformInt|StandardNormal|Gamma|GammaGrad|Poisson|PoissonV2|Shuffle)"
    r"|(Parameterized)?TruncatedNormal|Multinomial|RngReadAndSkip|RngSkip"
    r"|Stateful(Uniform|Standard|Truncated|Random|Bernoulli)\w*"
)
_OF_CLASSES = (*losses.WITHOUT_A_LOOKUP, *losses.WITHOUT_A_LOOKUP.values())


def checked(
    strategy: tf.distribute.Strategy,
    training: Training,
    data: Data,
    metrics: Mapping[str, PerExample] | None,
) -> tuple[Training, Traced]:
    """The training with its metrics, after its model was traced on a batch of the data: it is then
    known to train on them.

    Args:
      metrics: None for accuracy, where the model gives logits of the classes of integer labels.

    Raises:
      LabError: what was expected and what was found: the model cannot be called on a batch, makes
        a variable in its call, draws random numbers that do not repeat, or its output does not fit
        the labels; the loss or a metric is not one value for each example; labels are out of range;
        a probe cannot be recorded.
    """
    _check_metrics(metrics, training.variables)
    _check_variables(training)
    size = training.batch_size
    x, y = (tf.TensorSpec([size, *array.shape[1:]], array.dtype) for array in (data.x, data.y))
    labels = data.y.dtype.kind in "iu"
    if metrics is None and labels and training.loss in _OF_CLASSES:
        metrics = {"accuracy": accuracy}
    complete = dataclasses.replace(training, metrics=_floating(metrics or {}))
    try:
        with explained(""), _repeatable():
            traced = trace(strategy, complete, x, y)
    except LabError:  # is it the model, or the loss?
        complete = dataclasses.replace(training, loss=lambda y, output: tf.zeros([1]))
        with explained(f"the model cannot be called on a batch of x, {_form(x)}"), _repeatable():
            traced = trace(strategy, complete, x, y)
    output = traced.output
    _check_operations(traced)
    if not isinstance(output, tf.TensorSpec):
        kind = type(output).__name__
        raise LabError(f"the model returns a {kind}: must be one tensor, [batch, ...]")
    if training.loss in _OF_CLASSES:
        _check_classes(data, output, training.loss.__name__)
    if metrics is None and is_classifier(data, output):
        metrics = {"accuracy": accuracy}
    if complete.loss is training.loss and complete.metrics.keys() == (metrics or {}).keys():
        training = complete
    else:
        training = dataclasses.replace(training, metrics=_floating(metrics or {}))
        with explained(f"the loss cannot be computed of y {_form(y)} and output {_form(output)}"):
            traced = trace(strategy, training, x, y)
    for name, spec in {"loss": traced.loss, **traced.metrics}.items():
        if not spec.shape.rank or spec.shape[0] != size or not spec.dtype.is_floating:
            keras = "" if spec.shape.rank else "; a loss of Keras's needs reduction=None for that"
            raise LabError(
                f"the {name} is {_form(spec)}: must be one floating-point value per example, or "
                f"several: [{size}, ...]{keras}"
            )
    _check_probes(strategy, training, traced)
    _check_added(training)
    return training, traced


def is_classifier(data: Data, output: tf.TensorSpec) -> bool:
    """Whether an output has a logit for each class of integer labels y."""
    if data.y.dtype.kind not in "iu" or not output.shape.rank:
        return False
    fits = output.shape.rank > data.y.ndim and output.shape[1:-1] == data.y.shape[1:]
    return fits and output.shape[-1] > 1


def classes_of(loss: PerExample, output: tf.TensorSpec) -> int | None:
    """The number of classes that labels are of; None where the loss does not take such labels."""
    return output.shape[-1] if loss in _OF_CLASSES else None


def _check_metrics(metrics: Any, variables: Collection[str]) -> None:
    if metrics is None:
        return
    if not isinstance(metrics, Mapping):
        kind = type(metrics).__name__
        raise LabError(f"metrics is {kind}: must be a dict, from names to functions (y, output)")
    taken = {"loss", "config", *variables, *(f"test-{name}" for name in ("loss", *metrics))}
    for name, metric in metrics.items():
        if not isinstance(name, str) or not re.fullmatch(r"[^\s/]+", name) or name in taken:
            raise LabError(
                f"the metric {name!r}: its name must be a word without /, and not a tag already on "
                "record: choose another name"
            )
        if not callable(metric):
            raise LabError(
                f"the metric {name} is {type(metric).__name__}: must be a function (y, output)"
            )


def _floating(metrics: Mapping[str, PerExample]) -> dict[str, PerExample]:
    """Metrics whose whole numbers, or truth values, are float32."""

    def call(metric: PerExample, y: tf.Tensor, output: tf.Tensor) -> tf.Tensor:
        values = tf.convert_to_tensor(metric(y, output))
        whole = values.dtype.is_integer or values.dtype.is_bool
        return tf.cast(values, tf.float32) if whole else values

    return {
        name: metric if metric is accuracy else functools.partial(call, metric)
        for name, metric in metrics.items()
    }


def _check_variables(training: Training) -> None:
    for tag, variable in training.variables.items():
        if variable.dtype.size < 4:
            raise LabError(
                f"the variable {tag} is {variable.dtype.name}, to which small updates add nothing: "
                "keep it in float32 and cast it in the call (in Keras: the policy mixed_bfloat16)"
            )
    for tag, variable in training.model.holders.items():
        if getattr(variable, "regularizer", None) is not None:
            raise LabError(
                f"the variable {tag} has a regularizer, which only Keras's own fit adds to the "
                "loss: add it in the loss function, or remove it"
            )
        if getattr(variable, "constraint", None) is not None:
            raise LabError(
                f"the variable {tag} has a constraint, which only Keras's own optimizers apply: "
                "remove it"
            )


def _check_added(training: Training) -> None:
    """Refuses losses that Keras's layers have added while the model was traced."""
    for layer in training.model.layers:
        if layer.losses:
            raise LabError(
                f"{layer.name} adds a loss in its call (add_loss, or an activity regularizer), "
                "which only Keras's own fit adds to the loss: add it in the loss function, or "
                "remove it"
            )


def _check_operations(traced: Traced) -> None:
    if found := sorted(filter(_RANDOM.fullmatch, traced.operations)):
        raise LabError(
            f"the model or prepare uses {found[0]}, whose random numbers a resumed run could not "
            "draw again: use lab.layers.Dropout, or TensorFlow's stateless operations with the "
            "seed passed to the call"
        )
    if traced.strays:
        raise LabError(
            f"the model uses the variable {traced.strays[0]}, which is not among its own: make it "
            "an attribute of the model"
        )


def _check_probes(strategy: tf.distribute.Strategy, training: Training, traced: Traced) -> None:
    scalars = ("loss", *training.metrics)
    taken = {"config", "gradient/norm", *scalars, *(f"test-{name}" for name in scalars)}
    taken |= {tag + suffix for tag in training.variables for suffix in _SUFFIXES}
    size = training.batch_size
    several = strategy.num_replicas_in_sync * training.microbatches > 1
    for name, spec in traced.probes.items():
        what = f"lab.probe({name!r}, ...)"
        if not isinstance(name, str) or not name.strip("/ ") or name in taken:
            raise LabError(f"{what}: the name must be a string, and not a tag already on record")
        if not (spec.dtype.is_floating or spec.dtype.is_integer or spec.dtype.is_bool):
            raise LabError(f"{what} is {_form(spec)}: must hold numbers")
        if not spec.shape.is_fully_defined() or not spec.shape.num_elements():
            raise LabError(f"{what} is {_form(spec)}: its shape must be known, and not empty")
        if several and (not spec.shape.rank or spec.shape[0] % size):
            raise LabError(
                f"{what} is {_form(spec)}: with several replicas or micro-batches it must start "
                f"with the batch, [{size}, ...]"
            )


@contextlib.contextmanager
def _repeatable() -> Iterator[None]:
    """Refuses code that draws from the generators of Python or NumPy."""
    before = random.getstate(), repr(np.random.get_state())
    yield
    if before != (random.getstate(), repr(np.random.get_state())):
        raise LabError(
            "the model draws from Python's or NumPy's random numbers in its call, which happens "
            "once for all steps: draw in its constructor, or use TensorFlow's stateless operations "
            "with the seed passed to the call"
        )


def _check_classes(data: Data, output: tf.TensorSpec, loss: str) -> None:
    if data.y.dtype.kind not in "iu":
        raise LabError(
            f"{loss} takes integer labels, and y are {data.y.dtype}: convert them, or choose "
            "another loss"
        )
    expected = [output.shape[0], *data.y.shape[1:]]
    if output.shape[:-1] != expected:
        raise LabError(
            f"the model returns {_form(output)}, and y are {data.y.dtype} "
            f"{list(data.y.shape[1:])} each: {loss} takes one label per row of logits, "
            f"[{', '.join(map(str, expected))}, classes]"
        )
    classes = output.shape[-1]
    for name, labels in (("y", data.y), ("y_test", data.y_test)):
        if labels is None:
            continue
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise LabError(
                f"the labels {name} go from {low} to {high}, and the model returns logits of "
                f"{classes} classes: labels must be from 0 to {classes - 1}"
            )


def _no_variables(make: Any, **options: Any) -> Any:
    raise LabError(
        f"the model creates a variable in its call ({options.get('name') or 'without a name'}): "
        "create all variables in its constructor"
    )


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """As `blamed`, of code that may not make variables."""
    with blamed(what), tf.variable_creator_scope(_no_variables):
        yield


def _form(spec: Any) -> str:
    return f"{spec.dtype.name} {spec.shape}".replace("(", "[").replace(",)", "]").replace(")", "]")
