"""What a user's model, loss and data must be: checked before the first step, one line each."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from lab.data import Data
from lab.errors import LabError
from lab.models import losses
from lab.models.adapt import Network
from lab.step.replica import Training
from lab.step.trace import Traced, trace

_OF_CLASSES = (losses.clipped_cross_entropy, losses.softmax_cross_entropy)


def checked_trace(strategy: tf.distribute.Strategy, training: Training, data: Data) -> Traced:
    """Traces a model on a batch of the data, after which it is known to train on them.

    Raises:
      LabError: what was expected, and what came: the model cannot be called on such a batch, makes
        a variable in its call, or its output does not fit the labels; the loss or a metric is not
        one value for each example; labels are out of range.
    """
    size = training.batch_size
    x, y = (tf.TensorSpec([size, *array.shape[1:]], array.dtype) for array in (data.x, data.y))
    bare = Training(training.model, None, _nothing, size, prepare=training.prepare)
    what = f"the model cannot be called on a batch of x, {_form(x)}"
    with _explained(what), tf.variable_creator_scope(_no_variables):
        output = trace(strategy, bare, x, y).output
    if not isinstance(output, tf.TensorSpec):
        raise LabError(
            f"the model returns {type(output).__name__}: must be one tensor, [batch, ...]"
        )
    if training.loss in _OF_CLASSES:
        _check_classes(data, output, training.loss.__name__)
    with _explained(f"the loss cannot be computed of y {_form(y)} and output {_form(output)}"):
        traced = trace(strategy, training, x, y)
    for name, spec in {"loss": traced.loss, **traced.metrics}.items():
        if not spec.shape.rank or spec.shape[0] != size or not spec.dtype.is_floating:
            raise LabError(
                f"the {name} is {_form(spec)}: must be one floating value for each example, or "
                f"more: [{size}, ...]"
            )
    return traced


def is_classifier(data: Data, output: tf.TensorSpec) -> bool:
    """Whether an output has a logit for each class of integer labels y."""
    y = list(data.y.shape[1:])
    return data.y.dtype.kind in "iu" and output.shape.rank and output.shape[1:-1] == y


def output_of(strategy: tf.distribute.Strategy, network: Network, data: Data, size: int) -> Any:
    raise NotImplementedError


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


def _nothing(y: tf.Tensor, output: tf.Tensor) -> tf.Tensor:
    return tf.zeros([1])


def _no_variables(make: Any, **options: Any) -> Any:
    raise LabError(
        f"the model makes a variable in its call ({options.get('name') or 'without a name'}): make "
        "all variables in its constructor"
    )


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turns what a user's code raises into one line, which says where it came from."""
    try:
        yield
    except LabError:
        raise
    except Exception as error:
        place = ""
        for frame in traceback.extract_tb(error.__traceback__):
            if not any(part in frame.filename for part in ("site-packages", "/lab/")):
                place = f" ({frame.filename}, line {frame.lineno})"
        text = " ".join(str(error).split())
        short = text if len(text) <= 300 else f"{text[:297]}..."
        raise LabError(f"{what}: {type(error).__name__}: {short}{place}") from error


def _form(spec: Any) -> str:
    return f"{np.dtype(spec.dtype.as_numpy_dtype).name} {spec.shape.as_list()}"
