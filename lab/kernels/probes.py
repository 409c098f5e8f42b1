"""`lab.probe`: a tensor inside a model, passed to whoever traces the model."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import tensorflow as tf

_collected: contextvars.ContextVar[dict[str, tf.Tensor] | None] = contextvars.ContextVar(
    "collected", default=None
)


def probe(name: str, tensor: tf.Tensor) -> tf.Tensor:
    """Records a tensor of a model at every step, like weights and gradients: its histogram, its
    largest finite absolute value, and how many of its entries are NaN or infinite.

    Use it in the model's call, outside any tf.function or tf.while_loop of the model itself. If
    the model is not being trained by the lab it does nothing.

    Args:
      name: the tag of the record. A repeated name gets a number: `name_1`, `name_2`.
      tensor: floating, of any shape that starts with the batch.

    Returns:
      The tensor.
    """
    found = _collected.get()
    if found is not None:
        number, tag = 0, name
        while tag in found:
            number += 1
            tag = f"{name}_{number}"
        found[tag] = tf.convert_to_tensor(tensor)
    return tensor


@contextlib.contextmanager
def collected() -> Iterator[dict[str, tf.Tensor]]:
    """The tensors that are probed inside the context, by tag."""
    found: dict[str, tf.Tensor] = {}
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)
