"""Networks by hand: layers, losses, optimizers, and the ready-made networks."""

import importlib
from typing import Any

__all__ = ["MLP", "ConvNet", "Transformer"]

# Loaded when they are first used: what names a network needs no TensorFlow.
_PLACES = {
    "MLP": "lab.models.mlp",
    "ConvNet": "lab.models.convnet",
    "Transformer": "lab.models.transformer",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    if name == "layers":
        return importlib.import_module("lab.models.layers")
    raise AttributeError(f"module 'lab.models' has no attribute {name!r}")
