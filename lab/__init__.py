"""Everystep: a lab for looking inside a network while it trains."""

import contextlib
import importlib
import sys
from types import ModuleType
from typing import Any

from lab import machine
from lab.terminal import quiet_stderr

machine.enable_onednn()

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
        return getattr(_module(_PLACES[name]), name)
    if name in _MODULES:
        return _module(_MODULES[name])
    raise AttributeError(f"module 'lab' has no attribute {name!r}")


def _module(name: str) -> ModuleType:
    # It may be the first that loads TensorFlow.
    with contextlib.nullcontext() if name in sys.modules else quiet_stderr():
        return importlib.import_module(name)
