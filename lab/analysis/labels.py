"""What distinguishes a configuration from the others, in a few words."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Collection, Sequence
from typing import Any

from lab.compare.rows import README_FIELDS
from lab.compare.table import RECORDING_FIELDS
from lab.settings.config import Config, default

DEFAULTS: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(Config())))
_IN_NO_LABEL = RECORDING_FIELDS | {"seed", "deterministic", "on_nonfinite"}


def label(config: dict[str, Any], shown: Collection[str], always: Collection[str] = ()) -> str:
    """`sgd 0.01 128×64`: rule, rate, and what is not the recipe's among the fields `shown`; of
    those in `always` also what is in no label else, and folders in full. Before that a model and
    its arguments."""
    usual = {one.name: default(one, config["model"]) for one in dataclasses.fields(Config)}
    usual = DEFAULTS | {name: usual[name] for name in ("loss", "reduction")}
    unlike = [name for name in shown if config[name] != usual[name]]
    model = config["model"] if "model" in always else os.path.basename(config["model"])
    words = [model] if "model" in unlike else []
    words += config["model_arguments"] if "model_arguments" in unlike else []
    words.append(f"{config['optimizer']} {config['learning_rate']:g}")
    if {"n_hidden_1", "n_hidden_2"} & set(unlike):
        words.append(f"{config['n_hidden_1']}×{config['n_hidden_2']}")
    in_words = {*README_FIELDS, "model", "model_arguments"}
    for name in sorted({*unlike} - in_words - (_IN_NO_LABEL - {*always})):
        value = ",".join(config[name]) if isinstance(config[name], list) else config[name]
        if name in ("data", "loss") and name not in always:
            value = os.path.basename(value.rstrip("/"))
        flags = {True: name, False: f"no{name}"}
        words.append(flags[value] if isinstance(value, bool) else f"{name}={value}")
    return " ".join(words)


def labels_of(configs: list[dict[str, Any]], shown: Collection[str]) -> list[str]:
    """A label for each; those of different configs are distinguished by all that differs."""
    short = [label(config, shown) for config in configs]
    found = []
    for name, config in zip(short, configs, strict=True):
        alike = [other for other, one in zip(configs, short, strict=True) if one == name]
        apart = {k for k in DEFAULTS if k != "seed" and len({str(c[k]) for c in alike}) > 1}
        found.append(label(config, {*shown, *apart}, apart))
    return found


def told_apart(labels: Sequence[str], networks: Sequence[str]) -> list[str]:
    """Labels, with a digest of the network where one label stands for several."""
    alike = [{n for one, n in zip(labels, networks, strict=True) if one == name} for name in labels]
    return [
        f"{name}, network {network[:6]}" if len(found) > 1 else name
        for name, network, found in zip(labels, networks, alike, strict=True)
    ]


def counted(labels: Sequence[str]) -> list[str]:
    """Labels with (2), (3), ... appended to repeated ones."""
    found: list[str] = []
    for name in labels:
        tries = (f"{name} ({k})" if k > 1 else name for k in itertools.count(1))
        found.append(next(one for one in tries if one not in found))
    return found
