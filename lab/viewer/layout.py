"""Where on a page the tensors and scalars of runs are placed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

# The tag of a tensor, and what of it is on record; without the second it is the tensor itself.
_TENSOR = re.compile(
    r"(.*?)(?:/(gradient(?:/(?:replica|part)_\d+)?|update|activations))?", re.DOTALL
)
# What is on record of a tensor as scalars.
_SCALAR = re.compile(
    r"(.+?)/((?:gradient/(?:(?:replica|part)_\d+/|noise/)?|update/)?"
    r"(?:norm|ratio|distance|largest|nonfinite|cosine|variance|signal|scale))",
    re.DOTALL,
)
_USUAL = {"gradient/norm", "update/ratio", "norm"}  # and the scalars of the whole run


def layout(
    histograms: Iterable[str], scalars: Iterable[str], order: Sequence[str], summed: bool
) -> dict[str, Any]:
    """The rows of a page: `tensors`, each with its layer and the tags of what is on record of it,
    in the order of the forward pass; and `strips` of scalars, the same of all tensors in one, each
    with its lines (tag, tensor) and whether it is shown from the start.

    Args:
      order: tags of variables as the forward pass uses them, as far as that is known.
      summed: whether the loss is a sum over the batch, so that it cannot be
        compared with the test loss, which is a mean.
    """
    rows: dict[str, list[str]] = {}
    for tag in histograms:
        rows.setdefault(_TENSOR.fullmatch(tag)[1], []).append(tag)  # type: ignore[index]
    bases, places = list(rows), list(order)

    def place(base: str) -> tuple[int, int]:
        if base in places:
            return places.index(base), bases.index(base)
        layer = [i for i, tag in enumerate(places) if _layer(tag) == _layer(base)]
        return max(layer, default=len(places)), bases.index(base)

    strips: dict[str, list[tuple[str, str]]] = {}
    for tag in scalars:
        match = None if tag in ("gradient/norm",) else _SCALAR.fullmatch(tag)
        base, title = match.groups() if match else (tag, tag.removeprefix("test-"))
        if summed and title == "loss":
            title = {"loss": "loss, summed over the batch", "test-loss": "test-loss, mean"}[base]
        strips.setdefault(title, []).append((tag, base))
    return {
        "tensors": [
            {"base": base, "layer": _layer(base), "tags": sorted(rows[base])}
            for base in sorted(bases, key=place)
        ],
        "strips": [
            {
                "title": title,
                "lines": lines,
                "usual": title in _USUAL or any(tag == name for tag, name in lines),
            }
            for title, lines in strips.items()
        ],
    }


def _layer(base: str) -> str:
    return base.rpartition("/")[0] or base
