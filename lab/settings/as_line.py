"""A config as a line of bin/train, from which `command_line` reads the same config again."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any

from lab.errors import LabError
from lab.settings import source
from lab.settings.config import Config, own_fields


def as_line(config: Mapping[str, Any], **changed: Any) -> str:
    """bin/train with the flags of a config that differ from the defaults of its model.

    Args:
      config: by field, as config.json has it; what it lacks is left at its default.
      changed: flags in place of the config's, `model.KEY` among them, which end the line whatever
        the defaults are; None stands for the default.
    """
    try:
        usual = source.read("model", config.get("model", Config.model)).defaults
    except LabError:  # the file is not here: its RECIPE is unknown, so all flags are given
        usual = {}
    usual["model"] = Config.model
    own = own_fields(config)
    flags: dict[str, Any] = {}
    for name in (one.name for one in dataclasses.fields(Config)):
        if name == "model_arguments":
            flags |= dict(f"model.{text}".split("=", 1) for text in own.get(name, ()))
        elif name in own and (name not in usual or _text(own[name]) != _text(usual[name])):
            flags[name] = own[name]
    kept = {name: value for name, value in flags.items() if name not in changed}
    told = {name: value for name, value in (kept | changed).items() if value is not None}
    return " ".join(["bin/train", *(_word(name, value) for name, value in told.items())])


def _word(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    return f"--{name}={shlex.quote(_text(value))}"


def _text(value: Any) -> str:
    """As a flag has it; JSON makes lists of tuples."""
    return ",".join(value) if isinstance(value, list | tuple) else str(value)
