"""What a user's model, loss and data must be: checked before the first step, one line each."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from lab.data import Data
from lab.errors import LabError
from lab.kernels.metrics import accuracy
from lab.models import losses
from lab.step.replica import PerExample, Training
from lab.step.trace import Traced, trace

# Folders of code that is not the user's: the standard library, packages, the lab.
_NOT_OF_USER = (
    *{sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")},
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
)
_OF_CLASSES = (losses.clipped_cross_entropy, losses.softmax_cross_entropy)


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
      LabError: what was expected, and what came: the model cannot be called on such a batch, makes
        a variable in its call, or its output does not fit the labels; the loss or a metric is not
        one value for each example; labels are out of range.
    """
    size = training.batch_size
    x, y = (tf.TensorSpec([size, *array.shape[1:]], array.dtype) for array in (data.x, data.y))
    bare = dataclasses.replace(training, loss=lambda y, output: tf.zeros([1]))
    with explained(f"the model cannot be called on a batch of x, {_form(x)}"):
        output = trace(strategy, bare, x, y).output
    if not isinstance(output, tf.TensorSpec):
        kind = type(output).__name__
        raise LabError(f"the model returns a {kind}: must be one tensor, [batch, ...]")
    if training.loss in _OF_CLASSES:
        _check_classes(data, output, training.loss.__name__)
    if metrics is None:
        classes = is_classifier(data, output)
        metrics = {"accuracy": accuracy} if classes else {}
    training = dataclasses.replace(training, metrics=metrics)
    with explained(f"the loss cannot be computed of y {_form(y)} and output {_form(output)}"):
        traced = trace(strategy, training, x, y)
    for name, spec in {"loss": traced.loss, **traced.metrics}.items():
        if not spec.shape.rank or spec.shape[0] != size or not spec.dtype.is_floating:
            raise LabError(
                f"the {name} is {_form(spec)}: must be one floating value for each example, or "
                f"several: [{size}, ...]"
            )
    return training, traced


def is_classifier(data: Data, output: tf.TensorSpec) -> bool:
    """Whether an output has a logit for each class of integer labels y."""
    if data.y.dtype.kind not in "iu" or not output.shape.rank:
        return False
    return output.shape.rank > data.y.ndim and output.shape[1:-1] == data.y.shape[1:]


def _check_classes(data: Data, output: tf.TensorSpec, loss: str) -> None:
    if data.y.dtype.kind not in "iu":
        raise LabError(
            f"{loss} takes integer labels, and y are {data.y.dtype}: convert them, or choose "
            "another loss"
        )
    expected = [output.shape[0], *data.y.shape[1:]]
    if output.shape[:-1] != expected:
        raise LabError(
            f"the model returns {_form(output)}: {loss} takes the logits of the classes, "
            f"{[*expected, 'classes']}"
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
        f"the model makes a variable in its call ({options.get('name') or 'without a name'}): make "
        "all variables in its constructor"
    )


@contextlib.contextmanager
def explained(what: str, variables: bool = False) -> Iterator[None]:
    """Turns what a user's code raises into one line, which says where it came from.

    Args:
      variables: whether it may make variables.
    """
    try:
        with contextlib.nullcontext() if variables else tf.variable_creator_scope(_no_variables):
            yield
    except LabError:
        raise
    except Exception as error:
        place = ""
        for frame in traceback.extract_tb(error.__traceback__):
            if not frame.filename.startswith(_NOT_OF_USER):
                place = f" ({frame.filename}, line {frame.lineno})"
        text = " ".join(re.sub(r"\x1b\[\d*m", "", str(error)).split())
        short = text if len(text) <= 300 else f"{text[:297]}..."
        raise LabError(f"{what}: {type(error).__name__}: {short}{place}") from error


def _form(spec: Any) -> str:
    return f"{np.dtype(spec.dtype.as_numpy_dtype).name} {spec.shape.as_list()}"
