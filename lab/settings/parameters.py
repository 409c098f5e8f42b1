"""The parameters of a class or function, read from its source, and their values as strings."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from lab.errors import LabError

# What stands in an annotation -> the kind of a parameter.
_KINDS = {"int": "int", "float": "float", "bool": "bool", "str": "str"}
_KINDS |= {
    f"{container}[int{rest}]": "ints"
    for container in ("tuple", "Tuple", "Sequence", "list", "List")
    for rest in ("", ", ...", ", int", ", int, int")
}
_WORDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "a string",
    "ints": "integers joined by x, as in 8x16",
    "": "not settable: flags take int, float, bool, str or tuple[int, ...], as annotated",
}
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_LIMIT = 2**63


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter that --model.NAME gives.

    Attributes:
      kind: int, float, bool, str, ints (a tuple), or "" for what a flag cannot give.
      default: its value; where that is no literal, as the source has it; None where there is none.
      required: it has no default.
      literal: `default` is a value.
      about: what the docstring says about it under `Args:`.
    """

    name: str
    kind: str
    default: Any = None
    required: bool = False
    literal: bool = True
    about: str = ""

    @property
    def allowed(self) -> str:
        """The values that it takes, in words."""
        none = self.literal and not self.required and self.default is None
        return _WORDS[self.kind] + (", or none" if none else "")

    @property
    def shown(self) -> str:
        """The default as the flag would give it."""
        if self.required:
            return "..."
        return _text(self.default) if self.literal else str(self.default)

    def value(self, text: str) -> Any:
        """The value that a text stands for.

        Raises:
          LabError: it does not fit.
        """
        if text == "none" and self.allowed.endswith("or none"):
            return None
        try:
            return _parse(self.kind, text)
        except (ValueError, KeyError):
            given = " ".join(text.split())
            raise LabError(f"--model.{self.name}={given}: must be {self.allowed}") from None

    def argument(self, text: str) -> str:
        """NAME=VALUE, one text for each value; "" for the default. Raises as `value`."""
        value = self.value(text)
        if self.literal and not self.required and value == self.default:
            return ""
        return f"{self.name}={_text(value)}"


def parameters_of(node: ast.AST | None, names: Mapping[str, ast.AST]) -> tuple[Parameter, ...]:
    """The parameters of a class's constructor or of a function, but for `seed`; none of what is
    neither.

    Args:
      names: what else the file defines; a class may have its constructor from one of its bases.

    Raises:
      LabError: a parameter has no default and no annotation that a flag could be read by.
    """
    function = _function(node, names)
    if function is None:
        return ()
    spec = function.args
    positional = [*spec.posonlyargs, *spec.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(spec.defaults))
    pairs = list(zip(positional, [*defaults, *spec.defaults], strict=True))
    pairs = pairs[function is not node :]  # but for self
    pairs += zip(spec.kwonlyargs, spec.kw_defaults, strict=True)
    found = [_parameter(arg, default) for arg, default in pairs if arg.arg != "seed"]
    for one in found:
        if one.required and not one.kind:
            raise LabError(
                f"its parameter {one.name!r} needs a default, or one of the annotations int, "
                "float, bool, str, tuple[int, ...]"
            )
    about = _told(node) | _told(function)
    return tuple(dataclasses.replace(one, about=about.get(one.name, "")) for one in found)


def _told(node: ast.AST | None) -> dict[str, str]:
    """What a docstring says under `Args:`, by parameter."""
    text = ast.get_docstring(node) if isinstance(node, ast.ClassDef | ast.FunctionDef) else None
    _, _, after = f"\n{text or ''}".partition("\nArgs:\n")
    found: dict[str, str] = {}
    indent, name = "", ""
    for line in after.splitlines():
        if line and not line[0].isspace():
            break
        indent = indent or line[: len(line) - len(line.lstrip())]
        if match := re.match(rf"{indent}(\w+)(?: \(.*?\))?:(?=\s|$)", line):
            name, line = match[1], line[match.end() :]
        if name:
            found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return {name: words.rstrip(".") for name, words in found.items()}


def _function(
    node: ast.AST | None, names: Mapping[str, ast.AST], depth: int = 0
) -> ast.FunctionDef | None:
    """A function itself, or the constructor of a class."""
    if isinstance(node, ast.FunctionDef) and not depth:
        return node
    if not isinstance(node, ast.ClassDef) or depth > 20:
        return None
    for one in reversed(node.body):
        if isinstance(one, ast.FunctionDef) and one.name == "__init__":
            return one
    bases = [names.get(base.id) for base in node.bases if isinstance(base, ast.Name)]
    found = (_function(base, names, depth + 1) for base in bases)
    return next(filter(None, found), None)


def _parameter(arg: ast.arg, default: ast.expr | None) -> Parameter:
    annotation = arg.annotation
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        words = annotation.value
    else:
        words = ast.unparse(annotation) if annotation else ""
    words = re.sub(r"(\w+\.)+(?=\w)|\s*\|\s*None\b|\bNone\s*\|\s*", "", words)
    kind = _KINDS.get(re.sub(r"^Optional\[(.*)\]$", r"\1", words), "")
    if default is None:
        return Parameter(arg.arg, kind, required=True)
    try:
        value = ast.literal_eval(default)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return Parameter(arg.arg, kind, ast.unparse(default), literal=False)
    if isinstance(value, list):
        value = tuple(value)
    if not kind and not annotation:
        kind = _kind(value)
    if kind == "float" and type(value) is int:
        value = float(value)
    return Parameter(arg.arg, kind, value)


def _kind(value: Any) -> str:
    if isinstance(value, tuple):
        return "ints" if value and all(type(one) is int for one in value) else ""
    name = type(value).__name__
    return name if name in _KINDS else ""


def _parse(kind: str, text: str) -> Any:
    """Raises ValueError or KeyError where a text is not a value of that kind."""
    if kind == "str":
        return text
    if kind == "bool":
        return _BOOLEANS[text.lower()]
    if kind == "ints":
        return tuple(_parse("int", part) for part in text.split("x")) if text else ()
    value = {"int": int, "float": float}[kind](text)
    if not abs(value) < (_LIMIT if kind == "int" else 1e300):
        raise ValueError
    return value


def _text(value: Any) -> str:
    """The text that `_parse` makes the value of."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
