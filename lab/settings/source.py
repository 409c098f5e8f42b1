"""Models, losses and data in user files: what the files say, read without running them.

A reference is FILE.py:NAME; a ready-made model has its name alone. The file is parsed by `ast`, so
that a wrong flag ends a program at once, whatever the file would import.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import hashlib
import itertools
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lab.errors import LabError
from lab.settings.config import READY_MADE, Config, default
from lab.settings.fields import REFERENCE, from_json
from lab.settings.parameters import Parameter, parameters_of

_MODELS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "models")
_CLASSES = dict(zip(READY_MADE, ("MLP", "ConvNet", "Transformer"), strict=True))
# Fields that a RECIPE does not decide.
_NOT_OF_A_RECIPE = {"model", "model_arguments", "seed"}


@dataclasses.dataclass(frozen=True)
class Source:
    """What a reference refers to.

    Attributes:
      text: the reference, as it was given.
      path: of the file, absolute.
      name: of the class, function or value in it.
      digest: sha256 of the file.
      parameters: of a model's constructor or function, but for `seed`, which --seed gives.
      recipe: fields of Config, the defaults of the model's runs: the file's RECIPE.
    """

    text: str
    path: str
    name: str
    digest: str
    parameters: tuple[Parameter, ...] = ()
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def defaults(self) -> dict[str, Any]:
        """Config's fields in a run of this model, unless something else is said of them."""
        fields = dataclasses.fields(Config)
        return {one.name: default(one, self.text) for one in fields} | {
            **self.recipe,
            "model": self.text,
        }

    def choices(self, texts: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
        """Every value for `Config.model_arguments`.

        Args:
          texts: what was given, by parameter: one value, or several separated by commas.

        Raises:
          LabError: there is no such parameter, a value does not fit, or one is missing.
        """
        known = {one.name: one for one in self.parameters}
        for name in texts:
            if name not in known:
                raise LabError(f"--model.{_line(name)}: {self._unknown(name)}")
        for one in self.parameters:
            if one.required and one.name not in texts:
                raise LabError(
                    f"--model={_line(self.text)} needs --model.{one.name}: {one.allowed}"
                )
        choices = [
            [known[name].argument(text) for text in texts[name].split(",")]
            for name in known
            if name in texts
        ]
        found = (tuple(filter(None, some)) for some in itertools.product(*choices))
        return tuple(dict.fromkeys(tuple(sorted(some, key=_key)) for some in found))

    def _unknown(self, name: str) -> str:
        if name == "seed":
            return "it is set by --seed"
        if self.text == "mlp":
            own = (one.name for one in dataclasses.fields(Config) if one.metadata.get("of"))
            return f"mlp has {', '.join(f'--{flag}' for flag in own)}"
        names = [one.name for one in self.parameters]
        if guess := difflib.get_close_matches(name, names, 1):
            return f"did you mean --model.{guess[0]}?"
        has = ", ".join(f"--model.{one}" for one in names) or "no parameters"
        return f"{_line(self.text)} has {has}"


def read(flag: str, reference: str) -> Source:
    """What `reference` refers to, given by --FLAG: for `model` with parameters and recipe.

    Raises:
      LabError: there is no such file, it is not Python, or has no such name; or a parameter or the
        RECIPE of a model cannot be understood.
    """
    match = REFERENCE.fullmatch(reference)
    if flag == "model" and reference in READY_MADE:
        path, name = os.path.join(_MODELS, f"{reference}.py"), _CLASSES[reference]
    elif match:
        path, name = match["path"], match["name"]
    else:
        raise LabError(f"--{flag}={_line(reference)}: must be FILE.py:NAME")
    try:
        return _read(flag, reference, path, name)
    except LabError as error:
        raise LabError(f"--{flag}={_line(reference)}: {_line(str(error))}") from None


def digest_of(files: Mapping[str, str], folder: str) -> str:
    """sha256 over the digests of files, given by path, and their places below a folder."""
    places = sorted((os.path.relpath(path, folder), digest) for path, digest in files.items())
    return hashlib.sha256(json.dumps(places).encode()).hexdigest()


def defaults(model: str) -> dict[str, Any]:
    """`Source.defaults` of a model; where its file cannot be read, without its recipe."""
    try:
        return read("model", model).defaults
    except LabError:
        return {one.name: default(one, model) for one in dataclasses.fields(Config)}


def arguments(config: Config) -> dict[str, Any]:
    """What a config gives the constructor of its model, by parameter, but for the seed.

    Raises:
      LabError: as `read`, or the file's parameters have changed.
    """
    if not config.model_arguments:
        return {}
    source = read("model", config.model)
    texts = dict(argument.split("=", 1) for argument in config.model_arguments)
    known = {one.name: one for one in source.parameters}
    if gone := texts.keys() - known.keys():
        raise LabError(f"--model.{min(gone)}: {source._unknown(min(gone))}")
    return {name: known[name].value(text) for name, text in texts.items()}


def _read(flag: str, reference: str, path: str, name: str) -> Source:
    try:
        with open(path, "rb") as file:
            content = file.read()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise LabError(f"{path} cannot be read: {why}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(content)
    except SyntaxError as error:
        raise LabError(f"{path}, line {error.lineno}: not Python: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise LabError(f"{path} is not Python: {error}") from None
    found = dict(_names(tree.body))
    if name not in found and "*" not in found:
        there = [one for one, node in found.items() if isinstance(node, _DEFINITIONS)]
        has = ", ".join(one for one in there if not one.startswith("_")) or "no class or function"
        raise LabError(f"{path} has no {name}: it has {has}")
    source = Source(reference, os.path.abspath(path), name, hashlib.sha256(content).hexdigest())
    if flag != "model" or reference == "mlp":  # whose parameters are fields of Config
        return source
    parameters = parameters_of(found.get(name), found)
    return dataclasses.replace(
        source, parameters=parameters, recipe=_recipe(found.get("RECIPE"), path)
    )


_DEFINITIONS = (ast.ClassDef, ast.FunctionDef)


def _names(body: Sequence[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """What a module defines, assigns or imports, and where; "*" stands for names that are not
    known."""
    for node in body:
        if isinstance(node, _DEFINITIONS):
            yield node.name, node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in (one for whole in targets for one in ast.walk(whole)):
                if isinstance(target, ast.Name):
                    yield target.id, node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name.partition(".")[0], node
        else:  # if, try, with, for
            for part in ("body", "orelse", "finalbody"):
                yield from _names(getattr(node, part, []))
            for handler in getattr(node, "handlers", []):
                yield from _names(handler.body)


def _recipe(node: ast.stmt | None, path: str) -> dict[str, Any]:
    """RECIPE = {...}, checked like flags."""
    if node is None:
        return {}
    place = f"{path}, line {node.lineno}: RECIPE"
    try:
        given = ast.literal_eval(getattr(node, "value", None) or "")
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        given = None
    if not isinstance(given, dict):
        raise LabError(f"{place} must be a dict of literals")
    fields = {one.name for one in dataclasses.fields(Config) if not one.metadata.get("of")}
    for name in given:
        if name not in fields - _NOT_OF_A_RECIPE:
            guess = difflib.get_close_matches(str(name), fields - _NOT_OF_A_RECIPE, 1)
            hint = f": did you mean {guess[0]!r}?" if guess else ""
            raise LabError(f"{place} cannot set {name!r}{hint}")
    checked = from_json(Config, given, f"{place}: ")
    return {name: _beside(path, name, checked[name]) for name in given}


def _beside(path: str, name: str, value: Any) -> Any:
    """A file that a RECIPE names is looked up next to it."""
    file = name == "loss" and REFERENCE.fullmatch(value)
    if file or (name == "data" and value != "mnist"):
        return os.path.join(os.path.dirname(path), value)
    return value


def _key(argument: str) -> str:
    return argument.partition("=")[0]


def _line(text: str) -> str:
    return " ".join(text.split())
