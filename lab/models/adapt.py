"""Any model -> a network that the training step can call: variables by tag, one way to call it.

A model is a callable with `trainable_variables`: a tf.Module, a Keras model, or an object of one's
own.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from lab.errors import LabError
from lab.kernels import xla

_PASSED = ("training", "seed", "step")


class Network:
    """A model as the step sees it.

    Args:
      model: a callable with `trainable_variables`.

    Attributes:
      variables: the trainable variables by tag, each once; those of integers are none.
      state: the other variables by tag, such as the moving averages of BatchNorm. The model assigns
        them in its call.
      holders: of those of the trainable variables that Keras made, its own objects, by tag.
      layers: the layers and models of Keras's that the model holds, without those within.

    Raises:
      LabError: it is not such a callable, has nothing to train, or holds strings.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        if not callable(model) or not hasattr(model, "trainable_variables"):
            raise LabError(
                f"the model is {type(model).__name__}: must be a callable with trainable_variables,"
                " such as a tf.Module or a Keras model, or a function that makes one"
            )
        if callable(model.trainable_variables):
            raise LabError(
                f"{type(model).__name__}.trainable_variables is a method: must be a list, or a "
                "property"
            )
        self._passed = _accepted(model)
        found = list(_walk(model, (), set()))
        reached = [(path, one) for path, one in found if hasattr(one, "assign")]
        trainable, rest = _sorted(model, [variable for _, variable in reached])
        named = _named([*trainable, *rest], _tags(reached))
        for tag, variable in named.items():
            if not (
                variable.dtype.is_floating or variable.dtype.is_integer or variable.dtype.is_bool
            ):
                raise LabError(f"the variable {tag} is {variable.dtype.name}: must hold numbers")
        self.variables = dict(itertools.islice(named.items(), len(trainable)))
        self.state = dict(itertools.islice(named.items(), len(trainable), None))
        if not self.variables:
            raise LabError(f"{type(model).__name__} has no trainable variables: nothing to train")
        owners = [*model.trainable_variables, *(variable for _, variable in reached)]
        of_keras = {id(one._value): one for one in owners if hasattr(one, "_value")}
        tags = {tag: id(variable) for tag, variable in self.variables.items()}
        self.holders = {t: of_keras[own] for t, own in tags.items() if own in of_keras}
        self.layers = [one for _, one in found if hasattr(one, "stateless_call")]

    def __call__(self, x: Any, training: bool, seed: tf.Tensor, step: tf.Tensor) -> Any:
        """The model's output. `training`, `seed` and `step` are passed if the model accepts them.

        Args:
          seed: int64 [2], another one for each step and replica; for stateless random operations.
          step: number of the step, from 1, int64 scalar.
        """
        xla.note_own_graph()
        return self.model(x, **self._arguments(training, seed, step))

    @property
    def has_activations(self) -> bool:
        """Whether the model returns the outputs of its layers from a method `activations`."""
        return hasattr(self.model, "activations")

    def activations(
        self, x: Any, training: bool, seed: tf.Tensor, step: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """The output of each layer by name, the model's output last; arguments as for a call.

        Raises:
          LabError: the method does not accept what the model's call accepts: it would train another
            network.
        """
        accepted = inspect.signature(self.model.activations).parameters
        for name in self._passed:
            if name not in accepted:
                raise LabError(
                    f"{type(self.model).__name__}.activations must accept {name}, as its call does"
                )
        xla.note_own_graph()
        return self.model.activations(x, **self._arguments(training, seed, step))

    def _arguments(self, *values: Any) -> dict[str, Any]:
        """Of the values of `_PASSED`, those that the model's call accepts."""
        given = dict(zip(_PASSED, values, strict=True))
        return {name: given[name] for name in self._passed}


def _accepted(model: Any) -> tuple[str, ...]:
    """The keyword arguments among `training`, `seed` and `step` that the model's call accepts."""
    call = getattr(model, "call", None) or model  # Keras's __call__ takes anything
    if hasattr(model, "stateless_call"):  # a Keras model hands `training` to its layers itself
        return ("training",)
    try:
        parameters = inspect.signature(call).parameters
    except (TypeError, ValueError):
        return ()
    return tuple(name for name in _PASSED if name in parameters)


def _sorted(model: Any, reached: list[Any]) -> tuple[list[tf.Variable], list[tf.Variable]]:
    """The variables of a model, those that are trained and the others, each once.

    Args:
      reached: what its attributes lead to: a tf.Module does not list those of a Keras layer, and a
        class of the user's may list only what is trained.
    """
    listed = list(model.trainable_variables)
    if isinstance(model, tf.Module):
        listed += [v for v in reached if hasattr(v, "_value") and v.trainable]
    trainable = [v for v in _distinct(listed) if v.dtype.is_floating]
    known = {id(variable) for variable in trainable}
    others = getattr(model, "variables", getattr(model, "non_trainable_variables", ()))
    if callable(others):
        others = ()
    rest = _distinct([*listed, *others, *reached])
    return trainable, [v for v in rest if id(v) not in known]


def _distinct(variables: Iterable[Any]) -> list[tf.Variable]:
    """The tf.Variables of some, each once: a Keras variable holds one as `value`."""
    found: dict[int, tf.Variable] = {}
    for variable in variables:
        plain = getattr(variable, "_value", variable)
        found.setdefault(id(plain), plain)
    return list(found.values())


def _named(variables: Sequence[tf.Variable], tags: dict[int, str]) -> dict[str, tf.Variable]:
    """The variables by tag: by name where no attribute leads to one; numbered if used again."""
    named: dict[str, tf.Variable] = {}
    for variable in variables:
        name = tags.get(id(variable)) or variable.name.split(":")[0]
        options = (f"{name}_{number}" if number else name for number in itertools.count())
        named[next(tag for tag in options if tag not in named)] = variable
    return named


def _tags(reached: Iterable[tuple[str, Any]]) -> dict[int, str]:
    """The tags of variables by id: Keras's path without the model's own name, and otherwise the
    path of attributes from the model, such as `blocks/0/attention/query/weights`."""
    found: dict[int, str] = {}
    for path, value in reached:
        plain = getattr(value, "_value", value)
        found.setdefault(id(plain), path)
    return found


def _walk(value: Any, path: tuple[str, ...], above: set[int]) -> Iterator[tuple[str, Any]]:
    """Every variable below a value with its path, in the order in which they were set; and the
    outermost layers and models of Keras's, each before its variables."""
    if hasattr(value, "path") and hasattr(value, "trainable") and hasattr(value, "assign"):
        yield "/".join((*path[:-1], value.path) if path else (value.path,)), value
        return
    if isinstance(value, tf.Variable):
        yield "/".join(path), value
        return
    if id(value) in above:
        return
    above = above | {id(value)}
    if hasattr(value, "stateless_call"):  # a Keras model or layer: its variables know their paths
        yield "/".join(path), value
        renamed = _keras_names(value)
        for variable in value.variables:
            inner = variable.path.removeprefix(f"{value.name}/").split("/")
            yield "/".join((*path, *(renamed.get(name, name) for name in inner))), variable
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _walk(inner, (*path, str(key)), above)
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from _walk(inner, (*path, str(number)), above)
    elif not path or isinstance(value, tf.Module) or hasattr(value, "trainable_variables"):
        for name, inner in getattr(value, "__dict__", {}).items():
            if not name.startswith("_self_") and not name.endswith("_variables"):
                yield from _walk(inner, (*path, name.lstrip("_")), above)


def _keras_names(model: Any) -> dict[str, str]:
    """Keras counts the layers of a process: the first model's are dense, dense_1, the next one's
    dense_2, dense_3. By name, what each would be in a new process."""
    kinds = {"seed_generator"}
    for layer in getattr(model, "_flatten_layers", list)():
        kinds.add(_snake_case(type(layer).__name__))
    numbered: dict[str, set[int]] = {}
    for variable in model.variables:
        for name in variable.path.split("/"):
            base, _, number = name.rpartition("_")
            if name in kinds:
                numbered.setdefault(name, set()).add(0)
            elif base in kinds and number.isdecimal():
                numbered.setdefault(base, set()).add(int(number))
    return {
        (f"{base}_{number}" if number else base): (f"{base}_{place}" if place else base)
        for base, numbers in numbered.items()
        for place, number in enumerate(sorted(numbers))
    }


def _snake_case(name: str) -> str:
    """The name that Keras gives to the layers of a class."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
