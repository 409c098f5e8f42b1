"""A model traced once, without running it: what it returns, and what it is made of."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from lab.errors import LabError
from lab.kernels.probes import collected
from lab.step.digest import graph_digest
from lab.step.replica import Training

# XLA's own versions of these are several times slower on a CPU, in a loop ten times, and those of
# pooling do not repeat.
SLOW_UNDER_XLA = frozenset(
    {
        *("Conv2D", "Conv3D", "DepthwiseConv2dNative", "_FusedConv2D"),
        *("Conv2DBackpropInput", "Conv3DBackpropInputV2"),
        *("MaxPool", "MaxPoolV2", "MaxPool3D", "AvgPool", "AvgPool3D"),
    }
)

# And these on a GPU, where their gradients must add up in a fixed order.
SLOW_ON_A_GPU = SLOW_UNDER_XLA | {"GatherV2", "GatherNd", "ResourceGather", "ResourceGatherNd"}


@dataclasses.dataclass(frozen=True)
class Traced:
    """What a model computes from a batch, as far as it is known without running it.

    Attributes:
      output, loss: tf.TensorSpec of the model's output and of the loss.
      metrics, activations, probes: tf.TensorSpec by name.
      operations: the types of the operations of the forward pass and the loss.
      forward: those without the loss's.
      order: the tags of the variables in the order in which the model first uses them.
      strays: names of variables that the model uses and that are neither its variables nor state.
      digest: 64 hex digits; equal for the same operations on the same shapes and constants.
    """

    output: tf.TensorSpec
    loss: tf.TensorSpec
    metrics: dict[str, tf.TensorSpec]
    activations: dict[str, tf.TensorSpec]
    probes: dict[str, tf.TensorSpec]
    operations: frozenset[str]
    forward: frozenset[str]
    order: tuple[str, ...]
    strays: tuple[str, ...]
    digest: str


def trace(
    strategy: tf.distribute.Strategy,
    training: Training,
    x: tf.TensorSpec,
    y: tf.TensorSpec,
    activations: bool = False,
) -> Traced:
    """Traces a model in training on a batch of x and y. Errors of the model propagate.

    Raises:
      LabError: a probe is inside a function or a loop of the model itself.
    """

    of_loss: set[str] = set()

    def call(x: tf.Tensor, y: tf.Tensor) -> dict[str, Any]:
        number = tf.constant(1, tf.int64)
        inputs = training.prepare(x)
        with collected() as probes:
            output = training.model(inputs, True, tf.zeros([2], tf.int64), number)
        _check_reachable(probes)
        arguments = inputs, True, tf.zeros([2], tf.int64), number
        layers = training.model.activations(*arguments) if activations else {}
        metrics = {name: metric(y, output) for name, metric in training.metrics.items()}
        graph = tf.compat.v1.get_default_graph()
        first = len(graph.get_operations())
        loss = training.loss(y, output)
        of_loss.update(operation.name for operation in graph.get_operations()[first:])
        return {"output": output, "loss": loss, "metrics": metrics} | {
            "activations": layers,
            "probes": probes,
        }

    def on_one(x: tf.Tensor, y: tf.Tensor) -> dict[str, Any]:
        found = strategy.run(call, (x, y))
        return tf.nest.map_structure(
            lambda value: strategy.experimental_local_results(value)[0], found
        )

    concrete = tf.function(on_one, autograph=False).get_concrete_function(x, y)
    graph = concrete.graph.as_graph_def()
    inner = frozenset(node.op for f in graph.library.function for node in f.node_def)
    specs = {
        name: tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), part)
        for name, part in concrete.structured_outputs.items()
    }
    own = {**training.variables, **training.model.state}
    known = {
        id(one.handle): tag
        for tag, variable in own.items()
        for one in strategy.experimental_local_results(variable)
    }
    captured = [id(tensor) for tensor, _ in concrete.graph.captures]  # as they were first used
    order = dict.fromkeys(known[one] for one in captured if one in known)
    return Traced(
        **specs,
        operations=inner | {node.op for node in graph.node},
        forward=inner | {node.op for node in graph.node if node.name not in of_loss},
        order=tuple(tag for tag in order if tag in training.variables),
        strays=tuple(v.name for v in concrete.graph.variables if id(v.handle) not in known),
        digest=graph_digest(concrete),
    )


def _check_reachable(probes: dict[str, tf.Tensor]) -> None:
    graph = tf.compat.v1.get_default_graph()
    for name, tensor in probes.items():
        if tf.is_symbolic_tensor(tensor) and tensor.graph is not graph:
            raise LabError(
                f"lab.probe({name!r}, ...) is called inside a tf.function, tf.cond or "
                "tf.while_loop of the model: call it outside, on the result"
            )
