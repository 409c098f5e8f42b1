"""Fields with a type and limits: what flags and files read from a disk are checked against."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from lab.errors import LabError

# FILE.py:NAME, a class, function or value in a user's file.
REFERENCE = re.compile(r"(?P<path>.*\.py):(?P<name>[^\W\d]\w*)", re.DOTALL)


def field(default: Any, help: str, **limits: Any) -> Any:
    """A dataclass field with what flags, --help and the checks need to know about it.

    Limits: `choices`, `least` (inclusive), `below` (exclusive); `file`: besides its choices it
    takes FILE.py:NAME. `single`: the flag takes no list. `flag`: False if there is no flag of that
    name. `of`: the one model that it belongs to. `group`: of --help, which begins with this field.
    `later`: added when runs already existed, whose fingerprints must not change: at its default it
    is in none.
    """
    return dataclasses.field(default=default, metadata={"help": help, **limits})


def choice(help: str, choices: tuple[str, ...], **limits: Any) -> Any:
    """A field that takes one of these texts; the first is the default."""
    return field(choices[0], help, choices=choices, **limits)


class Checked:
    """A dataclass that checks every field against its type and limits when it is made.

    Raises:
      LabError: names flag, value and what is allowed.
    """

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, one.name)
            check(one, value)
            if one.type == "float":  # 1 and 1.0 are one learning rate, and one fingerprint
                object.__setattr__(self, one.name, float(value))


def check(one: dataclasses.Field, value: Any) -> None:
    """Raises LabError, naming flag, value and what is allowed, where `value` does not fit."""
    if not fits(one, value):
        raise refusal(one, value)


def refusal(one: dataclasses.Field, value: Any) -> LabError:
    """The error that names flag, value and what is allowed."""
    given = ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
    return LabError(f"--{one.name}={' '.join(given.split())}: must be {allowed(one)}")


def from_json(kind: type[Checked], values: Any, place: str) -> dict[str, Any]:
    """The fields of `kind` as read from a file; missing ones take their defaults, unknown ones are
    left out.

    Args:
      values: as parsed from JSON.
      place: what stands before a field's name in the error: "result.json: config.".

    Raises:
      LabError: names place, field, value and what is allowed.
    """
    if not isinstance(values, dict):
        raise LabError(f"{place.rstrip('.: ')} is {_short(values)}: must be an object")
    found = {}
    for one in dataclasses.fields(kind):  # type: ignore[arg-type]
        given = values.get(one.name, one.default)
        value = _tuples(given)
        if not fits(one, value):
            raise LabError(f"{place}{one.name} is {_short(given)}: must be {allowed(one)}")
        found[one.name] = float(value) if one.type == "float" else value
    return found


def allowed(one: dataclasses.Field) -> str:
    """The values that a field takes, in words."""
    limits, kind = one.metadata, str(one.type)
    if "choices" in limits:
        names = ", ".join(limits["choices"])
        if "tuple" in kind:
            return f"none or some of {names}, each once"
        return f"one of {names}" + (", or FILE.py:NAME" if limits.get("file") else "")
    words = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "a string"}
    words |= {"tuple": "a list", "dict": "an object"}
    text = words[re.split(r"\W", kind)[0]]
    least, below = limits.get("least"), limits.get("below")
    bounds = [] if least is None else [f"at least {least}"]
    if below is not None:
        bounds.append("below " + {2**31: "2^31", 2**63: "2^63"}.get(below, str(below)))
    if bounds:
        text += f", {' and '.join(bounds)}"
    return f"{text}, or null" if kind.endswith(" | None") else text


def fits(one: dataclasses.Field, value: Any) -> bool:
    """Whether a value has the type of a field and is within its limits."""
    limits = one.metadata
    if not _has_type(str(one.type), value):
        return False
    if "choices" in limits:
        if limits.get("file") and REFERENCE.fullmatch(value):
            return True
        chosen = value if isinstance(value, tuple) else (value,)
        return all(one in limits["choices"] for one in chosen) and len(set(chosen)) == len(chosen)
    if isinstance(value, (int, float)):
        return limits.get("least", value) <= value < limits.get("below", math.inf)
    return True


def _has_type(kind: str, value: Any) -> bool:
    """Whether a value has a type as annotations spell it. An integer counts as a float; infinity
    and NaN do not."""
    if kind.endswith(" | None"):
        return value is None or _has_type(kind.removesuffix(" | None"), value)
    if of := re.fullmatch(r"tuple\[(.*), \.\.\.\]", kind):
        return isinstance(value, tuple) and all(_has_type(of[1], v) for v in value)
    if of := re.fullmatch(r"dict\[str, (.*)\]", kind):
        return isinstance(value, Mapping) and all(_has_type(of[1], v) for v in value.values())
    if kind == "float":
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and abs(value) < 1e300
    return type(value) is {"int": int, "bool": bool, "str": str}[kind]


def _tuples(value: Any) -> Any:
    """A JSON value with tuples for lists."""
    if isinstance(value, dict):
        return {name: _tuples(inner) for name, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
