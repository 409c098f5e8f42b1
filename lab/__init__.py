"""Everystep: a lab for looking inside a network while it trains."""

import importlib
import sys
from typing import Any

from lab import machine
from lab.terminal import QuietTensorFlow

machine.enable_onednn()
sys.meta_path.insert(0, QuietTensorFlow())

__version__ = "0.1.0"
_RULES = ("Rule", "SGD", "Adam", "RMSProp", "Adagrad", "Adadelta")
__all__ = ["train", "open_run", "probe", "Data", "load", "layers", "models", "LabError", *_RULES]

# Loaded when they are first used.
_PLACES = {
    "train": "lab.training.api",
    "open_run": "lab.training.opened",
    "probe": "lab.kernels.probes",
    "Data": "lab.data",
    "load": "lab.data",
    "LabError": "lab.errors",
    **dict.fromkeys(_RULES, "lab.models.optimizers"),
}
_MODULES = {"layers": "lab.models.layers", "models": "lab.models"}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    raise AttributeError(f"module 'lab' has no attribute {name!r}")
