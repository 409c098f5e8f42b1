"""The columns of the table that say what was trained: fields of configs, parameters of models."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from lab.compare.results import Result
from lab.compare.rows import README_FIELDS, Trial, reads
from lab.errors import LabError
from lab.settings import source


def fields(configs: Sequence[dict[str, Any]], parameters: Sequence[Mapping[str, str]]) -> list[str]:
    """The fields that the table shows: the README's, the model's name, and those that differ; each
    where a model reads it, and the name unless all are perceptrons. Of arguments of models, a
    field model.KEY each."""
    always = {name for name in README_FIELDS if any(reads(c, name) for c in configs)}
    if any(not reads(config, "activation") for config in configs):
        always.add("model")
    names = dict.fromkeys(itertools.chain(README_FIELDS, *configs))
    values = {k: {json.dumps(c.get(k)) for c in configs if reads(c, k)} for k in names}
    found = [k for k in names if k in always or len(values[k]) > 1]
    if "model_arguments" in found:
        place, keys = found.index("model_arguments"), sorted(set().union(*parameters))
        differ = [key for key in keys if len({one.get(key) for one in parameters}) > 1]
        found[place : place + 1] = [f"model.{key}" for key in differ]
    return found


def sort_key(
    config: Mapping[str, Any], parameters: Mapping[str, str], shown: Sequence[str]
) -> list[tuple[Any, ...]]:
    """The sort key of a row: its values of these fields, numbers before texts."""
    told = {**config, **{f"model.{k}": _number(text) for k, text in parameters.items()}}
    values = [told.get(name) if reads(config, name) else None for name in shown]
    return [(0, v, "") if type(v) in (int, float) else (1, 0, str(v)) for v in values]


def parameters(
    configs: Mapping[Trial, Mapping[str, Any]], trials: Mapping[Trial, Mapping[int, Result]]
) -> dict[Trial, dict[str, str]]:
    """Of every trial's model, those that any trial of it was given."""
    names: dict[str, set[str]] = {}
    for config in configs.values():
        names.setdefault(config.get("model", "mlp"), set()).update(_arguments(config))
    usual = {model: _defaults(model) for model, own in names.items() if own}
    found = {}
    for key, config in configs.items():
        model, files = config.get("model", "mlp"), next(iter(trials[key].values())).model_files
        digest, known = usual.get(model, ("", {}))
        told = {**(known if digest == files else {}), **_arguments(config)}
        found[key] = {name: told.get(name, "default") for name in sorted(names[model])}
    return found


def _arguments(config: Mapping[str, Any]) -> dict[str, str]:
    """What a model was given, by parameter."""
    return dict(one.split("=", 1) for one in config.get("model_arguments", ()))


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _defaults(model: str) -> tuple[str, dict[str, str]]:
    """Of a model's parameters, as flags have them; before them the digest of the runs that have
    them. (Of a file that imports its neighbours the runs have another digest, and none is known.)
    """
    try:
        found = source.read("model", model)
    except LabError:
        return "", {}
    digest = source.digest_of({found.path: found.digest}, os.path.dirname(found.path))
    return digest, {one.name: one.shown for one in found.parameters if not one.required}
