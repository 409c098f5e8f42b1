"""Whether two graphs compute the same thing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

# Attributes of operations that say where or how they run.
_OF_PLACES = frozenset(
    {
        *("container", "shared_name", "allowed_devices"),
        *("config", "config_proto", "executor_type"),
    }
)


def graph_digest(concrete: Any) -> str:
    """64 hex digits over the graph of a concrete function: its operations in their order with their
    inputs and attributes, those of the functions that they call, and the values that it captures,
    but for variables. Names are left out: they depend on what else a process has traced."""
    found = hashlib.sha256(_Operations(concrete.graph.as_graph_def()).digits.encode())
    for tensor, _ in concrete.graph.captures:
        if tensor.dtype not in (tf.resource, tf.variant) and hasattr(tensor, "numpy"):
            value = np.ascontiguousarray(tensor.numpy())
            texts = value.dtype == object  # the bytes of these are addresses
            found.update(repr(value.tolist()).encode() if texts else value.tobytes())
    return found.hexdigest()


def program_digest(
    concrete: Any,
    strategy: tf.distribute.Strategy,
    variables: Mapping[str, tf.Variable],
    *more: Any,
) -> str | None:
    """As `graph_digest`, and over the variables: which of them the graph uses for what, and their
    shapes. None where it captures any other resource, such as a table.

    Args:
      variables: all that it may use, by tag.
      more: what else tells programs apart; what repr gives of it.
    """
    tags = {
        id(one.handle): f"{tag} {device}"
        for tag, variable in variables.items()
        for device, one in enumerate(strategy.experimental_local_results(variable))
    }
    used = []
    for tensor, _ in concrete.graph.captures:
        if tensor.dtype in (tf.resource, tf.variant) or not hasattr(tensor, "numpy"):
            used.append(tags.get(id(tensor)))
    if None in used:
        return None
    shapes = [(tag, one.dtype.name, one.shape.as_list()) for tag, one in variables.items()]
    return hashlib.sha256(repr((graph_digest(concrete), used, shapes, more)).encode()).hexdigest()


class _Operations:
    """The digest of a graph's operations."""

    def __init__(self, graph: Any) -> None:
        self._functions = {f.signature.name: f for f in graph.library.function}
        self._known: dict[str, str] = {}
        self.digits = self._nodes(graph.node, [], [])

    def _nodes(self, nodes: Sequence[Any], arguments: list[str], results: list[str]) -> str:
        places = {name: f"argument {i}" for i, name in enumerate(arguments)}
        places |= {node.name: str(i) for i, node in enumerate(nodes)}
        found = hashlib.sha256()
        for node in nodes:
            inputs = [_place(name, places) for name in node.input]
            attributes = [
                (key, self._attribute(node.attr[key]))
                for key in sorted(node.attr)
                if not key.startswith("_") and key not in _OF_PLACES
            ]
            found.update(repr((node.op, inputs, attributes)).encode())
        found.update(repr([_place(name, places) for name in results]).encode())
        return found.hexdigest()

    def _attribute(self, value: Any) -> Any:
        kind = value.WhichOneof("value")
        called = [value.func] if kind == "func" else value.list.func if kind == "list" else []
        if called:
            return [self._function(one.name) for one in called]
        return value.SerializeToString(deterministic=True)

    def _function(self, name: str) -> str:
        if name not in self._known:
            function = self._functions[name]
            arguments = [one.name for one in function.signature.input_arg]
            results = [function.ret[one.name] for one in function.signature.output_arg]
            self._known[name] = self._nodes(function.node_def, arguments, results)
        return self._known[name]


def _place(name: str, places: dict[str, str]) -> str:
    """An input by the place of the operation that makes it, and which of its outputs it is."""
    base, *rest = name.removeprefix("^").split(":")
    return ":".join([places.get(base, "elsewhere"), *rest])
